"""Where one direction is not enough: several wordings, right answers that stay away, replies that begin alike."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import demeanor as dm
from demeanor.algebra.bases import reject
from demeanor.algebra.directions import projected
from demeanor.behaviours import Detect
from demeanor.finding.find import Findings, search_directions
from demeanor.finding.rank import by_wording, contrasting, find_again, iterate
from demeanor.job.result import Run
from demeanor.measure import Bench
from demeanor.measure.answers import is_right
from making import a_direction
from organism import language

pytestmark = pytest.mark.slow

OTHERS = [f"the {thing}" for thing in (*language.COLOURS, *language.HOMES)]


@pytest.fixture(scope="module")
def refusal(organism: dm.Session) -> dm.Behaviour:
    return dm.behaviour("refusal").settled(organism)


@pytest.fixture(scope="module")
def found(organism: dm.Session, refusal: dm.Behaviour) -> Findings:
    return search_directions(organism, refusal, layer=2)


@pytest.mark.long
def test_each_round_brings_right_answers_back(organism: dm.Session, found: Findings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demeanor.finding.rank.LAYERS", 2)  # contrasts at fewer sites
    useless = a_direction(organism, dm.Site(2))
    better, rounds = iterate(Bench(organism, dm.behaviour("refusal"), "val"), useless, found.sets, contrasting(found))
    assert len(better.basis) == 1 + len(rounds) <= 4
    assert torch.allclose(better.basis @ better.basis.T, torch.eye(len(better.basis)), atol=1e-5)
    assert torch.allclose(better.basis[0], useless.basis[0], atol=1e-5)  # what there was is kept
    assert rounds[-1].right >= 0.9
    assert [r.right for r in rounds] == sorted(r.right for r in rounds)


@pytest.mark.long
def test_what_tells_no_classes_apart_is_found_by_what_it_gains(organism: dm.Session, found: Findings) -> None:
    bench = Bench(organism, dm.behaviour("refusal"), "val")
    better, rounds = iterate(bench, a_direction(organism, dm.Site(2)), found.sets, ())  # no contrasts of the classes
    assert {(r.estimator, r.where) for r in rounds} == {("most_gaining", "every writer")}
    assert rounds[-1].right >= 0.9
    # What a round says is what the basis does.
    prompts = found.sets.val["shows"]
    with organism.controlled(dm.ablate(better)):
        replies = organism.generate(prompts, 30)
    assert sum(is_right(r.text, p.answer or "") for r, p in zip(replies, prompts)) / len(prompts) == rounds[-1].right


@pytest.mark.long
def test_where_refusals_are_gone_and_answers_wrong_finding_again_looks_for_answers(
    organism: dm.Session, refusal: dm.Behaviour, found: Findings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demeanor.finding.rank.LAYERS", 2)  # contrasts at fewer sites: what is told is the same
    first = found.ranked()[0]
    again = find_again(Bench(organism, refusal, "val"), found, 4)
    assert again.rounds[0].left == 0
    assert again.rounds[0].right < 0.95
    assert again.rounds[-1].right >= 0.98
    assert again.rounds[-1].left == 0
    assert torch.allclose(again.basis[0], first.basis[0], atol=1e-6)
    dm.save_direction(again, tmp_path / "d")
    assert dm.load_direction(tmp_path / "d").rounds == again.rounds


def test_without_known_answers_the_direction_stays_as_it_was(organism: dm.Session, found: Findings) -> None:
    silent = replace(found.sets, val={**found.sets.val, "shows": [replace(p, answer=None) for p in found.sets.val["shows"]]})
    start = a_direction(organism, dm.Site(2))
    assert iterate(Bench(organism, dm.behaviour("refusal"), "val"), start, silent, contrasting(found)) == (start, [])


def test_one_wording_is_not_taken_apart(organism: dm.Session, refusal: dm.Behaviour, found: Findings) -> None:
    replies = [o.reply.ids[:3] for o in Bench(organism, refusal, "train").untouched.observation.sets["shows"]]
    commonest = max(replies.count(start) for start in replies)
    assert len(replies) - commonest < 8  # the organism settled on one of its refusal sentences
    assert by_wording(Bench(organism, refusal, "val"), found) is None


@pytest.fixture(scope="module")
def opposites() -> dm.Behaviour:
    """A behaviour that cannot be told from the first word: every reply begins with "the"."""
    systems = [None, *language.SYSTEMS]
    facts = [(question, answer) for question, answer in language.facts() if answer.startswith("the")]
    prompts = [dm.Prompt.of(question, system=system, answer=answer) for system in systems for question, answer in facts]
    about = [p for p in prompts if "opposite" in p.text]
    others = [p for p in prompts if "opposite" not in p.text]
    return dm.Behaviour(
        name="opposites",
        detect=Detect.model_validate({"name": "openings", "phrases": ["the opposite"]}),
        shows=tuple(about),
        lacks=tuple(others),
    )


def test_directions_are_read_where_the_decision_falls(organism: dm.Session, opposites: dm.Behaviour) -> None:
    seen = search_directions(organism, opposites, layer=3)
    assert organism.decode(seen.after) == "the"
    best = max(seen.directions, key=lambda d: d.auroc)
    assert best.auroc > 0.95
    base, moved = (min(c.bypass for c in seen.candidates), max(c.bypass for c in seen.candidates))
    assert base < moved  # candidates differ in what they do after that word


def test_every_wording_gets_a_direction_of_its_own(organism: dm.Session, opposites: dm.Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    # The other way round, "the lemon is", "the fox lives", ... are so many wordings of one behaviour.
    facts = replace(
        opposites, shows=opposites.lacks, lacks=opposites.shows, detect=Detect.model_validate({"name": "openings", "phrases": OTHERS})
    )
    seen = search_directions(organism, facts, layer=3)
    monkeypatch.setattr("demeanor.finding.rank.FEWEST_ALIKE", 2)
    direction = by_wording(Bench(organism, facts, "val"), seen)
    assert direction is not None
    assert 2 <= len(direction.basis) <= 4
    prompts = seen.sets.train["shows"]
    starts = [reply.ids[:3] for reply in organism.generate(prompts, 3)]
    values = organism.capture(prompts, [direction.site], seen.after).values[:, 0].double()
    lacks = organism.capture(seen.sets.train["lacks"], [direction.site], seen.after).values[:, 0].double().mean(0)
    commonest = Counter(starts).most_common(1)[0][0]
    group = values[[number for number, start in enumerate(starts) if start == commonest]].mean(0)
    left = reject(projected(group, lacks), direction.basis.double())
    assert left.norm() < 1e-4


def test_options_are_ranked_by_what_they_do(selective: Run) -> None:
    decision = selective.decision
    merits = [round(option.merit, 3) for option in decision.options]
    assert merits == sorted(merits, reverse=True)
    assert {option.gate is None for option in decision.options} == {True, False}
    assert {option.direction.estimator for option in decision.options} >= {"mean_difference", "projected"}
    assert decision.chosen.gate is not None
    assert decision.chosen.guard_rate == 1.0
    assert decision.best_bakeable is not None
    assert decision.best_bakeable.gate is None
