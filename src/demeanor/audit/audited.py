"""What was done to a model: two checkpoints compared tensor by tensor, neither held in memory. docs/algorithms.md, section 5.

What an ablation does is W' = W - s r r^T W at every writer. So the changes of all writers share the direction r, and along r what was
taken is s times what was there. Both are looked for: the directions that all changes share, and how far what moved along each goes with
what was there before. Training moves weights along directions too, but not in proportion to what lay along them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor

from ..controls import Control
from ..errors import ModelError
from ..export.folders import whole_folder
from ..export.names import FileTensors
from ..io.checkpoint import open_checkpoint
from ..models import Layout, Loading, load
from ..progress import track
from ..structure.layout import Role
from .common import Common, common_directions
from .pairs import Opposite, Pair, opposite
from .passes import Along, Sketch, along, sizes
from .recovered import recovered

Kind = Literal["same", "rounding", "ablation", "other"]
ROUNDING = {"F64": 1e-14, "F32": 2e-7, "F16": 6e-4, "BF16": 5e-3, "FP8": 0.05, "INT8": 0.02, "MXFP4": 0.25, "NVFP4": 0.2, "INT4": 0.2}
AGREEING = 0.5  # share of what moved along a direction that goes with what was there, over all writers, from which it was ablated
FIRM = 2.0  # times the rest of the change, in units of the weight
LIKE_THE_FIRST = 0.25  # of its strength: an edit that scales rows seems to take a little of single channels too
ABOVE = 5.0  # times the energy of any other direction
MISSED = 0.1  # of the usual strength: a weight with less was passed over
COUNTED = 1e-8  # share of a weight's square along the directions, below which there was nothing to take


@dataclass(frozen=True)
class Strength:
    """How strongly the directions were taken out of one matrix: 1 removed, 2 inverted, 0 not at all; `error` is one standard error of it."""

    pair: Pair
    value: float
    error: float
    relative: float  # how large the whole change is, in units of the weight

    @property
    def layer(self) -> int:
        return self.pair.writer.layer if self.pair.writer else -1

    @property
    def role(self) -> Role:
        return self.pair.writer.role if self.pair.writer else "embed"


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was found; the sentence says it.

    basis [k, d_model]: what was taken out, orthonormal. strength: of all writers that were not missed. share: of the change of writers, how
    much lies along the basis. rest: how large the rest of their change is, in units of the weights. rounding: what the coarser of
    both forms explains of it. kept: what an edit left as long as it was. missed: matrices behind writers that hold the directions still.
    trained: other tensors that changed by more than rounding. alone: tensors that one model alone has. control: the same edit at run time.
    """

    base: str
    edited: str
    kind: Kind
    basis: Tensor
    strength: float
    share: float
    rest: float
    rounding: float
    kept: Literal["columns", "rows"] | None
    strengths: tuple[Strength, ...]
    missed: tuple[Strength, ...]
    trained: tuple[tuple[str, float], ...]
    unused: tuple[str, ...]
    alone: tuple[str, ...]
    layout: Layout
    control: Control | None


def audit(base: str | Path, edited: str | Path, loading: Loading | None = None) -> Audit:
    """What was done to `base` that made it `edited`.

    The structure of `base` is proven on the loaded model (or recalled); the files of both are then read side by side, four times, some
    rows at a time. Raises ModelError for models of different structure, damaged files and forms that are not known.
    """
    loading = loading or Loading()
    layout = load(base, loading=loading).layout
    with TemporaryDirectory() as work:
        folders = [whole_folder(str(model), Path(work) / name, loading.trust_remote_code) for model, name in ((base, "base"), (edited, "edited"))]
        with folders[0] as first, folders[1] as second:
            nothing = Control(parts=(), layout=layout, model_name=str(base))
            files = [FileTensors(open_checkpoint(folder), nothing, by_framework=True) for folder in (first, second)]
            return _audited(opposite(*files), str(base), str(edited))


def _audited(models: Opposite, base: str, edited: str) -> Audit:
    common, sketches = common_directions(models)
    others = [(pair, sizes(pair)) for pair in track(models.others, "Reading what does not write", len(models.others))]
    changed = [(pair.where, _relative(one)) for pair, one in others if _relative(one) > _rounding([pair])]
    alongs = [along(pair, models.basis_at(pair, common.basis)) for pair in track(models.writing, "Measuring along them", len(models.writing))]
    weights = [one for pair, one in zip(models.writing, sketches) if not pair.vector]
    size = (sum(one.change for one in weights) / max(sum(one.weight for one in weights), 1e-300)) ** 0.5
    count = _ablated(common, alongs, models.writing, size)
    basis = common.basis[:count]
    strengths = _strengths(models, sketches, alongs, count)
    usual, missed = _usual(strengths)
    share = float(common.energies[:count].sum())
    rounding = _rounding(models.writing)
    kind: Kind = "ablation" if count else "same" if not size and not any(one.change for _, one in others) else "other"
    if kind == "other" and size <= rounding and not changed:
        kind = "rounding"
    kept = _kept(models.writing, alongs, sketches, usual) if count else None
    control = recovered(basis, usual, strengths, models.base.layout, base, edited) if count else None
    return Audit(
        base=base, edited=edited, kind=kind, basis=basis, strength=usual, share=share, rest=size * max(0.0, 1 - share) ** 0.5, rounding=rounding,
        kept=kept, strengths=tuple(strengths), missed=tuple(missed), trained=tuple(sorted(changed, key=lambda item: -item[1])),
        unused=tuple(key for key in models.base.unused() if key in models.edited.source.tensors), alone=models.alone,
        layout=models.base.layout, control=control,
    )  # fmt: skip


