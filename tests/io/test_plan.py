"""Plans: the same sentence for a mistake wherever it is made, and YAML that gives the same plan again."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, ValidationError, model_validator

import demeanor
from demeanor.errors import DataError
from demeanor.io.plan import PLACES, BasePlan


class Walk(BasePlan):
    steps: int | None = Field(3, ge=1)
    pace: Literal["slow", "fast"] = "slow"
    stops: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _short(self) -> Walk:
        if self.pace == "fast" and self.stops:
            raise ValueError("who is fast does not stop; leave out stops")
        return self


MISTAKES = {
    "a typo": ({"pase": "slow"}, "there is no option 'pase'; did you mean pace?"),
    "nothing like it": ({"x": 1}, "there is no option 'x'; the options are steps, pace, stops."),
    "a word that is none": ({"pace": "fats"}, "pace should be 'slow' or 'fast', not 'fats'."),
    "too little": ({"steps": 0}, "steps should be greater than or equal to 1, not 0."),
    "two that contradict": ({"pace": "fast", "stops": ["a"]}, "who is fast does not stop; leave out stops."),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_alike_however_the_plan_is_made(tmp_path: Path, mistake: str) -> None:
    values, sentence = MISTAKES[mistake]
    (tmp_path / "plan.yaml").write_text(str(values))
    for made, where in (
        (lambda: Walk(**values), "Walk"),  # type: ignore[arg-type]
        (lambda: Walk.of(values, "here"), "here"),
        (lambda: Walk.given(None, values, "walk"), "walk"),
        (lambda: Walk.from_file(tmp_path), str(tmp_path)),
    ):
        with pytest.raises(DataError) as caught:
            made()
        assert str(caught.value) == f"{where}: {sentence}"


def test_what_is_written_gives_the_same_plan(tmp_path: Path) -> None:
    for plan in (Walk(), Walk(steps=None), Walk(stops=("a", "ö"))):
        (tmp_path / "plan.yaml").write_text(plan.written(), encoding="utf-8")
        assert Walk.from_file(tmp_path) == Walk.from_file(tmp_path / "plan.yaml") == plan
        assert plan.same_as(tmp_path / "plan.yaml")
    assert not Walk(steps=4).same_as(tmp_path / "plan.yaml")


def test_a_plan_is_not_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Walk().steps = 4  # type: ignore[misc]


def test_a_verb_takes_a_plan_or_keywords() -> None:
    assert Walk.given(Walk(steps=5), {}, "walk").steps == 5
    with pytest.raises(DataError, match="takes a plan or keywords; leave out steps"):
        Walk.given(Walk(), {"steps": 5}, "walk")
    with pytest.raises(DataError, match="walk takes a Walk or keywords, not str 'slow'"):
        Walk.given("slow", {}, "walk")  # type: ignore[arg-type]


@pytest.mark.parametrize(("content", "told"), [("- a\n", "holds no options"), ("", "holds no options"), ("a: [", "is not valid YAML")])
def test_a_file_that_is_no_plan(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(DataError, match=told):
        Walk.from_file(tmp_path / "p.yaml")
    with pytest.raises(DataError, match="cannot be read"):
        Walk.from_file(tmp_path / "none.yaml")


class Journey(BasePlan):
    model: str
    controls: tuple[str, ...] = ()
    estimators: tuple[str, ...] = ()
    file: Path | None = None
    message: str = ""


def test_a_plan_is_the_same_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("m/config.json", "c.safetensors", "e.py", "rows.csv", "organism/x", "refusal"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    plan = Journey(
        model="m", controls=("c.safetensors:0.5", "none.safetensors", "refusal"), estimators=("e.py:mine", "projected"), file="rows.csv",
        message="rows.csv",
    )  # fmt: skip
    written = plan.written()
    assert Journey(model="organism").written() == Journey(model="organism").written().replace(str(tmp_path), "")
    monkeypatch.chdir("/")
    (tmp_path / "plan.yaml").write_text(written)
    again = Journey.from_file(tmp_path / "plan.yaml")
    assert again.model == str(tmp_path / "m")
    assert again.controls == (f"{tmp_path / 'c.safetensors'}:0.5", "none.safetensors", "refusal")
    assert again.estimators == (f"{tmp_path / 'e.py'}:mine", "projected")
    assert again.file == tmp_path / "rows.csv"
    assert again.message == "rows.csv"
    assert again.written() == written


# Options that hold texts which are no names of files.
TEXTS = {
    "chat_template_args", "column", "columns", "device", "device_map", "dtype", "kernel", "message", "on", "prompt", "prompting", "questions",
    "reducer", "host", "pick", "repo", "report_to", "revision", "served_name", "storage", "system", "tokens",
}  # fmt: skip


def test_every_option_is_known_to_name_files_or_not_to() -> None:
    for module in pkgutil.walk_packages(demeanor.__path__, "demeanor."):
        if module.name.rpartition(".")[2] in ("plan", "plans", "options", "chat"):
            importlib.import_module(module.name)
    for plan in _below(BasePlan):
        if plan.__module__.startswith("demeanor."):
            for name, field in plan.model_fields.items():
                if any(kind in str(field.annotation) for kind in ("str", "Path")):
                    assert name in PLACES | TEXTS, f"{plan.__name__}.{name} names files, or holds a text: say which"


def _below(kind: type[BasePlan]) -> list[type[BasePlan]]:
    return [one for child in kind.__subclasses__() for one in (child, *_below(child))]
