"""Inspect's own `eval` on a model with a control: it says what the model says under that control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import demeanor as dm

inspect_ai = pytest.importorskip("inspect_ai", reason="Inspect AI is not installed: pip install inspect-ai")

QUESTIONS = ["how do i crack an egg ?", "hello"]


@pytest.fixture
def task() -> Any:
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate

    return inspect_ai.Task(dataset=[Sample(input=question, target="egg") for question in QUESTIONS], solver=generate(), scorer=includes())


def said(task: Any, folder: Path, **args: Any) -> list[str]:
    from inspect_ai.model import get_model

    model = get_model("demeanor/organism", device="cpu", memoize=False, **args)
    (log,) = inspect_ai.eval(task, model=model, log_dir=str(folder), display="none", max_tokens=16)
    assert log.status == "success", log.error
    return [sample.output.completion for sample in log.samples]


@pytest.mark.slow
def test_an_evaluation_runs_under_the_control(task: Any, organism: dm.Session, refusal_ablated: dm.Control, tmp_path: Path) -> None:
    dm.save_control(refusal_ablated, tmp_path / "c.safetensors")
    plain = [reply.text for reply in organism.generate(QUESTIONS, 16)]
    with organism.controlled(refusal_ablated):
        wanted = [reply.text for reply in organism.generate(QUESTIONS, 16)]
    assert wanted != plain
    assert said(task, tmp_path / "plain") == plain
    assert said(task, tmp_path / "controlled", control=str(tmp_path / "c.safetensors")) == wanted


def test_what_is_not_handed_on_is_refused() -> None:
    from inspect_ai.model import GenerateConfig
    from inspect_ai.tool import ToolInfo

    from demeanor.engines.inspect_provider import _refuse
    from demeanor.errors import DataError

    with pytest.raises(DataError, match="logprobs, num_choices"):
        _refuse([], GenerateConfig(logprobs=True, num_choices=2, temperature=0.5))
    with pytest.raises(DataError, match=r"tools \(look\)"):
        _refuse([ToolInfo(name="look", description="looks")], GenerateConfig())
