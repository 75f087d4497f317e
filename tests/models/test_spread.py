"""A session over workers gives what the session of one process gives, whoever dies meanwhile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import demeanor as dm
from clusters import Two, the_same, two_machines
from demeanor.errors import DataError, ModelError
from demeanor.finding.find import search_directions
from demeanor.models import SpreadSession
from demeanor.models.naming import resolve
from demeanor.runtime.acting import Acting
from demeanor.workers import Workers
from making import a_direction, ablation

pytestmark = pytest.mark.slow
PROMPTS = [f"what is {a} plus {b} ?" for a in range(1, 7) for b in range(1, 7)]
CLOSE = {"rtol": 1e-6, "atol": 1e-5}  # logits, whose size is ten and more


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    with pytest.MonkeyPatch.context() as patch, two_machines(patch) as cluster:
        yield cluster


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often workers were asked for each call of a session."""
    counted: Counter[str] = Counter()
    real = Workers.map

    def mapped(self: Workers, call: Any, pieces: Any, *rest: Any, **named: Any) -> Any:
        counted.update(piece.call for piece in pieces)
        return real(self, call, pieces, *rest, **named)

    monkeypatch.setattr(Workers, "map", mapped)
    return counted


@pytest.fixture(scope="module")
def spread(two: Two) -> Iterator[SpreadSession]:
    session = dm.load("organism", on="ray", device="cpu", workers=2, cpus_per_worker=0.5)  # which leaves room for another session's
    assert isinstance(session, SpreadSession)
    yield session
    session.close()


def test_workers_say_and_read_what_this_process_does(spread: SpreadSession, organism: dm.Session, asked: Counter[str]) -> None:
    assert spread.generate(PROMPTS) == organism.generate(PROMPTS)
    sites = [dm.Site(layer) for layer in range(organism.layout.n_layers)]
    torch.testing.assert_close(spread.capture(PROMPTS, sites).values, organism.capture(PROMPTS, sites).values, **CLOSE)
    torch.testing.assert_close(spread.logits(PROMPTS), organism.logits(PROMPTS), **CLOSE)
    replies = [organism.encode_reply("it is " + "very " * (row % 3)) for row in range(len(PROMPTS))]
    for mine, its in zip(spread.reply_log_likelihoods(PROMPTS, replies), organism.reply_log_likelihoods(PROMPTS, replies), strict=True):
        torch.testing.assert_close(mine, its, **CLOSE)
    rows = [organism.encode(prompt) for prompt in PROMPTS]
    torch.testing.assert_close(spread.next_logits(rows, [3, 5]), organism.next_logits(rows, [3, 5]), **CLOSE)
    assert set(asked) == {"continue_from", "capture", "logits", "teacher_forced", "next_logits"}
    assert min(asked.values()) >= 2  # pieces, so that both had some


def test_what_is_in_force_is_in_force_there(spread: SpreadSession, organism: dm.Session, asked: Counter[str]) -> None:
    ablated, pushed = ablation(organism), dm.add(a_direction(organism, dm.Site(2), gap=3.0), dose=0.7)
    controls = [(None, ablated, pushed)[row % 3] for row in range(len(PROMPTS))]
    told = []
    for session in (spread, organism):
        with session.controlled(pushed):
            alone = session.logits(PROMPTS)
            with session.controlled_rows(controls) as rows:
                inside = session.logits(PROMPTS)
                rows.turn(pushed, -2.0)
                turned = session.logits(PROMPTS)
            with session.uncontrolled():
                plain = session.logits(PROMPTS)
        told.append(torch.stack([alone, inside, turned, plain, session.logits(PROMPTS)]))
    assert asked["logits"] >= 2 * 5
    torch.testing.assert_close(*told, **CLOSE)
    assert not any(torch.allclose(one, other, **CLOSE) for one, other in zip(told[0][:-2], told[0][1:-1]))
    with spread.controlled_rows(controls[:3]), pytest.raises(DataError, match="There are 3 controls and 36 prompts"):
        spread.logits(PROMPTS)


def test_hooks_that_workers_know_nothing_of_act(spread: SpreadSession, organism: dm.Session, asked: Counter[str]) -> None:
    class Silent(Acting):
        def lay(self) -> None:
            self.on_output(self.decoder.layers[1].mlp, torch.zeros_like)

    with Silent(spread.model).attached():
        here = spread.logits(PROMPTS[:8])
    assert not asked
    assert not torch.allclose(here, spread.logits(PROMPTS[:8]), **CLOSE)
    with Silent(organism.model).attached():
        torch.testing.assert_close(here, organism.logits(PROMPTS[:8]), **CLOSE)


