"""A session whose long calls are done by workers: prompts are cut into pieces, and each piece is done by a worker that holds the same model.

Whoever uses it knows nothing of that. What a caller put in force is sent along with each piece. What only this process can do is done here:
hooks of others, replies that are drawn at random or told while they come, and all that asks the model itself (`session.model`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..behaviours import Prompt, as_prompts
from ..runtime.acting import Acting, in_force
from ..runtime.capture import Activations
from ..runtime.control_like import ControlLike, as_controls
from ..runtime.rows import Rows
from ..runtime.sites import Site, as_sites
from ..structure.layout import Layout
from ..workers import Workers
from .options import REPLY_TOKENS
from .pieces import cut
from .row_values import RowValue
from .session import Session

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Order:
    """What a caller put in force on a session. controls: one for all prompts, or, where there are `rows`, those that each prompt has one of (None is
    the untouched model); a list, since doses are turned while they act. hooks: what does so in this process."""

    session: weakref.ref[SpreadSession]
    controls: list[ControlLike | None]
    rows: tuple[int, ...] | None
    hooks: tuple[Acting, ...]


_ORDERS: ContextVar[tuple[Order, ...]] = ContextVar("orders", default=())


@dataclass(frozen=True)
class Piece:
    """One call of some rows: a method of Session by name, what it is given, and which controls are in force in it: by number one for all rows, or
    one for each."""

    call: str
    given: dict[str, Any]
    in_force: tuple[int | tuple[int, ...], ...]


def done(session: Session, piece: Piece, controls: Sequence[ControlLike | None], kept: RowValue | None) -> Any:
    """What a worker does with a piece. kept: what all pieces of one call are given."""
    with ExitStack() as stack:
        for numbers in piece.in_force:
            if isinstance(numbers, int):
                control = controls[numbers]
                assert control is not None  # the untouched model is no control for all
                stack.enter_context(session.controlled(control))
            else:
                stack.enter_context(session.controlled_rows([controls[number] for number in numbers]))
        result = getattr(session, piece.call)(**piece.given, **({} if kept is None else {"kept": kept}))
    return result.values if isinstance(result, Activations) else result


class SpreadSession(Session):
    """A session with `workers`, which hold the model too. Close it when they are not needed any more, or end the process."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, layout: Layout, reply_tokens: int = REPLY_TOKENS,
        chat_template_args: Mapping[str, Any] | None = None, cached: bool = False, *, workers: Workers,
    ) -> None:  # fmt: skip
        super().__init__(model, tokenizer, name, layout, reply_tokens, chat_template_args, cached)
        self.workers = workers
        self._closed = False

    @classmethod
    def of(cls, session: Session, workers: Workers) -> SpreadSession:
        """A session of this process, with workers beside it."""
        return cls(
            session.model, session.tokenizer, session.name, session.layout, session.reply_tokens, session.chat_template_args, session.cached,
            workers=workers,
        )  # fmt: skip

    def close(self) -> None:
        """Ends the workers; what is asked afterwards is done in this process."""
        self._closed = True
        self.workers.close()

    # -- what is in force ---------------------------------------------------------------------------

    @contextmanager
    def controlled(self, control: ControlLike) -> Iterator[Session]:
        before = in_force(self.model)
        with super().controlled(control), self._ordered([control], None, before):
            yield self

    @contextmanager
    def controlled_rows(self, controls: Sequence[ControlLike | None]) -> Iterator[Rows]:
        before, controls = in_force(self.model), as_controls(controls)
        distinct = list({id(control): control for control in controls}.values())
        places = {id(control): number for number, control in enumerate(distinct)}
        with (
            super().controlled_rows(controls) as rows,
            self._ordered(distinct, tuple(places[id(control)] for control in controls), before) as ordered,
        ):
            yield _TurnedRows(rows, list(distinct), ordered)

    @contextmanager
    def _ordered(self, controls: list[ControlLike | None], rows: tuple[int, ...] | None, before: Sequence[Acting]) -> Iterator[list[ControlLike | None]]:
        hooks = tuple(acting for acting in in_force(self.model) if acting not in before)
        order = Order(weakref.ref(self), controls, rows, hooks)
        _ORDERS.set((*_ORDERS.get(), order))
        try:
            yield controls
        finally:  # perhaps in another context than that in which it began
            _ORDERS.set(tuple(other for other in _ORDERS.get() if other is not order))

    def _orders(self, rows: int) -> list[Order] | None:
        """What is in force for the caller, where that is all that acts in this process too and fits so many rows; None where the work must be done here."""
        if self._closed:
            return None
        acting = in_force(self.model)
        orders = [order for order in _ORDERS.get() if order.session() is self and any(hook in acting for hook in order.hooks)]
        told = tuple(hook for order in orders for hook in order.hooks)
        return orders if told == acting and all(order.rows is None or len(order.rows) == rows for order in orders) else None

    # -- what workers do ----------------------------------------------------------------------------

    def continue_from(
        self, starts: Sequence[Sequence[int]], max_new_tokens: int, until: Sequence[str] = (), temperature: float | None = None, top_p: float = 1.0,
        heard: Callable[[str], None] | None = None,
    ) -> list[tuple[int, ...]]:  # fmt: skip
        orders = self._orders(len(starts))
        if orders is None or not starts or temperature is not None or heard is not None:
            return super().continue_from(starts, max_new_tokens, until, temperature, top_p, heard)
        costs = [len(start) + max_new_tokens for start in starts]
        return self._spread("continue_from", orders, costs, lambda rows: {
            "starts": [starts[row] for row in rows], "max_new_tokens": max_new_tokens, "until": tuple(until),
        })  # fmt: skip

    def capture(self, prompts: Sequence[str | Prompt], sites: Sequence[Site], after: Sequence[int] = ()) -> Activations:
        prompts, sites = as_prompts(prompts), as_sites(sites)
        orders = self._orders(len(prompts))
        if orders is None or not prompts or not sites:
            return super().capture(prompts, sites, after)
        costs = [len(self.encode(prompt)) + len(prompt.reply or "") // 4 for prompt in prompts]
        values = self._spread("capture", orders, costs, lambda rows: {
            "prompts": [prompts[row] for row in rows], "sites": sites, "after": tuple(after),
        })  # fmt: skip
        return Activations(torch.stack(values), tuple(sites))

    def logits(self, prompts: Sequence[str | Prompt], after: Sequence[int] = ()) -> Tensor:
        prompts = as_prompts(prompts)
        orders = self._orders(len(prompts))
        if orders is None or not prompts:
            return super().logits(prompts, after)
        costs = [len(self.encode(prompt)) for prompt in prompts]
        return torch.stack(self._spread("logits", orders, costs, lambda rows: {"prompts": [prompts[row] for row in rows], "after": tuple(after)}))

    def next_logits(self, rows: Sequence[Sequence[int]], tokens: Sequence[int]) -> Tensor:
        orders = self._orders(len(rows))
        if orders is None or not rows:
            return super().next_logits(rows, tokens)
        costs = [len(row) for row in rows]
        return torch.stack(self._spread("next_logits", orders, costs, lambda some: {"rows": [rows[row] for row in some], "tokens": tuple(tokens)}))

    def teacher_forced(
        self, starts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], kept: RowValue, numbers: Sequence[int] | None = None
    ) -> list[Tensor]:
        orders = self._orders(len(starts))
        if orders is None or not starts or len(starts) != len(replies):
            return super().teacher_forced(starts, replies, kept, numbers)
        names = range(len(starts)) if numbers is None else numbers
        costs = [len(start) + len(reply) for start, reply in zip(starts, replies)]
        return self._spread("teacher_forced", orders, costs, lambda rows: {
            "starts": [starts[row] for row in rows], "replies": [replies[row] for row in rows], "numbers": [names[row] for row in rows],
        }, kept)  # fmt: skip

    def _spread(
        self, call: str, orders: Sequence[Order], costs: Sequence[int], given: Callable[[Sequence[int]], dict[str, Any]], kept: RowValue | None = None
    ) -> list[Any]:
        """What workers make of the rows, one result a row, in order. given: what the call is given of some rows."""
        controls = [control for order in orders for control in order.controls]
        firsts = [sum(len(other.controls) for other in orders[:place]) for place in range(len(orders))]
        kinds = [tuple(order.rows[row] for order in orders if order.rows is not None) for row in range(len(costs))]
        cuts = cut(costs, kinds, 2 * len(self.workers))
        pieces = [
            Piece(call, given(rows), tuple(
                first if order.rows is None else tuple(first + order.rows[row] for row in rows) for first, order in zip(firsts, orders)
            ))
            for rows in cuts
        ]  # fmt: skip
        results, sentences = self.workers.map(done, pieces, [controls, kept], "Asking workers")
        for sentence in sentences:
            self._say_once(sentence)
        by_row = {row: value for rows, values in zip(cuts, results) for row, value in zip(rows, values, strict=True)}
        return [by_row[row] for row in range(len(costs))]


class _TurnedRows(Rows):
    """`turn` turns what is sent to workers too."""

    def __init__(self, rows: Rows, given: Sequence[ControlLike | None], ordered: list[ControlLike | None]) -> None:
        vars(self).update(vars(rows))
        self._given, self._ordered = given, ordered

    def turn(self, control: ControlLike, dose: float) -> None:
        super().turn(control, dose)
        self._ordered[next(number for number, other in enumerate(self._given) if other is control)] = control.scaled(dose)
