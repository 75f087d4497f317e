"""Reward from automatic feedback: RLOO or GRPO on what detectors say of sampled replies. algorithms.md, section 9.

PPO, which earlier work on detoxification used, has left TRL; RLOO needs no value model and is the default here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..behaviours import Prompt, SetName, asked
from ..errors import DataError
from ..models import Session
from ..models.naming import is_adapter
from ..models.thinking import open_think_tag
from ..progress import warn
from .conversations import as_messages
from .plans import Rlaf
from .recipe import Recipe
from .result import Trained
from .rewards import Term, terms
from .tripwires import Bounds, Sign, Tripwires

ALIKE = 1e-3  # rewards that are no further apart are the same
# What must go on being exhibited is not trained on: a reward for less of the behaviour would take it away there too.
TRAINED_ON: tuple[SetName, ...] = ("shows", "lacks", "neutral")


def rlaf(plan: Rlaf, out: str | Path, callbacks: Sequence[Any] = ()) -> Trained | None:
    """Train `plan.model` on its own sampled replies to the behaviour's train prompts and write it to the new folder `out`.

    Raises CheckFailed where a tripwire stopped it (`out` then holds the log and no model), DataError for what was asked for
    wrongly or when `out` exists. None on every process of a launch but the first.
    """
    if plan.every_weight and is_adapter(plan.model):
        raise DataError(
            f"{plan.model} is an adapter, whose reference could not be loaded; use --merge in place of --full, or bake it first."
        )
    recipe = Recipe(plan, out, callbacks)
    assert recipe.behaviour is not None
    prompts = [prompt for name in TRAINED_ON for prompt in asked(recipe.behaviour.set(name, "train", plan.prompts))]
    if len(prompts) < 2:
        raise DataError(f"The behaviour {plan.behaviour!r} has no prompts in its train split to sample replies to.")
    random.Random(plan.seed).shuffle(prompts)
    parts = terms(plan.reward, recipe.behaviour, recipe.session)
    before = recipe.bench(recipe.session)
    wires = Tripwires(recipe.session, prompts, Bounds(plan.shift, plan.off_topic, plan.length), plan.temperature, plan.seed)
    watched = Watched(recipe.session, prompts, parts, wires)
    recipe.fit(lambda: _trainer(recipe, plan, prompts, watched))
    data = {
        "prompts": len(prompts), "reward": [f"{part.name}:{part.sign * part.weight:g}" for part in parts],
        "groups": watched.groups, "groups_that_differ": watched.differing,
    }  # fmt: skip
    if wires.tripped is not None:
        recipe.stopped(wires.tripped, data)
    if watched.groups and not watched.differing:
        warn(
            f"The replies to one prompt were never rewarded differently (temperature {plan.temperature:g}), so there was nothing to learn; "
            "use a reward that tells them apart, such as --reward suffix, or another --temperature."
        )
    return recipe.finished(before, data, extra=lambda now: {"tripwires": {"before": vars(wires.before), "tripped": None}})


class Watched:
    """The reward as TRL calls it, with the tripwires on every reply it is asked about."""

    __name__ = "reward"

    def __init__(self, session: Session, prompts: Sequence[Prompt], parts: Sequence[Term], wires: Tripwires) -> None:
        self.session, self.prompts, self.parts, self.wires = session, prompts, parts, wires
        self.opened = [open_think_tag(session.render(prompt)) for prompt in prompts]
        self.groups = self.differing = 0  # groups of replies to one prompt, and those whose rewards are not all alike

    def __call__(self, completion_ids: Sequence[Sequence[int]], number: Sequence[int], log_metric: Any, **rest: Any) -> list[float]:
        """One reward per reply. `number` tells the prompts, which TRL gives as messages."""
        from accelerate.utils import gather_object

        prompts = [self.prompts[place] for place in number]
        texts = [self.opened[place] + self.session.decode(ids) for place, ids in zip(number, completion_ids)]
        scores = [part.of(texts, prompts) for part in self.parts]
        for part, given in zip(self.parts, scores):
            log_metric(f"reward/{part.name}", sum(given) / len(given))
        # Every process must come to the same answer, or some would stop and others wait for them.
        signs: list[Sign] = gather_object(self.wires.signs(prompts, completion_ids, texts))
        self.wires.watch(signs, log_metric)
        rewards = [sum(given) for given in zip(*scores)]
        self._compare(number, rewards)
        return rewards

    def _compare(self, number: Sequence[int], rewards: Sequence[float]) -> None:
        groups: dict[int, list[float]] = {}
        for prompt, given in zip(number, rewards):
            groups.setdefault(prompt, []).append(given)
        self.groups += len(groups)
        self.differing += sum(max(given) - min(given) > ALIKE for given in groups.values())


def _trainer(recipe: Recipe, plan: Rlaf, prompts: Sequence[Prompt], reward: Watched) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    from .callbacks import StopsWhen

    student = recipe.learner()
    kind, trainer = (RLOOConfig, RLOOTrainer) if plan.method == "rloo" else (GRPOConfig, GRPOTrainer)
    # beta is given to both: GRPO's own default is 0, which keeps no reference to stay near.
    arguments = recipe.arguments(
        kind, beta=plan.beta, num_generations=plan.num_generations, temperature=plan.temperature, top_k=0, top_p=1.0,
        max_completion_length=plan.reply_tokens, chat_template_kwargs=recipe.session.template.arguments,
    )  # fmt: skip
    rows = [{"prompt": as_messages(recipe.session, prompt), "number": number} for number, prompt in enumerate(prompts)]
    recipe.callbacks.append(StopsWhen(lambda: reward.wires.tripped is not None))
    rewards: list[Any] = [reward]
    return trainer(
        student.model, reward_funcs=rewards, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=student.tokenizer,
        peft_config=student.adapter,
    )  # fmt: skip
