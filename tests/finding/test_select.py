"""Selection: who is discarded, who wins, what is said when nobody does, and the published picks."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demeanor.errors import NoCandidate
from demeanor.finding.select import choose

SETTINGS = settings(derandomize=True, deadline=None, max_examples=50)
PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "selection"
NAN = math.nan


def row(position: int = -1, layer: int = 3, bypass: float = 0.0, induce: float = 1.0, kl: float = 0.01) -> dict[str, Any]:
    return {"position": position, "layer": layer, "refusal_score": bypass, "steering_score": induce, "kl_div_score": kl}


@pytest.mark.parametrize(("name", "n_layers"), [("gemma-2b-it", 18), ("llama-2-7b-chat-hf", 32), ("qwen-1_8b-chat", 24)])
def test_published_selections_are_reproduced(name: str, n_layers: int) -> None:
    """On the scores of three published models the choice is the one that was published."""
    if not PUBLISHED.is_dir():
        pytest.skip(f"the published selection data are not at {PUBLISHED}")
    evaluations = json.loads((PUBLISHED / f"{name}.evaluations.json").read_text())
    selected = json.loads((PUBLISHED / f"{name}.selected.json").read_text())
    choice = choose(evaluations, n_layers)
    assert (choice.position, choice.layer) == (selected["pos"], selected["layer"])


@pytest.mark.parametrize(
    "worse",
    [
        {"bypass": NAN},
        {"induce": NAN, "bypass": -9.0},
        {"kl": NAN, "bypass": -9.0},
        {"layer": 8, "bypass": -9.0},
        {"layer": 9, "bypass": -9.0},
        {"kl": 0.1001, "bypass": -9.0},
        {"induce": -0.001, "bypass": -9.0},
        {"bypass": 0.5},
    ],
    ids=["bypass nan", "induce nan", "kl nan", "first late layer", "last layer", "kl", "induce", "more bypass"],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_candidate_that_breaks_a_rule_loses_to_a_plain_one(worse: dict[str, Any], first: bool) -> None:
    """However well it bypasses, and wherever it stands in the list; of ten layers, 8 and 9 are too late."""
    good, bad = row(position=-2, layer=4, bypass=0.3), row(**worse)
    choice = choose([bad, good] if first else [good, bad], n_layers=10)
    assert (choice.position, choice.layer) == (-2, 4)
    assert choice.row is good


@pytest.mark.parametrize("edge", [{"layer": 7}, {"kl": 0.1}, {"induce": 0.0}], ids=["last early layer", "kl", "induce"])
def test_a_candidate_on_the_edge_of_a_rule_survives(edge: dict[str, Any]) -> None:
    """Rules say "above" and "below": exactly on the limit is allowed."""
    choice = choose([row(layer=2, bypass=0.3), row(position=-5, bypass=-1.0, **edge)], n_layers=10)
    assert choice.position == -5


def slow_choice(rows: list[dict[str, Any]], n_layers: int) -> dict[str, Any] | None:
    """The rules one after another, with exact arithmetic for the layer limit; among equals the first."""
    best = None
    for one in rows:
        if any(one[score] != one[score] for score in ("refusal_score", "steering_score", "kl_div_score")):
            continue
        if one["layer"] >= math.floor(Fraction(8, 10) * n_layers) or one["kl_div_score"] > 0.1 or one["steering_score"] < 0:
            continue
        if best is None or one["refusal_score"] < best["refusal_score"]:
            best = one
    return best


@st.composite
def candidates(draw: st.DrawFn) -> tuple[list[dict[str, Any]], int]:
    n_layers = draw(st.integers(2, 40))
    bypass = st.one_of(st.just(NAN), st.integers(-3, 3).map(float), st.floats(-10, 10))
    one = st.builds(
        row,
        position=st.integers(-6, -1),
        layer=st.integers(0, n_layers - 1),
        bypass=bypass,
        induce=st.sampled_from([NAN, -1.0, 0.0, 2.0, 5.0]),
        kl=st.sampled_from([NAN, 0.0, 0.05, 0.1, 0.2]),
    )
    return draw(st.lists(one, min_size=1, max_size=12)), n_layers


@SETTINGS
@given(drawn=candidates())
def test_choice_equals_the_rules_read_out(drawn: tuple[list[dict[str, Any]], int]) -> None:
    """Any number of layers, any scores: the survivor with the least bypass, or NoCandidate."""
    rows, n_layers = drawn
    expected = slow_choice(rows, n_layers)
    if expected is None:
        with pytest.raises(NoCandidate):
            choose(rows, n_layers)
    else:
        choice = choose(rows, n_layers)
        assert choice.row is expected
        assert (choice.position, choice.layer) == (expected["position"], expected["layer"])


def test_no_candidate_says_what_became_of_each() -> None:
    """The message is the table: every row with its scores and the reason it was discarded."""
    rows = [
        row(-1, 9, -1.125, 2.0, 0.01),
        row(-2, 3, 0.25, -4.5, 0.02),
        row(-3, 4, 0.75, 3.5, 0.375),
        row(-4, 5, NAN, 1.0, 0.0),
    ]
    with pytest.raises(NoCandidate) as caught:
        choose(rows, n_layers=10)
    head, *lines = str(caught.value).splitlines()
    assert "None of 4 candidate" in head
    assert len(lines) == 4
    reasons = {9: "too late", 3: "does not induce", 4: "neutral", 5: "not a number"}
    for one in rows:
        line = next(text for text in lines if f"layer {one['layer']:>2} position {one['position']:>2}" in text)
        assert reasons[one["layer"]] in line
        for score in ("refusal_score", "steering_score", "kl_div_score"):
            assert f"{one[score]:.3f}" in line


def test_no_candidates_at_all_is_no_candidate() -> None:
    """An empty list ends with the same error, not with an index."""
    with pytest.raises(NoCandidate, match="None of 0"):
        choose([], n_layers=10)
