"""The nouns of the main job: the plan that goes in and the run that comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..errors import DataError
from ..finding.select import RankBy
from ..models import Quantized
from ..models.session import REPLY_TOKENS


class Plan(BaseModel):
    """Everything a run depends on, as asked for; frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str = Field(description="organism, a model folder, or a Hub id with an optional @revision")
    behaviour: str = Field(description="a preset, or the path of a behaviour file")
    layer: int | None = Field(None, description="look for the direction in this layer only")
    estimators: tuple[str, ...] | None = Field(None, description="estimators tried beside the usual ones: names, or FILE.py:NAME")
    rank_by: RankBy | None = Field(None, description="what directions are ranked by: bypass, induce or gap")
    doses: int = Field(9, ge=0, le=41, description="how many doses of the dial are measured; 0 for none")
    false_positives: float = Field(0.05, gt=0, lt=1, description="share of guard prompts the gate may let through")
    max_prompts: int | None = Field(None, ge=1, description="use at most this many prompts of each split of each set")
    device: str | None = Field(None, description="cpu, cuda, ...; the GPU when there is one")
    dtype: str | None = Field(None, description="float32, bfloat16, ...; as stored")
    quantized: Quantized | None = Field(None, description="hold linear weights in 4bit or 8bit")
    reply_tokens: int = Field(REPLY_TOKENS, ge=1, description="how long a reply may get that is judged")

    @field_validator("doses")
    @classmethod
    def _zero_among_them(cls, value: int) -> int:
        if value != 0 and (value < 3 or value % 2 == 0):
            raise ValueError("doses must be 0, or an odd number from 3, so that the untouched model is among them")
        return value

    @classmethod
    def of(cls, values: Any, where: str = "the plan") -> Plan:
        """A plan from its values; DataError, naming `where` they come from, when they are not one."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            raise DataError(
                f"{where}: {'.'.join(map(str, first['loc'])) or 'the plan'}: {first['msg'].removeprefix('Value error, ').lower()}."
            ) from error

    @classmethod
    def from_file(cls, path: Path) -> Plan:
        """The plan of an earlier run; DataError when the file is not one."""
        try:
            return cls.of(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
        except OSError as error:
            raise DataError(f"The plan file {path} cannot be read: {error.strerror}.") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
