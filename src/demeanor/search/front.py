"""Fronts: which of several trade-offs no other beats, where their knee lies, how large a volume they cover.

Points are rows of costs, all of them better when smaller. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Costs = Sequence[float]


def beats(one: Costs, other: Costs) -> bool:
    """Whether one point is nowhere worse than the other and somewhere better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other))


def surely_beats(one: Costs, other: Costs, slack: float) -> bool:
    """Whether one point is nowhere worse than the other by more than `slack`, and somewhere better by more than that."""
    return all(a <= b + slack for a, b in zip(one, other, strict=True)) and any(a < b - slack for a, b in zip(one, other))


def front(points: Sequence[Costs]) -> list[int]:
    """The numbers of the points that no other beats; of equal ones the first."""
    kept = []
    for number, point in enumerate(points):
        before = any(tuple(other) == tuple(point) for other in points[:number])
        if not before and not any(beats(other, point) for other in points):
            kept.append(number)
    return kept


def knee(points: Sequence[Costs]) -> int:
    """The number of the point that lies nearest to the best of every cost, each cost divided by its range over the points."""
    lows, highs = (tuple(map(side, zip(*points, strict=True))) for side in (min, max))

    def distance(point: Costs) -> float:
        return math.fsum(((value - low) / (high - low)) ** 2 for value, low, high in zip(point, lows, highs) if high > low)

    return min(range(len(points)), key=lambda number: (distance(points[number]), tuple(points[number])))


def spread(points: Sequence[Costs], count: int) -> list[int]:
    """The numbers of at most `count` points that lie far apart: the best of every cost, then whatever is farthest from those that were taken."""
    if len(points) <= count:
        return list(range(len(points)))
    lows, highs = (tuple(map(side, zip(*points, strict=True))) for side in (min, max))
    scaled = [tuple((v - low) / (high - low) if high > low else 0.0 for v, low, high in zip(point, lows, highs)) for point in points]
    taken = list(dict.fromkeys([knee(points), *(min(range(len(points)), key=lambda n: (scaled[n][axis], sum(scaled[n]))) for axis in range(len(lows)))]))[:count]
    while len(taken) < count:
        left = [number for number in range(len(points)) if number not in taken]
        taken.append(max(left, key=lambda n: min(sum((a - b) ** 2 for a, b in zip(scaled[n], scaled[t])) for t in taken)))
    return sorted(taken)


def volume(points: Sequence[Costs], worst: Costs) -> float:
    """The hypervolume between the points and `worst`, by slices along the last cost; points beyond `worst` add nothing."""
    inside = [tuple(point) for point in points if all(a < b for a, b in zip(point, worst, strict=True))]
    if not inside:
        return 0.0
    if len(worst) == 1:
        return float(worst[0] - min(point[0] for point in inside))
    inside.sort(key=lambda point: point[-1])
    total = 0.0
    for number, point in enumerate(inside):
        top = inside[number + 1][-1] if number + 1 < len(inside) else worst[-1]
        if top > point[-1]:
            total += (top - point[-1]) * volume([other[:-1] for other in inside[: number + 1]], worst[:-1])
    return total