def _relative(one: Sketch) -> float:
    """How large a change is, in units of its weight."""
    return (one.change / one.weight) ** 0.5 if one.weight else float(one.change > 0)


def _rounding(pairs: Sequence[Pair]) -> float:
    """How far rounding may carry weights: as far as the coarsest of their forms."""
    return max((ROUNDING.get(form, 0.0) for pair in pairs for form in pair.forms), default=0.0)


def _ablated(common: Common, alongs: Sequence[Along], pairs: Sequence[Pair], size: float) -> int:
    """How many of the common directions, from the first on, were taken out: what moved along them goes with what was there, and by more
    than weights of this size of change do anywhere (weights that all become a little smaller do so along every direction)."""
    several = [one for one, pair in zip(alongs, pairs) if not pair.vector]
    if not len(common.basis) or not several:
        return 0
    before, moved, both = (torch.stack([getattr(one, name) for one in several]) for name in ("before", "moved", "both"))
    agreeing = (both.square() / before.clamp_min(1e-300)).sum(0) / moved.sum(0).clamp_min(1e-300)  # each matrix with a strength of its own
    strength = (moved.sum(0) / before.sum(0).clamp_min(1e-300)).sqrt()
    rest = size * (1 - common.energies.cumsum(0)).clamp_min(0).sqrt()
    clear = (agreeing > AGREEING) & (common.energies > ABOVE * common.floor) & (strength > FIRM * rest) & (strength > LIKE_THE_FIRST * strength[0])
    return int(clear.long().cumprod(0).sum())


def _strengths(models: Opposite, sketches: Sequence[Sketch], alongs: Sequence[Along], count: int) -> list[Strength]:
    """Of every matrix that held anything along the directions; biases are left to the weights beside them."""
    strengths = []
    for pair, one, way in zip(models.writing, sketches, alongs):
        before = float(way.before[:count].sum())
        if pair.vector or before <= COUNTED * one.weight:
            continue
        value = -float(way.both[:count].sum()) / before
        left = max(0.0, float(way.moved[:count].sum()) - value**2 * before)
        n = max(1, count * pair.base.rows * pair.base.columns // models.base.layout.d_model - 1)
        strengths.append(Strength(pair, value, (left / before / n) ** 0.5, _relative(one)))
    return strengths


def _usual(strengths: Sequence[Strength]) -> tuple[float, list[Strength]]:
    """The strength of most matrices, each counted once, and those that were passed over."""
    values = torch.tensor([one.value for one in strengths], dtype=torch.float64)
    if not len(values):
        return 0.0, []
    largest = float(values[values.abs().argmax()])
    touched = values[values.abs() >= MISSED * abs(largest)]
    usual = float(touched.median())
    return usual, [one for one in strengths if abs(one.value) < MISSED * abs(usual) + 3 * one.error and abs(one.value) < abs(usual) / 2]


def _kept(pairs: Sequence[Pair], alongs: Sequence[Along], sketches: Sequence[Sketch], strength: float) -> Literal["columns", "rows"] | None:
    """Whether an edit kept the lengths of columns or of rows, which an ablation makes shorter; None where that cannot be told: for
    mirror images, which keep all lengths, and where rounding alone changes lengths as much."""
    told = [
        (one, size) for pair, one, size in zip(pairs, alongs, sketches)
        if not pair.vector and size.weight and one.as_ablation and _rounding([pair]) ** 2 * size.weight < 0.2 * abs(one.as_ablation)
    ]  # fmt: skip
    if not told or abs(2 * strength - strength**2) < 0.2:
        return None
    shorter = sum(one.shorter / size.weight for one, size in told) / sum(one.as_ablation / size.weight for one, size in told)
    if abs(shorter) > 0.25:
        return None
    columns, rows = (sum(getattr(one, name) for one, _ in told) for name in ("columns", "rows"))
    return "columns" if columns < rows else "rows"


def refuse_nothing(found: Audit) -> Control:
    """The recovered control; ModelError where there is none to recover."""
    if found.control is None:
        raise ModelError(f"No direction was taken out of {found.base} that would make it {found.edited}, so there is no control to write; leave out -o.")
    return found.control
