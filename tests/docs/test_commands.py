"""Every command of README and the pages is one that the program takes, and does what can be done without a network."""

from __future__ import annotations

import ast
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documented import PAGES, PLACEHOLDER, ROOT, Shown, blocks, commands, files, typed
from typer.main import get_command

import demeanor as dm
from demeanor.cli import app
from demeanor.cli.root import UsageError
from kept import kept
from pages.commands import every_command


def everywhere() -> Iterator[Shown]:
    """The commands of the pages, of the Makefile, and the example in the help of every command."""
    for page in PAGES:
        yield from commands(page)
    recipes = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ").replace("$(REAL)", "MODEL")
    for line in re.findall(r"^\t\$\(BIN\)/(demeanor .*)$", recipes, re.MULTILINE):
        yield from typed(line, "Makefile")
    for name, command in every_command(get_command(app)):
        example = command.epilog.partition("Example: ")[2].replace("\\[", "[")
        if example.startswith("demeanor "):  # and not another program that is given one of its commands
            yield from typed(example, f"help of {name}")


SHOWN = list({str(shown): shown for shown in everywhere()}.values())
FIRST = ("run", "organism", "--behaviour", "over-refusal", "-o", "runs/first")
# What makes a command short in a test: the same command, on fewer prompts. The last value of an option counts.
SHORTER = {
    "run": ["--max-prompts", "24", "--layer", "3"], "find": ["--max-prompts", "40", "--layer", "3"], "search": ["--trials", "8", "--max-prompts", "8"],
    "measure": ["--max-prompts", "8"], "dial": ["--max-prompts", "24", "--layer", "3", "--doses", "3"], "dose": ["--max-prompts", "8"],
    "train prefix": ["--prompts", "8", "--max-prompts", "8", "--num-train-epochs", "1"], "train detox": ["--max-prompts", "8"],
    "train heal": ["--max-prompts", "8"], "selfcontrol run": ["--max-prompts", "4"],
}  # fmt: skip
ELSEWHERE = {"docs/start.md": "tests/docs/test_start.py", "docs/extending.md": "tests/detect/test_foreign.py", "docs/how-to/clusters.md": "tests/workers/test_cluster_page.py"}  # run as they stand
QUICK = {"docs/selfcontrol.md"}  # a few seconds


def command_of(words: tuple[str, ...]) -> tuple[Any, list[str]]:
    """The command that words name, and the rest of them."""
    command: Any = get_command(app)
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"there is no command {rest[0]!r}"
        command = command.commands[rest.pop(0)]
    return command, rest


def with_values(command: Any, words: list[str]) -> list[str]:
    """Placeholders of numbers and choices as something that is one."""
    options = {name: option for option in command.params for name in option.opts}
    valued = list(words)
    for at, word in enumerate(words[1:], 1):
        option = options.get(words[at - 1])
        if option is not None and PLACEHOLDER.match(word):
            kind = option.type_descriptor.annotation
            valued[at] = str(option.min or 1) if kind in (int, float) else getattr(kind, "__args__", (word,))[0] if "Literal" in str(kind) else word
    return valued


@pytest.mark.parametrize("shown", SHOWN, ids=str)
def test_a_command_is_one_that_the_program_takes(shown: Shown) -> None:
    """Its options exist, what must be given is given, and values are of their kind."""
    if PLACEHOLDER.match(shown.words[0]) or any(PLACEHOLDER.match(word) for word in shown.words[1:2] if shown.words[0] == "train"):
        return  # `demeanor COMMAND --help`
    command, words = command_of(shown.words)
    if not shown.block and (hasattr(command, "commands") or not words or "--help" in words):
        return  # a command that is spoken of
    replayed = [at for at, word in enumerate(words) if word in ("--plan", "--reproduce")]  # which read a file that says the rest
    for at in replayed:
        del words[at : at + 2]
    try:
        command.make_context(str(shown), with_values(command, words))
    except UsageError as error:
        if not ((shown.partly or replayed) and "Missing" in error.format_message()):
            raise AssertionError(f"{shown}: {error.format_message()}") from error


