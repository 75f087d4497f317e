"""Options from plans: every field is an option with its own help, and a plan file stands for all of them."""

from __future__ import annotations

import inspect
import json
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import Field
from rich.markup import escape
from typer.main import get_command

import demeanor as dm
from demeanor import cli
from demeanor.cli.from_model import from_plans
from demeanor.errors import DataError
from demeanor.io.plan import BasePlan, Flag
from demeanor.models import Loading

OUTSIDE_PLANS = {"reproduce", "target", "folder", "rating_sheet", "force", "as_json", "plan_file", "page"}  # where results go, and how they are shown
WITHOUT_MODEL = {"init", "judge", "ratings", "meter aggregate", "meter flows", "train config"}


@cache
def commands() -> dict[str, Any]:
    """Every command of the app, by what is typed for it; made once, which takes as long as all that is asked of it."""
    found: dict[str, Any] = {}
    for name, command in get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        found |= {f"{name} {sub}": inner for sub, inner in command.commands.items()} if hasattr(command, "commands") else {name: command}
    return found


def plans_of(command: Any) -> list[type[BasePlan]]:
    parameters = inspect.signature(inspect.unwrap(command.callback), eval_str=True).parameters.values()
    return [p.annotation for p in parameters if isinstance(p.annotation, type) and issubclass(p.annotation, BasePlan)]


def told(description: str | None) -> str:
    assert description
    return escape(f"{description[0].upper()}{description[1:]}.")


@pytest.mark.parametrize("name", commands())
def test_a_command_takes_what_its_plans_say_and_nothing_else(name: str) -> None:
    command = commands()[name]
    parameters = {parameter.name: parameter for parameter in command.params if parameter.name != "help"}
    plans = plans_of(command)
    if name in WITHOUT_MODEL:
        assert not plans
        return
    fields = {field: info for plan in plans for field, info in plan.model_fields.items()}
    assert {name: parameters[name].help for name in fields} == {name: told(info.description) for name, info in fields.items()}
    assert set(parameters) - set(fields) <= OUTSIDE_PLANS
    assert len({flag for parameter in command.params for flag in parameter.opts}) == sum(
        len(parameter.opts) for parameter in command.params
    )


@pytest.mark.parametrize("name", sorted(set(commands()) - WITHOUT_MODEL - {"push"}))  # which sends files and loads nothing
def test_every_command_that_takes_a_model_takes_all_loading_options_under_the_same_names(name: str) -> None:
    flags = [flag for parameter in commands()[name].params for flag in parameter.opts]
    for flag in (
        "--device", "--device-map", "--dtype", "--load-in-4bit", "--load-in-8bit", "--trust-remote-code", "--chat-template-arg", "--reply-tokens",
        "--prove",
    ):  # fmt: skip
        assert flags.count(flag) == 1, flag
    assert len(Loading.model_fields) == 9
    assert "--plan" in flags


# -- types of fields -------------------------------------------------------------------------------


class Toy(BasePlan):
    model: Annotated[str, Flag(positional="MODEL")] = Field(description="model")
    steps: int = Field(default=3, ge=1, le=9, description="steps")
    rate: float | None = Field(default=None, gt=0, description="rate")
    kind: Literal["one", "other"] = Field(default="one", description="kind")
    file: Path | None = Field(default=None, description="file")
    fast: bool = Field(default=False, description="fast")
    names: Annotated[tuple[str, ...], Flag(("--name", "-n"))] = Field(default=("a",), description="name")
    layers: int | Literal["all"] = Field(default=1, description="layers")
    template_args: dict[str, Any] = Field(default_factory=dict, description="argument")


class Other(BasePlan):
    steps: int = Field(default=3, description="steps")
    depth: int = Field(default=0, description="depth")


def run(*arguments: object) -> tuple[Toy, Other]:
    received = []
    app = typer.Typer()

    @app.command()
    @from_plans
    def command(toy: Toy, other: Other) -> None:
        received.append((toy, other))

    get_command(app)(list(map(str, arguments)), standalone_mode=False)
    return received[0]


