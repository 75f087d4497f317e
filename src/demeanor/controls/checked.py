"""Checking a control on a model: what it really edits, seen from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..behaviours import Prompt
from ..errors import CheckFailed
from ..models import Session
from ..runtime.watch import Watched
from .control import Control

REPLY = 4  # tokens generated
# Of different lengths, so that some are padded.
PROMPTS = ("hello", "what is 2 plus 2 ?", "please tell me , in a few words , how the weather will be on the other side of the hill")


@dataclass(frozen=True)
class Checked:
    """What a control changed: `seen` counts rows, tokens and pads; `layers` are those with an edited place in them (the
    embedding is in none); `restored` says whether the model was as before afterwards."""

    seen: Watched
    layers: tuple[int, ...]
    n_layers: int
    restored: bool

    @property
    def clean(self) -> bool:
        """No pad was edited, and the model was restored."""
        return self.seen.pads.edited == 0 and self.restored

    def __str__(self) -> str:
        seen = self.seen
        return (
            f"edited {seen.rows} rows, {seen.prompt_tokens} prompt tokens and {seen.reply_tokens} reply tokens, in {len(self.layers)} of {self.n_layers} layers "
            f"at {len(seen.places)} places; {seen.pads} pads; the model is {'as before' if self.restored else 'not as before'} afterwards"
        )


def check(session: Session, control: Control, prompts: Sequence[str | Prompt] = PROMPTS) -> Checked:
    """Generate a few tokens with the control, comparing every place of the stream before and after the control's hooks.

    A gate that stays shut on these prompts leaves their rows untouched. Raises CheckFailed where a pad was edited, or
    where the model does not compute afterwards what it computed before.
    """
    before = session.logits(prompts)
    with session.watched(session.controlled(control)) as seen:
        session.generate(prompts, REPLY)
    restored = bool(torch.equal(session.logits(prompts), before))
    blocks = enumerate(session.layout.blocks)
    layers = {number for number, block in blocks for name in seen.places if f"{name}.".startswith(f"{block}.")}
    result = Checked(seen, tuple(sorted(layers)), session.layout.n_layers, restored)
    if not result.clean:
        raise CheckFailed(f"The control does what it must not: {result}.")
    return result
