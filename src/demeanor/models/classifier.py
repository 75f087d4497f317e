"""Text classifiers: models that give a text a probability for each of their labels."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DataError, ModelError
from ..progress import track, warn
from ..runtime.batches import groups
from ..structure.fetched import fetched
from .loading import complete, device_named, on_device, with_words
from .naming import resolve, say_which_file
from .texts import known_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Row = dict[str, list[int]]  # what the tokenizer makes of one text: input_ids, attention_mask, ...
UNLIMITED = 10**9  # tokenizers that know no limit name one far beyond this


class TextClassifier:
    """A classification model ready for work. Made by `load_classifier`; `name` is what the user called the model."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.model.requires_grad_(False)
        config = model.config
        self.labels: dict[int, str] = {int(index): str(label) for index, label in (config.id2label or {}).items()}
        # Labels that do not exclude each other, or a single one, have no distribution over them.
        self.independent = config.problem_type == "multi_label_classification" or len(self.labels) == 1
        self.longest = _longest(model, tokenizer)
        masks = "attention_mask" in inspect.signature(model.forward).parameters
        self._pads = _pad_like_the_model(model, tokenizer) and masks
        self._said_cut = False

    def probabilities(self, texts: Sequence[str], label: str | int) -> list[float]:
        """The probability of one label, by name (case does not matter) or index, per text and in their order.

        A text longer than the model takes is read to that length, which is said aloud once. DataError where there is
        no such label.
        """
        if isinstance(texts, str):
            raise DataError("probabilities takes a list of texts; put a single one in a list.")
        column = self._column(label)
        rows = self._encode(texts)
        # A model that knows no padding token or no mask would take padding for text.
        plan = groups([len(row["input_ids"]) for row in rows]) if self._pads else [[index] for index in range(len(rows))]
        by_row: dict[int, float] = {}
        for batch in track(plan, "Classifying", len(plan)):
            values = self._probabilities([rows[index] for index in batch])[:, column]
            by_row.update(zip(batch, values.tolist(), strict=True))
        return [by_row[index] for index in range(len(rows))]

    def _column(self, label: str | int) -> int:
        """The label's index; DataError with the labels there are."""
        if isinstance(label, int) and not isinstance(label, bool) and label in self.labels:
            return label
        exact = [index for index, name in self.labels.items() if name == label]
        alike = [index for index, name in self.labels.items() if isinstance(label, str) and name.lower() == label.strip().lower()]
        if len(exact or alike) != 1:
            known = ", ".join(f"{name} ({index})" for index, name in sorted(self.labels.items()))
            raise DataError(f"{self.name} has no label {label!r}; name one of its labels: {known}.")
        return (exact or alike)[0]

    # -- text to tokens ---------------------------------------------------------------------------

    def _encode(self, texts: Sequence[str]) -> list[Row]:
        """One row per text, each no longer than the model takes and with at least one token."""
        rows = self._tokenised(texts)
        cut = [index for index, row in enumerate(rows) if self.longest is not None and len(row["input_ids"]) > self.longest]
        if cut:
            # Cut by the tokenizer, which keeps the special tokens that end a text.
            shorter = self._tokenised([texts[index] for index in cut], truncation=True, max_length=self.longest)
            for index, row in zip(cut, shorter, strict=True):
                rows[index] = row
            self._say_cut(len(cut), len(texts))
        self._refuse_unknown_tokens(rows)
        return rows

    def _tokenised(self, texts: Sequence[str], **options: Any) -> list[Row]:
        if not texts:
            return []
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"The text {text[:40]!a} is not valid Unicode text; correct its encoding.") from error
        encoded = self.tokenizer(list(texts), return_attention_mask=True, verbose=False, **options)
        rows: list[Row] = [{name: values[index] for name, values in encoded.items()} for index in range(len(texts))]
        return [row if row["input_ids"] else self._nothing(row) for row in rows]

    def _nothing(self, row: Row) -> Row:
        """The row of a text without tokens: the one that begins or ends a text, since a model cannot read nothing."""
        special = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id, 0)
        first = next(token for token in special if token is not None)
        return {name: [first if name == "input_ids" else int(name == "attention_mask")] for name in row}

    def _refuse_unknown_tokens(self, rows: list[Row]) -> None:
        known = known_tokens(self.model)
        largest = max((token for row in rows for token in row["input_ids"]), default=0)
        if largest >= known:
            raise ModelError(
                f"The tokenizer of {self.name} makes token {largest}, and the model knows {known}; they do not belong together."
            )

    def _say_cut(self, cut: int, total: int) -> None:
        if not self._said_cut:
            self._said_cut = True
            warn(f"{self.name} reads {self.longest} tokens of a text at most; {cut} of {total} texts are longer and were cut there.")

    # -- tokens to probabilities ------------------------------------------------------------------

    @torch.no_grad()
    def _probabilities(self, rows: list[Row]) -> Tensor:
        """[row, label], float32, on the CPU."""
        out = self.model(**{name: values.to(self.model.device) for name, values in self._padded(rows).items()})
        logits: Tensor = out.logits.float().cpu()
        if not logits.isfinite().all():
            raise ModelError(
                f"{self.name} gives values that are not numbers for some texts; its weights are damaged or overflow their dtype."
            )
        return logits.sigmoid() if self.independent else logits.softmax(-1)

    def _padded(self, rows: list[Row]) -> dict[str, Tensor]:
        """What the model takes, each [row, longest of them], padded on the right."""
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        if len(rows) == 1:  # needs no padding, nor a padding token
            return {name: torch.tensor(values) for name, values in columns.items()}
        return dict(self.tokenizer.pad(columns, padding=True, padding_side="right", return_tensors="pt"))


