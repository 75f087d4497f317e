"""What tests of a search share: directions of the organism found on few prompts, and what trials need."""

from __future__ import annotations

from pathlib import Path

import pytest

import demeanor as dm
from demeanor.finding.find import Findings, search_directions
from demeanor.measure import Bench, Ledger
from demeanor.search.plan import SearchPlan
from demeanor.search.trying import Trying
from kept import kept, loaded

PROMPTS = 32


def found() -> Findings:
    session = loaded("organism")
    return search_directions(session, dm.behaviour("over-refusal"), layer=None, max_prompts=PROMPTS, ledger=Ledger(session))


@pytest.fixture(scope="session")
def findings() -> Findings:
    return kept("search-findings", lambda _: found())


def plan_of(**options: object) -> SearchPlan:
    return SearchPlan(model="organism", behaviour="over-refusal", device="cpu", max_prompts=PROMPTS, **options)


@pytest.fixture(scope="session")
def trying(organism: dm.Session, findings: Findings) -> Trying:
    """Trials on 32 prompts of each split of each set."""
    behaviour = dm.behaviour("over-refusal").settled(organism)
    return Trying(Bench(organism, behaviour, "val", Ledger(organism), max_prompts=PROMPTS), findings, plan_of(trials=40))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"
