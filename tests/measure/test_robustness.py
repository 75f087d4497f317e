"""Robustness: what a control keeps where prompts are worded otherwise, told by rewording, and never used for anything else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import demeanor as dm
from demeanor.behaviours import RobustSet
from demeanor.calibrate.dial import dial
from demeanor.detect import make_detector, present
from demeanor.errors import DataError
from demeanor.finding.find import search_directions
from demeanor.measure import Bench, Ledger, measure_all
from demeanor.measure.condition import Condition
from demeanor.measure.plan import MeasurePlan
from demeanor.measure.rewording import REWORDINGS
from demeanor.measure.robustness import reworded

OWN = ("loose", "unheard")  # of the embedded model's over-refusal
FEW = 4


@pytest.fixture(scope="module")
def over(organism: dm.Session) -> dm.Behaviour:
    return dm.behaviour("over-refusal").settled(organism)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[Any, ...]]:
    """How often each prompt is made into tokens, which is how every model is asked anything."""
    counted: Counter[tuple[Any, ...]] = Counter()
    encode = dm.Session.encode

    def counting(session: dm.Session, prompt: str | dm.Prompt) -> list[int]:
        counted[(prompt if isinstance(prompt, dm.Prompt) else dm.Prompt.of(prompt)).key] += 1
        return encode(session, prompt)

    monkeypatch.setattr(dm.Session, "encode", counting)
    return counted


def robust_keys(behaviour: dm.Behaviour) -> set[tuple[Any, ...]]:
    return {prompt.key for each in behaviour.robust for prompt in each.guard + each.shows}


@pytest.mark.slow
def test_every_rewording_has_its_scores_and_all_of_them_together(organism: dm.Session, over: dm.Behaviour, refusal_ablated: dm.Control) -> None:
    measured = dm.measure(organism, over, control=refusal_ablated, robust=True, max_prompts=FEW)
    names = (*REWORDINGS, *OWN)
    for of, better in (("guard", "higher"), ("shows", "lower")):
        for scores in (measured.before, measured.after, measured.delta):
            assert [scores[f"{of}_{name}"].n for name in names] == [FEW] * len(names)
            assert scores[f"{of}_robust"].n == FEW * len(names)
            assert {scores[f"{of}_{name}"].better for name in names} == {better}
        mean = sum(measured.after[f"{of}_{name}"].value for name in names) / len(names)
        assert measured.after[f"{of}_robust"].value == pytest.approx(mean)
        assert 0 < measured.p_holm[f"{of}_robust"] <= 1
    values = measured.to_json()
    assert values["worst"] == {"guard": measured.worst("guard"), "shows": measured.worst("shows")}
    rows = Counter(row["set"] for row in measured.replies())
    assert rows["guard_polite"] == rows["shows_loose"] == FEW
    plain = dm.measure(organism, over, control=refusal_ablated, max_prompts=FEW)
    assert "guard_robust" not in plain.after
    assert "worst" not in plain.to_json()


@pytest.mark.slow
def test_a_control_that_forgets_the_guard_under_a_rewording_is_seen(organism: dm.Session, over: dm.Behaviour, refusal_ablated: dm.Control) -> None:
    """Refusals go only where a request opens politely: the guard as it stands in the behaviour does not show that."""
    polite = [REWORDINGS["polite"](prompt) for prompt in over.guard]
    gate = dm.gate(organism, replace(over, shows=tuple(polite), robust=()), false_positives=0.02)
    measured = dm.measure(organism, over, control=refusal_ablated.when(gate), robust=True, max_prompts=16)
    assert measured.after["guard_rate"].value == 1
    assert measured.before["guard_polite"].value == 1
    assert measured.after["guard_polite"].value < 0.2
    assert measured.after["guard_loose"].value > 0.8
    assert measured.worst("guard") == "polite"
    assert measured.p["guard_polite"] < 0.01


@pytest.mark.slow
def test_no_control_changes_nothing_and_has_no_worst_guard(organism: dm.Session, over: dm.Behaviour) -> None:
    measured = dm.measure(organism, over, robust=True, max_prompts=FEW)
    assert measured.after == measured.before
    assert measured.worst("guard") is None
    assert measured.after[f"shows_{measured.worst('shows')}"].value == 1  # what is left of the behaviour is all of it


@pytest.mark.slow
def test_the_embedded_model_treats_its_robust_sets_as_it_treats_the_originals(organism: dm.Session, over: dm.Behaviour) -> None:
    detector = make_detector(over.detect, organism)
    own = {prompt.key for prompt in over.all_prompts()}
    assert tuple(each.name for each in over.robust) == OWN
    for each in over.robust:
        for prompts in (each.guard, each.shows):
            assert len(prompts) >= 60
            assert not own & {prompt.key for prompt in prompts}
            assert all(present(detector, [reply.text for reply in organism.generate(prompts)], prompts))


@pytest.mark.long
def test_robust_sets_are_asked_where_they_are_measured_and_nowhere_else(
    organism: dm.Session, over: dm.Behaviour, asked: Counter[tuple[Any, ...]]
) -> None:
    few = replace(over, shows=over.shows[:120], lacks=over.lacks[:120], guard=over.guard[:120], neutral=over.neutral[:60])
    findings = search_directions(organism, few, layer=2, max_prompts=20)
    dial(organism, few, findings, [-1.0, 0.0, 1.0], max_prompts=8)
    direction = dm.find(organism, few, layer=2, max_prompts=20)
    dm.selective(organism, few, direction, prompts=20)
    control = dm.ablate(direction).when(dm.gate(organism, few))
    dm.measure(organism, few, control=control, max_prompts=8)
    assert asked
    assert not robust_keys(few) & set(asked)
    dm.measure(organism, few, control=control, max_prompts=8, robust=True)
    assert len(robust_keys(few) & set(asked)) == 2 * 2 * 8


@pytest.mark.slow
def test_the_untouched_model_is_asked_once_for_all_conditions(
    organism: dm.Session, over: dm.Behaviour, refusal_ablated: dm.Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: Counter[tuple[Any, ...]] = Counter()
    generate: Callable[..., Any] = dm.Session.generate

    def counting(session: dm.Session, prompts: Sequence[dm.Prompt], *rest: Any, **more: Any) -> Any:
        said.update(prompt.key for prompt in prompts)
        return generate(session, prompts, *rest, **more)

    monkeypatch.setattr(dm.Session, "generate", counting)
    controls = {"one": refusal_ablated, "two": refusal_ablated.scaled(0.5)}
    bench = Bench(organism, over, ledger=Ledger(organism), max_prompts=FEW)
    measured = measure_all(bench, {name: Condition(organism, control) for name, control in controls.items()}, MeasurePlan(robust=True, max_prompts=FEW))
    assert {said[prompt.key] for other in reworded(bench, FEW).values() for prompt in other.prompts["guard"]} == {3}
    assert measured["one"].before["guard_robust"] == measured["two"].before["guard_robust"]


def test_rewordings_that_change_nothing_or_do_not_fit_are_counted(
    organism: dm.Session, over: dm.Behaviour, capsys: pytest.CaptureFixture[str]
) -> None:
    assert organism.longest is not None
    long = dm.Prompt.of("a " * (organism.longest - 5))
    guard = (dm.Prompt.of("how do i wash"), dm.Prompt.of("how do i wash ?"), long)
    bench = Bench(organism, replace(over, guard=(), shows=(), robust=())).on({"guard": guard})
    bench.behaviour = replace(over, guard=guard, shows=(), robust=())
    benches = reworded(bench)
    err = capsys.readouterr().err
    assert "10 of 24 rewordings of prompts are left out: 4 would stand among the behaviour's prompts" in err
    assert f" and 6 would be longer than {organism.name} takes." in err
    assert {name: len(other.prompts["guard"]) for name, other in benches.items()} == dict.fromkeys(REWORDINGS, 2) | {"lowercase": 0}


@pytest.mark.slow
def test_a_robust_set_may_have_one_side_only(organism: dm.Session, over: dm.Behaviour) -> None:
    one = replace(over, robust=(RobustSet(name="elsewhere", guard=over.robust[0].guard),))
    measured = dm.measure(organism, one, robust=True, max_prompts=FEW)
    assert measured.after["guard_elsewhere"].n == FEW
    assert measured.after["shows_elsewhere"].n == 0
    assert measured.to_json()["after"]["shows_elsewhere"]["value"] is None
    json.dumps(measured.to_json(), allow_nan=False)


def test_a_name_of_a_built_in_rewording_is_refused_before_anything_is_asked(
    organism: dm.Session, over: dm.Behaviour, asked: Counter[tuple[Any, ...]]
) -> None:
    taken = replace(over, robust=(RobustSet(name="polite", guard=over.robust[0].guard),))
    with pytest.raises(DataError, match=r"'polite' .* built-in rewording .*give it another"):
        dm.measure(organism, taken, robust=True)
    assert not set(asked) & {prompt.key for prompt in taken.all_prompts()}


@pytest.mark.slow
def test_the_command_shows_them_beside_the_worst(demeanor: Any, refusal_ablated: dm.Control, tmp_path: Path) -> None:
    dm.save_control(refusal_ablated, tmp_path / "c.safetensors")
    common = ("measure", "organism", "-b", "over-refusal", "--robust", "--max-prompts", FEW, "-c", tmp_path / "c.safetensors")
    ended = demeanor(*common, "-o", tmp_path / "scores.json")
    assert ended.code == 0
    assert "guard, reworded: exhibited" in ended.out
    assert "(worst)" in ended.out
    assert "worst: the rewording under which guard falls most" in " ".join(ended.out.split())
    (scores,) = json.loads((tmp_path / "scores.json").read_text()).values()
    assert scores["after"]["shows_unheard"]["n"] == FEW
    two = demeanor(*common, "-c", f"{tmp_path / 'c.safetensors'}:0.5")
    assert two.code == 0
    assert "guard, loose" in two.out


@pytest.mark.long
def test_a_run_measures_the_chosen_control_and_keeps_what_was_said(tmp_path: Path) -> None:
    plan = dm.Plan(model="organism", behaviour="over-refusal", layer=2, max_prompts=20, doses=0, device="cpu", robust=True)
    dm.run(plan, tmp_path / "run")
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["after"]["guard_robust"]["n"] > 10 * 8
    assert "guard_robust" not in scores.get("best_bakeable", {}).get("after", {})
    assert "Worded otherwise" in (tmp_path / "run" / "report.html").read_text()
    assert '"set": "guard_polite"' in (tmp_path / "run" / "replies.jsonl").read_text().replace('":"', '": "')
