"""Selective edits: every writer gets a linear gate of its own inside its weights, so that the guard is kept without a gate at run time.

A writer W becomes W - r v^T, with v read off its own inputs: it takes the direction r out of what the writer says at the end of prompts
that are to change, and leaves all tokens of prompts that are to stay (algorithms.md, section 5). It is an adapter of low rank, so it is
scaled, composed, baked and exported as one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..algebra import edits
from ..algebra.bases import unit
from ..algebra.linear_gate import linear_gate
from ..behaviours import Behaviour, BehaviourLike, SetName, as_behaviour
from ..controls import Control, Direction
from ..controls.direction import as_direction
from ..errors import CheckFailed, ControlError
from ..measure.bench import Bench, Trial
from ..measure.ledger import Ledger
from ..models import Session, Site
from ..progress import say
from ..runtime.acting import Acting, lock_of
from ..runtime.adapter import Adapter
from ..structure.calls import received, returned
from ..structure.layout import Writer, writer_edit
from .gates import fit_gate
from .plan import SelectivePlan
from .selective_rows import Rows, linear_writers, rows_of, train_prompts

STRENGTHS = (1.0, 2.0, 4.0)
ALIKE = 0.02  # of merit: edits that agree so far are told apart by their strength


def selective(
    session: Session,
    behaviour: BehaviourLike,
    direction: Direction,
    plan: SelectivePlan | None = None,
    *,
    ledger: Ledger | None = None,
    **options: Any,
) -> Control:
    """A behaviour removed where `shows` prompts end, and nowhere else: a change of low rank in every linear writer, without a gate.

    What a writer takes out is the gap between the classes behind its own layer, from the direction's layer on, or (`along="direction"`)
    the direction itself. `options` are the fields of `SelectivePlan` by name, in place of a plan. Train prompts are used: `shows` are to
    change; `guard`, `lacks` and `neutral` stay as they are, with the model's own replies. Writers are fitted in the order of the forward
    pass, each on what the edited ones before it leave, in one pass over all of them. Without a strength in the plan,
    rising ones are tried on val prompts and the best is taken.
    Raises CheckFailed where the model does not tell `shows` from `guard` (held-out AUROC < 0.7 at every layer) and `anyway` is not given,
    DataError for too few prompts, ControlError for a direction that is read and written apart.
    """
    plan = SelectivePlan.given(plan, options, "selective")
    behaviour, direction, ledger = as_behaviour(behaviour, session), as_direction(direction), ledger or Ledger(session)
    if direction.write is not None:
        raise ControlError(f"A selective edit needs a direction that is read and written alike; {direction.estimator} is a reader.")
    if not plan.anyway:
        refuse_alike(session, behaviour, ledger, plan)
    if plan.strength is not None:
        fits = SelectiveFits(session, behaviour, ledger, plan.prompts)
        return fits.told(fits.of(direction, plan, plan.strength))
    tried = climb(Bench(session, behaviour, "val", ledger, max_prompts=plan.prompts), direction, plan)
    return tried[firmest(tried)][0]


def climb(
    bench: Bench,
    direction: Direction,
    plan: SelectivePlan,
    try_: Callable[[Control], Trial] | None = None,
) -> list[tuple[Control, Trial]]:
    """Edits of rising strength, each tried on the bench (or by `try_`) before the next is fitted: until one did worse than the one before
    it, or left nothing, as surely as so few prompts tell. Of a small model the next is tried even then, for wordings that the bench does
    not have."""
    fits = SelectiveFits(bench.session, bench.behaviour, bench.ledger, plan.prompts)
    tried: list[tuple[Control, Trial]] = []
    for strength in STRENGTHS:
        control = fits.told(fits.of(direction, plan, strength))
        trial = (try_ or bench.try_)(control)
        last = tried[-1][1] if tried else None
        tried.append((control, trial))
        enough = last if bench.session.runner.small else trial
        if (last is not None and trial.merit < last.merit - ALIKE) or (enough is not None and not enough.leaves_some):
            break
    return tried


def firmest(tried: Sequence[tuple[Control, Trial]]) -> int:
    """Which of several edits is taken: the strongest of those that are as good as the best.

    A bench has one wording of each request. Where two strengths do the same there, the stronger one does more of it in other words.
    """
    best = max(trial.merit for _, trial in tried)
    return max((number for number, (_, trial) in enumerate(tried) if trial.merit >= best - ALIKE), key=lambda number: tried[number][0].made_from["strength"])


class SelectiveFits:
    """Selective edits that are fitted on the same rows, which are read when the first is asked for. prompts: most train prompts of each set;
    heard: of how many, where not of all.

    `of` raises DataError for too few prompts. Raises ControlError for a model without a writer that is a plain linear layer.
    """

    def __init__(self, session: Session, behaviour: Behaviour, ledger: Ledger, prompts: int, heard: int | None = None) -> None:
        self.session, self.behaviour, self.ledger, self.prompts, self.heard = session, behaviour, ledger, prompts, heard
        inner, self.writers = [writer for writer in session.layout.writers if writer.layer >= 0], linear_writers(session)
        if not self.writers:
            raise ControlError(f"{session.name} has no writer that is a plain linear layer, so nothing in it can be edited selectively.")
        if len(self.writers) < len(inner):
            say(f"{len(inner) - len(self.writers)} of {len(inner)} writers are no plain linear layers and stay as they are.")

    @cached_property
    def rows(self) -> Rows:
        return rows_of(self.session, self.behaviour, self.ledger, self.prompts, self.heard)

    def of(self, direction: Direction, plan: SelectivePlan, strength: float) -> Control:
        """The edit of one strength; what the plan says of prompts is not read."""
        session, rows = self.session, self.rows
        fitting = _Fitting(self, self._bases(direction, plan), plan, strength)
        with session.runner.threads(), lock_of(session.model), torch.no_grad(), session.uncontrolled(), fitting.attached():
            session.decoder(**rows.batch.inputs())
        chosen = plan.model_dump(include={"along", "keep", "keep_last", "ridge"})
        adapter = Adapter(low_rank=fitting.fitted, transposed=fitting.transposed)
        return Control(
            parts=(), layout=session.layout, model_name=session.name,
            made_from={**direction.made_from("selective"), "strength": strength, **chosen}, adapters=(adapter,),
        )  # fmt: skip

    def told(self, control: Control) -> Control:
        """The control, of which it is said aloud what it was fitted on."""
        acting = self.rows.acting
        say(
            f"Strength {control.made_from['strength']:g}: {len(self.writers)} writers were fitted on {acting} prompts that are to change and {len(self.rows.batch.rows) - acting} that stay."
        )
        return control

    def _bases(self, direction: Direction, plan: SelectivePlan) -> list[Tensor]:
        """What a writer of each layer takes out [k, d_model]."""
        layers = self.session.layout.n_layers
        if plan.along == "direction":
            return [direction.basis] * layers
        sites = [Site(max(layer, direction.site.layer)) for layer in range(layers)]
        shows, lacks = (
            self.ledger.capture(train_prompts(self.behaviour, name, self.prompts, self.heard), sites).values.double().mean(0) for name in ("shows", "lacks")
        )
        return list(unit(shows - lacks).float()[:, None])


def refuse_alike(session: Session, behaviour: Behaviour, ledger: Ledger, plan: SelectivePlan) -> None:
    """Raises CheckFailed where no layer tells what is to change from what is to be kept."""
    against: tuple[SetName, ...] = ("guard",) if behaviour.guard else ("lacks",)
    try:
        fit_gate(session, behaviour, false_positives=plan.false_positives, against=against, ledger=ledger)
    except CheckFailed as error:
        raise CheckFailed(
            f"{str(error).rstrip('.')}, nor can an edit of its weights be selective; use a plain control and look at the guard, train a prefix that"
            " learns both (demeanor train prefix), or fit it all the same with --anyway."
        ) from error


class _Fitting(Acting):
    """One pass in which every writer is fitted as it is reached, and edited from then on."""

    def __init__(self, fits: SelectiveFits, bases: Sequence[Tensor], plan: SelectivePlan, strength: float) -> None:
        super().__init__(fits.session.model)
        self.layout, self.writers, self.bases, self.rows, self.plan, self.strength = fits.session.layout, fits.writers, bases, fits.rows, plan, strength
        self.fitted: dict[str, tuple[Tensor, Tensor]] = {}
        self.transposed = self.writers[0].weights[0].axis == 1
        self.kept, self.ends, self.last = self.rows.kept, self.rows.ends, self.rows.last

    def lay(self) -> None:
        for writer in self.writers:
            self.hold(self.model.get_submodule(writer.module).register_forward_hook(self._fit(writer)))

    def _fit(self, writer: Writer) -> Any:
        out = edits.ablate(self.bases[writer.layer])
        u = writer_edit(writer, out, self.model.get_parameter).V  # what of the raw output becomes the direction in the stream

        def fit(module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
            if not self.acts:
                return None
            x, y = received(args, {}), returned(output)
            assert isinstance(y, Tensor)
            along = y.float() @ u.T.to(y.device, torch.float32)
            staying = self._staying(writer, x, along, u)
            wanted = self.strength * (along[self.ends] - sum(group.share * group.along.mean(0) for group in staying))
            stays = [(group.inputs, self.plan.keep * group.share) for group in staying]
            stays.append((x[self.last].float(), self.plan.keep_last))
            v = linear_gate(x[self.ends].float(), wanted, stays, self.plan.ridge).float()
            back = -u.T.to(v)
            self.fitted[writer.module] = v.cpu(), back.cpu().contiguous()
            return y + linear(linear(x, v.to(x.dtype)), back.to(x.dtype))

        return fit

    def _staying(self, writer: Writer, x: Tensor, along: Tensor, u: Tensor) -> list[_Staying]:
        """All tokens that stay: those of the batch, and those that every row that stays begins with."""
        kept = self.kept.to(x.device)
        groups = [(int(kept.sum()), x[kept].float(), along[kept])]
        if self.rows.opening:
            inputs, outputs = self.rows.opening[writer.module]
            rows = len(self.rows.replied)
            groups.append((rows * len(inputs), inputs.float(), outputs.float() @ u.T.to(outputs.device, torch.float32)))
        total = sum(count for count, _, _ in groups)
        return [_Staying(count / total, inputs, along) for count, inputs, along in groups]


@dataclass(frozen=True)
class _Staying:
    """Tokens that stay: their share of all of them, what a writer reads [token, in], and what it says along its directions [token, k]."""

    share: float
    inputs: Tensor
    along: Tensor
