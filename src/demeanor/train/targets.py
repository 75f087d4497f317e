"""What a prefix is to reproduce: what a controlled model says, and its stream and next tokens along that, as files.

Prompts are worked off in chunks, a safetensors file each; a chunk whose file is there is not made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..behaviours import Prompt, Question
from ..controls import Control
from ..errors import CheckFailed
from ..io.atomic import new_file
from ..models import Session
from ..selfcontrol import search
from .trajectories import Followed, followed

CHUNK = 32
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """A prompt and the reply that is to be followed, token ids; whether that reply is any better than the plain one."""

    prompt: Ids
    reply: Ids
    gained: bool = True


class Teacher(Protocol):
    """What is to be followed on a chunk of prompts: a control, and what is said under it."""

    def teach(self, session: Session, prompts: Sequence[Ids]) -> tuple[Control | None, list[Example]]: ...


@dataclass(frozen=True)
class Plain:
    """The untouched model, which is to stay as it is here; or with a control in force."""

    control: Control | None = None

    def teach(self, session: Session, prompts: Sequence[Ids]) -> tuple[Control | None, list[Example]]:
        with session.controlled(self.control or Control(parts=(), layout=session.layout, model_name=session.name)):
            replies = session.continue_from(prompts, session.reply_tokens)
        return self.control, [Example(prompt, reply) for prompt, reply in zip(prompts, replies)]


@dataclass(frozen=True)
class Searched:
    """The states that a search with these questions finds, prompt by prompt; `asked` are the prompts by their token ids."""

    questions: Sequence[Question]
    asked: dict[Ids, Prompt]

    def teach(self, session: Session, prompts: Sequence[Ids]) -> tuple[Control | None, list[Example]]:
        traces = search(session, [self.asked[ids] for ids in prompts], self.questions)
        return traces.control(session), [Example(trace.ids, trace.reply.ids, trace.score > trace.plain_score) for trace in traces.traces]


@dataclass
class Counts:
    """How many prompts there were, and how many were left out because nothing was gained, or the stream was moved too far."""

    prompts: int = 0
    no_gain: int = 0
    too_far: int = 0

    @property
    def kept(self) -> int:
        return self.prompts - self.no_gain - self.too_far

    def to_json(self) -> dict[str, int]:
        return {**vars(self), "kept": self.kept}


@dataclass(frozen=True)
class Chunks:
    """The work: lists of prompts with their teachers, and the folder of their files."""

    folder: Path
    work: Sequence[tuple[Teacher, Sequence[Ids]]]
    top: int
    apart: float

    def path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.safetensors"

    def make(self, session: Session, number: int) -> None:
        """One chunk's file, unless it is there."""
        if self.path(number).is_file():
            return
        teacher, prompts = self.work[number]
        control, examples = teacher.teach(session, prompts)
        gained = [example for example in examples if example.gained]
        near, tensors = 0, dict[str, Tensor]()
        for example, taught, steered in self._followed(session, control, gained):
            tensors |= _tensors(near, example, taught, steered)
            near += 1
        counts = Counts(len(examples), len(examples) - len(gained), len(gained) - near)
        self.folder.mkdir(parents=True, exist_ok=True)
        with new_file(self.path(number)) as work:
            save_file(tensors, work, {"counts": json.dumps(vars(counts)), "rows": str(near)})

    def _followed(self, session: Session, control: Control | None, examples: Sequence[Example]) -> Iterator[tuple[Example, Followed, bool]]:
        """The examples whose streams stay near the plain ones, with what is to be followed, and whether that differs from the plain model."""
        if not examples:
            return
        prompts, replies = [example.prompt for example in examples], [example.reply for example in examples]
        plain = followed(session, prompts, replies, self.top)
        if control is None:
            yield from ((example, trajectory, False) for example, trajectory in zip(examples, plain))
            return
        with session.controlled(control):
            taught = followed(session, prompts, replies, self.top)
        for example, was, now in zip(examples, plain, taught):
            moved, norm = (now.stream - was.stream).norm(dim=-1), was.stream.norm(dim=-1)
            if moved.median() <= self.apart * norm.median():
                yield example, now, bool(moved.any())


def _tensors(row: int, example: Example, taught: Followed, steered: bool) -> dict[str, Tensor]:
    return {
        f"{row}.steered": torch.tensor(steered),
        f"{row}.ids": torch.tensor([*example.prompt, *example.reply], dtype=torch.int32),
        f"{row}.stream": taught.stream.to(torch.bfloat16).contiguous(),  # norms of large models do not fit float16
        f"{row}.tokens": taught.tokens.to(torch.int32).contiguous(),
        f"{row}.log_probs": taught.log_probs.contiguous(),
    }


@dataclass
class Targets(torch.utils.data.Dataset[dict[str, Any]]):
    """All rows of all chunks, read from disk when they are needed."""

    paths: Sequence[Path]
    rows: list[tuple[Path, int]] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        for path in self.paths:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
            for name, count in json.loads(metadata["counts"]).items():
                setattr(self.counts, name, getattr(self.counts, name) + count)
            self.rows += [(path, row) for row in range(int(metadata["rows"]))]
        if not self.rows:
            raise CheckFailed(
                f"None of {self.counts.prompts} prompts gives anything to learn: {self.counts.no_gain} gained nothing, {self.counts.too_far} moved the stream too far (--apart)."
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, row = self.rows[index]
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(f"{row}.{name}") for name in ("ids", "steered", "stream", "tokens", "log_probs")}
