"""The null test: with a direction taken out of the outputs of some modules, nothing of it is in a value, and without any of them something is.

It finds writers whatever mixes them: scalars of each token, several copies of the stream, gates. All of these act along d_model as the
identity, so that what has nothing of a direction keeps nothing of it. algorithms.md, section 1.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from .replay import Replay, left_of

NOTHING = 1e-5  # share of a direction that counts as none, with norms in float32


@torch.no_grad()
def found_by_null_test(replay: Replay, r: Tensor, target: str | None = None, along: Tensor | None = None) -> tuple[str, ...] | None:
    """The fewest modules whose outputs, without r, leave nothing of it in what the block returns; None where not even all of them do.

    target: a norm whose input is looked at, in place of what the block returns; along: the direction there, where it is another.
    Of modules inside each other the innermost is taken.
    """
    _, calls = replay.run()
    names = list(calls)
    if target is not None:
        names = names[: names.index(target)]
    kept = set(names)
    if _left(replay, r, kept, target, along) > NOTHING:
        return None
    for name in sorted(names, key=lambda name: (name.count("."), -names.index(name))):
        if _left(replay, r, kept - {name}, target, along) <= NOTHING:
            kept.discard(name)
    return tuple(name for name in names if name in kept)


def _left(replay: Replay, r: Tensor, projected: Collection[str], target: str | None, along: Tensor | None) -> float:
    out, calls = replay.run(r, projected, along)
    if target is None:
        return left_of(r, out)
    return left_of(r if along is None else along, calls[target].args[0]) if target in calls else 1.0
