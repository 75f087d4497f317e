"""What a search tried and what came of it, kept whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..behaviours import Prompt
from ..controls import Control
from ..controls.control import provenance
from ..models import Reply, Session
from ..runtime.states import States

MANY = 10  # equal replies that are worth a remark
Verdict = Literal["accepted", "no gain", "not chosen", "empty", "not as written", "not fluent", "opening out of reach"]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One candidate: a step of size `eta`, and which of the likeliest first tokens its reply opens with (0 is the likeliest).

    `perplexity_ratio` of what follows the reply's first token to the same of the plain one; `log_probability` of the whole reply, and `pmi`, by how much that is above
    what it is after a prompt that says nothing, in nats. All are of the uncontrolled model, and None where the score decided already.
    """

    eta: float
    branch: int
    reply: Reply
    score: float
    perplexity_ratio: float | None = None
    log_probability: float | None = None
    pmi: float | None = None
    verdict: Verdict = "no gain"

    def to_json(self) -> dict[str, Any]:
        return {
            "eta": self.eta, "branch": self.branch, "reply": self.reply.text, "ids": list(self.reply.ids), "score": self.score,
            "perplexity_ratio": self.perplexity_ratio, "log_probability": self.log_probability, "pmi": self.pmi, "verdict": self.verdict,
        }  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One iteration for one prompt: everything tried, what was accepted if anything, and |g| per layer and token where it began."""

    tried: tuple[Tried, ...]
    accepted: int | None
    gradient_norms: Tensor = field(repr=False)  # [layer, token]

    def to_json(self) -> dict[str, Any]:
        layers = self.gradient_norms.mean(1).tolist()
        return {"accepted": self.accepted, "gradient_norms": layers, "tried": [candidate.to_json() for candidate in self.tried]}


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """One prompt from its plain reply to the reply that was returned, whose score is that of its last accepted step.

    added [layer, token, d_model] is what brings the reply about; path [state, layer, d_model] the stream at the prompt's last
    token, plain and after every accepted step: as many as there are scores.
    """

    prompt: Prompt
    ids: tuple[int, ...]
    plain: Reply
    plain_score: float
    reply: Reply
    score: float
    added: Tensor = field(repr=False)
    norms: Tensor = field(repr=False)  # [layer, token]: |h| of the uncontrolled model
    steps: tuple[Step, ...] = field(default=(), repr=False)
    path: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)

    @property
    def scores(self) -> list[float]:
        """S of the plain reply and of every accepted one: rising."""
        return [self.plain_score, *(step.tried[step.accepted].score for step in self.steps if step.accepted is not None)]

    def through(self, stream: Tensor) -> Trace:
        """The path with one more state [layer, d_model]."""
        return replace(self, path=torch.cat([self.path.reshape(-1, *stream.shape), stream[None]]))

    def to_json(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt.text, "system": self.prompt.system, "plain": self.plain.text, "plain_score": self.plain_score,
            "reply": self.reply.text, "ids": list(self.reply.ids), "score": self.score, "steps": [step.to_json() for step in self.steps],
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Traces:
    """The traces of all prompts, in order, and how they were made."""

    traces: tuple[Trace, ...]
    made_from: Mapping[str, Any]

    @property
    def changed(self) -> list[Trace]:
        """Those in which a step was accepted."""
        return [trace for trace in self.traces if any(step.accepted is not None for step in trace.steps)]

    def remark(self, name: str) -> str | None:
        """What a reader of the scores should know of the model's plain replies: that they are empty, or mostly one and the same."""
        said = Counter(trace.plain.text.strip() for trace in self.traces)
        text, count = said.most_common(1)[0]
        remarks = [f"{said['']} of {len(self.traces)} plain replies are empty, so there was nothing to judge"] if said[""] else []
        if text and count >= MANY and count > len(self.traces) / 2:
            remarks.append(f"{count} of {len(self.traces)} plain replies are {text!r}; {name} may not know what these prompts are about")
        return f"{'; '.join(remarks)}." if remarks else None

    def control(self, session: Session) -> Control:
        """A control that gives these prompts the replies that were found, and leaves others alone."""
        changed = {trace.ids: trace.added for trace in self.changed}
        states = States(tuple(changed), tuple(changed.values()))
        return Control(
            parts=(),
            layout=session.layout,
            model_name=session.name,
            made_from=provenance(method="selfcontrol", **self.made_from),
            states=(states,),
        )
