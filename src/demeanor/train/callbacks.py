"""What is done beside the training: progress on the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from ..progress import Bar

SHOWN = ("loss", "reward", "kl", "rewards/accuracies", "eval_loss")


class Told(TrainerCallback):
    """A bar with the latest loss or reward, on a terminal; nothing elsewhere."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.bar: Bar | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = Bar(self.what, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.to(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        figures = [f"{name} {float(logs[name]):.3g}" for name in SHOWN if logs and name in logs]
        if figures and self.bar is not None:
            self.bar.to(state.global_step, f"{self.what}: {', '.join(figures)}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()


class StopsWhen(TrainerCallback):
    """Ends the training after the step in which something came true."""

    def __init__(self, came_true: Callable[[], bool]) -> None:
        self.came_true = came_true

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.came_true():
            control.should_training_stop = True