def _longest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Tokens in the longest text the model takes; None where neither it nor its tokenizer names a limit."""
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < UNLIMITED else []
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0
    if positions > 0:
        # A table of positions with a place for padding counts from behind that place.
        tables = [
            module for module in model.modules() if isinstance(module, torch.nn.Embedding) and module is not model.get_input_embeddings()
        ]
        taken = [table.padding_idx + 1 for table in tables if table.num_embeddings == positions and table.padding_idx is not None]
        limits.append(positions - max(taken, default=0))
    return min(limits, default=None)


def _pad_like_the_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Makes the tokenizer pad with the token that the model skips; False where the model names none.

    Models that read the last token of a text find it by that token, so another one, even one the tokenizer pads
    with, would be read as the text's end.
    """
    pad = model.config.get_text_config().pad_token_id
    if pad is None or not 0 <= pad < min(len(tokenizer), known_tokens(model)):
        return False
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    return True


def load_classifier(name: str, *, device: str | None = None) -> TextClassifier:
    """The classifier in a model folder or behind a Hub id (`owner/model`, `owner/model@revision`).

    device: "cpu", "cuda", ...; the GPU when there is one. Asking again for the same gives the same one. ModelError
    where there is no such model, its files are damaged, or it was not trained to classify.
    """
    return _loaded(str(name), str(device_named(device)))


@lru_cache(maxsize=4)
def _loaded(name: str, device: str) -> TextClassifier:
    place = resolve(name)
    if place.gguf:
        raise ModelError(f"{name} is a GGUF file, and a classifier is read from safetensors; name a model folder or a Hub id.")
    # Importing transformers takes seconds, which making a detector need not.
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    say_which_file(name)
    source: dict[str, Any] = {"revision": place.revision, "trust_remote_code": False}
    tokenizer = with_words(name, fetched(name, lambda: AutoTokenizer.from_pretrained(place.where, **source)))
    model, info = fetched(
        name,
        lambda: AutoModelForSequenceClassification.from_pretrained(place.where, dtype="auto", output_loading_info=True, **source),
    )
    _refuse_incomplete(name, info)
    return TextClassifier(on_device(model, torch.device(device)), tokenizer, name)


def _refuse_incomplete(name: str, info: dict[str, Any]) -> None:
    """ModelError where weights are missing, which transformers makes up, or have another shape."""
    if info["missing_keys"]:
        # Most likely the head of a model that was trained to write and not to classify.
        first = sorted(info["missing_keys"])[0]
        raise ModelError(
            f"{name} cannot classify: its files hold no {first}; name a model trained to classify texts, or download it again."
        )
    complete(name, info)
