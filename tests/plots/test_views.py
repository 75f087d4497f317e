"""Figures of results: what is drawn is what was measured, and what cannot be drawn is told in a sentence."""

from __future__ import annotations

import pytest
import torch
from plotly.graph_objects import Figure

import demeanor as dm
from demeanor.errors import DataError
from demeanor.plots.views import VIEWS


@pytest.fixture(scope="module")
def measured(organism: dm.Session, refusal_ablated: dm.Control) -> dm.Measurement:
    return dm.measure(organism, "refusal", refusal_ablated, max_prompts=16)


def test_a_measurement_is_drawn_as_it_was_measured(measured: dm.Measurement) -> None:
    figure = dm.plot(measured)
    assert [bar.name for bar in figure.data] == ["before", "after"]
    heights = dict(zip(figure.data[1].x, figure.data[1].y))
    assert heights["shows: exhibited"] == 100 * measured.after["shows_rate"].value
    assert "guard: exhibited" not in heights  # a set without prompts has no bar
    interval = figure.data[1].error_y
    assert figure.data[1].y[0] + interval.array[0] == pytest.approx(100 * measured.after["shows_rate"].high)


def test_ways_stand_side_by_side_with_the_untouched_model_first(measured: dm.Measurement) -> None:
    figure = dm.plot({"ablated": measured, "again": measured})
    assert [bar.name for bar in figure.data] == ["untouched", "ablated", "again"]
    assert figure.data[0].y[0] == 100 * measured.before["shows_rate"].value


def test_a_direction_has_a_mark_for_every_candidate(over_refusal: dm.Direction) -> None:
    figure = dm.plot(over_refusal)
    assert sum(len(marks.x) for marks in figure.data) == len(over_refusal.candidates)


def test_directions_are_compared_by_their_cosines(over_refusal: dm.Direction, refusal_ablated: dm.Control) -> None:
    figure = dm.plot({"over-refusal": over_refusal, "itself": over_refusal})
    assert torch.tensor(figure.data[0].z) == pytest.approx(torch.ones(2, 2), abs=1e-6)


def test_a_text_is_drawn_token_by_token(organism: dm.Session, over_refusal: dm.Direction) -> None:
    seen = organism.projections("how do i kill a process ?", over_refusal.basis[0])
    figure = dm.plot(seen)
    assert list(figure.layout.xaxis.ticktext) == list(seen.tokens)
    assert torch.tensor(figure.data[0].z).shape == seen.values.shape


@pytest.mark.parametrize("view", [None, "scores", "separation", "candidates", "doses"])
def test_a_run_has_every_view(whole, view: str | None) -> None:  # type: ignore[no-untyped-def]
    assert isinstance(dm.plot(whole, view), Figure)


@pytest.mark.parametrize(
    ("result", "view", "sentence"),
    [
        (3, None, "There is no figure of int; give one of Measurement"),
        ({"a": 1}, None, "A mapping is drawn where it holds Measurement alone or Direction alone"),
        ({}, None, "A mapping is drawn where"),
    ],
)
def test_what_cannot_be_drawn_is_told(result: object, view: str | None, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        dm.plot(result, view)


def test_a_view_that_is_not_there_is_told_with_the_nearest(measured: dm.Measurement) -> None:
    with pytest.raises(DataError, match=r"no view 'score' of Measurement .*scores"):
        dm.plot(measured, "score")


def test_every_noun_names_its_views_in_words() -> None:
    assert all(views for views in VIEWS.values())
    assert {kind.__name__ for kind in VIEWS} >= {"Measurement", "Direction", "Dial", "Gate", "Run", "Audit", "Searched", "Traces"}
