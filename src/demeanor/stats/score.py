"""A measured number with its interval, its n and the way that is better."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Better = Literal["lower", "higher", "neither"]


@dataclass(frozen=True)
class Score:
    """`value` with a 95 % interval [low, high] from `n` prompts (`nan` and n = 0 where nothing was measured)."""

    name: str
    value: float
    low: float
    high: float
    n: int
    better: Better = "neither"

    def to_json(self) -> dict[str, Any]:
        """Plain values; JSON has no nan, so what was not measured is null."""
        values = {"value": self.value, "low": self.low, "high": self.high}
        return {**{key: None if math.isnan(value) else value for key, value in values.items()}, "n": self.n}

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] n={self.n}"
