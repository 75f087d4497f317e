"""Directions tried in a second pass over the files: what is read is what is read of the loaded model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import demeanor as dm
from demeanor.algebra.divergence import kl_divergence
from demeanor.errors import AccountingError, DataError
from demeanor.finding.filter import as_given
from demeanor.finding.select import rank_key
from demeanor.finding.signal import first_tokens_of, log_odds
from demeanor.finding.streamed import find_streamed
from demeanor.finding.streamed_trials import NEUTRAL, TOLD, TRIED, try_streamed
from demeanor.models import open_streamed
from demeanor.models.ended import ended
from families import FAMILIES
from making import PROMPTS, ablation


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_under_controls_are_those_of_the_loaded_model(
    family: str, tiny_folders: Mapping[str, Path], tiny: Mapping[str, dm.Session], tmp_path: Path
) -> None:
    session, on_disk = tiny[family], open_streamed(tiny_folders[family], device="cpu")
    (tmp_path / "pass").mkdir()
    (tmp_path / "ended").mkdir()
    assert len(list(on_disk.layers(PROMPTS, [-1], tmp_path / "pass"))) == 3
    controls = [None, ablation(session, 1), ablation(session, 2, seed=1)]
    rows, each = [on_disk.encode(text) for _ in controls for text in PROMPTS], [control for control in controls for _ in PROMPTS]
    with ended(on_disk, rows, each, tmp_path / "ended") as end:
        got = torch.stack([end.logits(row)[-1] for row in range(len(rows))])
    wanted = [session.logits(PROMPTS)]
    for control in controls[1:]:
        assert control is not None
        with session.controlled(control):
            wanted.append(session.logits(PROMPTS))
    torch.testing.assert_close(got, torch.cat(wanted), rtol=1e-3, atol=1e-3 * float(wanted[0].std()))


def test_what_a_first_token_tells_of_directions_is_what_it_tells_in_memory(organism: dm.Session, tmp_path: Path) -> None:
    behaviour, on_disk = dm.behaviour("over-refusal").settled(organism), open_streamed("organism", device="cpu")
    found = find_streamed(on_disk, behaviour)
    tried = try_streamed(on_disk, behaviour, found, 6, tmp_path)
    sets = as_given(behaviour)
    tokens = first_tokens_of(*(organism.logits(sets.train[name][:TOLD]).double().softmax(-1).mean(0) for name in ("shows", "lacks")))
    neutral = behaviour.set("neutral", "val", NEUTRAL)
    base = organism.logits(neutral).double().log_softmax(-1)
    untouched = float(log_odds(organism.logits(sets.val["shows"][:TRIED]), tokens).mean())
    for direction, candidate in list(zip(tried.directions, tried.directions[0].candidates, strict=True))[:6]:
        assert (direction.site, direction.estimator) == (candidate.site, candidate.estimator)
        with organism.controlled(dm.ablate(direction)):
            odds = log_odds(organism.logits(sets.val["shows"][:TRIED]), tokens)
            change = kl_divergence(base, organism.logits(neutral).double().log_softmax(-1)).mean()
        assert candidate.bypass == pytest.approx(float(odds.mean()), abs=2e-3)
        assert candidate.kl == pytest.approx(float(change), abs=1e-4)
        assert candidate.n == min(TRIED, len(sets.val["shows"]))
    assert tried.directions[0].candidates[0].bypass < untouched - 2
    first = tried.directions[0].candidates[:6]
    order = sorted(first, key=lambda candidate: (bool(candidate.discarded), *rank_key(candidate.row(), "trade_off")))
    assert [(one.site, one.estimator) for one in first] == [(one.site, one.estimator) for one in order]
    assert {(one.site, one.estimator) for one in tried.directions} == {(one.site, one.estimator) for one in found.directions}


def test_what_cannot_be_tried_is_said_before_the_pass(organism: dm.Session, tmp_path: Path) -> None:
    behaviour, on_disk = dm.behaviour("over-refusal").settled(organism), open_streamed("organism", device="cpu")
    readers = find_streamed(on_disk, behaviour, dm.FindPlan(estimators=("logistic",), max_prompts=40))
    with pytest.raises(DataError, match="read and written alike"):
        try_streamed(on_disk, behaviour, readers, 2, tmp_path / "tried")
    with pytest.raises(DataError, match="ranked by what they did"):
        try_streamed(on_disk, behaviour, readers, 2, tmp_path / "tried", dm.FindPlan(rank_by="gap"))
    with pytest.raises(DataError, match="replies cannot be read"):
        find_streamed(on_disk, behaviour, dm.FindPlan(read="replies"))


def test_a_pass_takes_nothing_of_the_user_s_away(organism: dm.Session, tmp_path: Path) -> None:
    behaviour, on_disk = dm.behaviour("over-refusal").settled(organism), open_streamed("organism", device="cpu")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds something else"):
        find_streamed(on_disk, behaviour, dm.FindPlan(max_prompts=40), folder=tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_another_train_prompt_begins_anew(organism: dm.Session, tmp_path: Path) -> None:
    """As many prompts, of which one in train says something else: what an earlier pass kept is not mixed in."""
    behaviour, on_disk = dm.behaviour("over-refusal").settled(organism), open_streamed("organism", device="cpu")
    plan = dm.FindPlan(max_prompts=40)
    find_streamed(on_disk, behaviour, plan, folder=tmp_path / "pass")
    first = next(prompt for prompt in behaviour.set("lacks", "train", 40))
    other = replace(first, messages=(("user", f"{first.text} now"),), pair=first.pair or first.messages)
    changed = replace(behaviour, lacks=tuple(other if prompt == first else prompt for prompt in behaviour.lacks))
    assert [prompt.split for prompt in (other,)] == ["train"]
    again = find_streamed(on_disk, changed, plan, folder=tmp_path / "pass")
    anew = find_streamed(on_disk, changed, plan)
    assert torch.equal(again.directions[0].lacks.mean, anew.directions[0].lacks.mean)


def test_a_direction_that_comes_back_at_run_time_is_refused(organism: dm.Session, tmp_path: Path) -> None:
    """As where a writer was overlooked: here one is taken out of what was proven."""
    behaviour, on_disk = dm.behaviour("refusal").settled(organism), open_streamed("organism", device="cpu")
    found = find_streamed(on_disk, behaviour, dm.FindPlan(max_prompts=40))
    layout = on_disk.layout
    lacking = replace(layout, writers=tuple(writer for writer in layout.writers if (writer.layer, writer.role) != (4, "mlp")))
    directions = tuple(replace(direction, layout=lacking) for direction in found.directions)
    on_disk._proven(lacking)
    with pytest.raises(AccountingError, match="of an ablated direction is left in the stream"):
        try_streamed(on_disk, behaviour, replace(found, directions=directions), 2, tmp_path, dm.FindPlan(max_prompts=40))


def test_given_replies_tell_of_directions_what_they_tell_in_memory(organism: dm.Session, tmp_path: Path) -> None:
    rows = {"shows": "i cannot help with that .", "lacks": "you wash it with water ."}
    things = [f"{thing} {number}" for thing in ("bike", "map", "cup", "door", "box") for number in range(10)]
    for name, reply in rows.items():
        lines = [json.dumps({"prompt": f"how do i wash a {thing} ?", "reply": reply}) for thing in things]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    sets = "".join(f"{name}: {{file: {tmp_path / name}.jsonl, reply: reply}}\n" for name in rows)
    (tmp_path / "b.yaml").write_text(f"name: given\n{sets}")
    behaviour, on_disk = dm.behaviour(str(tmp_path / "b.yaml")), open_streamed("organism", device="cpu")
    assert behaviour.has_replies
    found = find_streamed(on_disk, behaviour)
    (tmp_path / "tried").mkdir()
    tried = try_streamed(on_disk, behaviour, found, 3, tmp_path / "tried")
    val = as_given(behaviour).val

    def leaning() -> float:
        likelihoods = [organism.reply_log_likelihoods(val[name][:TRIED], [organism.encode_reply(rows[name])] * len(val[name][:TRIED])) for name in rows]
        shows, lacks = (float(torch.cat(one).double().mean()) for one in likelihoods)
        return shows - lacks

    untouched = leaning()
    for direction, candidate in list(zip(tried.directions, tried.directions[0].candidates, strict=True))[:3]:
        with organism.controlled(dm.ablate(direction)):
            assert candidate.bypass == pytest.approx(leaning() - untouched, abs=2e-3)


def test_a_second_pass_is_asked_for_by_its_number(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = ("find", "organism", "-b", "refusal", "--max-prompts", 40, "--device", "cpu", "--json", "-o", tmp_path / "d.safetensors", "--tried", 4)
    refused = demeanor(*words)
    assert refused.code == 2
    assert "add --stream" in refused.err
    ended = demeanor(*words, "--stream")
    assert ended.code == 0, ended.err
    facts = json.loads(ended.out)
    assert facts["tried"] == 4
    assert facts["bypass, ablated"] < 0
    assert facts["bytes read, of the files"] <= 2.1
    assert [path.name for path in tmp_path.iterdir()] == ["d.safetensors"]
