"""Prompts and replies as a model's tokenizer and chat template make them: text to tokens, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..behaviours import Prompt, as_prompt
from ..errors import DataError, ModelError
from ..progress import warn
from ..runtime.positions import REPLY, Position
from .template import KEPT, SHORT, ChatTemplate, Messages
from .thinking import kept_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MARK = "the reply stands here"  # in a rendered conversation


class Texts:
    """The half of a session that knows words and tokens; `name` is what the user called the model.

    chat_template_args: arguments that every prompt is rendered with.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, chat_template_args: Mapping[str, Any] | None = None
    ) -> None:
        self.model: Any = model  # of transformers, whose classes do not say what their modules are
        self.tokenizer, self.name, self.chat_template_args = tokenizer, name, dict(chat_template_args or {})
        self._said: set[str] = set()
        self._tokens: dict[str, tuple[int, ...]] = {}  # of the tokenizer `_tokens_of`, by text: every trial asks the same prompts
        self._tokens_of = tokenizer
        self._template = ChatTemplate(tokenizer, name, self.chat_template_args, self._say_once)
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids))
        self._thinking_tokens = {special[token] for token in kept_tokens(special)}
        self.pad_id = pad_of(tokenizer, known_tokens(model))

    @property
    def longest(self) -> int | None:
        """How many tokens the model takes, prompt and reply together; None where its configuration names no end."""
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return None if longest is None else int(longest)

    @property
    def template(self) -> ChatTemplate:
        """The chat template of the tokenizer that is in force."""
        if self._template.tokenizer is not self.tokenizer:
            self._template = ChatTemplate(self.tokenizer, self.name, self.chat_template_args, self._say_once)
        return self._template

    @property
    def has_template(self) -> bool:
        """Whether prompts come through a chat template; they are plain text otherwise."""
        return self.template.text is not None

    def render(self, prompt: str | Prompt) -> str:
        """The prompt as the model sees it, ready for the reply (plus any prefill)."""
        prompt = as_prompt(prompt)
        if not self.has_template:
            self._say_once(f"{self.name} has no chat template; prompts are given to it as plain text.")
            texts = ([prompt.system] if prompt.system else []) + [content for _, content in prompt.messages]
            return "\n".join(texts) + prompt.prefill
        return self.template.rendered(prompt.messages, prompt.system) + prompt.prefill

    def messages(self, prompt: Prompt) -> Messages:
        """The prompt as messages that the chat template takes."""
        return self.template.messages(prompt.messages, prompt.system)

    def encode(self, prompt: str | Prompt) -> list[int]:
        """Token ids of the rendered prompt; the template writes its own special tokens, so none are added to it."""
        text = self.render(prompt)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"The prompt {text[:40]!a} is not valid Unicode text; correct its encoding.") from error
        ids = self.encode_reply(text) if self.has_template else self.encode_opened(text)
        self.refuse_too_long(ids, text)
        return ids

    def encode_opened(self, text: str) -> list[int]:
        """Token ids of a text with what the tokenizer opens texts with, and without what it ends them with."""
        bare, ids = self.encode_reply(text), list(self.tokenizer(text)["input_ids"])
        starts = [start for start in range(len(ids) - len(bare) + 1) if bare and ids[start : start + len(bare)] == bare]
        return ids[: starts[0] + len(bare)] if starts else ids

    def refuse_too_long(self, ids: Sequence[int], text: str | None = None) -> None:
        """DataError, with the beginning of the text, for more tokens than the model takes; ModelError for tokens it does not know."""
        text = self.decode(ids) if text is None else text
        if self.longest is not None and len(ids) >= self.longest:
            raise DataError(
                f"The prompt {text[:40]!r}... has {len(ids)} tokens, and {self.name} takes fewer than {self.longest}; shorten it."
            )
        known = known_tokens(self.model)
        if max(ids, default=0) >= known:
            raise ModelError(
                f"The tokenizer of {self.name} makes token {max(ids)}, and the model knows {known}; they do not belong together."
            )

    def own_reply(self, prompt: str | Prompt) -> list[int]:
        """Token ids of the reply that comes with a prompt. DataError where there is none, or an empty one."""
        prompt = as_prompt(prompt)
        ids = self.encode_reply(prompt.reply) if prompt.reply is not None else []
        if not ids:
            raise DataError(f"The prompt {prompt.text[:40]!r} comes without a reply, so nothing can be read over it; give it one.")
        return ids

    @staticmethod
    def refuse_outside(shortest: int, positions: Iterable[Position]) -> None:
        """DataError for a position that a prompt of `shortest` tokens does not have."""
        outside = next((position for position in positions if position != REPLY and not -shortest <= position < 0), None)
        if outside is not None:
            raise DataError(f"There is no position {outside} in a prompt of {shortest} tokens; positions count from its end, -1 being the last.")

    def encode_reply(self, text: str) -> list[int]:
        """Token ids of a text as a reply, without special tokens."""
        if self._tokens_of is not self.tokenizer:
            self._tokens, self._tokens_of = {}, self.tokenizer
        kept = self._tokens
        ids = kept.get(text)
        if ids is None:
            ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            if len(kept) >= KEPT:
                kept.clear()
            if len(text) <= SHORT:
                kept[text] = ids
        return list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Reply tokens as text, without special tokens but those that tell thinking from speech."""
        if not self._thinking_tokens:
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
        special = set(self.tokenizer.all_special_ids) - self._thinking_tokens
        return str(self.tokenizer.decode([token for token in ids if token not in special], skip_special_tokens=False)).strip()

    def after_reply(self, text: str) -> str:
        """What stands between the end of a reply and the next one when a user says `text`: a template's turns, or plain text."""
        if not self.has_template:
            self._say_once(f"{self.name} has no chat template; prompts are given to it as plain text.")
            return f"\n{text}"
        return self.render(Prompt(messages=(("user", "a"), ("assistant", MARK), ("user", text)))).partition(MARK)[2]

    def template_length(self) -> int:
        """How many tokens the template puts after a user's message: the positions at which a prompt can be read."""
        one, other = (self.encode(text)[::-1] for text in ("a", "something else entirely"))
        shared = 0
        while shared < min(len(one), len(other)) and one[shared] == other[shared]:
            shared += 1
        return max(1, shared)

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            warn(sentence)


def known_tokens(model: Any) -> int:
    """How many tokens a model has an embedding for; its tokenizer may make others."""
    return int(model.get_input_embeddings().num_embeddings)


def pad_of(tokenizer: PreTrainedTokenizerBase, known: int) -> int:
    """The token that fills up what is shorter: the tokenizer's, else the one that ends texts, else any, since pads are masked.

    known: how many tokens the model knows; one that was added to the tokenizer alone cannot be read.
    """
    named = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((int(token) for token in named if token is not None and 0 <= token < known), 0)
