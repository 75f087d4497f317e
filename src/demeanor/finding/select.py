"""Choosing among candidate directions by what they did. algorithms.md, section 4.

`choose` is a pure function over rows, so that published selections can be replayed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..algebra.schedule import layer_limit
from ..errors import NoCandidate

KL_MAX = 0.1  # nats, first reply token on neutral prompts
INDUCE_MIN = 0.0


@dataclass(frozen=True)
class Rules:
    """What discards a candidate. `limit` is the first layer that is too late, kl_max the most that it may change neutral prompts (nats).

    The published rules are the defaults. `induces`: whether a candidate must bring the behaviour about too.
    """

    limit: int
    kl_max: float = KL_MAX
    induces: bool = True


@dataclass(frozen=True)
class Choice:
    """The chosen row, by where it was taken."""

    position: int
    layer: int
    row: Mapping[str, Any]


NOT_A_NUMBER, TOO_LATE = "not a number", "too late a layer"
CHANGES_NEUTRAL, DOES_NOT_INDUCE = "changes neutral prompts", "does not induce"


def why_not(row: Mapping[str, Any], rules: Rules) -> tuple[str, ...]:
    """Every reason to discard a candidate; none when it survives."""
    scores = (row["refusal_score"], row["steering_score"], row["kl_div_score"])
    if any(math.isnan(score) for score in (scores if rules.induces else (scores[0], scores[2]))):
        return (NOT_A_NUMBER,)
    reasons = (
        (row["layer"] >= rules.limit, TOO_LATE),
        (row["kl_div_score"] > rules.kl_max, CHANGES_NEUTRAL),
        (rules.induces and row["steering_score"] < INDUCE_MIN, DOES_NOT_INDUCE),
    )
    return tuple(reason for holds, reason in reasons if holds)


# What candidates are ranked by: how much of the behaviour ablation removes, less what it changes elsewhere; how little of
# the behaviour ablation leaves; how much of it dose +1 brings about; or (the plainest baseline) how far apart the class
# means lie. Of each, the score and whether more of it is better.
RankBy = Literal["trade_off", "bypass", "induce", "gap"]
RANKINGS: Mapping[RankBy, tuple[str, bool]] = {
    "trade_off": ("merit", True), "bypass": ("refusal_score", False), "induce": ("steering_score", True), "gap": ("gap", True),
}  # fmt: skip
ALIKE = 2  # decimals of merit: candidates that agree so far are told apart by what ablation leaves


def rank_key(row: Mapping[str, Any], by: RankBy) -> tuple[float, ...]:
    """What rows are sorted by, smallest first; among equals, those whose classes lie further apart. What is no number comes last."""
    column, more = RANKINGS[by]
    score = -float(row[column]) if more else float(row[column])
    apart = -float(row.get("separation", 0.0))
    if math.isnan(score):
        return (math.inf, apart)
    return (round(score, ALIKE), float(row["refusal_score"]), apart) if by == "trade_off" else (score, apart)


def ranked(evaluations: Sequence[Mapping[str, Any]], limit: int) -> list[Choice]:
    """Surviving rows, best (lowest bypass) first."""
    survivors = [row for row in evaluations if not why_not(row, Rules(limit))]
    survivors.sort(key=lambda row: rank_key(row, "bypass"))
    return [Choice(row["position"], row["layer"], row) for row in survivors]


def choose(evaluations: Sequence[Mapping[str, Any]], n_layers: int) -> Choice:
    """The best of rows {position, layer, refusal_score, steering_score, kl_div_score}.

    refusal_score (bypass) is of `shows` with the direction ablated, steering_score (induce) of `lacks` with
    it added, kl_div_score of neutral prompts. Raises NoCandidate when none survives.
    """
    limit = layer_limit(n_layers)
    survivors = ranked(evaluations, limit)
    if not survivors:
        raise NoCandidate(table(evaluations, [why_not(row, Rules(limit)) for row in evaluations]))
    return survivors[0]


def table(evaluations: Sequence[Mapping[str, Any]], discarded: Sequence[Sequence[str]]) -> str:
    """Every row and why it was discarded, as text."""
    lines = [f"None of {len(evaluations)} candidate directions survived selection:"]
    for row, reasons in sorted(zip(evaluations, discarded, strict=True), key=lambda pair: (pair[0]["layer"], pair[0]["position"])):
        name = row.get("estimator", "")
        lines.append(
            f"  layer {row['layer']:>2} position {row['position']:>2} {name:<16} bypass {row['refusal_score']:8.3f}"
            f"  induce {row['steering_score']:8.3f}  kl {row['kl_div_score']:7.3f}  {', '.join(reasons)}"
        )
    return "\n".join(lines)
