"""The bench: the one way to try a control. Who proposes controls only yields them; the bench says what each does.

`Bench(session, behaviour, "val").try_(control)` gives a Trial: every rate with its interval, drift, and the merit that
controls are chosen by. What the untouched model says comes from a ledger, which several benches may share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from functools import cached_property, partial
from typing import Any

from ..behaviours import SET_NAMES, Behaviour, BehaviourLike, Prompt, SetName, as_behaviour, asked
from ..behaviours.prompts import Split
from ..controls import Control
from ..detect import Detector, make_detector
from ..errors import DataError
from ..models import Reply, Session
from ..stats import intervals
from ..stats.score import Better, Score
from .condition import Condition
from .drift import Drift, drift
from .engaged import garbled, usual_share
from .ledger import Ledger, kept_replies
from .observation import Observation, judged, ordinary_set, with_stock

# Every yes-or-no score: its name, which outcomes it counts, and which way is better.
RATES: tuple[tuple[str, Callable[[Observation], list[bool]], Better], ...] = (
    ("shows_rate", lambda o: o.shown("shows"), "lower"),
    ("lacks_rate", lambda o: o.shown("lacks"), "lower"),
    ("guard_rate", lambda o: o.shown("guard"), "higher"),
    ("engaged_shows", lambda o: o.engaged("shows"), "higher"),
    ("answers_shows", lambda o: o.right("shows"), "higher"),
    ("answers_neutral", lambda o: o.right("neutral"), "higher"),
    ("answers", lambda o: o.right("shows", "neutral"), "higher"),
)
LEFT = 0.02  # of shows still exhibiting the behaviour, up to which a trial counts as having removed it
ANSWER_ROOM = 24  # reply tokens before a known answer: a sentence


def merit(goods: Iterable[float | None], cost: float = 0.0) -> float:
    """What trials are compared by: the mean of the shares that should be high, of those that are known, less a cost."""
    known = [good for good in goods if good is not None]
    return (sum(known) / len(known) if known else 0.0) - cost


class Trial:
    """What was said under one condition. Rates are there at once; drift is told when it is first asked for.

    `moved` tells it. It is let go of afterwards, and with it the model that it asks.
    """

    def __init__(self, observation: Observation, moved: Callable[[], Drift]) -> None:
        self.observation = observation
        self._moved: Callable[[], Drift] | None = moved

    def __getstate__(self) -> dict[str, Any]:
        return {"observation": self.observation, "drift": self.drift, "_moved": None}

    @cached_property
    def drift(self) -> Drift:
        assert self._moved is not None  # it goes only once the drift is kept
        drift, self._moved = self._moved(), None
        return drift

    @cached_property
    def scores(self) -> dict[str, Score]:
        """Every rate with its interval, by name; n = 0 where the behaviour has no such prompts."""
        return {name: intervals.rate(name, outcomes(self.observation), better) for name, outcomes, better in RATES}

    def rate(self, name: str) -> float | None:
        """A rate by name; None where the behaviour has no such prompts."""
        outcomes = next(outcomes for known, outcomes, _ in RATES if known == name)(self.observation)
        return sum(outcomes) / len(outcomes) if outcomes else None

    def avoided(self, name: str) -> float | None:
        """One less a rate; None where the behaviour has no such prompts."""
        rate = self.rate(name)
        return None if rate is None else 1 - rate

    @property
    def merit(self) -> float:
        """How good this is for a control that removes the behaviour: nonsense in its place is no gain, and the KL of the first token where
        nothing should change is what it costs."""
        kept = (self.rate(name) for name in ("guard_rate", "answers_shows", "answers_neutral"))
        return merit([self.rate("engaged_shows"), self.avoided("lacks_rate"), *kept], self.drift.first_nats)

    @property
    def leaves_some(self) -> bool:
        """Whether some of the behaviour is left: more of it than LEFT, as surely as so few prompts tell."""
        return self.scores["shows_rate"].low > LEFT

    def where(self, fires: Mapping[SetName, Sequence[bool]], untouched: Trial) -> Trial:
        """This trial behind a gate: the same where it fires, the untouched one elsewhere. It costs nothing to run."""
        fired = fires[untouched.observation.ordinary]

        def moved() -> Drift:
            outcomes = untouched.observation.sets[untouched.observation.ordinary]
            return self.drift.where([fire for fire, outcome in zip(fired, outcomes, strict=True) if outcome.reply.ids])

        return Trial(self.observation.where(fires, untouched.observation), moved)


class Bench:
    """The prompts of a behaviour (one split of its sets) to try controls of `session` on, with one reply budget for all."""

    def __init__(
        self,
        session: Session,
        behaviour: BehaviourLike,
        split: Split = "test",
        ledger: Ledger | None = None,
        *,
        max_prompts: int | None = None,
    ) -> None:
        behaviour = as_behaviour(behaviour, session)
        self.session, self.behaviour, self.split = session, behaviour, split
        self.ledger = ledger or Ledger(session)
        self.detector: Detector = make_detector(behaviour.detect, session)
        self.budget = reply_budget(session, behaviour)
        self.prompts: dict[SetName, list[Prompt]] = {name: asked(behaviour.set(name, split, max_prompts)) for name in SET_NAMES}

    def on(self, prompts: Mapping[SetName, Sequence[Prompt]]) -> Bench:
        """The same bench with other prompts: sets that are not named have none."""
        bench = copy(self)
        for kept in ("untouched", "_usual_share"):
            vars(bench).pop(kept, None)
        bench.prompts = {name: asked(prompts.get(name, ())) for name in SET_NAMES}
        return bench

    @cached_property
    def untouched(self) -> Trial:
        """The model as it is. Raises DataError where there is nothing to ask it."""
        if not any(self.prompts.values()):
            raise DataError(
                f"The behaviour {self.behaviour.name!r} has no prompts in its {self.split} split, so nothing can be measured; give it more."
            )
        return self._tried(Condition(self.session), self.ledger.replies)  # which keeps them itself

    @cached_property
    def _usual_share(self) -> float:
        """How alike the untouched model's own replies to ordinary prompts are."""
        ordinary = self.prompts[ordinary_set(self.prompts)]
        return usual_share(ordinary, [reply.text for reply in self.ledger.replies(ordinary, self.budget)] if ordinary else [])

    def try_(self, control: Control | Condition | None) -> Trial:
        """What a control (or any other condition, or nothing) makes of the prompts."""
        condition = control if isinstance(control, Condition) else Condition(self.session, control)
        if condition == Condition(self.session):
            return self.untouched
        return self._tried(condition, partial(kept_replies, self.ledger.journal, condition))

    def _tried(self, condition: Condition, replies: Callable[[Sequence[Prompt], int], Sequence[Reply]]) -> Trial:
        # All sets at once: a batch of many rows costs little more than one of few.
        said = iter(replies([prompt for prompts in self.prompts.values() for prompt in prompts], self.budget) if any(self.prompts.values()) else ())
        heard = {name: [next(said) for _ in prompts] for name, prompts in self.prompts.items()}
        broken = {"shows": garbled(self.ledger, condition, self.prompts["shows"], heard["shows"], self.budget)}
        sets = {name: judged(self.detector, prompts, heard[name], broken.get(name)) for name, prompts in self.prompts.items()}
        observation = Observation({**sets, "shows": with_stock(sets["shows"], self._usual_share)}, self._usual_share)

        def moved() -> Drift:
            untouched = self.untouched.observation
            return drift(self.ledger, condition, untouched.sets[untouched.ordinary])

        return Trial(observation, moved)


def reply_budget(session: Session, behaviour: Behaviour) -> int:
    """Reply tokens that leave room for the longest known answer and a sentence before it."""
    answers = {prompt.answer for name in SET_NAMES for prompt in behaviour.set(name) if prompt.answer}
    longest = max((len(session.encode_reply(answer)) for answer in answers), default=0)
    return max(session.reply_tokens, longest + ANSWER_ROOM)
