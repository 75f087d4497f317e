"""A model that was written, loaded and compared with the control at run time: what is proven of files by using them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from ..arrays import in_torch
from ..controls import Control
from ..errors import CheckFailed
from ..io.checkpoint import Checkpoint
from ..models import Loading, Site
from ..progress import say

PROMPTS = ("hello", "what is 2 plus 2 ?", "please tell me , in a few words , how the weather will be on the other side of the hill")
HELD = 3  # times the size of the files: two models, and room for a pass
EXACT, ROUNDED = 1e-4, 16  # parity and what is left: this in float32, so many roundings of narrower dtypes


@dataclass(frozen=True)
class Verified:
    """parity: how far the logits of the written model are from those of the control at run time, in their standard deviations. left: the
    largest share of a direction that the last part ablates wholly in its stream; None where that part ablates none at every writer.
    kept_norms: whether the lengths of columns were kept, so that logits are others than the control's."""

    parity: float
    left: float | None
    kept_norms: bool = False

    def __str__(self) -> str:
        left = "" if self.left is None else f", {self.left:.1e} of what is ablated left in the stream"
        if self.kept_norms:
            return f"Loaded anew: with lengths kept, logits are {self.parity:.1e} of their standard deviation from those of the control at run time{left}."
        return f"Loaded anew: logits within {self.parity:.1e} of their standard deviation of the control at run time{left}."


def has_room(source: Checkpoint) -> bool:
    """Whether memory holds two of a model; says where it does not. A system that does not tell is taken to."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return True
    if free < HELD * source.size:
        say(f"There is no memory for two models of {source.size / 2**30:.1f} GiB, so what was written was not loaded and compared.")
        return False
    return True


def verify(model: str, control: Control, written: Path, loading: Loading, kept_norms: bool = False) -> Verified:
    """Compare a written model with the control at run time. CheckFailed where it is another, or still has what was to go."""
    import torch

    from ..models import load

    control = control.converted(in_torch)
    with torch.no_grad():
        session = load(model, loading=loading)
        with session.controlled(control):
            wanted = session.logits(PROMPTS)
        again = load(written, loading=loading)
        got = again.logits(PROMPTS)
        last = control.parts[-1] if control.parts else None  # what an earlier part took out, a later one may write again
        left = None
        if last is not None and last.kind == "ablate" and last.dose == 1 and last.read is None and last.scope == type(last.scope)():
            sites = [Site(0, "embed"), *(Site(layer) for layer in range(again.layout.n_layers))]
            values = again.capture(PROMPTS, sites).values
            left = float(((values @ last.vectors.T.to(values)).abs().amax(-1) / values.norm(dim=-1)).max())
    verified = Verified(float((got - wanted).abs().max() / wanted.std()), left, kept_norms)
    bound = max(EXACT, ROUNDED * torch.finfo(session.model.dtype).eps)
    if not (math.isfinite(verified.parity) if kept_norms else verified.parity < bound) or not (left or 0.0) < bound:
        raise CheckFailed(f"What was written is not what the control does ({verified} At most {bound:.0e} is rounding), so it was taken back; use the control at run time.")
    return verified
