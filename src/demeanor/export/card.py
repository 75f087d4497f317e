"""The model card of an edited model: it says that it was edited, and how."""

from __future__ import annotations

from pathlib import Path

from ..controls import Control
from ..io.checkpoint import Checkpoint


def write_card(source: Checkpoint, control: Control, model: str, work: Path) -> None:
    """The model card says first that, and how, the model was edited."""
    behaviour = control.made_from.get("behaviour") or "a behaviour"
    kind, how = ("Edited", "edited") if control.parts else ("Trained", "changed")
    card = work / "README.md"
    old = card.read_text(encoding="utf-8", errors="surrogateescape") if card.is_file() else ""
    note = (
        f"> **{kind} model.** The weights of `{model}` were {how} with demeanor to change the behaviour `{behaviour}`: {control}.\n"
        "> Guard rails of the original may be weaker here. Measure it in both directions before you use or share it, and moderate what it serves.\n"
    )
    front = ""
    if old.startswith("---\n") and "\n---\n" in old[4:]:  # the metadata block must stay first
        end = old.index("\n---\n", 4) + 5
        front, old = old[:end] + "\n", old[end:]
    card.write_text(f"{front}{note}\n{old.lstrip()}", encoding="utf-8", errors="surrogateescape")
