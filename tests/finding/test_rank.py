"""Iterative removal, rankings, and a behaviour nobody planned for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import demeanor as dm
from demeanor.algebra.schedule import layer_limit
from demeanor.finding.estimators import ESTIMATORS
from demeanor.finding.find import Findings, search_directions
from demeanor.finding.rank import find_again
from demeanor.job.confirm import shortlist
from demeanor.job.result import Run
from demeanor.job.run import run
from demeanor.measure import Bench
from demeanor.models.loading import resolve

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The behaviour "answers sums", which no code knows of: a file and its prompts."""
    folder = tmp_path_factory.mktemp("sums")
    data = Path(resolve("organism")[0]).parent / "data"
    facts = [json.loads(line) for line in (data / "neutral.jsonl").read_text().splitlines()]
    (folder / "sums.txt").write_text("\n".join(f"what is {a} plus {b} ?" for a in range(10) for b in range(10)))
    (folder / "facts.json").write_text(json.dumps([row for row in facts if "plus" not in row["prompt"]][:100]))
    text = (
        "name: answers sums\n"
        "detect: {matches: {pattern: '\\d+ plus \\d+ is \\d+'}}\n"
        "shows: {file: sums.txt}\n"
        "lacks: {file: facts.json, answer: answer}\n"
        f"neutral: {{file: {data / 'plain.jsonl'}, answer: answer}}\n"
    )
    (folder / "sums.yaml").write_text(text)
    return folder / "sums.yaml"


@pytest.fixture(scope="module")
def searched(organism: dm.Session, sums: Path) -> Findings:
    return search_directions(organism, dm.behaviour(sums))


@pytest.mark.long
def test_a_run_on_a_behaviour_of_ones_own_says_what_went_and_the_rest_stays(sums: Path, tmp_path: Path) -> None:
    result = run(dm.Plan(model="organism", behaviour=str(sums), device="cpu", layer=3, max_prompts=24, doses=0), tmp_path / "run")
    before, after = result.measurement.before, result.measurement.after
    assert before["shows_rate"].value == 1
    assert after["answers_neutral"].value >= 0.95
    # Sums are spread over more directions than are tried: little goes, and the run says so instead of claiming it.
    assert after["shows_rate"].value <= before["shows_rate"].value
    assert result.removes == (result.measurement.p["shows_rate"] < 0.05)


def test_every_round_is_found_with_the_earlier_ones_gone(organism: dm.Session, sums: Path, searched: Findings) -> None:
    direction = find_again(Bench(organism, dm.behaviour(sums), "val"), searched, 3)
    assert [r.rank for r in direction.rounds] == [1, 2, 3]
    basis = direction.basis.double()
    assert torch.allclose(basis @ basis.T, torch.eye(3, dtype=torch.float64), atol=1e-5)
    assert direction.rounds[1].left is not None
    assert direction.rounds[0].left is not None
    assert direction.rounds[1].left <= direction.rounds[0].left
    # The third vector, slowly: with two ablated, the site whose classes are furthest apart on held-out prompts.
    two = replace(direction, basis=direction.basis[:2])
    sites = list(dict.fromkeys(item.site for item in searched.directions if item.site.layer < searched.layer_limit))
    best = (-1.0, None, None)
    with organism.controlled(dm.ablate(two)):
        for site in sites:
            train, val = (
                {name: organism.capture(s[name], [site]).values[:, 0].double() for name in ("shows", "lacks")}
                for s in (searched.sets.train, searched.sets.val)
            )
            away = train["lacks"].mean(0) / train["lacks"].mean(0).norm()
            r = train["shows"].mean(0) - train["lacks"].mean(0)
            r = r - (r @ away) * away
            r = r / r.norm()
            a, b = val["shows"] @ r, val["lacks"] @ r
            pooled = ((len(a) * a.var(unbiased=False) + len(b) * b.var(unbiased=False)) / (len(a) + len(b))).sqrt()
            best = max(best, (float((a.mean() - b.mean()) / pooled), site, r), key=lambda found: found[0])
    left = best[2] - basis[:2].T @ (basis[:2] @ best[2])
    assert direction.rounds[2].site == best[1]
    assert torch.allclose(basis[2].abs(), (left / left.norm()).abs(), atol=1e-3)


