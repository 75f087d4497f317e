"""A loaded model, its tokenizer and its proven layout: chat, generate, logits, capture, controlled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..algebra.directions import unit
from ..algebra.edits import ablate
from ..behaviours import Prompt, as_prompt
from ..errors import AccountingError, ControlError, DataError
from ..runtime.adapters import Adapted
from ..runtime.batches import TOKEN_BUDGET, Batch, Reply, each, said_one_of, trimmed
from ..runtime.batches import in_batches as run_in_batches
from ..runtime.capture import REPLY, Activations, HookSwitch, Reader, Site
from ..runtime.intervene import Intervention, at_writers
from ..runtime.prompt_states import PromptStates
from ..runtime.rows import ControlLike, Rows, in_rows
from ..runtime.steering import Steering
from ..runtime.watch import Watched, watching
from ..structure.proof import prove
from .texts import Texts
from .thinking import open_think_tag, unfinished

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REPLY_TOKENS = 48
SMALL = 20_000_000  # parameters
ORGANISM_MARK = "demeanor_organism"  # in the configuration of the embedded model, and of whatever is made from it


class Session(Texts):
    """A model ready for work. Made by `load`; `name` is what the user called the model."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, reply_tokens: int = REPLY_TOKENS) -> None:
        super().__init__(model.eval(), tokenizer, name)
        self.reply_tokens = reply_tokens
        self.model.requires_grad_(False)
        self.decoder = model.base_model
        try:
            self.layout = prove(model)
        except AccountingError as error:
            raise AccountingError(f"{name} ({model.config.model_type}): {error}") from error
        self._steering: list[Steering | PromptStates | Adapted] = []
        self._switch = HookSwitch()
        self.end_ids = _end_ids(model, tokenizer)
        self._small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
        # Greedy means the likeliest token: no penalty or other default that the model's own configuration sets.
        model.generation_config = type(model.generation_config)(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=sorted(self.end_ids) or None, pad_token_id=tokenizer.pad_token_id
        )
        self._check_ablation()

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def dtype_name(self) -> str:
        """What the weights are computed with: "float32", "bfloat16", ..., or "quantised"."""
        quantised = getattr(self.model, "hf_quantizer", None) is not None
        return "quantised" if quantised else str(self.model.dtype).removeprefix("torch.")

    @property
    def branch_budget(self) -> int:
        """Padded tokens in one batch of branches. A small model's cost is its many calls, and most branches end early."""
        return TOKEN_BUDGET * (4 if self._small else 1)

    @property
    def organism(self) -> bool:
        """Whether this is the embedded model, or was made from it."""
        return hasattr(self.model.config, ORGANISM_MARK)

    @property
    def vocabulary(self) -> int:
        """How many tokens the output head scores."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    # -- what the model does ----------------------------------------------------------------------

    def chat(self, prompt: str | Prompt, max_new_tokens: int = 128) -> str:
        """One reply, greedy."""
        return self.generate([prompt], max_new_tokens)[0].text

    @torch.no_grad()
    def generate(self, prompts: Sequence[str | Prompt], max_new_tokens: int | None = None, temperature: float | None = None) -> list[Reply]:
        """Greedy replies, or sampled from the whole vocabulary at a temperature; one per prompt, in order; of at most
        `reply_tokens` tokens unless told."""
        most = max_new_tokens or self.reply_tokens
        if isinstance(prompts, str):
            raise DataError("generate takes a list of prompts; use chat for a single one.")
        # A block of thoughts that the template opens is part of what the model says.
        opened = [open_think_tag(self.render(prompt)) for prompt in prompts]
        said = self.continue_from([self.encode(prompt) for prompt in prompts], most, temperature=temperature)
        replies = [Reply(start + self.decode(ids), ids) for start, ids in zip(opened, said)]
        cut = sum(unfinished(reply.text) for reply in replies)
        if cut:
            self._say_once(
                f"{cut} of {len(replies)} replies end while {self.name} still thinks, so they say nothing; raise --reply-tokens."
            )
        return replies

    @torch.no_grad()
    def continue_from(
        self, starts: Sequence[Sequence[int]], max_new_tokens: int, until: Sequence[str] = (), temperature: float | None = None
    ) -> list[tuple[int, ...]]:
        """What follows token ids, greedily or sampled: up to an end token, or soon after one of the texts `until` was said."""
        how: dict[str, Any] = {"do_sample": False}
        if temperature is not None:
            how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}

        def run(batch: Batch) -> list[tuple[int, ...]]:
            read = batch.input_ids.shape[1]
            stop = {"stopping_criteria": said_one_of(until, self.tokenizer, read)} if until else {}
            out = self.model.generate(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=max_new_tokens, **how, **stop
            )
            return [trimmed(row, self.end_ids) for row in out[:, read:].tolist()]

        return self.in_batches(starts, run, "Generating", max_new_tokens)

    @torch.no_grad()
    def logits(self, prompts: Sequence[str | Prompt], after: Sequence[int] = ()) -> Tensor:
        """Logits of the next token, after the prompt and the reply tokens `after`: [prompt, vocab], float32, on the CPU."""

        def run(batch: Batch) -> list[Tensor]:
            with self.replying(torch.full((len(batch.rows),), len(after), device=self.device)):
                return list(each(self.model(**batch.inputs(), logits_to_keep=1).logits[:, -1]))

        ids = [[*self.encode(prompt), *after] for prompt in prompts]
        return torch.stack(self.in_batches(ids, run, "Reading logits"))

    @torch.no_grad()
    def next_logits(self, rows: Sequence[Sequence[int]], tokens: Sequence[int]) -> Tensor:
        """Logits of some next tokens after rows of token ids: [row, token], float32, on the CPU."""

        def run(batch: Batch) -> list[Tensor]:
            return list(each(self.model(**batch.inputs(), logits_to_keep=1).logits[:, -1, list(tokens)]))

        for row in rows:
            self._refuse_too_long(list(row), "exchange")
        return torch.stack(self.in_batches(rows, run, "Reading logits"))

    def reply_log_probs(self, prompts: Sequence[str | Prompt], replies: Sequence[Sequence[int]]) -> list[Tensor]:
        """Teacher-forced log-probabilities over each reply's tokens: [reply token, vocab] per prompt, float32, CPU."""
        return self._teacher_forced([self.encode(prompt) for prompt in prompts], replies, lambda log_probs, reply: log_probs)

    def reply_log_likelihoods(self, prompts: Sequence[str | Prompt], replies: Sequence[Sequence[int]]) -> list[Tensor]:
        """Log-probability of each reply's own tokens, teacher-forced: [reply token] per prompt, float32, CPU."""
        return self._teacher_forced(
            [self.encode(prompt) for prompt in prompts], replies, lambda log_probs, reply: log_probs.gather(1, reply[:, None])[:, 0]
        )

    def continuation_log_likelihoods(
        self, starts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[tuple[float, bool]]:
        """Log-probability of token ids after other token ids, and whether they are what greedy decoding says.

        Both together may be one longer than the model takes: the last token is predicted, not read.
        """

        def kept(log_probs: Tensor, own: Tensor) -> Tensor:
            return torch.stack([log_probs.gather(1, own[:, None]).double().sum(), (log_probs.argmax(-1) == own).all().double()])

        return [(float(total), bool(greedy)) for total, greedy in self._teacher_forced(starts, continuations, kept)]

    @torch.no_grad()
    def _teacher_forced(
        self, starts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], kept: Callable[[Tensor, Tensor], Tensor]
    ) -> list[Tensor]:
        # Token ids are joined, never text: a reply tokenised again could shift by one.
        joined = [[*start, *reply[:-1]] for start, reply in zip(starts, replies, strict=True)]

        def run(batch: Batch) -> list[Tensor]:
            lengths = [len(replies[row]) for row in batch.rows]
            with self.replying(torch.tensor([max(length - 1, 0) for length in lengths])):
                logits = self.model(**batch.inputs(), logits_to_keep=max(1, *lengths)).logits
            results = []
            for place, (row, length) in enumerate(zip(batch.rows, lengths)):
                # Each token is predicted by the one before it.
                log_probs = logits[place, logits.shape[1] - length :].float().log_softmax(-1)
                results.append(kept(log_probs, torch.tensor(replies[row], dtype=torch.long, device=log_probs.device)).cpu())
            return results

        return self.in_batches(joined, run, "Scoring replies")

    @torch.no_grad()
    def capture(self, prompts: Sequence[str | Prompt], sites: Sequence[Site], after: Sequence[int] = ()) -> Activations:
        """The stream at the end of every prompt, or after the reply tokens `after`, or over the prompts' own replies.

        values [prompt, site, d_model]; sites at position REPLY need prompts that come with a reply (DataError otherwise).
        """
        reader = Reader(self.model, self.layout, sites, self._switch)
        said = any(site.position == REPLY for site in sites)
        replies = [self._own_reply(prompt) if said else [] for prompt in prompts]
        starts = [[*self.encode(prompt), *after] for prompt in prompts]
        self._refuse_outside(starts, sites)

        def run(batch: Batch) -> list[Tensor]:
            lengths = torch.tensor([len(replies[row]) for row in batch.rows], device=self.device)
            ends = batch.input_ids.shape[1] - 1 - lengths
            with self.replying(lengths + len(after)):
                return list(each(reader.read(lambda: self.decoder(**batch.inputs()), ends)))

        ids = [start + reply for start, reply in zip(starts, replies)]
        for prompt, row in zip(prompts, ids):
            self._refuse_too_long(row, as_prompt(prompt).text)
        return Activations(torch.stack(self.in_batches(ids, run, "Capturing")), tuple(sites))

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
    def controlled(self, control: ControlLike) -> Iterator[Session]:
        """The model with a control in force, until the context ends. Contexts nest, the inner one acts on top."""
        interventions = self.interventions(control)
        with ExitStack() as stack:
            for adapter in control.adapters:
                stack.enter_context(self._in_force(Adapted(self.model, self.decoder, adapter, self._switch)))
            stack.enter_context(self._steered([interventions]))
            for states in control.states:
                stack.enter_context(self._in_force(PromptStates(self.model, self.decoder, self.layout, states, self._switch)))
            yield self

    @contextmanager
    def controlled_rows(self, controls: Sequence[ControlLike | None]) -> Iterator[Rows]:
        """The model with a control for each prompt, until the context ends; None is the untouched model.

        Whatever is asked inside must be asked of as many prompts as there are controls: the first prompt has the first
        control, however prompts are batched. `session.model.generate` has them in the order of its rows, beams and samples included.
        """
        if not controls:
            raise DataError("There are no controls; give one per prompt, or None for the untouched model.")
        if any(control is not None and control.states for control in controls):
            raise ControlError("States act on their own prompts, whatever row those are in; put them in force with controlled.")
        if any(control is not None and control.adapters for control in controls):
            raise ControlError("Adapters act on every row alike; put them in force with controlled.")
        distinct = list({id(control): control for control in controls if control is not None}.values())
        slots = {id(control): number for number, control in enumerate(distinct, start=1)}
        rows = [0 if control is None else slots[id(control)] for control in controls]
        with self._steered([self.interventions(control) for control in distinct], rows) as steering:
            yield Rows(steering, distinct, self.interventions)

    def watched(self, steered: AbstractContextManager[Any]) -> AbstractContextManager[Watched]:
        """`steered` (from `controlled` or `controlled_rows`) in force, and what it really changes counted."""
        return watching(self.model, self.decoder, self.layout, self._switch, steered)

    def interventions(self, control: ControlLike) -> list[Intervention]:
        """A control as edits at this model's modules. Raises ControlError when it was made for another structure."""
        if control.layout_hash != self.layout.hash:
            raise ControlError(
                f"The control was made for structure {control.layout_hash} ({control.model_name}), and {self.name} has {self.layout.hash}; make it anew for this model."
            )
        if control.model_name != self.name:
            self._say_once(f"The control was made on {control.model_name} and is used on {self.name}: same structure, other weights.")
        return control.interventions(self.layout, self.model.get_parameter)

    @contextmanager
    def uncontrolled(self) -> Iterator[Session]:
        """The model as it is, whatever control is in force around this."""
        before, self._switch.quiet = self._switch.quiet, True
        try:
            yield self
        finally:
            self._switch.quiet = before

    @contextmanager
    def _steered(self, slots: Sequence[Sequence[Intervention]], rows: Sequence[int] | None = None) -> Iterator[Steering]:
        steering = Steering(self.model, self.decoder, self.layout, slots, rows, self._switch)
        with self._in_force(steering):
            yield steering

    @contextmanager
    def _in_force(self, steering: Steering | PromptStates | Adapted) -> Iterator[None]:
        with steering.attached():
            self._steering.append(steering)
            try:
                yield
            finally:
                self._steering.remove(steering)

    @contextmanager
    def replying(self, lengths: Tensor) -> Iterator[None]:
        """Tells the edits in force how many of each row's tokens are reply."""
        for steering in self._steering:
            steering.reply_lengths = lengths
        try:
            yield
        finally:
            for steering in self._steering:
                steering.reply_lengths = None

    def in_batches(self, ids: Sequence[Sequence[int]], run: Any, what: str, extra: int = 0) -> list[Any]:
        """`run` on batches of token ids, under whatever is in force; its results, one per row, in order."""
        # Who asks the model as it is may ask about any number of prompts.
        acting = [] if self._switch.quiet else self._steering
        by_row = [steering for steering in acting if isinstance(steering, Steering) and steering.rows is not None]
        # Tokens that stand for embeddings which open every prompt.
        opening = [self._pad] * sum(each.virtual_tokens for each in acting if isinstance(each, Adapted))
        if opening:
            ids = [[*opening, *row] for row in ids]
            longest = max(ids, key=len)
            self._refuse_too_long(longest, self.decode(longest))
        with self.threads():
            return run_in_batches(ids, self._pad, self.device, in_rows(by_row, len(ids), run), what, extra)

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
        reader = Reader(self.model, self.layout, sites, self._switch)

        def stream() -> Tensor:
            return reader.read(lambda: self.decoder(input_ids=ids, use_cache=False), torch.tensor([8], device=self.device))[0]

        r = unit(stream()[-1:])
        with self._steered([at_writers(self.layout, lambda writer: ablate(r), self.model.get_parameter)]):
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
