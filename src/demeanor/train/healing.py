"""Heal an edited model: preference training (DPO) towards the replies it should give. algorithms.md, section 9."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..measure import Bench, measure_all
from ..measure.condition import Condition
from ..models import Session
from .conversations import as_messages
from .pairs import Pair, read_pairs
from .plans import Heal
from .recipe import EDITED, Recipe, Unedited
from .result import Trained
from .sources import said_by_user


def heal(plan: Heal, out: str | Path, callbacks: Sequence[Any] = ()) -> Trained | None:
    """Train `plan.model` on pairs and write it (a model, or an adapter folder) to the new folder `out`.

    Raises DataError for bad pairs or when `out` exists. `callbacks` are transformers' own. None on every process of a launch
    but the first.
    """
    recipe = Recipe(plan, out, callbacks)
    pairs = read_pairs(plan.pairs, plan.seed, plan.columns)
    pairs = recipe.reserved.without(pairs, lambda pair: said_by_user(pair.prompt), "pairs")
    before = recipe.bench(recipe.session)
    base = _unedited(recipe, plan, before)
    recipe.fit(lambda: _trainer(recipe, plan, pairs))
    return recipe.finished(before, {"pairs": len(pairs), "sources": list(plan.pairs)}, base=base)


def _unedited(recipe: Recipe, plan: Heal, before: Bench | None) -> Unedited | None:
    if plan.base is None:
        return None
    if before is None:
        raise DataError("--base is a model to compare with, and there is nothing to compare without --behaviour.")
    bench = recipe.bench(recipe.open(plan.base))
    assert bench is not None
    return Unedited(bench, measure_all(bench, {EDITED: Condition(recipe.session)})[EDITED])


def _trainer(recipe: Recipe, plan: Heal, pairs: Sequence[Pair]) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    student = recipe.learner()
    losses: dict[str, Any] = {"loss_type": ["sigmoid"]}
    if plan.likelihood:
        losses = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, plan.likelihood]}
    arguments = recipe.arguments(DPOConfig, beta=plan.beta, max_length=plan.max_length, **losses)
    return DPOTrainer(
        student.model, None if student.adapter is not None else recipe.learner().model, args=arguments, processing_class=student.tokenizer,
        train_dataset=Dataset.from_list([_row(recipe.session, pair) for pair in pairs]), peft_config=student.adapter,
    )  # fmt: skip


def _row(session: Session, pair: Pair) -> dict[str, Any]:
    prompt = as_messages(session, pair.prompt)
    if isinstance(prompt, str):
        return {"prompt": prompt, "chosen": f"\n{pair.chosen}", "rejected": f"\n{pair.rejected}"}
    chosen, rejected = (session.template.answer(pair.prompt.messages, pair.prompt.system, reply) for reply in (pair.chosen, pair.rejected))
    template = {"chat_template_kwargs": session.template.arguments} if session.template.arguments else {}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **template}
