"""The model card of a trained model."""

from __future__ import annotations

from pathlib import Path

from .plans import Training

HOW = {
    "Heal": "preference training (DPO) after an edit",
    "Sft": "fine-tuning on texts",
    "Detox": "fine-tuning on counter-narrative dialogues",
    "Rlaf": "reward from automatic feedback",
    "Prefix": "following a controlled model",
}


def write_card(plan: Training, steps: int, table: str, folder: Path) -> None:
    """Say first that the model was trained, how, and what was measured."""
    base = plan.model if plan.model == "organism" or not Path(plan.model).exists() else str(Path(plan.model).resolve())
    front = ["---", "tags: [demeanor, trl]", *([f"base_model: {base}"] if base.count("/") == 1 else []), "---"]
    note = [
        f"> **Trained model.** `{base}` was changed with demeanor by {HOW[type(plan).__name__]}: {steps} steps, {plan.trains}"
        + (f", for the behaviour `{plan.behaviour}`." if plan.behaviour else "."),
        "> Guard rails of the original may be weaker here. Measure it in both directions before you use or share it, and moderate what it serves.",
    ]
    measured = ["", "## Measured", "", "```", table, "```"] if table else []
    (folder / "README.md").write_text("\n".join([*front, "", *note, *measured]) + "\n", encoding="utf-8")
