"""Presets: behaviours that come with the package, written once for the embedded model and once for all others.

A preset is not read before a model is known: its public text fetches data sets, which the embedded model has no use for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import NoReturn

from ..errors import DataError
from ..io.display import brief
from .audience import CALLED, Audience, LoadedModel, audience_of
from .definition import Behaviour

FOLDERS: dict[Audience, Path] = {
    "public": Path(str(resources.files(__package__) / "presets")),
    "embedded": Path(str(resources.files(__package__) / "presets" / "organism")),
}
STAND_INS = {"toxicity": "rudeness"}  # what the embedded model has in place of a behaviour that is not in its world
OF_BEHAVIOURS = {"set", "all_prompts", "has_replies", *(field.name for field in fields(Behaviour))}  # what only a settled preset can say


def presets() -> list[str]:
    """Names of the behaviours that come with the package."""
    return sorted({path.stem for folder in FOLDERS.values() for path in folder.glob("*.yaml")})


def preset_file(name: str, audience: Audience) -> Path:
    """The file of a preset's text. Raises DataError where there is none for such models."""
    known = {path.stem: path for path in FOLDERS[audience].glob("*.yaml")}
    if audience == "embedded":
        known |= {name: known[instead] for name, instead in STAND_INS.items()}
    if name not in known:
        raise DataError(f"The preset {name!r} has no prompts for {CALLED[audience]}; there are {', '.join(sorted(known))}.")
    return known[name]


@dataclass(frozen=True, eq=False, repr=False)
class Preset:
    """A behaviour whose text depends on the model. `settled(session)` is the behaviour; every verb asks for it by itself.

    call: how it is made, for messages. read: gives the text for an audience; each is read once.
    """

    name: str
    call: str
    read: Callable[[Audience], Behaviour]
    texts: dict[Audience, Behaviour] = field(default_factory=dict)

    def settled(self, model: LoadedModel | None) -> Behaviour:
        """The text for this model; that for other models than the embedded one where no model is known (None).

        Raises DataError where the preset has no such text, or a data set of it cannot be had.
        """
        audience = audience_of(model)
        if audience not in self.texts:
            self.texts[audience] = self.read(audience)
        return self.texts[audience]

    def needs_prompts(self) -> None:
        """As of a behaviour; what a preset lacks is told when it is settled."""

    def __getattr__(self, name: str) -> NoReturn:
        if name in OF_BEHAVIOURS:
            raise DataError(
                f"{self.call} holds two texts, one for the embedded model and one for all others; say which by {self.call}.settled(session).{name}."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<Preset {brief(self.name)}: settled by the session that it is used with>"
