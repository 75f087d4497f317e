"""The bank: K slots of edits at every place of a model, and which slot each row of a batch has.

A place is one side of one module. What a slot does there is a chain of edits, each with a reach; edits in a row
with the same reach are composed into one. Stage n of a place holds the n-th edit of every slot, stacked and padded with
zeros: V and M [slot, k, d_model], b [slot, 1, d_model]. Slot 0 changes nothing.

For a batch, a stage is bound: where all rows have one slot, that slot's edit is applied as it is; else the rows' edits
are gathered once, and stay so for the tokens that follow. Masks are True or False (known without looking
at a tensor) or numbers [row, token, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra.edits import Edit, compose
from .intervene import Intervention, Reach, RowGate, Side

Mask = bool | Tensor
Link = tuple[Reach, Edit]


@dataclass
class Pattern:
    """Which reach each row of the batch has at a stage: `rows` [row, reach] of ones and zeros, None where all have the first.

    `mask` is that of the forward pass in progress.
    """

    reaches: tuple[Reach, ...]
    rows: Tensor | None
    mask: Mask = False

    def combined(self, masks: Mapping[Reach, Mask]) -> Mask:
        """The rows' masks, from those of the reaches."""
        own = [masks[reach] for reach in self.reaches]
        if self.rows is None:
            return own[0]
        if all(isinstance(mask, bool) for mask in own) and len(set(map(bool, own))) == 1:
            return own[0]
        parts = [self.rows[:, number, None, None] * mask for number, mask in enumerate(own) if mask is not False]
        return torch.stack(torch.broadcast_tensors(*parts)).sum(0)


NOTHING = Pattern((), None)


class Stage:
    """One edit per slot at one place; see the module. Calling it edits x [row, token, d_model] as it is bound."""

    def __init__(self, links: Sequence[Link | None], like: Tensor) -> None:
        self.dtype = torch.promote_types(like.dtype, torch.float32)  # float32 at least, as baking computes
        self.device, self.d_model = like.device, next(link[1].d_model for link in links if link)
        self.fill(links)

    def fill(self, links: Sequence[Link | None]) -> None:
        """Put these edits into the slots. What is bound must be bound again."""
        self.reaches = [link[0] if link else None for link in links]
        edits = [link[1] if link else None for link in links]
        rank = max(edit.rank for edit in edits if edit)
        empty = torch.zeros(len(links), rank, self.d_model, device=self.device, dtype=self.dtype)
        self.read, self.write, self.offset = empty, empty.clone(), empty.new_zeros(len(links), 1, self.d_model)
        for slot, edit in enumerate(edits):
            if edit is not None:
                self.read[slot, : edit.rank], self.write[slot, : edit.rank] = edit.V, edit.M
                self.offset[slot, 0] = edit.b
        self.moves = bool(self.offset.any())
        self.rank = rank
        self.pattern = NOTHING

    def pattern_key(self, slots: Sequence[int]) -> tuple[Reach | None, ...]:
        """The reach of every row; rows without an edit here take any other's, since theirs changes nothing."""
        own = [self.reaches[slot] for slot in slots]
        other = next((reach for reach in own if reach is not None), None)
        return tuple(reach if reach is not None else other for reach in own)

    def bind(self, slot: int | None, index: Tensor, pattern: Pattern) -> None:
        """To one slot for all rows, or to the slots of `index` [row]."""
        self.pattern = pattern
        if pattern is NOTHING:
            return
        chosen = slot if slot is not None else index.to(self.device)
        self.V, self.M, self.b = self.read[chosen], self.write[chosen], self.offset[chosen]

    def __call__(self, x: Tensor) -> Tensor:
        mask = self.pattern.mask
        if mask is False:
            return x
        if mask is not True:
            mask = mask.to(x.device)
        y = x.to(self.dtype)
        edited = y
        if self.rank:
            # A batch of products of one row and one column is many times slower than one sum over all.
            by_row = self.rank == 1 and self.V.dim() == 3
            seen = torch.linalg.vecdot(y, self.V)[..., None] if by_row else y @ self.V.mT
            if mask is not True:
                seen = seen * mask
            edited = torch.addcmul(y, seen, self.M) if self.rank == 1 else y + seen @ self.M
        if self.moves:
            edited = edited + (self.b if mask is True else self.b * mask)
        return edited.to(x.dtype)


class Bank:
    """The stages at every place, for `slots`: what each slot does, as interventions in order."""

    def __init__(self, slots: Sequence[Sequence[Intervention]], like: Mapping[str, Tensor]) -> None:
        self.slots = [list(interventions) for interventions in slots]
        places = dict.fromkeys((item.module, item.side) for slot in slots for item in slot)
        self.places: dict[tuple[str, Side], list[Stage]] = {
            place: [Stage(links, like[place[0]]) for links in self._links(place)] for place in places
        }
        self.patterns: list[Pattern] = []
        self._bound: tuple[int, ...] | None = None

    def put(self, slot: int, interventions: Sequence[Intervention]) -> None:
        """Another edit into a slot, at the places it had: no hook changes."""
        self.slots[slot] = list(interventions)
        for place, stages in self.places.items():
            for stage, links in zip(stages, self._links(place), strict=True):
                stage.fill(links)
        self._bound = None

    def _links(self, place: tuple[str, Side]) -> list[list[Link | None]]:
        """[stage][slot]: what every slot does at a place."""
        chains = [_chain(item for item in slot if (item.module, item.side) == place) for slot in self.slots]
        longest = max(map(len, chains))
        return [[chain[stage] if stage < len(chain) else None for chain in chains] for stage in range(longest)]

    def bind(self, slots: Sequence[int], repeats: int, device: torch.device) -> None:
        """To a batch whose rows have these slots, each of them `repeats` times in a row (beams, or several samples of one prompt)."""
        uniform = slots[0] if len(set(slots)) == 1 else None
        rows = (uniform,) if uniform is not None else tuple(slot for slot in slots for _ in range(repeats))
        if rows == self._bound:
            return
        self._bound = rows
        index = torch.tensor(rows, device=device)
        patterns: dict[tuple[Reach | None, ...], Pattern] = {}
        for stage in (stage for stages in self.places.values() for stage in stages):
            key = stage.pattern_key(rows)
            if key not in patterns:
                patterns[key] = _pattern(key, device)
            stage.bind(uniform, index, patterns[key])
        self.patterns = [pattern for pattern in patterns.values() if pattern is not NOTHING]

    def reaches(self) -> list[Reach]:
        """Of the batch that is bound."""
        return list(dict.fromkeys(reach for pattern in self.patterns for reach in pattern.reaches))

    def gates(self) -> list[RowGate]:
        return list(dict.fromkeys(gate for reach in self.reaches() for gate in reach.gates))


def _pattern(reaches: tuple[Reach | None, ...], device: torch.device) -> Pattern:
    distinct = tuple(dict.fromkeys(reach for reach in reaches if reach is not None))
    if not distinct:
        return NOTHING
    if len(distinct) == 1:
        return Pattern(distinct, None)
    return Pattern(distinct, torch.tensor([[float(reach == own) for reach in distinct] for own in reaches], device=device))


def _chain(items: Iterable[Intervention]) -> list[Link]:
    """The edits of one slot at one place, those with the same reach in a row composed into one."""
    chain: list[Link] = []
    for item in items:
        if chain and chain[-1][0] == item.reach:
            chain[-1] = (item.reach, compose(chain[-1][1], item.edit))
        else:
            chain.append((item.reach, item.edit))
    return chain
