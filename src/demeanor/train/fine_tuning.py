"""Fine-tune on texts and conversations, or on counter-narrative dialogues; the loss is on what the model is to say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .conversations import Conversation, cut, learned, learned_text, mean_loss
from .dialogues import held_out, read_dialogues
from .plans import Detox, Sft
from .recipe import Recipe
from .result import Trained
from .sources import said_by_user
from .texts import read_texts


def sft(plan: Sft, out: str | Path, callbacks: Sequence[Any] = ()) -> Trained | None:
    """Train `plan.model` on texts and write it to the new folder `out`; a text is learned whole, a conversation where the
    assistant speaks. Raises DataError for bad data or when `out` exists. None on every process of a launch but the first.
    """
    recipe = Recipe(plan, out, callbacks)
    texts = read_texts(plan.data, plan.seed)
    kept = recipe.reserved.without(texts, lambda row: [row] if isinstance(row, str) else said_by_user(row), "rows")
    before = recipe.bench(recipe.session)
    rows = [learned_text(recipe.session, row) if isinstance(row, str) else learned(recipe.session, row) for row in kept]
    recipe.fit(lambda: _trainer(recipe, cut(rows, plan.max_length)))
    return recipe.finished(before, {"rows": len(kept), "sources": list(plan.data)})


def detox(plan: Detox, out: str | Path, callbacks: Sequence[Any] = ()) -> Trained | None:
    """Train `plan.model` to answer as the dialogues do, one row per dialogue, and write it to the new folder `out`.

    Dialogues are split by their id; those that hold a prompt which the behaviour is measured on are dropped and counted.
    Raises as `sft` does.
    """
    recipe = Recipe(plan, out, callbacks)
    dialogues = read_dialogues(plan.dialogues, plan.seed)
    train, held = held_out(dialogues, plan.held_out)
    train = recipe.reserved.without(train, said_by_user, "training dialogues")
    before = recipe.bench(recipe.session)

    def rows(some: Sequence[Conversation]) -> list[dict[str, list[int]]]:
        return cut([learned(recipe.session, dialogue) for dialogue in some], plan.max_length)

    kept = rows(held)
    loss = mean_loss(recipe.session, kept)
    recipe.fit(lambda: _trainer(recipe, rows(train)))
    data = {"dialogues": len(train), "held_out": len(held), "sources": list(plan.dialogues)}
    return recipe.finished(before, data, extra=lambda now: {"held_out_loss": {"before": loss, "after": mean_loss(now, kept)}})


def _trainer(recipe: Recipe, rows: Sequence[dict[str, list[int]]]) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    student = recipe.learner()
    arguments = recipe.arguments(SFTConfig, max_length=None, packing=False)  # the rows are cut already
    return SFTTrainer(
        student.model,
        args=arguments,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=student.tokenizer,
        peft_config=student.adapter,
    )
