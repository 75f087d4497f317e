"""Behaviours told by a classification model: any that transformers can load, from a folder or the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..behaviours import Prompt
from ..errors import DataError
from ..models.classifier import load_classifier
from .registry import detector


@dataclass(frozen=True)
class Classifier:
    """The probability that a classification model gives to one label, per reply."""

    model: str
    label: str | int
    device: str | None = None

    def probabilities(self, replies: Sequence[str], prompts: Sequence[Prompt]) -> list[float]:
        """One probability per reply; the prompts are not looked at.

        The model is loaded here and not before, so that a behaviour can be read without it. ModelError where it cannot
        be loaded, DataError where it has no such label.
        """
        return load_classifier(self.model, device=self.device).probabilities(replies, self.label)


@detector("classifier")
def classifier(model: str, label: str | int, device: str | None = None) -> Classifier:
    """Replies by a classification model: its folder or Hub id, and the label that means the behaviour, by name or index."""
    if not isinstance(model, str) or not model.strip():
        raise DataError(f"The detector 'classifier' takes a model folder or a Hub id as model, not {model!r}.")
    # YAML reads a bare yes or no as a boolean, which Python would take for the index 1 or 0.
    if isinstance(label, bool) or not isinstance(label, (str, int)):
        raise DataError(f"The detector 'classifier' takes a label's name in quotes, or its index, as label, not {label!r}.")
    if device is not None and not isinstance(device, str):
        raise DataError(f"The detector 'classifier' takes a device such as cpu or cuda, not {device!r}.")
    return Classifier(model, label, device)
