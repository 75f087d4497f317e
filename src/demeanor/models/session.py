"""A loaded model, its tokenizer and its proven layout: chat, generate, logits, capture, controlled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jinja2 import TemplateError
from torch import Tensor

from ..algebra.directions import unit
from ..behaviours import Prompt, as_prompt
from ..errors import AccountingError, ControlError, DataError, ModelError
from ..progress import say
from .capture import REPLY, Activations, Attention, Reader, Site
from .generate import Batch, Reply, each, in_batches, trimmed
from .intervene import Intervention, Steering, at_writers
from .layout import Layout
from .proof import prove
from .thinking import kept_tokens, opened_by, unfinished

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REPLY_TOKENS = 48
SMALL = 20_000_000  # parameters
MARK = "the reply stands here"  # in a rendered conversation
ORGANISM_MARK = "demeanor_organism"  # in the configuration of the embedded model, and of whatever is made from it


class Steers(Protocol):
    """What `Session.controlled` needs of a control."""

    @property
    def layout_hash(self) -> str: ...

    @property
    def model_name(self) -> str: ...

    def interventions(self, layout: Layout, tensor: Callable[[str], Tensor]) -> list[Intervention]: ...


class Session:
    """A model ready for work. Made by `load`; `name` is what the user called the model."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, reply_tokens: int = REPLY_TOKENS) -> None:
        self.model, self.tokenizer, self.name, self.reply_tokens = model.eval(), tokenizer, name, reply_tokens
        self.model.requires_grad_(False)
        self.decoder = model.base_model
        try:
            self.layout = prove(model)
        except AccountingError as error:
            raise AccountingError(f"{name} ({model.config.model_type}): {error}") from error
        self._steering: list[Steering] = []
        self._attention = Attention()
        self._said: set[str] = set()
        self.end_ids = _end_ids(model, tokenizer)
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids))
        self._thinking_tokens = {special[token] for token in kept_tokens(special)}
        self._small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        # Greedy means the likeliest token: no penalty or other default that the model's own configuration sets.
        model.generation_config = type(model.generation_config)(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=sorted(self.end_ids) or None, pad_token_id=tokenizer.pad_token_id
        )
        self._check_ablation()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def held_in(self) -> str:
        """What the weights are computed with: "float32", "bfloat16", ..., or "quantised"."""
        quantised = getattr(self.model, "hf_quantizer", None) is not None
        return "quantised" if quantised else str(self.model.dtype).removeprefix("torch.")

    @property
    def organism(self) -> bool:
        """Whether this is the embedded model, or was made from it."""
        return hasattr(self.model.config, ORGANISM_MARK)

    @property
    def vocabulary(self) -> int:
        """How many tokens the output head scores."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    # -- text to tokens ---------------------------------------------------------------------------

    def render(self, prompt: str | Prompt) -> str:
        """The prompt as the model sees it, ready for the reply (plus any prefill)."""
        prompt = as_prompt(prompt)
        if self.tokenizer.chat_template is None:
            self._say_once(f"{self.name} has no chat template; prompts are given to it as plain text.")
            texts = ([prompt.system] if prompt.system else []) + [content for _, content in prompt.messages]
            return "\n".join(texts) + prompt.prefill
        return self._template(self.messages(prompt)) + prompt.prefill

    def messages(self, prompt: Prompt) -> list[dict[str, str]]:
        """The prompt as messages that the chat template takes."""
        messages = [{"role": role, "content": content} for role, content in prompt.messages]
        return self._with_system(messages, prompt.system) if prompt.system else messages

    def _template(self, messages: list[dict[str, str]]) -> str:
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise DataError(f"The chat template of {self.name} refuses these messages: {error}.") from error
        return str(text)

    def _with_system(self, messages: list[dict[str, str]], system: str) -> list[dict[str, str]]:
        with_system = [{"role": "system", "content": system}, *messages]
        try:
            self.tokenizer.apply_chat_template(with_system, tokenize=False, add_generation_prompt=True)
            return with_system
        except TemplateError:
            self._say_once(f"The chat template of {self.name} has no system role; system prompts open the first user message.")
            first = {"role": messages[0]["role"], "content": f"{system}\n\n{messages[0]['content']}"}
            return [first, *messages[1:]]

    def encode(self, prompt: str | Prompt) -> list[int]:
        """Token ids of the rendered prompt; the template writes its own special tokens, so none are added to it."""
        text = self.render(prompt)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"The prompt {text[:40]!a} is not valid Unicode text; correct its encoding.") from error
        ids = list(self.tokenizer(text, add_special_tokens=self.tokenizer.chat_template is None)["input_ids"])
        self._refuse_too_long(ids, text)
        return ids

    def _refuse_too_long(self, ids: list[int], text: str) -> None:
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if longest is not None and len(ids) >= longest:
            raise DataError(f"The prompt {text[:40]!r}... has {len(ids)} tokens, and {self.name} takes fewer than {longest}; shorten it.")
        known = self.model.get_input_embeddings().num_embeddings
        if max(ids, default=0) >= known:
            raise ModelError(
                f"The tokenizer of {self.name} makes token {max(ids)}, and the model knows {known}; they do not belong together."
            )

    def encode_reply(self, text: str) -> list[int]:
        """Token ids of a text as a reply, without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Reply tokens as text, without special tokens but those that tell thinking from speech."""
        if not self._thinking_tokens:
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
        special = set(self.tokenizer.all_special_ids) - self._thinking_tokens
        return str(self.tokenizer.decode([token for token in ids if token not in special], skip_special_tokens=False)).strip()

    def after_reply(self, text: str) -> str:
        """What stands between the end of a reply and the next one when a user says `text`: a template's turns, or plain text."""
        if self.tokenizer.chat_template is None:
            self._say_once(f"{self.name} has no chat template; prompts are given to it as plain text.")
            return f"\n{text}"
        messages = [("user", "a"), ("assistant", MARK), ("user", text)]
        return self._template([{"role": role, "content": content} for role, content in messages]).partition(MARK)[2]

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
            say(sentence)

    # -- what the model does ----------------------------------------------------------------------

    def chat(self, prompt: str | Prompt, max_new_tokens: int = 128) -> str:
        """One reply, greedy."""
        return self.generate([prompt], max_new_tokens)[0].text

    @torch.no_grad()
    def generate(self, prompts: Sequence[str | Prompt], max_new_tokens: int | None = None, temperature: float | None = None) -> list[Reply]:
        """Greedy replies, or sampled from the whole vocabulary at a temperature; one per prompt, in order; of at most
        `reply_tokens` tokens unless told."""
        most = max_new_tokens or self.reply_tokens
        how: dict[str, Any] = {"do_sample": False}
        if temperature is not None:
            how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if isinstance(prompts, str):
            raise DataError("generate takes a list of prompts; use chat for a single one.")

        # A block of thoughts that the template opens is part of what the model says.
        opened = [opened_by(self.render(prompt)) for prompt in prompts]

        def run(batch: Batch) -> list[Reply]:
            out = self.model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=most, **how)
            replies = (trimmed(row, self.end_ids) for row in out[:, batch.input_ids.shape[1] :].tolist())
            return [Reply(opened[row] + self.decode(ids), ids) for row, ids in zip(batch.rows, replies)]

        replies = self._over(prompts, run, "Generating", most)
        cut = sum(unfinished(reply.text) for reply in replies)
        if cut:
            self._say_once(
                f"{cut} of {len(replies)} replies end while {self.name} still thinks, so they say nothing; raise --reply-tokens."
            )
        return replies

    @torch.no_grad()
    def logits(self, prompts: Sequence[str | Prompt], after: Sequence[int] = ()) -> Tensor:
        """Logits of the next token, after the prompt and the reply tokens `after`: [prompt, vocab], float32, on the CPU."""

        def run(batch: Batch) -> list[Tensor]:
            with self._replies(torch.full((len(batch.rows),), len(after), device=self.device)):
                return list(each(self.model(**batch.inputs(), logits_to_keep=1).logits[:, -1]))

        ids = [[*self.encode(prompt), *after] for prompt in prompts]
        return torch.stack(self._batched(ids, run, "Reading logits"))

    @torch.no_grad()
    def next_logits(self, rows: Sequence[Sequence[int]], tokens: Sequence[int]) -> Tensor:
        """Logits of some next tokens after rows of token ids: [row, token], float32, on the CPU."""

        def run(batch: Batch) -> list[Tensor]:
            return list(each(self.model(**batch.inputs(), logits_to_keep=1).logits[:, -1, list(tokens)]))

        for row in rows:
            self._refuse_too_long(list(row), "exchange")
        return torch.stack(self._batched(rows, run, "Reading logits"))

    def reply_log_probs(self, prompts: Sequence[str | Prompt], replies: Sequence[Sequence[int]]) -> list[Tensor]:
        """Teacher-forced log-probabilities over each reply's tokens: [reply token, vocab] per prompt, float32, CPU."""
        return self._teacher_forced(prompts, replies, lambda log_probs, reply: log_probs)

    def reply_log_likelihoods(self, prompts: Sequence[str | Prompt], replies: Sequence[Sequence[int]]) -> list[Tensor]:
        """Log-probability of each reply's own tokens, teacher-forced: [reply token] per prompt, float32, CPU."""
        return self._teacher_forced(prompts, replies, lambda log_probs, reply: log_probs.gather(1, reply[:, None])[:, 0])

    @torch.no_grad()
    def _teacher_forced(
        self, prompts: Sequence[str | Prompt], replies: Sequence[Sequence[int]], kept: Callable[[Tensor, Tensor], Tensor]
    ) -> list[Tensor]:
        # Token ids are joined, never text: a reply tokenised again could shift by one.
        joined = [[*self.encode(prompt), *reply] for prompt, reply in zip(prompts, replies, strict=True)]

        def run(batch: Batch) -> list[Tensor]:
            lengths = torch.tensor([len(replies[row]) for row in batch.rows])
            with self._replies(lengths):
                out = self.model(**batch.inputs(), logits_to_keep=int(lengths.max()) + 1)
            results = []
            for row, length in enumerate(lengths.tolist()):
                log_probs = out.logits[row, -1 - length : -1].float().log_softmax(-1)  # the token at t is predicted at t - 1
                results.append(kept(log_probs, batch.input_ids[row, -length:]).cpu())
            return results

        return self._batched(joined, run, "Scoring replies")

    @torch.no_grad()
    def capture(self, prompts: Sequence[str | Prompt], sites: Sequence[Site], after: Sequence[int] = ()) -> Activations:
        """The stream at the end of every prompt, or after the reply tokens `after`, or over the prompts' own replies.

        values [prompt, site, d_model]; sites at position REPLY need prompts that come with a reply (DataError otherwise).
        """
        reader = Reader(self.model, self.layout, sites, self._attention)
        said = any(site.position == REPLY for site in sites)
        replies = [self._own_reply(prompt) if said else [] for prompt in prompts]
        starts = [[*self.encode(prompt), *after] for prompt in prompts]
        self._refuse_outside(starts, sites)

        def run(batch: Batch) -> list[Tensor]:
            lengths = torch.tensor([len(replies[row]) for row in batch.rows], device=self.device)
            ends = batch.input_ids.shape[1] - 1 - lengths
            with self._replies(lengths + len(after)):
                return list(each(reader.read(lambda: self.decoder(**batch.inputs()), ends)))

        ids = [start + reply for start, reply in zip(starts, replies)]
        for prompt, row in zip(prompts, ids):
            self._refuse_too_long(row, as_prompt(prompt).text)
        return Activations(torch.stack(self._batched(ids, run, "Capturing")), tuple(sites))

    def _own_reply(self, prompt: str | Prompt) -> list[int]:
        prompt = as_prompt(prompt)
        ids = self.encode_reply(prompt.reply) if prompt.reply is not None else []
        if not ids:
            raise DataError(f"The prompt {prompt.text[:40]!r} comes without a reply, so nothing can be read over it; give it one.")
        return ids

    def _refuse_outside(self, starts: Sequence[Sequence[int]], sites: Sequence[Site]) -> None:
        shortest = min(map(len, starts), default=0)
        outside = next((site for site in sites if starts and not -shortest <= site.position <= REPLY), None)
        if outside is not None:
            raise DataError(
                f"There is no position {outside.position} in a prompt of {shortest} tokens; positions count from its end, -1 being the last."
            )

    @contextmanager
    def controlled(self, control: Steers) -> Iterator[Session]:
        """The model with a control in force, until the context ends. Contexts nest, the inner one acts on top."""
        if control.layout_hash != self.layout.hash:
            raise ControlError(
                f"The control was made for structure {control.layout_hash} ({control.model_name}), and {self.name} has {self.layout.hash}; make it anew for this model."
            )
        if control.model_name != self.name:
            self._say_once(f"The control was made on {control.model_name} and is used on {self.name}: same structure, other weights.")
        with self._steered(control.interventions(self.layout, self.model.get_parameter)):
            yield self

    @contextmanager
    def uncontrolled(self) -> Iterator[Session]:
        """The model as it is, whatever control is in force around this."""
        before, self._attention.quiet = self._attention.quiet, True
        try:
            yield self
        finally:
            self._attention.quiet = before

    @contextmanager
    def _steered(self, interventions: Sequence[Intervention]) -> Iterator[None]:
        steering = Steering(self.model, self.decoder, self.layout, interventions, self._attention)
        with steering.attached():
            self._steering.append(steering)
            try:
                yield
            finally:
                self._steering.remove(steering)

    @contextmanager
    def _replies(self, lengths: Tensor) -> Iterator[None]:
        """Tells the edits in force how many of each row's tokens are reply."""
        for steering in self._steering:
            steering.reply_lengths = lengths
        try:
            yield
        finally:
            for steering in self._steering:
                steering.reply_lengths = None

    def _over(self, prompts: Sequence[str | Prompt], run: Any, what: str, extra: int = 0) -> list[Any]:
        return self._batched([self.encode(prompt) for prompt in prompts], run, what, extra)

    def _batched(self, ids: Sequence[Sequence[int]], run: Any, what: str, extra: int = 0) -> list[Any]:
        with self.threads():
            return in_batches(ids, self._pad, self.device, run, what, extra)

    @contextmanager
    def threads(self) -> Iterator[None]:
        """One thread for small models: handing their tiny operations to several costs more than it saves, and
        many times more on a machine that is busy with something else."""
        before = torch.get_num_threads()
        torch.set_num_threads(1 if self._small else before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    @property
    def _pad(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @torch.no_grad()
    def _check_ablation(self) -> None:
        """The last step of the proof: with a direction ablated, none of it is left in the stream anywhere.

        The direction is what the unedited stream points to at its end, so that much of it would be left if the edit
        did nothing, in every dtype.
        """
        layers = range(self.layout.n_layers)
        sites = [Site(0, "embed"), *(Site(layer, "resid_post") for layer in layers)]
        ids = torch.arange(5, 14, device=self.device)[None] % self.model.get_input_embeddings().num_embeddings
        reader = Reader(self.model, self.layout, sites, self._attention)

        def stream() -> Tensor:
            return reader.read(lambda: self.decoder(input_ids=ids, use_cache=False), torch.tensor([8], device=self.device))[0]

        r = unit(stream()[-1:])
        with self._steered(at_writers(self.layout, r, 1.0, self.model.get_parameter)):
            values = stream()
        left = ((values @ r[0]).abs() / values.norm(dim=-1)).max()
        bound = max(1e-5, 16 * torch.finfo(self.model.dtype).eps)
        if left > bound:
            raise AccountingError(
                f"{self.name}: {left:.1e} of an ablated direction is left in the stream (at most {bound:.0e}); this model cannot be edited yet."
            )


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end a reply, as the model's configuration and its tokenizer name them."""
    configured = model.generation_config.eos_token_id
    configured = [configured] if isinstance(configured, int) else configured or []
    own = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return frozenset([*configured, *own])
