"""What an engine is: it takes requests, each with its own control and settings, and tells their replies piece by piece.

`batching.Batching` is one on a session; an engine of another kind needs these methods and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..controls import Control
from ..errors import DemeanorError

Reason = Literal["stop", "length"]


class Busy(DemeanorError):
    """The queue is full, or the server is about to end (`closing`); `seconds` says when to try again."""

    def __init__(self, sentence: str, seconds: int, closing: bool = False) -> None:
        super().__init__(sentence)
        self.seconds, self.closing = seconds, closing


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a next token is chosen: the likeliest at temperature 0; `top` is how many likely tokens are told, None for no log-probabilities."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top: int | None = None


@dataclass(frozen=True, kw_only=True)
class Steer:
    """The control of a request: `key` is the same for what does the same, `told` is what a receipt says of it."""

    control: Control
    key: str
    told: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request: a prompt as token ids, what acts on it, and when its reply ends.

    opened: what the template has begun the reply with. seconds: how long it may take, waiting included. receipt: whether what is
    really changed is counted.
    """

    ids: tuple[int, ...]
    steer: Steer | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    opened: str = ""
    seconds: float = 600.0
    receipt: bool = False


@dataclass(frozen=True)
class Token:
    """A token that was said, with its log-probability and those of the likeliest ones where they were asked for."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """One more token, and the text that it settles (often none: it may be part of a character, or of a text to stop at)."""

    text: str
    token: Token | None


@dataclass(frozen=True)
class Ended:
    """The whole reply. `fired` and `changed` are for the receipt."""

    text: str
    reason: Reason
    prompt_tokens: int
    reply_tokens: int
    fired: tuple[tuple[str, bool], ...] = ()
    changed: dict[str, Any] | None = None


@dataclass(frozen=True)
class Failed:
    """Why there is no reply, or no more of it; `kind` is "timeout" or "error"."""

    sentence: str
    kind: Literal["timeout", "error", "cancelled"] = "error"


Event = Piece | Ended | Failed
Heard = Callable[[Event], None]


@dataclass(frozen=True)
class Status:
    """How many requests run and wait, and whether new ones are taken."""

    running: int
    waiting: int
    open: bool


class Ticket(Protocol):
    """A request that was taken."""

    def cancel(self) -> None:
        """Nobody listens any more: it ends as soon as it can, and nothing more is told."""


class Engine(Protocol):
    """Takes requests from any thread; what is heard of each comes from the engine's own, in order, and ends with `Ended` or `Failed`."""

    def submit(self, asked: Asked, heard: Heard) -> Ticket:
        """Raises Busy where no more can wait, ControlError for a control that cannot act here."""
        ...

    def status(self) -> Status: ...

    def drain(self, seconds: float) -> bool:
        """Take no more requests and wait for those that were taken, so long at most; whether all of them ended."""
        ...

    def close(self) -> None:
        """End at once; whoever waits is told."""
        ...
