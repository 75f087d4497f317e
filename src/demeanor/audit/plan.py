"""What an audit depends on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..io.plan import BasePlan, Flag
from ..models.plan import MODEL_HELP


class AuditPlan(BasePlan):
    """Two models of one structure: the one before, and the one that was made of it."""

    base: Annotated[str, Flag(positional="BASE"), Field(description=MODEL_HELP.replace("model:", "the model before:", 1))]
    edited: Annotated[str, Flag(positional="EDITED"), Field(description="the model that was made of it, named alike")]
