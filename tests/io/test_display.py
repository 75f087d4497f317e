"""What objects show of themselves: one short line, and in a notebook a table in which every text stays a text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import pytest

import demeanor as dm
from demeanor.calibrate.dial import Dial, Step
from demeanor.controls import Candidate
from demeanor.io.display import brief, object_html, table_html
from demeanor.measure.bench import Bench
from making import a_direction, ablation

HOSTILE = "<script>alert('[x]')</script> & $a$ " + "long " * 60


class Parsed(HTMLParser):
    """The tags and the text of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile_behaviour() -> dm.Behaviour:
    return dm.Behaviour.of(HOSTILE, shows=[HOSTILE, "b"], lacks=["c"], description=HOSTILE, questions=[{"ask": HOSTILE}])


def hostile_direction(session: dm.Session) -> dm.Direction:
    site = dm.Site(2)
    seen = Candidate(
        site=site, estimator="projected", bypass=-1.0, induce=2.0, kl=0.0, auroc=1.0, separation=9.0, gap=1.0, discarded=("[x] <b>too late</b>",)
    )  # fmt: skip
    return replace(a_direction(session, site), behaviour=HOSTILE, model_name=HOSTILE, candidates=(seen,))


def hostile_dial(session: dm.Session) -> Dial:
    trial = Bench(session, dm.behaviour("gloom"), max_prompts=2).untouched
    return Dial(hostile_direction(session), tuple(Step(dose, trial.scores, {}) for dose in (-1.0, 0.0, 1.0)))


@cache
def measurement(session: dm.Session) -> dm.Measurement:
    return dm.measure(session, "over-refusal", ablation(session), max_prompts=2)


OBJECTS: dict[str, tuple[Callable[[dm.Session], object], str, str]] = {
    "Behaviour": (lambda s: hostile_behaviour(), r"shows 2, lacks 1, guard none, neutral none; detector refusal, questions 1", "neutral"),
    "Preset": (lambda s: dm.behaviour("over-refusal"), r"Preset over-refusal: settled by the session", ""),
    "Direction": (hostile_direction, r"mean_difference, rank 1, layer 2 resid_post at -1, AUROC 1\.000", "[x] <b>too late</b>"),
    "Control": (lambda s: ablation(s, rank=3).then(ablation(s, rank=2)), r"Control for organism: ablate \(rank 3, dose 1\)", "ablate (rank 2, dose 1)"),
    "Control, hostile": (lambda s: dm.ablate(hostile_direction(s)), r"ablate \(rank 1", "every writer, all tokens"),
    "Dial": (hostile_dial, r"layer 2 resid_post at -1, doses -1 to \+1: shows_rate \d\.\d{3}, lacks_rate", "lacks_rate"),
    "Measurement": (measurement, r"Measurement of over-refusal, test split, shows_rate \d\.\d{3} to \d\.\d{3}, guard_rate", "answers_neutral"),
    "Measurement, hostile": (lambda s: replace(measurement(s), behaviour=HOSTILE), r"drift \d", "guard_rate"),
    "Session": (lambda s: s, r"<Session organism: llama, 6 layers, d_model 128, float32 on cpu>", "vocabulary 1200"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_is_one_short_line(organism: dm.Session, kind: str) -> None:
    make, told, _ = OBJECTS[kind]
    line = repr(make(organism))
    assert re.search(told, line), line
    assert len(line) < 200
    assert "\n" not in line


@pytest.mark.parametrize("kind", [kind for kind in OBJECTS if kind != "Preset"])
def test_an_object_is_a_table_in_a_notebook(organism: dm.Session, kind: str) -> None:
    """Nothing that came from a name, a prompt or a question is a tag of the page."""
    make, _, told = OBJECTS[kind]
    shown = make(organism)
    page = Parsed(shown._repr_html_())  # type: ignore[attr-defined]
    assert told in page.text
    assert set(page.tags) <= {"div", "strong", "table", "tr", "th", "td"}
    if kind != "Session":
        assert "table" in page.tags
    if "hostile" in kind or kind in ("Behaviour", "Dial"):
        assert "<script>alert('[x]')</script> & $a$" in page.text


def test_brief_texts() -> None:
    assert brief("two\n words ") == "two words"
    assert brief("x" * 60) == "x" * 60
    assert brief("x" * 61) == "x" * 59 + "\u2026"
    assert brief(3.5) == "3.5"


def test_tables_escape_headings_and_cells() -> None:
    page = Parsed(table_html(["<b>h</b>"], [("guard", [("n", "<i>&amp;</i>"), ("", "[x]")])]))
    assert page.tags == ["div", "table", "tr", "th", "tr", "td", "td"]
    assert page.text == "<b>h</b><i>&amp;</i>[x]"


def test_an_object_without_rows_has_no_table() -> None:
    page = Parsed(object_html("<t>", {"a <b>": "<c>"}, note="<n>"))
    assert page.tags == ["div", "strong", "div", "div"]
    assert page.text == "<t>a <b> <c><n>"
