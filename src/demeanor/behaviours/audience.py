"""Whom a text is for: the embedded model, or every other. Presets are written once for each; the loaded model tells which."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

from ..errors import DataError, mistaken

Audience = Literal["embedded", "public"]
CALLED: dict[Audience, str] = {"embedded": "the embedded model", "public": "other models"}


@runtime_checkable
class LoadedModel(Protocol):
    """What settles a preset: a loaded model that knows whether it is the embedded one, or was made from it."""

    @property
    def name(self) -> str: ...

    @property
    def organism(self) -> bool: ...


def audience_of(model: LoadedModel | None) -> Audience:
    """The audience that a model is; every other than the embedded one where no model is known (None). DataError for what is no model."""
    if model is None:
        return "public"
    if not isinstance(model, LoadedModel):
        raise DataError(mistaken("A session", model, "load a model with load(...), and give it first, as in find(session, behaviour)"))
    return "embedded" if model.organism else "public"
