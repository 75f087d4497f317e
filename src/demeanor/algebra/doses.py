"""What a dose may be: a finite number that is not beyond all that was ever measured."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from ..errors import ControlError, mistaken

LARGEST_DOSE = 100


def usable_dose(dose: Any, what: str, unit: str = "dose", largest: float = LARGEST_DOSE) -> None:
    """Raises ControlError for a dose that is no number, not finite or out of all proportion. what: whose dose it is; unit: what it is called."""
    if isinstance(dose, bool) or not isinstance(dose, Real):
        raise ControlError(mistaken(f"A number ({unit})", dose, "1 is the whole edit"))
    if not math.isfinite(dose) or abs(float(dose)) > largest:
        raise ControlError(
            f"A control with {unit} {float(dose):g} is not a usable edit; {what} takes numbers from -{largest:g} to {largest:g}."
        )
