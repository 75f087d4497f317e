"""A session over workers gives what the session of one process gives, whoever dies meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import demeanor as dm
from clusters import Two, the_same, two_machines
from demeanor.errors import DataError, ModelError
from demeanor.finding.find import search_directions
from demeanor.models import SpreadSession
from demeanor.runtime.acting import Acting
from making import a_direction, ablation

pytestmark = pytest.mark.slow
PROMPTS = [f"what is {a} plus {b} ?" for a in range(1, 7) for b in range(1, 7)]
CLOSE = {"rtol": 1e-6, "atol": 1e-5}  # logits, whose size is ten and more


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    with pytest.MonkeyPatch.context() as patch, two_machines(patch) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def spread(two: Two) -> Iterator[SpreadSession]:
    session = dm.load("organism", on="ray", device="cpu")
    assert isinstance(session, SpreadSession)
    yield session
    session.close()


def test_workers_say_and_read_what_this_process_does(spread: SpreadSession, organism: dm.Session) -> None:
    assert spread.generate(PROMPTS) == organism.generate(PROMPTS)
    sites = [dm.Site(layer) for layer in range(organism.layout.n_layers)]
    torch.testing.assert_close(spread.capture(PROMPTS, sites).values, organism.capture(PROMPTS, sites).values, **CLOSE)
    torch.testing.assert_close(spread.logits(PROMPTS), organism.logits(PROMPTS), **CLOSE)
    replies = [organism.encode_reply("it is " + "very " * (row % 3)) for row in range(len(PROMPTS))]
    for mine, its in zip(spread.reply_log_likelihoods(PROMPTS, replies), organism.reply_log_likelihoods(PROMPTS, replies), strict=True):
        torch.testing.assert_close(mine, its, **CLOSE)
    rows = [organism.encode(prompt) for prompt in PROMPTS]
    torch.testing.assert_close(spread.next_logits(rows, [3, 5]), organism.next_logits(rows, [3, 5]), **CLOSE)


def test_what_is_in_force_is_in_force_there(spread: SpreadSession, organism: dm.Session) -> None:
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
    torch.testing.assert_close(*told, **CLOSE)
    assert not any(torch.allclose(one, other, **CLOSE) for one, other in zip(told[0][:-2], told[0][1:-1]))
    with spread.controlled_rows(controls[:3]), pytest.raises(DataError, match="There are 3 controls and 36 prompts"):
        spread.logits(PROMPTS)


def test_hooks_that_workers_know_nothing_of_act(spread: SpreadSession, organism: dm.Session) -> None:
    class Silent(Acting):
        def lay(self) -> None:
            self.on_output(self.decoder.layers[1].mlp, torch.zeros_like)

    with Silent(spread.model).attached():
        here = spread.logits(PROMPTS[:8])
    assert not torch.allclose(here, spread.logits(PROMPTS[:8]), **CLOSE)
    with Silent(organism.model).attached():
        torch.testing.assert_close(here, organism.logits(PROMPTS[:8]), **CLOSE)


@pytest.mark.long
def test_find_over_two_workers_finds_what_one_process_finds(spread: SpreadSession, organism: dm.Session) -> None:
    behaviour = dm.behaviour("over-refusal")
    several, alone = (search_directions(session, behaviour, max_prompts=48) for session in (spread, organism))
    assert len(several.directions) == len(alone.directions)
    for one, other in zip(several.directions, alone.directions):
        the_same(one, other)
    assert several.ranked()[0].site == alone.ranked()[0].site


def test_measure_over_workers_gives_the_scores_of_one_process(spread: SpreadSession, organism: dm.Session, refusal_ablated: dm.Control) -> None:
    several, alone = (dm.measure(session, "refusal", refusal_ablated, max_prompts=24).to_json() for session in (spread, organism))
    assert several["after"]["shows_rate"]["n"] == 24
    for name, score in alone["after"].items():
        if "answers" in name or "rate" in name:
            assert several["after"][name] == score
        elif score is not None:  # small differences of two passes, in which the last digits of float32 show
            assert several["after"][name]["value"] == pytest.approx(score["value"], rel=1e-4), name


def test_what_is_asked_of_a_closed_session_is_done_here(two: Two, spread: SpreadSession) -> None:
    said = spread.generate(PROMPTS[:6])
    spread.close()
    assert spread.generate(PROMPTS[:6]) == said


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
