"""Batches through the blocks of a model on disk: each block is read once, all batches pass it, and it goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..runtime.steering import Steering
from .chain import Chain, Given
from .kept_pass import KeptPass
from .shell import Shell

BUDGET = 2048  # tokens of a batch: a block is read once for all batches, so small ones cost little


class Passed(NamedTuple):
    """A batch that has passed a block: what the block was given, and the stream before and behind it."""

    batch: int
    given: Given
    before: Tensor
    after: Tensor


class BlockMajor:
    """One pass of batches of token ids [row, token] through the model of `shell`, which the user calls `name`; the stream is kept in `kept`.

    steering: edits in force, for which the rows of batch n are `rows[n]` of its prompts.
    """

    def __init__(self, shell: Shell, name: str, ids: Sequence[Tensor], kept: KeptPass, steering: Steering | None = None, rows: Sequence[Sequence[int]] = ()) -> None:
        self.shell, self.name, self.ids, self.kept = shell, name, ids, kept
        self.steering, self.rows = steering, rows
        self.given: list[tuple[Given, ...]] = []

    def inputs(self, batch: int) -> dict[str, Any]:
        return {"input_ids": self.ids[batch].to(self.shell.device), "use_cache": False}

    def begin(self, chain: Chain) -> tuple[Tensor, int]:
        """The first batch's stream as it comes to the first block, and how many blocks were passed before. What is outside of the blocks must be read."""
        done, first = self.kept.done, None
        for number in range(len(self.ids)):
            if self.steering is not None:
                self.steering.batch = tuple(self.rows[number])
            batch = chain.begun(self.inputs(number))
            if first is None:
                first, done = batch.stream, None if batch.hands_on else done
            self.kept.lay_out(number, tuple(batch.stream.shape), batch.stream.dtype)
            if done is None:
                self.kept.write(number, batch.stream)
            self.given.append(batch.given)
        if done is None:
            self.kept.passed(0)
        assert first is not None  # there is a batch
        return first, done or 0

    def through(self, chain: Chain, number: int) -> Iterator[tuple[nn.Module, Passed]]:
        """Every batch behind block `number`, and the block, which has its weights meanwhile."""
        name = chain.names[number]
        with self.shell.reading(name) as block:
            for batch in range(len(self.ids)):
                before = self.kept.stream(number, batch).to(self.shell.device)
                given = self.given[batch][number]
                after = self._passed(name, block, before, given, batch)
                self.kept.write(batch, after)
                yield block, Passed(batch, given, before, after)

    @torch.no_grad()
    def _passed(self, name: str, block: nn.Module, before: Tensor, given: Given, batch: int) -> Tensor:
        if self.steering is not None:
            self.steering.batch = tuple(self.rows[batch])
            self.steering.passes(self.inputs(batch))
        try:
            after = given.run(block, before.clone())
        except ModelError as error:
            raise ModelError(f"{self.name} cannot be read block by block: {error} ({name}).") from error
        if after.shape != before.shape:
            raise ModelError(f"{self.name} cannot be read block by block: {name} does not return a stream of the shape that it received.")
        return after
