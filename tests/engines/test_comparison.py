"""What the page of engines tells is what the answers say: distances, the tolerance that is kept or not, and the requirements that are left out."""

from __future__ import annotations

import numpy as np
import pytest

from engines.cases import BOUNDS, FLOAT32, UNTOUCHED, Case, cases
from engines.compare import Answers, distance
from engines.page import chatting, page
from engines.requirements import requirements


def answers(prompts: int = 3, vocabulary: int = 80) -> Answers:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(prompts, vocabulary)) * 3
    return {"log_probs": logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), "tokens": rng.integers(0, vocabulary, (prompts, 5))}


def changed(of: Answers, row: int, token: int, by: float) -> Answers:
    log_probs = of["log_probs"].copy()
    log_probs[row, token] += by
    return {**of, "log_probs": log_probs}


def test_the_same_answers_are_no_distance_apart() -> None:
    one = distance(answers(), answers())
    assert (one.worst, one.middle, one.kl, one.first, one.texts, one.differs) == (0.0, 0.0, 0.0, 3, 3, None)
    assert one.ranks == pytest.approx(1.0)


def test_a_log_probability_that_moves_is_the_largest_difference() -> None:
    one = distance(changed(answers(), 1, 7, 0.25), answers())
    assert one.worst == pytest.approx(0.25)
    assert one.middle == 0.0, "the other two prompts are the same"
    top = int(answers()["log_probs"][1].argmax())
    lowered = distance(changed(answers(), 1, top, -20.0), answers())
    assert lowered.first == 2
    assert lowered.ranks < 0.95


def test_replies_part_where_their_first_token_differs() -> None:
    got = answers()
    got["tokens"] = got["tokens"].copy()
    got["tokens"][0, 3:] += 1
    one = distance(got, answers())
    assert (one.texts, one.differs) == (2, 3.0)


def test_the_page_says_what_is_within_its_tolerance_and_what_is_not() -> None:
    case = Case("a", "vLLM", UNTOUCHED, "the folder", FLOAT32, {"model": "plain"})
    rows = [(case, distance(changed(answers(), 0, 0, by * BOUNDS[FLOAT32]), answers())) for by in (0.5, 2.0)]
    told = {"versions": "", "date": "", "layer": 14, "found": 24, "n": 3, "new": 5}
    lines = [line for line in page(rows, {}, told, "").splitlines() if line.startswith("| the folder")]
    assert [line.rsplit("|", 2)[1].strip() for line in lines] == ["yes", "NO"]


def test_the_page_counts_which_replies_are_the_same() -> None:
    said = {"prompts": ["a", "b"], "ids": [[1], [2]], "greedy": ["x", "y"], "settings": {"temperature": 0.8}}
    text = chatting({"packed": {**said, "greedy": ["x", "z"]}, "plain": said, "plain, cache F32": said}, said)
    assert "| the model's own GGUF (packed) | 2 of 2 | 2 of 2 | 1 of 2 |" in text
    assert "temperature 0.8" in text


def test_every_case_has_a_name_and_a_tolerance_of_its_own() -> None:
    every = cases("/model.gguf")
    assert len({case.name for case in every}) == len(every)
    assert {case.numbers for case in every} <= BOUNDS.keys()
    assert {case.job("/folder")["model"] for case in every if case.name.endswith("packed") and "lora" in case.files} == {"/model.gguf"}


def test_requirements_are_those_of_no_extra_but_the_named() -> None:
    every = requirements("peft", set())
    assert any(line.startswith("torch") for line in every)
    assert all("extra ==" not in line for line in every)
    assert not any(line.startswith(("torch", "tqdm")) for line in requirements("peft", {"torch", "tqdm"}))
