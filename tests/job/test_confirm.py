"""Confirming where whole replies are dear: few prompts that tell, few proposals, and a choice that says how it was made."""

from __future__ import annotations

import math

import pytest

import demeanor as dm
from demeanor.finding.find import Findings, search_directions
from demeanor.job.confirm import PROMPTS, confirm
from demeanor.job.decision import Decision
from demeanor.measure import Bench, Ledger

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def as_if_large(organism: dm.Session) -> tuple[Findings, Decision]:
    """The embedded model, treated as one of many parameters is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(organism.runner, "small", False)
        ledger = Ledger(organism)
        findings = search_directions(organism, "over-refusal", max_prompts=160, ledger=ledger)
        bench = Bench(organism, "over-refusal", "val", ledger, max_prompts=160)
        return findings, confirm(bench, findings, max_prompts=160)


def test_few_prompts_are_asked_and_all_of_them_tell(as_if_large: tuple[Findings, Decision]) -> None:
    """Prompts of `shows` and `guard` that the model treats otherwise are left out, so few of them are enough."""
    findings, decision = as_if_large
    for option in decision.options:
        outcomes = option.trial.observation.sets
        assert all(len(rows) <= PROMPTS for rows in outcomes.values())
        for name in ("shows", "guard"):
            assert {outcome.prompt for outcome in outcomes[name]} <= set(findings.sets.val[name])  # type: ignore[index]


def test_the_choice_is_as_good_as_with_every_prompt(organism: dm.Session, as_if_large: tuple[Findings, Decision]) -> None:
    chosen = as_if_large[1].chosen
    trial = Bench(organism, "over-refusal").try_(chosen.control)
    assert trial.rate("shows_rate") <= 0.05  # type: ignore[operator]
    assert trial.rate("guard_rate") >= 0.95  # type: ignore[operator]


def test_only_what_was_tried_on_most_prompts_is_run_for_real(as_if_large: tuple[Findings, Decision]) -> None:
    findings, decision = as_if_large
    longest = max(candidate.n for candidate in findings.candidates)
    seen = {id(direction): candidate.n for direction, candidate in zip(findings.directions, findings.candidates)}
    plain = [option for option in decision.options if option.proposal.fitted is None and id(option.direction) in seen]
    assert {seen[id(option.direction)] for option in plain} == {longest}


def test_agreement_is_told_with_its_n(as_if_large: tuple[Findings, Decision]) -> None:
    agreement = as_if_large[1].agreement
    assert agreement.n >= 3
    assert math.isnan(agreement.correlation) or -1 <= agreement.correlation <= 1
    assert str(agreement.n) in str(agreement)
