"""Batches of prompts through a model: left-padded, sorted by length, halved when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ..errors import DataError
from ..progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, StoppingCriteriaList
    from transformers.generation.streamers import BaseStreamer

T = TypeVar("T")
TOKEN_BUDGET = 8192  # padded tokens in one forward pass


@dataclass(frozen=True)
class Reply:
    """What the model said: `text` without special tokens, and the generated `ids` (end token included)."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Left-padded `input_ids` and `attention_mask` [row, token]; `rows` are the indices of the caller's items."""

    rows: tuple[int, ...]
    input_ids: Tensor
    attention_mask: Tensor

    @property
    def ends(self) -> Tensor:
        """Where each row's tokens end in its columns: the index after its last one [row]."""
        return torch.full((len(self.rows),), self.input_ids.shape[1], device=self.input_ids.device)

    @property
    def of(self) -> Tensor:
        """Which prompt every token is of [row, token], from 1 on in the order of `rows`; 0 for pads."""
        return self.attention_mask * torch.arange(1, len(self.rows) + 1, device=self.attention_mask.device)[:, None]

    @property
    def last(self) -> tuple[Tensor, Tensor]:
        """Row and column of every prompt's last token."""
        return torch.arange(len(self.rows), device=self.input_ids.device), self.ends - 1

    def inputs(self) -> dict[str, Any]:
        """Keyword arguments of a forward pass; positions count from each row's first real token."""
        positions = (self.attention_mask.cumsum(1) - 1).clamp_min(0)
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "position_ids": positions, "use_cache": False}


@dataclass(frozen=True)
class EvenBatch(Batch):
    """Rows of one length, given as they are: for models that read pads, or that count positions in a way of their own."""

    def inputs(self) -> dict[str, Any]:
        return {"input_ids": self.input_ids, "use_cache": False}


def left_pad(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """ids and mask [row, longest]; the last token of every row is in the last column."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, longest - len(row) :] = torch.tensor(row)
        mask[number, longest - len(row) :] = 1
    return ids.to(device), mask.to(device)


def groups(lengths: Sequence[int], budget: int = TOKEN_BUDGET, alike: int | None = None) -> list[list[int]]:
    """Indices sorted by length, longest first, in groups whose padded size stays within the budget.

    Lengths above `alike` stand together with their like only: their replies are cut short, each length's elsewhere.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    for index in order:
        first = lengths[batches[-1][0]] if batches else 0
        together = alike is None or first <= alike or first == lengths[index]
        if batches and together and (len(batches[-1]) + 1) * first <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def in_batches(
    ids: Sequence[Sequence[int]],
    pad: int,
    device: torch.device,
    run: Callable[[Batch], Sequence[T]],
    what: str,
    extra: int = 0,
    budget: int = TOKEN_BUDGET,
    alike: int | None = None,
    batch_of: Callable[[Sequence[int]], Batch] | None = None,
) -> list[T]:
    """`run` on every batch; its results, one per row, in the order of `ids`.

    batch_of: makes a batch of some rows, where it is not of whole rows padded on the left.

    `extra` tokens per row count towards the budget (replies to come); rows that are longer than `alike` with them are in batches of one
    length. A batch that runs out of memory is
    halved and tried again; a single row that does not fit raises.
    """
    if not ids:
        raise DataError("There are no prompts to run.")
    results: dict[int, T] = {}

    def attempt(rows: list[int]) -> None:
        batch = batch_of(rows) if batch_of else Batch(tuple(rows), *left_pad([ids[i] for i in rows], pad, device))
        values = None
        try:
            values = run(batch)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        if values is not None:
            results.update(zip(rows, values, strict=True))
            return
        torch.cuda.empty_cache()  # outside the except, where the failed attempt's tensors are free
        middle = len(rows) // 2
        attempt(rows[:middle])
        attempt(rows[middle:])

    plan = groups([len(row) + extra for row in ids], budget, alike)
    for rows in track(plan, what, len(plan)):
        attempt(rows)
    return [results[i] for i in range(len(ids))]


def trimmed(ids: Sequence[int], end: frozenset[int]) -> tuple[int, ...]:
    """Generated ids up to and including the first end token; what follows is padding."""
    kept: list[int] = []
    for token in ids:
        kept.append(token)
        if token in end:
            break
    return tuple(kept)


def said_one_of(until: Sequence[str], tokenizer: PreTrainedTokenizerBase, read: int) -> StoppingCriteriaList:
    """Ends each row once one of the texts stands in what was generated after its `read` tokens."""
    from transformers import StoppingCriteriaList

    # No token is shorter than a byte, but for those that show nothing: a text that just ended is within so many tokens.
    tail = max(len(text.encode()) for text in until) + 8

    def ended(ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        texts = tokenizer.batch_decode(ids[:, max(read, ids.shape[1] - tail) :], skip_special_tokens=True)
        return torch.tensor([any(stop in text for stop in until) for text in texts], device=ids.device)

    return StoppingCriteriaList([ended])


def piece_by_piece(decode: Callable[[Sequence[int]], str], heard: Callable[[str], None]) -> BaseStreamer:
    """Tells a reply as it is generated: `heard` gets every piece of its text, once no later token can change it."""
    from transformers.generation.streamers import BaseStreamer

    class Pieces(BaseStreamer):
        def __init__(self) -> None:
            self.ids: list[int] | None = None  # None until the prompt went by
            self.told = ""

        def put(self, value: Tensor) -> None:
            if self.ids is None:
                self.ids = []
                return
            self.ids += value.flatten().tolist()
            text = decode(self.ids)
            if not text.endswith("\ufffd"):  # the bytes of one character may come as several tokens
                self._tell(text)

        def end(self) -> None:
            self._tell(decode(self.ids or []))

        def _tell(self, text: str) -> None:
            if text.startswith(self.told) and len(text) > len(self.told):
                heard(text[len(self.told) :])
                self.told = text

    return Pieces()


def each(values: Tensor) -> Iterator[Tensor]:
    """Rows of a tensor, on the CPU in float32."""
    return iter(values.float().cpu())
