"""Gates: which rows of a batch a control acts on, decided at the end of the prompt.

A gate is a probe (logistic, on the stream as it is) or a cosine (of the stream with the difference of means) for every set
it must not fire on. `~gate` fires where the gate does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..algebra.bases import unit
from ..arrays import Array, all_finite, cast, library
from ..errors import ControlError
from ..models import Site

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["probe", "cosine"]
LARGEST = 65504.0  # of float16: no channel of a stream is larger


@dataclass(frozen=True, kw_only=True, eq=False)
class Gate:
    """Fires where every probe says so: weights [k, d_model] and biases [k] at `site`, a probe per set in `against`.

    One probe a set, because "like shows and unlike each of the others" is not linear. `auroc` is that of the
    worst probe; `hits` and `false_positives` are the shares of `shows` and of all the others on which
    the gate fires; `roc` are (false positives, hits) as all thresholds move together. All are of prompts that the probes
    judging them were not fitted on.
    """

    site: Site
    weights: Array
    biases: Array
    auroc: float
    hits: float
    false_positives: float
    against: tuple[str, ...]
    kind: Kind = "probe"
    negated: bool = False
    roc: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        """Raises ControlError for a gate that cannot be decided, or that would be the same for every row."""
        if self.kind not in get_args(Kind):
            raise ControlError(f"{str(self.kind)[:40]!r} is no kind of gate; use one of {', '.join(get_args(Kind))}.")
        if self.weights.ndim != 2 or self.biases.ndim != 1 or not 0 < len(self.weights) == len(self.biases):
            raise ControlError(f"A gate needs weights [k, d_model] and biases [k], not {list(self.weights.shape)} and {list(self.biases.shape)}.")
        if not (all_finite(self.weights) and all_finite(self.biases)):
            raise ControlError("A gate whose weights or biases are not finite numbers never fires or always does; fit it again.")
        weights, reaches = cast(self.weights, "float64"), abs(cast(self.biases, "float64"))
        most = 1.01 * library(weights).linalg.vector_norm(weights, axis=1) if self.kind == "cosine" else LARGEST * abs(weights).sum(1)
        if bool((reaches > most + 1e-6).any()):
            raise ControlError("A gate whose bias is larger than any score that it can give never fires or always does; fit it again.")

    def __invert__(self) -> Gate:
        """The gate that fires where this one does not; what it was measured by stays that of this one."""
        return replace(self, negated=not self.negated)

    def margin(self, values: Tensor) -> Tensor:
        """How far above the nearest threshold, values [row, d_model] -> [row]."""
        values = unit(values.float()) if self.kind == "cosine" else values
        scores: Tensor = values.float() @ self.weights.T.to(values.device) + self.biases.to(values.device)
        return scores.amin(-1)

    def fires(self, values: Tensor) -> Tensor:
        """values [row, d_model] -> bool [row]."""
        return (self.margin(values) > 0) ^ self.negated

    def __str__(self) -> str:
        text = f"shows against {' and '.join(self.against)}, {self.kind} at {self.site}"
        return f"not ({text})" if self.negated else text

    def to_json(self) -> dict[str, Any]:
        plain = {key: getattr(self, key) for key in ("auroc", "hits", "false_positives", "kind", "negated")}
        lists = {"biases": self.biases.tolist(), "against": list(self.against), "roc": [list(point) for point in self.roc]}
        return {"site": vars(self.site), **plain, **lists}
