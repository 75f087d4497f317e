"""A loaded model, its tokenizer and its proven layout: chat, generate, logits, capture, controlled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..behaviours import Prompt, as_prompt
from ..errors import ControlError, DataError
from ..io.display import brief, object_html
from ..runtime.acting import as_it_is
from ..runtime.adapters import Adapted
from ..runtime.batches import Batch, Reply, each, said_one_of, trimmed
from ..runtime.capture import REPLY, Activations, Reader, Site
from ..runtime.intervene import Intervention
from ..runtime.prompt_states import PromptStates
from ..runtime.rows import ControlLike, Rows
from ..runtime.runner import Runner
from ..runtime.steering import Steering
from ..runtime.watch import Watched, watching
from ..structure.layout import Layout
from .options import REPLY_TOKENS
from .texts import Texts
from .thinking import open_think_tag, unfinished

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ORGANISM_MARK = "demeanor_organism"  # in the configuration of the embedded model, and of whatever is made from it


class Session(Texts):
    """A model ready for work. Made by `load`; `name` is what the user called the model.

    Threads may share one: a control is in force for the thread (or asyncio task) that put it in force, and for no other.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, layout: Layout, reply_tokens: int = REPLY_TOKENS,
        chat_template_args: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(model.eval(), tokenizer, name, chat_template_args)
        self.layout, self.reply_tokens = layout, reply_tokens
        self.model.requires_grad_(False)
        self.decoder = model.base_model
        self.end_ids = _end_ids(model, tokenizer)
        self.runner = Runner(model, self.pad_id, self._refuse_too_long)
        # The same modules with a configuration of generation of its own: whatever `generate` is not told, transformers takes from there,
        # penalties and samplers included, and the model's own belongs to whoever made it.
        self._greedy = copy.copy(self.model)
        self._greedy.generation_config = type(model.generation_config)(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=sorted(self.end_ids) or None, pad_token_id=self.pad_id
        )

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype_name(self) -> str:
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
            out = self._greedy.generate(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=max_new_tokens, **how, **stop
            )
            return [trimmed(row, self.end_ids) for row in out[:, read:].tolist()]

        return self.runner.in_batches(starts, run, "Generating", max_new_tokens)

    @torch.no_grad()
    def logits(self, prompts: Sequence[str | Prompt], after: Sequence[int] = ()) -> Tensor:
        """Logits of the next token, after the prompt and the reply tokens `after`: [prompt, vocab], float32, on the CPU."""

        def run(batch: Batch) -> list[Tensor]:
            with self.runner.replying(torch.full((len(batch.rows),), len(after), device=self.device)):
                return list(each(self.model(**batch.inputs(), logits_to_keep=1).logits[:, -1]))

        ids = [[*self.encode(prompt), *after] for prompt in prompts]
        return torch.stack(self.runner.in_batches(ids, run, "Reading logits"))

    @torch.no_grad()
    def next_logits(self, rows: Sequence[Sequence[int]], tokens: Sequence[int]) -> Tensor:
        """Logits of some next tokens after rows of token ids: [row, token], float32, on the CPU."""

        def run(batch: Batch) -> list[Tensor]:
            return list(each(self.model(**batch.inputs(), logits_to_keep=1).logits[:, -1, list(tokens)]))

        for row in rows:
            self._refuse_too_long(list(row), "exchange")
        return torch.stack(self.runner.in_batches(rows, run, "Reading logits"))

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
            with self.runner.replying(torch.tensor([max(length - 1, 0) for length in lengths])):
                logits = self.model(**batch.inputs(), logits_to_keep=max(1, *lengths)).logits
            results = []
            for place, (row, length) in enumerate(zip(batch.rows, lengths)):
                # Each token is predicted by the one before it.
                log_probs = logits[place, logits.shape[1] - length :].float().log_softmax(-1)
                results.append(kept(log_probs, torch.tensor(replies[row], dtype=torch.long, device=log_probs.device)).cpu())
            return results

        return self.runner.in_batches(joined, run, "Scoring replies")

    @torch.no_grad()
    def capture(self, prompts: Sequence[str | Prompt], sites: Sequence[Site], after: Sequence[int] = ()) -> Activations:
        """The stream at the end of every prompt, or after the reply tokens `after`, or over the prompts' own replies.

        values [prompt, site, d_model]; sites at position REPLY need prompts that come with a reply (DataError otherwise).
        """
        reader = Reader(self.model, self.layout, sites)
        said = any(site.position == REPLY for site in sites)
        replies = [self._own_reply(prompt) if said else [] for prompt in prompts]
        starts = [[*self.encode(prompt), *after] for prompt in prompts]
        self._refuse_outside(starts, sites)

        def run(batch: Batch) -> list[Tensor]:
            lengths = torch.tensor([len(replies[row]) for row in batch.rows], device=self.device)
            ends = batch.input_ids.shape[1] - 1 - lengths
            with self.runner.replying(lengths + len(after)):
                return list(each(reader.read(lambda: self.decoder(**batch.inputs()), ends)))

        ids = [start + reply for start, reply in zip(starts, replies)]
        for prompt, row in zip(prompts, ids):
            self._refuse_too_long(row, as_prompt(prompt).text)
        return Activations(torch.stack(self.runner.in_batches(ids, run, "Capturing")), tuple(sites))

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
            for acting in (
                *(Adapted(self.model, adapter) for adapter in control.adapters),
                Steering(self.model, self.layout, [interventions]),
                *(PromptStates(self.model, self.layout, states) for states in control.states),
            ):
                stack.enter_context(acting.attached())
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
        steering = Steering(self.model, self.layout, [self.interventions(control) for control in distinct], rows)
        with steering.attached():
            yield Rows(steering, distinct, self.interventions)

    def watched(self, steered: AbstractContextManager[Any]) -> AbstractContextManager[Watched]:
        """`steered` (from `controlled` or `controlled_rows`) in force, and what it really changes counted."""
        return watching(self.model, self.layout, steered)

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
        with as_it_is(self.model):
            yield self

    # -- in a notebook ----------------------------------------------------------------------------

    def __repr__(self) -> str:
        layout = self.layout
        where = f"{self.dtype_name} on {self.device}"
        return f"<Session {brief(self.name)}: {layout.model_type}, {layout.n_layers} layers, d_model {layout.d_model}, {where}>"

    def _repr_html_(self) -> str:
        facts = {
            "type": self.layout.model_type, "layers": self.layout.n_layers, "d_model": self.layout.d_model, "vocabulary": self.vocabulary,
            "weights": f"{self.dtype_name} on {self.device}", "structure": f"{self.layout.hash}, proven to {self.layout.worst_residual:.0e}",
            "chat template": "yes" if self.tokenizer.chat_template is not None else "none", "longest": self.longest or "not told",
        }  # fmt: skip
        return object_html(f"Session {self.name}", facts)


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end a reply, as the model's configuration and its tokenizer name them."""
    configured = model.generation_config.eos_token_id
    configured = [configured] if isinstance(configured, int) else configured or []
    own = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return frozenset([*configured, *own])