@pytest.mark.parametrize("name", [each.name for each in ESTIMATORS.every() if each.traits.repeats and not each.traits.paired])
def test_the_estimator_of_the_first_direction_finds_the_others(organism: dm.Session, sums: Path, name: str) -> None:
    b = dm.behaviour(sums)
    found = search_directions(organism, b, layer=3, max_prompts=30, estimators=[name])
    direction = find_again(Bench(organism, b, "val"), found, 2)
    assert [r.estimator for r in direction.rounds] == [name, name]
    # Asked again of the values at its site, with the first direction ablated.
    first, second = direction.basis.double()
    with organism.controlled(dm.ablate(found.ranked()[0])):
        site = [direction.rounds[1].site]
        values = {each: organism.capture(found.sets.train[each], site).values[:, 0].double() for each in ("shows", "lacks")}
    vector = ESTIMATORS.named(name).factory(values).read
    left = vector - (vector @ first) * first
    assert torch.allclose(second.abs(), (left / left.norm()).abs(), atol=1e-4)


def test_guard_prompts_are_read_again_where_the_estimator_looks_at_them(organism: dm.Session) -> None:
    b = dm.behaviour("over-refusal")
    found = search_directions(organism, b, layer=3, max_prompts=40, estimators=["guard_orthogonal"])
    direction = find_again(Bench(organism, b, "val"), found, 2)
    assert [r.estimator for r in direction.rounds] == ["guard_orthogonal", "guard_orthogonal"]


@pytest.mark.parametrize("name", [each.name for each in ESTIMATORS.every() if each.traits.reads])
def test_nothing_further_is_found_beside_a_reader(demeanor, tmp_path: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    ended = demeanor("find", "organism", "-b", "over-refusal", "-o", tmp_path / "d", "--estimator", name, "--rank", 2)
    assert ended.code == 2
    assert f"{name} read" in ended.sentence
    assert "--rank" in ended.sentence


def test_further_directions_are_found_beside_the_best_that_is_no_reader(
    organism: dm.Session, sums: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    b = dm.behaviour(sums)
    found = search_directions(organism, b, layer=3, max_prompts=30, estimators=["whitened", "median_difference"], rank_by="gap")
    whitened_first = replace(found, candidates=tuple(replace(c, gap=9.0 if c.estimator == "whitened" else 1.0) for c in found.candidates))
    assert whitened_first.ranked()[0].write is not None
    direction = find_again(Bench(organism, b, "val"), whitened_first, 2)
    assert direction.write is None
    assert direction.estimator == "median_difference"
    assert "whitened is best and a reader" in capsys.readouterr().err


def test_rounds_are_kept_in_the_file(organism: dm.Session, sums: Path, searched: Findings, tmp_path: Path) -> None:
    direction = find_again(Bench(organism, dm.behaviour(sums), "val"), searched, 2)
    dm.save_direction(direction, tmp_path / "d")
    assert dm.load_direction(tmp_path / "d").rounds == direction.rounds


@pytest.mark.parametrize(("by", "key"), [("bypass", lambda c: c.bypass), ("induce", lambda c: -c.induce), ("gap", lambda c: -c.gap)])
def test_directions_are_ranked_by_what_was_asked_for(whole: Run, organism: dm.Session, by: str, key) -> None:  # type: ignore[no-untyped-def]
    found = replace(whole.found, rank_by=by)  # type: ignore[arg-type]
    values = [key(candidate) for candidate in (found.candidates[number] for number in found.eligible())]
    assert values == sorted(values)
    best = found.ranked()[0]
    assert best.site.layer < layer_limit(organism.layout.n_layers)
    if by == "gap":
        assert best.estimator == "mean_difference"
        assert abs(best.gap) == pytest.approx(float((best.shows.mean - best.lacks.mean).norm()), rel=1e-5)


def test_the_ranking_decides_which_directions_are_run_for_real(whole: Run) -> None:
    shortlists = {by: shortlist(replace(whole.found, rank_by=by), gated=False) for by in ("bypass", "induce", "gap")}  # type: ignore[arg-type]
    assert len({tuple(id(direction) for direction in directions) for directions in shortlists.values()}) == 3
