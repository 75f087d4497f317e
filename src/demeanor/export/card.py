"""The model card of an edited model: it says that it was edited, and how."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..controls import Control
from ..io.checkpoint import Checkpoint

MODERATE = "and moderate what it serves.\n"  # the end of the note that every card of an edited model begins with


def add_results(card: Path, sentences: Sequence[str]) -> None:
    """What the edit did, as it was measured, under what the card says of it first."""
    text = card.read_text(encoding="utf-8", errors="surrogateescape")
    end = text.index(MODERATE) + len(MODERATE)
    results = "".join(f"> {sentence}\n" for sentence in sentences)
    card.write_text(f"{text[:end]}>\n> Measured on prompts that had no part in the edit:\n>\n{results}{text[end:]}", encoding="utf-8", errors="surrogateescape")


def note(control: Control, model: str, what: str = "model", how: str = "") -> str:
    """What a card says first of an edited model, or of an adapter that edits it."""
    behaviour = control.made_from.get("behaviour") or "a behaviour"
    kind, done = ("Edited", "edited") if control.parts else ("Trained", "changed")
    made = f"The weights of `{model}` were {done} with demeanor" if what == "model" else f"This {what} changes `{model}` and was made with demeanor"
    return (
        f"> **{kind} {what}.** {made} to change the behaviour `{behaviour}`: {control}{how}.\n"
        f"> Guard rails of the original may be weaker here. Measure it in both directions before you use or share it, {MODERATE}"
    )


def write_card(source: Checkpoint, control: Control, model: str, work: Path, keep_norms: bool = False) -> None:
    """The model card says first that, and how, the model was edited."""
    card, own = work / "README.md", source.folder / "README.md"  # one in `work` may be of a bake that was killed
    old = own.read_text(encoding="utf-8", errors="surrogateescape") if own.is_file() else ""
    front = ""
    if old.startswith("---\n") and "\n---\n" in old[4:]:  # the metadata block must stay first
        end = old.index("\n---\n", 4) + 5
        front, old = old[:end] + "\n", old[end:]
    how = ", the lengths of columns kept" if keep_norms else ""
    card.write_text(f"{front}{note(control, model, how=how)}\n{old.lstrip()}", encoding="utf-8", errors="surrogateescape")
