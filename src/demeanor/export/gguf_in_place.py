"""Edited tensors of GGUF files in the types that they have: their codes change, their scales and what blocks have in common never."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..algebra.rounding import Grid
from ..errors import ControlError
from ..io.checkpoint import Stored
from ..io.dtypes import DTYPES
from ..io.gguf_codes import BLOCKS, Blocks
from ..io.kernel_copy import write_at
from .low_rank import Halves
from .packed import Window, rounded
from .patch import NotFinite, PutBack, share_of, worst_of

AT_ONCE = 1 << 20  # weights
NUMBERS = {name: DTYPES[name] for name in ("F32", "F16", "BF16")}
FLOATS = {"F16": (11, 2.0**-24), "BF16": (8, 2.0**-133)}  # bits of a value, and the least step between two
KEPT = (*NUMBERS, *BLOCKS)
DEAR = 0.5  # of what an edit moves, that rounding may move before it is told
MUCH_LEFT = 0.01  # of an edit, that rounding may put back before it is told


@dataclass(frozen=True)
class Rounding:
    """What rounding did to one tensor: along the edit's directions; and squares of the distance from the exact edit, and of the edit itself.

    beyond: how many values are cut off, because the scales that are kept do not reach as far.
    """

    put_back: PutBack
    off: float
    edit: float
    beyond: int

    def __add__(self, other: Rounding) -> Rounding:
        return Rounding(self.put_back + other.put_back, self.off + other.off, self.edit + other.edit, self.beyond + other.beyond)


NONE = Rounding(PutBack(), 0.0, 0.0, 0)


@dataclass(frozen=True)
class Roundings:
    """What rounding did to each tensor that does not hold the edit exactly, by name."""

    each: Mapping[str, Rounding]

    @property
    def left(self) -> float | None:
        """The share of the edit that rounding put back, in all tensors together; None where none was kept from it."""
        return share_of(self._put_back)

    @property
    def worst(self) -> tuple[str, float] | None:
        """The tensor with most of it, and its share."""
        return worst_of(self._put_back)

    @property
    def _put_back(self) -> dict[str, PutBack]:
        return {name: one.put_back for name, one in self.each.items()}

    @property
    def off(self) -> float | None:
        """How far tensors are from the exact edit, in units of what it moves them by: root mean square over tensors."""
        shares = [one.off / one.edit for one in self.each.values() if one.edit > 0]
        return math.sqrt(sum(shares) / len(shares)) if shares else None

    @property
    def beyond(self) -> int:
        return sum(one.beyond for one in self.each.values())

    def warnings(self) -> Iterator[str]:
        """A sentence for what a user may not expect: much of the edit put back, and weights that moved far beside it."""
        if self.worst is not None and self.worst[1] > MUCH_LEFT:
            name, share = self.worst
            cut_off = self.each[name].beyond
            why = f", where {cut_off} values do not fit its scales" if cut_off else ""
            yield f"Rounding put back {share:.1%} of the edit in {name}{why}; use --edited-as q8_0 or f16, or a smaller dose."
        if self.off is not None and self.off > DEAR:
            yield (
                f"Rounding moved the weights by {self.off:.2g} times what the edit moves them by, because their types have steps that are coarse beside it; "
                "--edited-as q8_0 or f16 stores what is edited more finely."
            )


def refuse_types(names: Mapping[str, str], tensors: Mapping[str, Stored]) -> None:
    """ControlError for a tensor of a type whose codes are not changed here. names: of parameters, with the tensor's of each."""
    for parameter, name in names.items():
        if tensors[name].dtype not in KEPT or (len(tensors[name].shape) == 1 and tensors[name].dtype in BLOCKS):
            raise ControlError(f"{parameter} is stored as {tensors[name].dtype}, whose codes are not changed here; write edited tensors as f16 or q8_0.")


def in_blocks(stored: Stored) -> bool:
    """Whether a tensor is stored in few bits."""
    return stored.dtype in BLOCKS


def patch_vector(target: int, stored: Stored, place: int, values: Tensor) -> None:
    """A bias into the open file `target`, from byte `place` on, rounded to the nearest. Raises NotFinite where its type does not hold it."""
    kept = values.to(NUMBERS[stored.dtype])
    if not bool(kept.isfinite().all()):
        raise NotFinite(in_source=False)
    write_at(target, memoryview(kept.contiguous().view(torch.uint8).numpy()), place)


def patch_matrix(source: int, target: int, stored: Stored, place: int, halves: Halves, by_rows: bool) -> Rounding | None:
    """Add what a weight gains, from the open file `source` into the open file `target`; None where its type takes it as it is (F32).

    stored: the tensor in `source`. place: its first byte in `target`, which holds a copy of it. by_rows: whether the outputs are the rows of its matrices there,
    so that columns are rounded by themselves; rows are elsewhere. Raises NotFinite.
    """
    done = []
    for part in _parts(stored, by_rows):
        raw = part.window(stored, stored.start).read(source)
        held = _FewBits(raw, BLOCKS[stored.dtype], by_rows) if stored.dtype in BLOCKS else _Plain(raw, stored.dtype, by_rows)
        written, rounding = _edited(held, part.gain(halves), halves.basis)
        part.window(stored, place).write(target, written)
        done.append(rounding)
    return None if stored.dtype == "F32" else sum(done, NONE)


