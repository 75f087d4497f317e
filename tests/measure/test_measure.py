"""Measurements say what happened: on the test split, in both directions, with intervals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import demeanor as dm
from demeanor.errors import DataError
from demeanor.measure import Bench, Ledger
from demeanor.measure.condition import Condition
from demeanor.measure.drift import drift
from making import a_direction, ablation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small(organism: dm.Session) -> dm.Behaviour:
    b = dm.behaviour("over-refusal").settled(organism)
    return replace(b, shows=b.shows[:80], lacks=b.lacks[:80], guard=b.guard[:80], neutral=b.neutral[:80])


def test_scores_count_the_replies_of_the_test_split(organism: dm.Session, small: dm.Behaviour, over_refusal: dm.Direction) -> None:
    measured = dm.measure(organism, small, dm.ablate(over_refusal))
    before, after = measured.observed
    assert measured.after["shows_rate"].n == len(small.set("shows", "test"))
    assert measured.after["shows_rate"].value == sum(o.shown for o in after.sets["shows"]) / len(after.sets["shows"])
    assert measured.before["answers"].n == measured.before["answers_shows"].n + measured.before["answers_neutral"].n
    assert all(s.low <= s.value <= s.high for s in measured.after.values())
    assert measured.delta["shows_rate"].value == measured.after["shows_rate"].value - measured.before["shows_rate"].value
    assert measured.p["shows_rate"] < 0.01 < measured.p["answers_neutral"]
    assert before.sets["shows"][0].reply.text != after.sets["shows"][0].reply.text


def test_without_a_control_nothing_changes(organism: dm.Session, small: dm.Behaviour) -> None:
    measured = dm.measure(organism, small)
    assert measured.after == measured.before
    assert measured.after["drift"].value == 0


def test_a_missing_set_is_null_not_left_out(organism: dm.Session, small: dm.Behaviour) -> None:
    values = dm.measure(organism, replace(small, guard=())).to_json()
    assert values["after"]["guard_rate"] == {"value": None, "low": None, "high": None, "n": 0}
    json.dumps(values, allow_nan=False)


def test_no_prompts_in_the_split_is_said(organism: dm.Session, small: dm.Behaviour) -> None:
    empty = replace(small, shows=(), lacks=(), guard=(), neutral=())
    with pytest.raises(DataError, match="no prompts in its test split"):
        dm.measure(organism, empty)


def test_drift_is_the_mean_token_kl_of_the_base_replies(organism: dm.Session, small: dm.Behaviour) -> None:
    control = dm.add(a_direction(organism, dm.Site(2), gap=60.0), 1.0)
    base = Bench(organism, replace(small, shows=(), lacks=(), guard=())).untouched.observation.sets["neutral"]
    total = tokens = 0.0
    for outcome in base:  # one prompt at a time, without batches or padding
        ids, reply = organism.encode(outcome.prompt), outcome.reply.ids[:32]
        rows = torch.tensor([[*ids, *reply]])
        with torch.no_grad():
            p = organism.model(rows).logits[0, len(ids) - 1 : -1].double().log_softmax(-1)
            with organism.controlled(control):
                q = organism.reply_log_probs([outcome.prompt], [reply])[0].double()
        total += float((p.exp() * (p - q)).sum())
        tokens += len(reply)
    score = drift(Ledger(organism), Condition(organism, control), base).kl
    assert score.value == pytest.approx(total / tokens, rel=1e-3)
    assert score.low < score.value < score.high
    assert score.value > 0.001


def test_a_gated_observation_is_what_the_gated_control_gives(organism: dm.Session, small: dm.Behaviour, over_refusal: dm.Direction) -> None:
    from demeanor.finding.gates import fires_on

    gate = dm.gate(organism, dm.behaviour("over-refusal"))
    control = dm.ablate(over_refusal)
    fires = {name: fires_on(organism, gate, small.set(name, "test")) for name in ("shows", "lacks", "guard", "neutral")}  # type: ignore[arg-type]
    bench = Bench(organism, small)
    composed, run = bench.try_(control).where(fires, bench.untouched), bench.try_(control.when(gate))  # type: ignore[arg-type]
    assert composed.observation == run.observation
    assert composed.drift.kl_sum.tolist() == pytest.approx(run.drift.kl_sum.tolist(), abs=1e-6)
    assert composed.merit == pytest.approx(run.merit, abs=1e-6)


def test_intervals_shrink_with_n(organism: dm.Session, small: dm.Behaviour) -> None:
    few = dm.measure(organism, small, max_prompts=5).before["shows_rate"]
    many = dm.measure(organism, small).before["shows_rate"]
    assert few.n == 5 < many.n
    assert few.high - few.low > many.high - many.low
    assert not math.isnan(few.value)


def test_printing_shows_both_directions(organism: dm.Session, small: dm.Behaviour) -> None:
    text = str(dm.measure(organism, small, ablation(organism), max_prompts=4))
    assert "guard_rate" in text
    assert "shows_rate" in text


def test_prompting_and_another_model_are_measured_like_a_control(
    demeanor, organism: dm.Session, over_refusal: dm.Direction, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    dm.save_control(dm.ablate(over_refusal), tmp_path / "c")
    options = ("-b", "refusal", "--max-prompts", 10, "--json")
    both = json.loads(demeanor("measure", "organism", "-c", tmp_path / "c", "--prompting", "be brief .", *options).out)
    assert list(both) == [str(tmp_path / "c"), "prompting: be brief ."]
    assert both["prompting: be brief ."]["after"]["shows_rate"]["value"] == 1.0
    assert both["prompting: be brief ."]["after"]["drift"]["value"] > 0  # it is another prompt
    dm.bake("organism", dm.ablate(over_refusal), tmp_path / "baked")
    other = json.loads(demeanor("measure", tmp_path / "baked", "--base", "organism", *options).out)[str(tmp_path / "baked")]
    assert other["before"]["shows_rate"]["value"] == 1.0
    for name in ("shows_rate", "answers", "drift"):
        assert other["after"][name]["value"] == pytest.approx(both[str(tmp_path / "c")]["after"][name]["value"], abs=1e-4)


def test_what_a_change_costs_besides_is_measured(organism: dm.Session) -> None:
    made = dm.measure(organism, dm.behaviour("refusal"), ablation(organism, rank=110), max_prompts=10)
    assert made.before["perplexity"].value < 1.1 < made.after["perplexity"].value
    assert made.before["first_token_kl"].value == 0 < made.after["first_token_kl"].value
    assert made.before["repetition"].value == 0
    assert made.after["length"].value != made.before["length"].value
    assert made.before["empty"].value == made.before["other_script"].value == 0


def test_several_controls_are_tested_together(demeanor, refusal_ablated: dm.Control, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from demeanor.stats import intervals

    path = tmp_path / "c.safetensors"
    dm.save_control(refusal_ablated, path)
    options = [part for dose in ("", ":0.5", ":0") for part in ("-c", f"{path}{dose}")]
    made = list(json.loads(demeanor("measure", "organism", "-b", "refusal", "--max-prompts", 30, "--json", *options).out).values())
    plain, adjusted = ([each["delta"]["shows_rate"][key] for each in made] for key in ("p", "p_holm"))
    assert adjusted == pytest.approx(intervals.holm(plain))
    assert adjusted[0] > plain[0]
    assert adjusted[2] == 1
    table = demeanor("measure", "organism", "-b", "refusal", "--max-prompts", 30, *options).out
    assert "0.0% *" in table
    assert "Holm-adjusted" in table


def test_one_control_needs_no_adjustment(organism) -> None:  # type: ignore[no-untyped-def]
    made = dm.measure(organism, dm.behaviour("refusal"), max_prompts=10)
    assert made.p == made.p_holm


def test_a_reply_that_shows_the_behaviour_is_done_again_with_the_control(demeanor, organism, refusal_ablated: dm.Control, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Other replies stay word for word what they were, and the drift on them is none, however strong the control."""
    from demeanor.detect import make_detector

    b = dm.behaviour("over-refusal").settled(organism)
    strong = refusal_ablated.then(dm.add(a_direction(organism, dm.Site(3), gap=300.0), 1.0))
    prompts = [*b.set("shows", "test", 6), *b.set("lacks", "test", 6)]
    plain, held = Condition(organism), Condition(organism, strong)
    redone = replace(held, redo=make_detector(b.detect))
    said = {
        name: [reply.text for reply in each.generate(prompts, 48)] for name, each in (("plain", plain), ("held", held), ("redone", redone))
    }
    assert said["redone"][:6] == said["held"][:6] != said["plain"][:6]
    assert said["redone"][6:] == said["plain"][6:] != said["held"][6:]
    replies = [reply.ids for reply in plain.generate(prompts, 48)]
    logs = {name: each.reply_log_probs(prompts, replies) for name, each in (("plain", plain), ("held", held), ("redone", redone))}
    assert all(torch.allclose(logs["redone"][row], logs["held" if row < 6 else "plain"][row], atol=1e-3) for row in range(12))
    path = tmp_path / "c.safetensors"
    dm.save_control(strong, path)
    made = json.loads(demeanor("measure", "organism", "-b", "over-refusal", "-c", path, "--redo", "--max-prompts", 10, "--json").out)
    assert made[str(path)]["after"]["drift"]["value"] > 0.1
    assert made[f"{path}, where the reply shows it"]["after"]["drift"]["value"] == 0
    assert demeanor("chat", "organism", prompts[-1].text, "-c", path, "--redo-if", "refusal").out.strip() == said["plain"][-1]
    assert (
        demeanor("chat", "organism", prompts[0].text, "-c", path, "--redo-if", "refusal", "--reply-tokens", 48).out.strip()
        == said["held"][0]
    )
    assert "--control" in demeanor("chat", "organism", "a", "--redo-if", "refusal").sentence