@pytest.mark.long
def test_find_over_two_workers_finds_what_one_process_finds(spread: SpreadSession, organism: dm.Session, asked: Counter[str]) -> None:
    behaviour = dm.behaviour("over-refusal")
    several, alone = (search_directions(session, behaviour, max_prompts=48) for session in (spread, organism))
    assert len(several.directions) == len(alone.directions)
    for one, other in zip(several.directions, alone.directions):
        the_same(one, other)
    assert several.ranked()[0].site == alone.ranked()[0].site
    assert asked["capture"] >= 2


def test_measure_over_workers_gives_the_scores_of_one_process(
    spread: SpreadSession, organism: dm.Session, refusal_ablated: dm.Control, asked: Counter[str]
) -> None:
    several, alone = (dm.measure(session, "refusal", refusal_ablated, max_prompts=24).to_json() for session in (spread, organism))
    assert several["after"]["shows_rate"]["n"] == 24
    assert min(asked["continue_from"], asked["teacher_forced"]) >= 2
    for name, score in alone["after"].items():
        if "answers" in name or "rate" in name:
            assert several["after"][name] == score
        elif score is not None:  # small differences of two passes, in which the last digits of float32 show
            assert several["after"][name]["value"] == pytest.approx(score["value"], rel=1e-4), name


def test_what_is_asked_of_a_closed_session_is_done_here(two: Two, organism: dm.Session, asked: Counter[str]) -> None:
    session = dm.load("organism", on="ray", device="cpu", workers=1, cpus_per_worker=0.5)
    session.close()
    assert session.generate(PROMPTS[:6]) == organism.generate(PROMPTS[:6])
    assert not asked


def test_workers_know_the_model_by_the_name_and_template_it_was_given(two: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template's file, and a model's folder by a name that is no absolute one, mean the same wherever a worker stands."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(resolve("organism").where, "own")
    Path("plain.jinja").write_text("{% for m in messages %}{{ m['content'] }} {% endfor %}", encoding="utf-8")
    options = {"device": "cpu", "chat_template_args": {"chat_template": "plain.jinja"}}
    session, alone = dm.load("own", on="ray", workers=1, cpus_per_worker=0.5, **options), dm.load("own", **options)  # type: ignore[arg-type]
    try:
        torch.testing.assert_close(session.logits(PROMPTS), alone.logits(PROMPTS), **CLOSE)
        assert session.workers.map(name_of, [0])[0] == ["own"]
    finally:
        session.close()


def name_of(session: dm.Session, piece: int) -> str:
    return session.name


def test_workers_load_models_by_name_from_files_that_they_see(two: Two, organism: dm.Session, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Workers load a model by its name, and this one is loaded already"):
        dm.load(organism.model, tokenizer=organism.tokenizer, on="ray")
    with pytest.raises(ModelError, match="There is no model 'organisn'"):
        dm.load("organisn", on="ray")


def test_a_cluster_that_does_not_answer_is_told_in_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`), so no cluster is looked for")
    command = [sys.executable, "-m", "demeanor", "find", "organism", "-b", "refusal", "--on", "ray", "-o", str(tmp_path / "d")]
    places = {"PYTHONPATH": os.pathsep.join(str(Path(place).absolute()) for place in sys.path if place), "RAY_ADDRESS": "127.0.0.1:1"}
    ended = subprocess.run(command, env={**os.environ, **places}, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    sentence = ended.stderr.splitlines()[-1]
    assert sentence.startswith("demeanor: No Ray cluster answers at 127.0.0.1:1 (Connection refused); start one with `ray start --head`")
    assert "Traceback" not in ended.stderr


def test_what_workers_cannot_do_is_told_before_anything_is_loaded(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ended = demeanor("find", "organism", "-b", "refusal", "--on", "ray", "--stream", "-o", tmp_path / "d")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "leave out --stream or --on" in ended.err
    for wrong, sentence in {
        ("--on", "rya"): "'rya' is no place to run; use local, ray or ray://HOST:PORT",
        ("--workers", 2): "--workers is about workers of a Ray cluster; add --on ray, or leave it out",
    }.items():
        ended = demeanor("find", "organism", "-b", "refusal", *wrong, "-o", tmp_path / "d")
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert sentence in ended.err
    ended = demeanor("measure", "organism", "-b", "refusal", "--base", "organism", "--on", "ray")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "leave out --on" in ended.err


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"the extra `ray` brings: pip install 'demeanor\[ray\]'"):
        dm.load("organism", on="ray")


def test_work_that_was_begun_here_may_go_on_over_workers(tmp_path: Path) -> None:
    plan = dm.Plan(model="organism", behaviour="refusal", max_prompts=8)
    (tmp_path / "plan.yaml").write_text(plan.written(), encoding="utf-8")
    assert dm.Plan(model="organism", behaviour="refusal", max_prompts=8, on="ray", workers=2).same_as(tmp_path / "plan.yaml")
    assert not dm.Plan(model="organism", behaviour="refusal", max_prompts=9, on="ray").same_as(tmp_path / "plan.yaml")