def test_every_kind_of_field_arrives_as_the_plan_wants_it() -> None:
    toy, other = run(
        "m", "--steps", 4, "--rate", 0.5, "--kind", "other", "--file", "x.csv", "--fast", "-n", "b", "--name", "c", "--layers", "all",
        "--template-arg", "enable_thinking=false", "--template-arg", "budget=3", "--template-arg", "style=a=b",
    )  # fmt: skip
    assert toy == Toy(
        model="m", steps=4, rate=0.5, kind="other", file=Path("x.csv"), fast=True, names=("b", "c"), layers="all",
        template_args={"enable_thinking": False, "budget": 3, "style": "a=b"},
    )  # fmt: skip
    assert other == Other(steps=4)


def test_what_is_not_given_is_the_plan_s_default_and_not_set() -> None:
    toy, other = run("m", "--layers", 2)
    assert toy == Toy(model="m", layers=2)
    assert toy.model_fields_set == {"model", "layers"}
    assert other.model_fields_set == set()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rate", 0], "--rate should be greater than 0, not 0.0."),
        (["--layers", "some"], "--layers should be a valid integer"),
        (["--template-arg", "thinking"], "'thinking' is no KEY=VALUE"),
    ],
)
def test_a_mistake_names_the_flag(arguments: list[object], sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        run("m", *arguments)
    assert sentence in str(caught.value)


def test_a_plan_file_stands_for_all_options(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("model: m\nsteps: 5\nnames: [b]\ntemplate_args: {enable_thinking: false}\ndepth: 2\n")
    for place in (file, tmp_path):  # a folder stands for the plan in it
        assert run("--plan", place) == (
            Toy(model="m", steps=5, names=("b",), template_args={"enable_thinking": False}),
            Other(steps=5, depth=2),
        )
    with pytest.raises(DataError, match="leave out --fast"):
        run("--plan", file, "--fast")
    with pytest.raises(DataError, match="leave out MODEL"):
        run("m", "--plan", file)
    file.write_text("model: m\nstep: 5\n")
    with pytest.raises(DataError, match=r"plan\.yaml: there is no option 'step'; did you mean steps"):
        run("--plan", file)
    file.write_text("model: m\nsteps: 50\n")
    with pytest.raises(DataError, match=r"plan\.yaml: steps should be less than or equal to 9, not 50"):
        run("--plan", file)


# -- verbs in Python -------------------------------------------------------------------------------


def test_a_typo_is_told_in_python_as_on_the_command_line(organism: dm.Session) -> None:
    behaviour = dm.behaviour("refusal")
    with pytest.raises(DataError, match="find: rank_by should be 'trade_off', 'bypass', 'induce' or 'gap', not 'bypas'"):
        dm.find(organism, behaviour, rank_by="bypas")
    with pytest.raises(DataError, match="find: there is no option 'rankby'; did you mean rank_by"):
        dm.find(organism, behaviour, rankby="gap")
    with pytest.raises(DataError, match="find takes a FindPlan or keywords, not int '3'"):
        dm.find(organism, behaviour, 3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="measure: max_prompts should be greater than or equal to 1"):
        dm.measure(organism, behaviour, max_prompts=0)
    with pytest.raises(DataError, match="gate: kind should be 'probe' or 'cosine'"):
        dm.gate(organism, behaviour, kind="angle")
    with pytest.raises(DataError, match="Plan: there is no option 'modle'; did you mean model"):
        dm.Plan(modle="organism", behaviour="refusal")  # type: ignore[call-arg]


def test_a_plan_and_keywords_are_the_same(organism: dm.Session) -> None:
    behaviour = dm.behaviour("refusal")
    by_keyword = dm.measure(organism, behaviour, max_prompts=3)
    assert dm.measure(organism, behaviour, None, dm.MeasurePlan(max_prompts=3)).to_json() == by_keyword.to_json()


@pytest.mark.slow
def test_find_is_replayed_from_a_file(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "find.yaml").write_text("model: organism\nbehaviour: refusal\nlayer: 3\nmax_prompts: 20\ndevice: cpu\n")
    options = ("organism", "-b", "refusal", "--layer", 3, "--max-prompts", 20, "--device", "cpu")
    files = (tmp_path / "one", tmp_path / "two")
    facts = [demeanor("find", *how, "-o", file, "--json") for how, file in zip((options, ("--plan", tmp_path / "find.yaml")), files)]
    one, two = ({**json.loads(ended.out), "file": None} for ended in facts)
    assert one == two
    assert one["site"].startswith("layer 3")
