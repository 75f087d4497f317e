"""What a search depends on besides the model, the prompts and the questions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..io.plan import BasePlan

LADDER = (0.25, 0.5, 1.0, 2.0, 4.0)


class Settings(BasePlan):
    """How far and how long to search."""

    iterations: int = Field(default=4, ge=1, description="most steps that a prompt may take")
    eta: float = Field(default=0.4, gt=0, description="size of the first step, as a share of the stream's norm at each place")
    branches: int = Field(default=8, ge=1, description="number of likeliest first tokens that a reply may open with")
    wider: int = Field(default=8, ge=1, description="times as many where none of these gave a reply that will do; 1 for no second look")
    topic: float = Field(default=0.5, description="how much such a reply must have to do with its prompt, as a share of the plain reply's")
    gain: float = Field(default=0.02, ge=0, description="rise of the score that a step must bring to be accepted")
    goal: float = Field(default=0.55, ge=0, le=1, description="score from which a reply is as wanted; more of it is worth nothing")
    share: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="share of the best gain; of the replies that gain as much, the one that fits its prompt best is taken",
    )
    perplexity_ratio: float = Field(
        default=3.0, gt=0, description="highest perplexity of a reply after its first token, in units of the plain reply's"
    )
    cap: float = Field(default=1.6, gt=0, description="most that may be added anywhere, as a share of the stream's norm there")
    opening_cap: float = Field(default=2.0, gt=0, description="the same for the one place that decides what a reply opens with")
    layers: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        default=1, description="number of layers after which the stream is moved, those where it changes the score most; or all"
    )
    top_k: int | None = Field(
        default=None, ge=1, description="number of (layer, token) places of each prompt that are moved; every place unless given"
    )
    batch_size: int = Field(default=32, ge=1, description="prompts searched side by side")
