"""A loaded model, its tokenizer and its proven layout: chat, generate, logits, capture, controlled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..behaviours import Prompt, as_prompt, as_prompts
from ..errors import ControlError, DataError
from ..io.display import brief, object_html
from ..runtime.acting import as_it_is, lock_of
from ..runtime.adapters import Adapted
from ..runtime.batches import Batch, each
from ..runtime.capture import Activations, Reader
from ..runtime.control_like import ControlLike, as_control, as_controls
from ..runtime.intervene import Intervention
from ..runtime.positions import REPLY
from ..runtime.prompt_states import PromptStates
from ..runtime.rows import Rows
from ..runtime.running_rows import RunningRows, mixes
from ..runtime.shared_prefix import Tail
from ..runtime.sites import Site, as_sites
from ..runtime.slots import Slot
from ..runtime.steering import Steering
from ..runtime.watch import Watched, watching
from ..structure.layout import Layout, same_weights
from .language_model import LanguageModel
from .naming import same_model
from .options import REPLY_TOKENS
from .projections import Projections, projections

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ORGANISM_MARK = "demeanor_organism"  # in the configuration of the embedded model, and of whatever is made from it


class Session(LanguageModel):
    """A model ready for work. Made by `load`; `name` is what the user called the model, `cached` whether its layout was proven earlier.

    Threads may share one: a control is in force for the thread (or asyncio task) that put it in force, and for no other.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, layout: Layout, reply_tokens: int = REPLY_TOKENS,
        chat_template_args: Mapping[str, Any] | None = None, cached: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(model, tokenizer, name, reply_tokens, chat_template_args)
        self.layout, self.cached = layout, cached
        self._mixes: bool | None = None  # whether rows can join others that run; None until it is tried
        self.runner.even = layout.even_rows
        self._compared: dict[str, bool] = {}  # names of models that controls were made on: whether they are this one

    @property
    def proof(self) -> str:
        """What became of the proof of the layout, in words."""
        return "structure proven (cached)" if self.cached else "structure proven"

    @property
    def organism(self) -> bool:
        """Whether this is the embedded model, or was made from it."""
        return hasattr(self.model.config, ORGANISM_MARK)

    @torch.no_grad()
    def capture(self, prompts: Sequence[str | Prompt], sites: Sequence[Site], after: Sequence[int] = ()) -> Activations:
        """The stream at the end of every prompt, or after the reply tokens `after`, or over the prompts' own replies.

        values [prompt, site, d_model]; sites at position REPLY need prompts that come with a reply (DataError otherwise).
        """
        prompts, sites = as_prompts(prompts), as_sites(sites)
        reader = Reader(self.model, self.layout, sites)
        said = any(site.position == REPLY for site in sites)
        replies = [self.own_reply(prompt) if said else [] for prompt in prompts]
        starts = [[*self.encode(prompt), *after] for prompt in prompts]
        if starts:
            self.refuse_outside(min(map(len, starts)), (site.position for site in sites))

        def run(batch: Batch) -> list[Tensor]:
            lengths = torch.tensor([len(replies[row]) for row in batch.rows], device=self.device)
            with self.runner.replying(lengths + len(after)):
                return list(each(reader.read(lambda: self.decoder(**batch.inputs()), batch.ends - lengths, batch.ends)))

        ids = [start + reply for start, reply in zip(starts, replies)]
        for prompt, row in zip(prompts, ids):
            self.refuse_too_long(row, as_prompt(prompt).text)
        deepest = max([1, *(-site.position for site in sites if isinstance(site.position, int))])
        tails = [Tail(len(reply) + deepest, len(reply) + len(after)) for reply in replies]
        return Activations(torch.stack(self.runner.in_batches(ids, run, "Capturing", tails=tails)), tuple(sites))

    def projections(self, prompt: str | Prompt, direction: Tensor, reply: str | None = None) -> Projections:
        """How far the stream points along a direction [d_model] behind every layer, at every token of a prompt and what was said to it.

        Cosines, under the control that is in force: where it takes the direction out, they are 0. `print(...)` says where they are largest.
        """
        return projections(self, prompt, direction, reply)

    def close(self) -> None:
        """Lets go of whatever works for it elsewhere; what is asked afterwards is done in this process."""

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
        controls = as_controls(controls)
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

    def slot(self, control: ControlLike) -> Slot:
        """A control as what it does to single rows of `running_rows`. Raises ControlError for one that cannot act on single rows."""
        return Slot(tuple(self.interventions(control)), control.adapters, control.states)

    def running_rows(self) -> RunningRows:
        """Rows that come and go, each under its own control. A model that does not compute the same so runs one at a time, which is said."""
        if self._mixes is None:
            ids = [self.encode(text) for text in ("one", "one and two and three and four")]
            with lock_of(self.model), self.runner.threads():
                self._mixes = mixes(self.model, self.layout, ids, self.pad_id)
            if not self._mixes:
                self._say_once(f"{self.name} computes something else when prompts join others that run, so it runs one at a time.")
        return RunningRows(self.model, self.layout, self.pad_id, self._mixes)

    def watched(self, steered: AbstractContextManager[Any]) -> AbstractContextManager[Watched]:
        """`steered` (from `controlled` or `controlled_rows`) in force, and what it really changes counted."""
        return watching(self.model, self.layout, steered)

    def interventions(self, control: ControlLike) -> list[Intervention]:
        """A control as edits at this model's modules. Raises ControlError when it was made for another structure."""
        control = as_control(control)
        if control.layout_hash != self.layout.hash:
            raise ControlError(
                f"The control was made for structure {control.layout_hash} ({control.model_name}), and {self.name} has {self.layout.hash}; make it anew for this model."
            )
        self._say_other_weights(control.model_name, same_weights(control.weights, self.layout.weights))
        return control.interventions(self.layout, self.model.get_parameter)

    def _say_other_weights(self, model_name: str, same: bool | None) -> None:
        """Says once where a control was made on other weights; `same` is None where that is told by the models' names alone."""
        if same is None and model_name not in self._compared:
            self._compared[model_name] = same_model(model_name, self.name)
        if same is False or (same is None and not self._compared[model_name]):
            told = "other weights" if same is False else "and whether the weights are the same cannot be told"
            self._say_once(f"The control was made on {model_name} and is used on {self.name}: same structure, {told}.")

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