def _edited(held: _FewBits | _Plain, gain: Tensor, basis: Tensor) -> tuple[Tensor, Rounding]:
    """What is stored instead, and what rounding did there."""
    values = held.values()
    exact = values + gain
    if not bool(exact.isfinite().all()):
        raise NotFinite(in_source=not bool(values.isfinite().all()))
    grid = held.grid(exact)
    if grid is None:
        return held.stored(exact), NONE
    places, put_back = rounded(grid, values, exact, basis)
    now = grid.values(places)
    beyond = int(grid.beyond(exact).sum()) if isinstance(held, _FewBits) else 0  # plain numbers have a grid about each value
    return held.stored(places if isinstance(held, _FewBits) else now), Rounding(put_back, _squares(now - exact), _squares(gain), beyond)


def _squares(values: Tensor) -> float:
    return float(values.double().square().sum())


@dataclass(frozen=True)
class _FewBits:
    """Some rows of blocks as they are stored, and their weights with the outputs first [d, n], without what blocks have in common: an edit leaves that alone."""

    raw: Tensor
    form: Blocks
    by_rows: bool

    def values(self) -> Tensor:
        return self._grid.values(self._codes)

    def grid(self, exact: Tensor) -> Grid | None:
        return self._grid

    def stored(self, places: Tensor) -> Tensor:
        kept = torch.where(self._grid.scale == 0, self._codes, places)  # where every code is the same value
        return torch.from_numpy(self.form.with_codes(self.raw.numpy(), _turned(kept, self.by_rows).numpy()))

    @cached_property
    def _codes(self) -> Tensor:
        return _turned(torch.from_numpy(self.form.codes(self.raw.numpy())), self.by_rows).int()

    @cached_property
    def _grid(self) -> Grid:
        return Grid(torch.from_numpy(self.form.levels), _turned(torch.from_numpy(self.form.scale(self.raw.numpy())), self.by_rows))


@dataclass(frozen=True)
class _Plain:
    """The same of numbers."""

    raw: Tensor
    dtype: str
    by_rows: bool

    def values(self) -> Tensor:
        return _turned(self.raw.view(NUMBERS[self.dtype]).float(), self.by_rows)

    def grid(self, exact: Tensor) -> Grid | None:
        """The values about each exact one, up to the next power of two; None where all can be stored."""
        if self.dtype not in FLOATS:
            return None
        bits, least = FLOATS[self.dtype]
        step = torch.ldexp(torch.ones_like(exact), torch.frexp(exact).exponent - bits).clamp_min(least)
        return Grid(torch.arange(-(1 << bits), (1 << bits) + 1.0), torch.where(exact == 0, least, step))

    def stored(self, values: Tensor) -> Tensor:
        kept = _turned(values, self.by_rows).to(NUMBERS[self.dtype])
        if not bool(kept.isfinite().all()):
            raise NotFinite(in_source=False)
        return kept.view(torch.uint8)


def _turned(values: Tensor, by_rows: bool) -> Tensor:
    return values if by_rows else values.mT.contiguous()


@dataclass(frozen=True)
class _Part:
    """Some rows and columns of matrix `number` of a tensor."""

    number: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    by_rows: bool

    def window(self, stored: Stored, start: int) -> Window:
        """Its bytes, where the tensor begins at byte `start`."""
        height, width = stored.shape[-2:]
        row, first, last = (_bytes_of(stored.dtype, count) for count in (width, *self.columns))
        return Window(start + self.number * height * row, row, self.rows, (first, last))

    def gain(self, halves: Halves) -> Tensor:
        """What is added to it, [d, n]."""
        first, last = self.columns if self.by_rows else self.rows
        return halves.b[self.number] @ halves.a[self.number][:, first:last]


def _parts(stored: Stored, by_rows: bool) -> Iterator[_Part]:
    height, width = stored.shape[-2:]
    block = BLOCKS[stored.dtype].weights if by_rows and stored.dtype in BLOCKS else 1
    along, across = (height, width) if by_rows else (width, height)
    step = max(1, AT_ONCE // (along * block)) * block
    for number in range(math.prod(stored.shape[:-2])):
        for start in range(0, across, step):
            some, all_of = (start, min(start + step, across)), (0, along)
            yield _Part(number, *((all_of, some) if by_rows else (some, all_of)), by_rows)


def _bytes_of(dtype: str, count: int) -> int:
    """Of so many weights in a row, which are whole blocks."""
    return count * NUMBERS[dtype].itemsize if dtype in NUMBERS else count // BLOCKS[dtype].weights * BLOCKS[dtype].size
