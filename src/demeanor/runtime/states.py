"""States of single prompts as a value. In force they are hooks (`prompt_states.py`)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from ..algebra.doses import usable_dose
from ..arrays import Array, all_finite
from ..errors import ControlError


@dataclass(frozen=True, eq=False)
class States:
    """What is added at the positions of single prompts: token ids [token] and values [layer, token, d_model] of each."""

    ids: tuple[tuple[int, ...], ...]
    values: tuple[Array, ...]
    dose: float = 1.0

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.values) or len(set(self.ids)) != len(self.ids):
            raise ControlError("States need one set of values per prompt, and every prompt once.")
        usable_dose(self.dose, "a control of states")
        for ids, values in zip(self.ids, self.values):
            if values.ndim != 3 or values.shape[1] != len(ids) or not all_finite(values):
                raise ControlError(f"The states of a prompt of {len(ids)} tokens have shape {tuple(values.shape)}, or are not finite.")

    def scaled(self, dose: float) -> States:
        return replace(self, dose=self.dose * dose)

    def keys(self) -> list[str]:
        """The hash of every prompt's token ids: its name in a file."""
        return [hashlib.sha256(repr(ids).encode()).hexdigest()[:16] for ids in self.ids]

    def __str__(self) -> str:
        return f"states of {len(self.ids)} prompts (dose {self.dose:g})"
