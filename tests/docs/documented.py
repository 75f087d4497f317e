"""The commands that README and the pages of docs/ show, and the files that they show beside them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "real" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A fence with its language; or lines that are indented by four; or a span in backticks.
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NAMED_FILE = re.compile(r"^(?:.*[ .])?`([\w-]+\.(?:csv|json|jsonl|yaml|txt))`[^\n]*:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHELL = ("", "bash", "console", "text", "sh")
PLACEHOLDER = re.compile(r"^[A-Z][A-Z0-9]*(?![a-z])")  # MODEL, C:DOSE, OWNER/NAME, MODEL.gguf
MINE = ("./my-model", "my-behaviour.yaml")  # what the reader has
HUB = re.compile(r"^[a-z][\w.-]*/[\w.-]+$")


@dataclass(frozen=True)
class Shown:
    """A command as a page shows it: its words after `demeanor`, whether it stands in a block of its own, and whether it is shown in part (`...`)."""

    page: str
    words: tuple[str, ...]
    block: bool
    partly: bool

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"

    @property
    def placeholders(self) -> bool:
        return self.partly or any(PLACEHOLDER.match(word) for word in self.words)

    @property
    def needs_hub(self) -> bool:
        """Whether it names something on the Hub: `owner/name` where a model or a repository stands."""
        first = [word for word in self.words[1:] if not word.startswith("-")][:2]
        return any(HUB.match(word) and not word.startswith(("runs/", "real/")) and not Path(word).suffix[1:].isalpha() for word in first)

    @property
    def needs_mine(self) -> bool:
        return any(word.partition(":")[0] in MINE or word.startswith("./") for word in self.words)

    @property
    def whole(self) -> bool:
        """Whether it can be typed as it stands, with nothing but what the page shows."""
        return self.block and not (self.placeholders or self.needs_hub or self.needs_mine)


def commands(page: Path) -> Iterator[Shown]:
    """Every command of a page, in order."""
    text = page.read_text(encoding="utf-8")
    name = str(page.relative_to(ROOT))
    for language, block in FENCE.findall(text):
        if language in SHELL:
            yield from _in_block(block, name)
    rest = FENCE.sub("", text)
    for line in re.findall(r"^ {4}(demeanor .*)$", rest, re.MULTILINE):
        yield from _in_block(line, name)
    for span in re.findall(r"`(?:[A-Z_]+=\S+ )?(demeanor [^`]+)`", " ".join(rest.split())):
        yield from _expanded(span, name, False)


def typed(line: str, where: str) -> Iterator[Shown]:
    """The commands of one line that stands elsewhere: in the Makefile, or in the help of a command."""
    yield from _expanded(line, where, True)


def files(page: Path) -> dict[str, str]:
    """Files that a page shows whole, by name."""
    return dict(NAMED_FILE.findall(page.read_text(encoding="utf-8")))


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of every fenced block, in order."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def _in_block(block: str, page: str) -> Iterator[Shown]:
    for line in block.replace("\\\n", " ").splitlines():
        if line.startswith("demeanor "):
            yield from _expanded(re.split(r" {2,}(?=[a-z(])| # ", line)[0], page, True)


def _expanded(line: str, page: str, block: bool) -> Iterator[Shown]:
    """The commands that one line stands for: `A ; B` are two, `a|b` one of two, and brackets hold what may be left out."""
    group = ""
    for part in re.split(r"\s+; ", line):
        part = part.removeprefix("demeanor ")
        words = part.split()
        from_group = group and words[0] in ("score",)  # a line of one group names it once
        group = words[0]
        text = re.sub(r"\]\.\.\.|[\[\]]", "", part)
        choices = [word.split("|") if "|" in word and not word.startswith(("'", '"')) else [word] for word in shlex.split(text, posix=False)]
        for chosen in product(*choices):
            typed = [word for word in shlex.split(" ".join(chosen)) if word != "..."]
            yield Shown(page, ("meter", *typed) if from_group else tuple(typed), block, "..." in text.split())
