"""A behaviour is looked at before any work: what is missing is told, and how it is mended."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import demeanor as dm
from demeanor.finding.examine import examine


def test_a_whole_behaviour_is_ready_and_counted(organism: dm.Session) -> None:
    b = dm.behaviour("over-refusal").settled(organism)
    examined = examine(b, organism, per_set=4)
    assert examined.problems == examined.remarks == ()
    counts = {one.name: one for one in examined.sets}
    assert counts["shows"].prompts == len(b.shows)
    assert counts["shows"].splits["test"] == len(b.set("shows", "test"))
    assert counts["shows"].answers == len(b.shows)
    assert [(one.asked, one.shown) for one in examined.sets] == [(4, 4), (4, 0), (4, 4), (4, 0)]


def test_too_few_prompts_and_sets_that_are_missing_are_told() -> None:
    b = dm.Behaviour.of("b", shows=[f"how do i wash {n} maps ?" for n in range(60)], lacks=["hello there", "good day"])
    examined = examine(b)
    assert len(examined.problems) == 1
    assert examined.problems[0].startswith("lacks has ")
    assert [remark.partition(":")[0] for remark in examined.remarks] == ["guard", "neutral"]


def test_prompts_on_which_the_model_does_otherwise_are_told(organism: dm.Session) -> None:
    b = dm.behaviour("over-refusal").settled(organism)
    swapped = replace(b, shows=b.lacks, lacks=b.shows)
    problems = examine(swapped, organism, per_set=4).problems
    assert "shows the behaviour on 0 of 4 prompts of shows" in problems[0]
    assert "does not show the behaviour on 0 of 4 prompts of lacks" in problems[1]


def test_the_command_ends_with_what_is_to_be_mended(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert demeanor("check", "over-refusal", "organism", "--per-set", 2).code == 0
    (tmp_path / "b.yaml").write_text('name: b\nshows: ["a b"]\nlacks: ["c d"]\n')
    ended = demeanor("check", tmp_path / "b.yaml", "--json")
    assert ended.code == 1
    assert "is not ready: shows has" in ended.sentence
    assert [one["set"] for one in json.loads(ended.out)["sets"]] == ["shows", "lacks", "guard", "neutral"]
