"""What every recipe has in common: before, the training with its checkpoints, and after.

The work happens in a hidden folder beside the target, `.OUT.training`: the plan, the checkpoints, and what was trained. It
outlives a kill, and the same command goes on from its last checkpoint. The target itself is made whole and renamed.

Under `accelerate launch` every process loads and measures alike, so that none waits long for another; only the first writes.
"""

from __future__ import annotations

import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..behaviours import Behaviour, behaviour
from ..controls import Control, save_control
from ..controls.control import provenance
from ..controls.files import CONTROL
from ..detect import check_detector
from ..errors import CheckFailed, ControlError, DataError
from ..io.atomic import in_one_sentence, new_folder, refuse_existing
from ..io.json_files import write_json
from ..io.plan import PLAN
from ..io.tables import muted_datasets
from ..measure import Bench, Measurement, Observation, measure_all
from ..measure.changed import Changed, changed
from ..measure.condition import Condition
from ..models import Session, load
from ..progress import muted, quiet, say, warn
from ..runtime.adapter import ADAPTER
from ..runtime.adapters import read_peft
from .card import write_card
from .learner import Learner, check_extras, check_model, finish, learner, parameters, place_of, placed, refuse_trackers
from .plans import Training
from .result import AFTER, BEFORE, Trained, replies_of
from .sources import Reserved

RESULT = "training.json"
EDITED = "edited"
TRACKED = "runs"  # transformers' name for the folder of a tracker that writes files


@dataclass(frozen=True)
class Unedited:
    """The model before an edit, on its bench, and what the edit did to it."""

    bench: Bench
    edited: Measurement


