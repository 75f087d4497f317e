"""What `demeanor serve` may be told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ..errors import DataError
from ..io.plan import Flag
from ..models import Loading
from ..models.plan import BEHAVIOUR_HELP, ModelPlan

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ServePlan(ModelPlan):
    """The model that is served, under which controls, for whom and within which limits."""

    controls: Annotated[tuple[str, ...], Flag(("--control", "-c"))] = Field(
        default=(), description="control that requests may name, NAME=FILE or NAME=FILE:DOSE; repeat for several"
    )
    behaviour: Annotated[str | None, Flag(("--behaviour", "-b"))] = Field(
        default=None,
        description=f"behaviour whose replies are done again where a request asks so (redo); refusing unless given; {BEHAVIOUR_HELP}",
    )
    reducer: str | None = Field(default=None, description="control that /reduce_refusals uses; the first one unless given")
    moderate: str = Field(
        default="default", description="moderation of requests and replies: default, a policy file (.yaml), the name of a detector, or none"
    )
    engine: Literal["transformers"] = Field(default="transformers", description="what runs the model")
    served_name: str | None = Field(default=None, description="name of the model for callers; the model's own unless given")
    host: str = Field(default="127.0.0.1", description="address to listen at; others than this machine's own need API keys")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen at; 0 takes a free one")
    api_keys: Path | None = Field(
        default=None, description="file with the SHA-256 hashes of API keys, one a line, as sha256sum prints them"
    )
    max_rows: int = Field(default=64, ge=1, le=1024, description="most replies that are generated together")
    max_waiting: int = Field(
        default=256, ge=1, le=100_000, description="most requests that wait; further ones are told to try again later (429)"
    )
    max_tokens: int = Field(default=2048, ge=1, le=32_768, description="most tokens of a reply that a request may ask for")
    max_seconds: float = Field(default=600, gt=0, le=86_400, description="longest time that a request may take, waiting included")
    drain_seconds: int = Field(default=30, ge=0, le=3600, description="time that running requests are given once the server is told to end")

    @model_validator(mode="after")
    def _not_for_everybody(self) -> Self:
        if self.host not in LOOPBACK and self.api_keys is None:
            raise ValueError("whoever reaches this address could use the server; name a file of `api_keys`, or leave `host` at 127.0.0.1")
        return self

    def named_controls(self) -> list[tuple[str, str, float]]:
        """Name, file and dose of every control. Raises DataError for one without a name, or a name that is given twice."""
        named = []
        for text in self.controls:
            name, sign, file = text.partition("=")
            if not sign or not name or not file:
                raise DataError(f"{text!r} does not say what the control is called; write NAME=FILE.")
            dosed = re.fullmatch(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)", file)
            named.append((name, dosed[1], float(dosed[2])) if dosed else (name, file, 1.0))
        twice = next((name for name, _, _ in named if [other for other, _, _ in named].count(name) > 1), None)
        if twice is not None:
            raise DataError(f"Two controls are called {twice!r}; give each a name of its own.")
        return named


class ServeLoading(Loading):
    """How the model is loaded; replies are as long as callers are used to."""

    reply_tokens: int = Field(default=256, ge=1, description="longest reply, in tokens, where a request names no other")
