"""What the server does with a request, whichever API it came by: from a prompt to the replies that are told.

Everything that is told has passed the moderator.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from torch import Tensor

from ..behaviours import Prompt
from ..detect import Detector, present
from ..errors import ControlError, DataError
from ..models import Session
from ..models.projections import Projections
from ..models.thinking import open_think_tag
from ..progress import warn
from ..runtime.shared_prefix import UNABLE
from .engine import Asked, Busy, Engine, Piece, Sampling, Steer
from .errors import ApiError
from .metrics import Metrics
from .moderation import Finding, Moderator, blocked
from .replies import Done, Listening, Reply
from .shelf import Shelf, of_model, terms_of

SEEDS = 2**63


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    max_tokens: int = 2048
    seconds: float = 600.0


@dataclass(frozen=True)
class Call:
    """What a request asks of the engine: one `Asked` per reply that is wanted, and the prompt of each."""

    asked: tuple[Asked, ...]
    prompts: tuple[Prompt, ...]
    steer: Steer | None
    redo: bool = False


class Service:
    """A model that is served: its engine, its controls, its moderator. `name` is what callers call the model."""

    def __init__(
        self, session: Session, engine: Engine, shelf: Shelf, moderator: Moderator, *, name: str, limits: Limits | None = None,
        redo: Detector | None = None, reducer: str | None = None,
    ) -> None:  # fmt: skip
        self.session, self.engine, self.shelf, self.moderator, self.name = session, engine, shelf, moderator, name
        self.limits, self.redo, self.reducer = limits or Limits(), redo, reducer
        self.metrics = Metrics(engine.status)
        self._projecting = threading.Semaphore()

    # -- from a request to a call ------------------------------------------------------------------

    def steer(self, model: str, controls: str | dict[str, float]) -> Steer | None:
        """What acts on a request: the controls in the model's name, then those that it lists. ApiError 404 for another model."""
        own = of_model(model, self.name)
        if own is None or any(term.name not in {named.name for named in self.shelf} for term in own):
            raise ApiError(
                404,
                f"The model {model[:80]!a} is not served here; GET /v1/models lists those that are.",
                code="model_not_found",
                param="model",
            )
        return self.shelf.steer([*own, *terms_of(controls)])

    def call(
        self, prompts: Sequence[Prompt | str], steer: Steer | None, sampling: Sampling, *, n: int = 1, most: int | None = None,
        stop: Sequence[str] = (), receipt: bool = False, redo: bool = False,
    ) -> Call:  # fmt: skip
        """Prompts for the chat template, or plain texts, `n` replies each. Raises DataError or ApiError for what cannot be asked."""
        if redo and steer is None:
            raise ControlError("A reply is done again with controls, and the request names none.")
        if most is not None and most > self.limits.max_tokens:
            raise ApiError(400, f"A reply has {self.limits.max_tokens} tokens at most here, not {most}; ask for fewer.", param="max_tokens")
        asked, said = [], []
        for prompt in prompts:
            ids, opened = self._read(prompt)
            room = self.limits.max_tokens if self.session.longest is None else self.session.longest - len(ids)
            tokens = min(most or self.session.reply_tokens, room, self.limits.max_tokens)
            for number in range(n):
                seed = None if sampling.seed is None else (sampling.seed + number) % SEEDS
                asked.append(
                    Asked(
                        ids=tuple(ids), steer=None if redo else steer, sampling=replace(sampling, seed=seed), max_tokens=tokens, stop=tuple(stop),
                        opened=opened, seconds=self.limits.seconds, receipt=receipt,
                    )
                )  # fmt: skip
                said.append(Prompt.of(prompt) if isinstance(prompt, str) else prompt)
        return Call(tuple(asked), tuple(said), steer, redo)

    def _read(self, prompt: Prompt | str) -> tuple[list[int], str]:
        if isinstance(prompt, Prompt):
            return self.session.encode(prompt), open_think_tag(self.session.render(prompt))
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"The prompt {prompt[:40]!a} is not valid Unicode text; correct its encoding.") from error
        ids = self.session.encode_opened(prompt)
        self.session.refuse_too_long(ids, prompt)
        if not ids:
            raise DataError("The prompt is empty; give at least one token.")
        return ids, ""

    async def allowed(self, prompts: Sequence[Prompt]) -> list[list[Finding]]:
        """What the moderator finds in prompts. Raises ApiError for one that is blocked."""
        if not self.moderator.looks_at("input"):
            return [[] for _ in prompts]
        texts = ["\n".join(text for role, text in prompt.messages if role == "user") for prompt in prompts]
        found = await asyncio.to_thread(self.moderator.look, "input", texts, prompts)
        for finding in filter(None, map(blocked, found)):
            self.metrics.blocked(finding)
            raise ApiError(400, finding.sentence, code="content_filter", param="messages")
        return found

    def projections(self, prompt: Prompt, reply: str, direction: Tensor, steer: Steer | None) -> Projections:
        """A conversation and its reply along a direction, under controls. One at a time, in a pass of its own between those of the engine.

        Raises Busy where another is read, ApiError for what is too long, or cannot be computed.
        """
        said = len(self.session.encode_reply(reply))
        if said > self.limits.max_tokens:
            raise ApiError(400, f"A reply has {self.limits.max_tokens} tokens at most here, not {said}; send a shorter one.", param="reply")
        if not self._projecting.acquire(blocking=False):
            raise Busy("Other projections are being read; try again in a moment.", 1)
        try:
            with nullcontext() if steer is None else self.session.controlled(steer.control):
                seen = self.session.projections(prompt, direction, reply)
        except UNABLE as error:
            warn(f"Projections failed in a pass: {' '.join(str(error).split())[:200]}")
            raise ApiError(500, "The model could not be run on this request.", "server_error") from error
        finally:
            self._projecting.release()
        if not bool(seen.values.isfinite().all()):
            raise ApiError(400, "The control makes the model compute what is no number; lower its dose.", param="controls")
        return seen

    # -- from a call to what is told ---------------------------------------------------------------

    async def told(self, call: Call, pieces: bool = True) -> AsyncGenerator[tuple[int, Piece | Done]]:
        """Every reply by its number: pieces as they may be told, and at last the whole. Raises ApiError where one fails.

        Whoever stops listening ends the replies.
        """
        if call.redo:
            async for told in self._redone(call):
                yield told
            return
        replies = [Reply(self.moderator, self.metrics, *own) for own in zip(call.asked, call.prompts, strict=True)]
        listening = Listening(self.engine, call.asked, pieces or any(asked.sampling.top is not None for asked in call.asked))
        try:
            async for number, event in listening:
                async for out in replies[number].hear(event):
                    yield number, out
                    if isinstance(out, Done):
                        listening.cancel(number)
        finally:
            listening.close()

    async def whole(self, call: Call) -> list[Done]:
        """All replies, whole."""
        done: dict[int, Done] = {}
        async for number, out in self.told(call, pieces=False):
            if isinstance(out, Done):
                done[number] = out
        return [done[number] for number in range(len(call.asked))]

    async def _redone(self, call: Call) -> AsyncIterator[tuple[int, Piece | Done]]:
        """Replies without the control; those that show the behaviour are done again with it."""
        plain = await self.whole(replace(call, redo=False, steer=None))
        assert self.redo is not None
        shown = await asyncio.to_thread(present, self.redo, [done.text for done in plain], call.prompts)
        again = [number for number, own in enumerate(shown) if own]
        asked, prompts = (
            tuple(replace(call.asked[number], steer=call.steer) for number in again),
            tuple(call.prompts[number] for number in again),
        )
        second = dict(zip(again, await self.whole(replace(call, asked=asked, prompts=prompts, redo=False)) if again else []))
        for number, first in enumerate(plain):
            done = second.get(number, first)
            done = replace(done, receipt={**done.receipt, "redone": number in second})
            yield number, Piece(done.text, None)
            yield number, done