@pytest.mark.parametrize("words", ["measure organism -b refusal --contrl c", "find organism -o d", "control ablate d --strength much -o c", "bake organism -c"])
def test_a_command_that_is_wrong_is_found(words: str) -> None:
    with pytest.raises(AssertionError):
        test_a_command_is_one_that_the_program_takes(Shown("a page", tuple(words.split()), True, False))


def test_placeholders_and_what_needs_a_network_are_told_apart() -> None:
    whole = {str(shown) for shown in SHOWN if shown.whole and shown.page.endswith(".md")}
    assert any("docs/how-to/heal.md: train heal" in name for name in whole)
    assert not any("MODEL" in name or "my-model" in name or "gemma" in name for name in whole)


def runs(page: Path) -> list[Shown]:
    """What of a page can be typed as it stands, servers left out: it asks the embedded model, or goes on from what such a command made."""
    chosen: list[Shown] = []
    made: set[str] = set()
    for shown in commands(page):
        names = {word.partition(":")[0] for word in shown.words}
        if shown.whole and shown.words[0] != "serve" and (names & made or "organism" in names):
            chosen.append(shown)
            made |= {shown.words[at + 1] for at, word in enumerate(shown.words) if word == "-o"}
    return chosen


def shortened(shown: Shown) -> list[str]:
    words = list(shown.words)
    return words + next((more for name, more in SHORTER.items() if words[: len(name.split())] == name.split()), [])


def first_run(folder: Path) -> None:
    """The run that many pages begin with."""
    dm.run(dm.Plan(model="organism", behaviour="over-refusal", device="cpu", max_prompts=40, layer=3), folder / "run")


PAGES_THAT_RUN = [page for page in PAGES if runs(page) and str(page.relative_to(ROOT)) not in ELSEWHERE]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[] if str(page.relative_to(ROOT)) in QUICK else pytest.mark.long) for page in PAGES_THAT_RUN],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_commands_of_a_page_run_in_order(page: Path, demeanor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    for name, text in files(page).items():
        Path(name).write_text(text, encoding="utf-8")
    if any("runs/first" in word for shown in runs(page) for word in shown.words):
        shutil.copytree(kept("documented", lambda folder: (first_run(folder), folder / "run")[1]), "runs/first")
    for shown in runs(page):
        if shown.words != FIRST:
            ended = demeanor(*shortened(shown))
            assert ended.code == 0, f"{shown}: {ended.err[-600:]}"


PYTHON = [(str(page.relative_to(ROOT)), text) for page in PAGES for language, text in blocks(page) if language == "python"]


@pytest.mark.parametrize(("page", "text"), PYTHON, ids=[page for page, _ in PYTHON])
def test_python_of_a_page_uses_names_that_are_there(page: str, text: str) -> None:
    """It is Python, and what it takes of `dm` is public."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "dm":
            assert hasattr(dm, node.attr), f"{page}: dm.{node.attr}"


@pytest.mark.long
@pytest.mark.parametrize("page", ["README.md", "docs/commands.md"])
def test_python_of_a_page_runs(page: str) -> None:
    for _, text in [block for block in PYTHON if block[0] == page]:
        exec(compile(text, page, "exec"), {"__name__": "__main__"})


@pytest.mark.hub
@pytest.mark.long
@pytest.mark.skipif("DEMEANOR_HUB" not in os.environ, reason="needs the Hub and a large model; DEMEANOR_HUB=1 runs it")
@pytest.mark.parametrize("shown", [shown for shown in SHOWN if shown.page.endswith(".md") and shown.block and shown.needs_hub and not shown.placeholders], ids=str)
def test_a_command_that_needs_the_hub_runs(shown: Shown, demeanor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    assert demeanor(*shown.words).code == 0
