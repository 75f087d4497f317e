"""What a search depends on besides the model, the prompts and the questions."""

from __future__ import annotations

from pydantic import Field

from ..io.plan import BasePlan

LADDER = (0.25, 0.5, 1.0, 2.0, 4.0)


class Settings(BasePlan):
    """How far and how long to search; frozen."""

    iterations: int = Field(default=4, ge=1, description="the most steps a prompt may take")
    eta: float = Field(default=0.4, gt=0, description="the first step's size, as a share of the stream's norm at each place")
    branches: int = Field(default=8, ge=1, description="how many of the likeliest first tokens a reply may open with")
    wider: int = Field(default=8, ge=1, description="times as many where none of these gave a reply that will do; 1 for no second look")
    topic: float = Field(default=0.5, description="how much such a reply must have to do with its prompt, as a share of the plain reply's")
    gain: float = Field(default=0.02, ge=0, description="how much a step must raise the score to be accepted")
    goal: float = Field(default=0.55, ge=0, le=1, description="a score from which a reply is as wanted; more of it is worth nothing")
    share: float = Field(
        default=0.8, gt=0, le=1, description="of replies that gain this share of the best gain, the one that fits the prompt best is taken"
    )
    perplexity_ratio: float = Field(
        default=3.0, gt=0, description="the most a reply's perplexity may be after its first token, in units of the plain reply's"
    )
    cap: float = Field(default=1.6, gt=0, description="the most that may be added anywhere, as a share of the stream's norm there")
    opening_cap: float = Field(default=2.0, gt=0, description="the same for the one place that decides what a reply opens with")
    layers: int | None = Field(default=1, ge=1, description="move the stream after this many layers, where it changes S most; all if None")
    top: int | None = Field(default=None, ge=1, description="move only this many (layer, token) places of each prompt")
    batch: int = Field(default=32, ge=1, description="prompts searched side by side")
    reply_tokens: int | None = Field(default=None, ge=1, description="how long a reply may get; as the session says")