class Recipe:
    """One training: made from a plan, then `fit` with the recipe's trainer, then `finished`."""

    def __init__(self, plan: Training, out: str | Path, callbacks: Sequence[Any] = ()) -> None:
        check_extras()
        self.plan, self.out, self.callbacks = plan, Path(out), list(callbacks)
        refuse_existing(self.out)
        self.first = int(os.environ.get("RANK", "0")) == 0
        check_model(plan)
        refuse_trackers(plan.report_to)
        self.named = None if plan.behaviour is None else behaviour(plan.behaviour)
        if self.named is not None:
            check_detector(self.named)
        self.folder = self.out.parent / f".{self.out.name}.training"
        self._refuse_other_plan()
        self.started = time.monotonic()

    @cached_property
    def session(self) -> Session:
        """The model as it is before the training; loaded when it is first needed, so that bad data does not wait for it."""
        return self.open(self.plan.model)

    @cached_property
    def behaviour(self) -> Behaviour | None:
        """What is measured before and after, settled by the model."""
        return None if self.named is None else self.named.settled(self.session)

    @cached_property
    def reserved(self) -> Reserved:
        """The prompts that are measured on."""
        return Reserved(self.behaviour)

    def _refuse_other_plan(self) -> None:
        kept = self.folder / PLAN
        if kept.is_file() and not self.plan.same_as(kept):
            raise DataError(
                f"Another training towards {self.out} was begun and not finished ({kept}); give the options it was given, or remove {self.folder}."
            )

    def open(self, name: str) -> Session:
        return load(name, loading=placed(self.plan))

    # -- training ---------------------------------------------------------------------------------

    def learner(self) -> Learner:
        student = learner(self.plan)
        student.tokenizer.padding_side = "left"
        own, whole = student.tokenizer.chat_template, self.session.template.complete
        if whole not in (own, own.get("default") if isinstance(own, dict) else own):
            student.tokenizer.chat_template = whole  # TRL applies it by itself, and must see what the model is asked with
        return student

    def arguments(self, kind: type, **more: Any) -> Any:
        """TRL's arguments: the plan's, and the recipe's own."""
        plan = self.plan
        place = place_of(plan)
        steps = {"max_steps": plan.max_steps} if plan.max_steps is not None else {"num_train_epochs": plan.num_train_epochs}
        return kind(
            output_dir=str(self.folder / "checkpoints"), per_device_train_batch_size=plan.per_device_train_batch_size, gradient_accumulation_steps=plan.gradient_accumulation_steps,
            learning_rate=plan.rate(self.session.layout.d_model), lr_scheduler_type="cosine", warmup_steps=0.1, max_grad_norm=1.0, weight_decay=0.0,
            logging_steps=plan.logging_steps, save_strategy="steps", save_steps=plan.save_steps, save_total_limit=2, seed=plan.seed,
            gradient_checkpointing=plan.gradient_checkpointing, bf16=place.type == "cuda" and plan.dtype in (None, "bfloat16"),
            use_cpu=place.type == "cpu", report_to=list(plan.report_to) or "none", disable_tqdm=True, eval_strategy="no", **steps, **more,
        )  # fmt: skip

    def begin(self) -> None:
        """Make the training folder with the plan in it: only when nothing that was given can be wrong any more."""
        if self.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / PLAN).write_text(self.plan.written(), encoding="utf-8")

    def fit(self, make_trainer: Callable[[], Any]) -> None:
        """Train, from the last whole checkpoint where there is one, and save what was trained in the training folder.

        `made` makes the trainer, among whose many remarks none is meant for a user.
        """
        with warnings.catch_warnings(), muted_datasets(), muted("transformers", "bitsandbytes"), self.session.runner.threads():
            warnings.simplefilter("ignore")
            with in_one_sentence(self.folder, "make room, and the same command goes on from the last checkpoint"):
                self._fit(make_trainer())

    def _fit(self, trainer: Any) -> None:
        from transformers import PrinterCallback

        from .callbacks import Told

        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Told(type(self.plan).__name__.lower()))
        for callback in self.callbacks:
            trainer.add_callback(callback)
        trained, of = parameters(trainer.model)
        self.begin()
        last = last_checkpoint(self.folder / "checkpoints")
        self.resumed_from = None if last is None else int(last.name.split("-")[1])
        say(f"{trained:,} of {of:,} weights are trained{'' if last is None else f'; going on from step {self.resumed_from}'}.")
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        self.steps, self.log = int(trainer.state.global_step), _plain(trainer.state.log_history)
        if not all(bool(parameter.isfinite().all()) for parameter in trainer.model.parameters() if parameter.requires_grad):
            if self.first:
                shutil.rmtree(self.folder)  # nothing to go on from
            raise CheckFailed("The trained weights are no numbers any more; use a smaller --learning-rate.")
        trainer.save_model(str(self.folder / "trained"))
        self.tokenizer = trainer.processing_class
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()

    # -- before and after -------------------------------------------------------------------------

    def bench(self, session: Session) -> Bench | None:
        """The behaviour's test prompts, with what a model says to them before the training; None without a behaviour."""
        if self.behaviour is None:
            return None
        bench = Bench(session, self.behaviour, "test", max_prompts=self.plan.max_prompts)
        _ = bench.untouched  # asked now: what is wrong must not wait for the training
        return bench

    def finished(
        self,
        before: Bench | None,
        data: Mapping[str, Any],
        *,
        base: Unedited | None = None,
        extra: Callable[[Session], Mapping[str, Any]] | None = None,
    ) -> Trained | None:
        """Write the target, measure it, and report; None on every process but the first.

        `extra` says what else is to be reported of the trained model.
        """
        if not self.first:
            return None
        with new_folder(self.out) as work:
            finish(self.plan, self.folder / "trained", self.tokenizer, work)
            self._as_control(work)
            self._keep_logs(work)
            now = self.trained(work)
            stages = {EDITED: base.edited} if base else {}
            replies, inside, since_base = {}, None, None
            if before is not None:
                stages[AFTER] = measure_all(base.bench if base else before, {AFTER: now})[AFTER]
                was, after = before.untouched.observation, stages[AFTER].observed[1]
                replies = {BEFORE: replies_of(self.session, was), AFTER: replies_of(self.session, after)}
                inside = _changed(Condition(self.session), now, (was, after))
                since_base = _changed(Condition(base.bench.session), now, (base.bench.untouched.observation, after)) if base else None
            result = Trained(
                plan=self.plan, folder=self.out, steps=self.steps, resumed_from=self.resumed_from, measurements=stages, changed=inside, replies=replies, data={**data, "dropped": self.reserved.dropped},
                log=self.log, seconds=time.monotonic() - self.started, extra=extra(now.session) if extra else {}, since_base=since_base,
            )  # fmt: skip
            _write(result, work)
        shutil.rmtree(self.folder)
        return result

    def _keep_logs(self, work: Path) -> None:
        """What a tracker wrote beside the checkpoints (tensorboard does) outlives them, in `work`/runs."""
        logs = self.folder / "checkpoints" / TRACKED
        if logs.is_dir():
            shutil.move(logs, work / TRACKED)

    def trained(self, work: Path) -> Condition:
        """Who is measured after: the model in the folder `work`, under the name it will have."""
        with quiet():  # the work folder's name means nothing
            now = self.open(str(work))
        now.name = str(self.out)
        return Condition(now)

    def _as_control(self, work: Path) -> None:
        """An adapter is a control too, of the model it was trained on."""
        if not (work / ADAPTER).is_file():
            return
        try:
            adapter = read_peft(work)
        except ControlError as error:
            warn(f"No {CONTROL} is written, the adapter folder is a MODEL only: {error}")
            return
        made_from = provenance(method=type(self.plan).__name__.lower(), behaviour=self.plan.behaviour)
        save_control(
            Control(parts=(), layout=self.session.layout, model_name=self.plan.model, made_from=made_from, adapters=(adapter,)),
            work / CONTROL,
        )

    def stopped(self, reason: str, data: Mapping[str, Any]) -> None:
        """Write what is known of a training that was stopped, without its weights, and raise CheckFailed."""
        if self.first:
            seconds = time.monotonic() - self.started
            with new_folder(self.out) as work:
                _write(
                    Trained(
                        plan=self.plan,
                        folder=self.out,
                        steps=self.steps,
                        resumed_from=self.resumed_from,
                        measurements={},
                        changed=None,
                        replies={},
                        data=data,
                        log=self.log,
                        seconds=seconds,
                        stopped=reason,
                    ),
                    work,
                )
                self._keep_logs(work)
            shutil.rmtree(self.folder)
        raise CheckFailed(f"{reason} The log is in {self.out}, without a model.")


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that was written whole: the trainer's state is what is written last."""
    found = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()] if folder.is_dir() else []
    return max(found, key=lambda path: int(path.name.split("-")[1]), default=None)


def _changed(was: Condition, now: Condition, seen: tuple[Observation, Observation]) -> Changed | None:
    if not any(outcome.reply.ids for outcomes in seen[0].sets.values() for outcome in outcomes):
        return None
    return changed(was, now, seen)


def _write(result: Trained, work: Path) -> None:
    table = "\n\n".join(f"{name}\n{measurement}" for name, measurement in result.measurements.items())
    write_card(result.plan, result.steps, table, work)
    (work / PLAN).write_text(result.plan.written(), encoding="utf-8")
    values = {**result.to_json(), **provenance()}
    write_json(work / RESULT, values)


def _plain(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The trainer's log as plain values; JSON has no nan, so what is no number is null."""

    def plain(value: Any) -> Any:
        value = value.item() if isinstance(value, torch.Tensor) else value
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return [{key: plain(value) for key, value in line.items()} for line in history]
