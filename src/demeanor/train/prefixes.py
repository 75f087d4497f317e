"""Learn a prefix: the plain model is to do by itself what a control does to it, or what SelfControl's search finds.

The stream after every block and the next tokens are followed, along what the controlled model says. algorithms.md, section 9.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..behaviours import SET_NAMES, asked, opposites
from ..controls import Control, load_control
from ..controls.files import CONTROL
from ..errors import CheckFailed, DataError
from ..measure.condition import Condition
from ..models import Session
from ..progress import say, track, warn
from ..runtime.adapters import VIRTUAL_TOKENS, virtual_token_hooks
from .learner import Learner
from .losses import Collate, followed_loss
from .plans import Prefix
from .recipe import Recipe
from .result import Trained
from .targets import CHUNK, Chunks, Ids, Plain, Searched, Targets, Teacher


def prefix(plan: Prefix, out: str | Path, callbacks: Sequence[Any] = (), control: Control | None = None) -> Trained | None:
    """Train an adapter that does what a control does, and write it to the new folder `out`, as a control and in PEFT's form.

    control: the control itself, where the file that the plan names is not written yet.
    Raises DataError for what cannot be learned from or when `out` exists, CheckFailed where no prompt gives anything to learn.
    None on every process of a launch but the first.
    """
    recipe = PrefixRecipe(plan, out, callbacks)
    if control is None and plan.control is not None:
        control = load_control(plan.control)
    if plan.kind == "adaption-prompt":
        _refuse_unknown(recipe.session)
    work = _work(recipe, plan, control)
    before = recipe.bench(recipe.session)
    recipe.begin()
    chunks = Chunks(recipe.folder / "targets", work, plan.top_k, plan.apart)
    _make(recipe, chunks)
    try:
        targets = Targets([chunks.path(number) for number in range(len(work))])
    except CheckFailed:  # with other options there may be something to learn, so what was begun must not stand in their way
        if recipe.first:
            shutil.rmtree(recipe.folder)
        raise
    counts = targets.counts
    say(
        f"{counts.kept} of {counts.prompts} replies are followed; {counts.no_gain} gained nothing, {counts.too_far} moved the stream too far."
    )
    recipe.fit(lambda: _trainer(recipe, plan, targets))
    return recipe.finished(before, {"targets": counts.to_json(), "control": plan.control})


class PrefixRecipe(Recipe):
    """A training whose result is measured as what it is: a control of the model it was trained on."""

    def trained(self, work: Path) -> Condition:
        held = (work / CONTROL).is_file()
        return Condition(self.session, load_control(work)) if held else super().trained(work)


def _refuse_unknown(session: Session) -> None:
    """Raises DataError for a family whose attention PEFT cannot give adaption prompts."""
    from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG as KNOWN

    family = session.model.config.model_type
    if family not in KNOWN:
        raise DataError(
            f"PEFT knows adaption prompts for {', '.join(sorted(KNOWN))}, and {session.name} is a {family} model; use --kind lora."
        )


def _work(recipe: PrefixRecipe, plan: Prefix, control: Control | None) -> list[tuple[Teacher, list[Ids]]]:
    """Chunks of prompts of the behaviour's train split with their teachers; without those that are measured on."""
    behaviour, session = recipe.behaviour, recipe.session
    assert behaviour is not None
    held = {tuple(session.encode(prompt)) for name in SET_NAMES for prompt in behaviour.set(name, "test")}
    if control is None and not behaviour.questions:
        raise DataError(
            f"The behaviour {behaviour.name!r} has no questions to search with; name a control with --from, or add `questions` to its file."
        )
    prompts = {name: {tuple(session.encode(p)): p for p in asked(behaviour.set(name, "train", plan.prompts))} for name in SET_NAMES}
    if control is not None:
        session.interventions(control)  # a control for another structure is refused before any work
        taught = list(dict.fromkeys(ids for group in (*prompts.values(), *(states.ids for states in control.states)) for ids in group))
        lists: list[tuple[Teacher, list[Ids]]] = [(Plain(control), taught)]
    else:
        questions = opposites(behaviour.questions) if plan.less else behaviour.questions
        searched = {ids: prompt for name in plan.sets for ids, prompt in prompts[name].items()}
        kept = list(dict.fromkeys(ids for name in SET_NAMES for ids in prompts[name] if ids not in searched))
        lists = [(Searched(questions, searched), list(searched)), (Plain(), kept)]
    recipe.reserved.dropped = sum(ids in held for _, group in lists for ids in group)
    if recipe.reserved.dropped:
        warn(f"{recipe.reserved.dropped} prompts are measured on, and are left out.")
    lists = [(teacher, [ids for ids in group if ids not in held]) for teacher, group in lists]
    if not lists[0][1]:
        raise DataError(f"The behaviour {plan.behaviour!r} has no prompts in its train split to learn from.")
    return [(teacher, group[start : start + CHUNK]) for teacher, group in lists for start in range(0, len(group), CHUNK)]


def _make(recipe: Recipe, chunks: Chunks) -> None:
    """Every chunk's file; the processes of a launch share them out."""
    from accelerate import PartialState

    state = PartialState(cpu=recipe.session.device.type == "cpu")
    own = range(state.process_index, len(chunks.work), state.num_processes)
    for number in track(own, "Finding what to follow", len(own)):
        chunks.make(recipe.session, number)
    state.wait_for_everyone()


def _trainer(recipe: Recipe, plan: Prefix, targets: Targets) -> Any:
    from peft import AdaptionPromptConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    student = recipe.learner()
    if plan.kind == "adaption-prompt":
        layers = recipe.session.layout.n_layers
        student = Learner(
            student.model,
            student.tokenizer,
            AdaptionPromptConfig(adapter_len=plan.adapter_len, adapter_layers=layers, task_type="CAUSAL_LM"),
        )
    if plan.num_virtual_tokens:
        add_virtual_tokens(student.model, plan.num_virtual_tokens, plan.seed)
        student.adapter.modules_to_save = [VIRTUAL_TOKENS]
    layout, pad = recipe.session.layout, int(student.tokenizer.pad_token_id)
    model = get_peft_model(student.model, student.adapter)

    class Follower(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            base = self.accelerator.unwrap_model(model).get_base_model()
            return followed_loss(base, model, layout, inputs, plan.states, plan.said)

    arguments = recipe.arguments(TrainingArguments, remove_unused_columns=False)
    collate = Collate(pad, plan.num_virtual_tokens)
    return Follower(model, arguments, data_collator=collate, train_dataset=targets, processing_class=student.tokenizer)


def add_virtual_tokens(model: Any, count: int, seed: int) -> None:
    """Embeddings that open prompts, drawn from those of the vocabulary, as a module of the model that hooks read."""
    words = model.get_input_embeddings().weight
    drawn = torch.randint(len(words), (count,), generator=torch.Generator().manual_seed(seed)).to(words.device)
    virtual_tokens = torch.nn.Embedding.from_pretrained(words.detach()[drawn].clone().float(), freeze=False)
    setattr(model, VIRTUAL_TOKENS, virtual_tokens)
    # Looked up anew in every pass: PEFT puts a copy that it trains in its place.
    virtual_token_hooks(model.base_model, lambda numbers: getattr(model, VIRTUAL_TOKENS)(numbers), count, lambda: True)
