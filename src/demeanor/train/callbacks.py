"""What is done beside the training: progress on the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from ..progress import console

SHOWN = ("loss", "reward", "kl", "rewards/accuracies", "eval_loss")


class Told(TrainerCallback):
    """A bar with the latest loss or reward, on a terminal; nothing elsewhere."""

    def __init__(self, what: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.what = what
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.task = self.bar.add_task(self.what, total=state.max_steps, completed=state.global_step)
        self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        told = [f"{name} {float(logs[name]):.3g}" for name in SHOWN if logs and name in logs]
        if told and hasattr(self, "task"):
            self.bar.update(self.task, description=f"{self.what}: {', '.join(told)}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.stop()


class StopsWhen(TrainerCallback):
    """Ends the training after the step in which something came true."""

    def __init__(self, came_true: Callable[[], bool]) -> None:
        self.came_true = came_true

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.came_true():
            control.should_training_stop = True
