"""Controls made from directions: ablate, scale and rotate at the writers or at a site, add and clamp at a site."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from ..algebra.bases import orthonormal
from ..algebra.schedule import layer_limit
from ..arrays import library
from ..errors import ControlError
from ..models import Site
from ..runtime.intervene import Tokens
from .control import Control
from .direction import Direction, as_direction
from .part import Part
from .scope import Scope

EVERYWHERE = Scope()
Along = Literal["direction", "layers"]


def ablate(direction: Direction, strength: float = 1.0, scope: Scope | None = None) -> Control:
    """Remove `strength` of the direction's component: from everything that writes to the stream, on every token, unless `scope` says otherwise.

    What a reader reads is removed along what carries the gap, so that nothing of the gap is left; at its own site, on the last
    prompt token and the reply, because what it reads elsewhere is another thing.
    """
    direction = as_direction(direction)
    if direction.write is not None:
        at = scope or direction.scope("last_and_reply")
        return _control(direction, Part(kind="ablate", vectors=direction.write, dose=strength, scope=at, read=direction.basis))
    scope = scope or EVERYWHERE
    return _control(direction, Part(kind="ablate", vectors=direction.basis, dose=strength, scope=scope))


def scale(direction: Direction, factor: float, scope: Scope = EVERYWHERE) -> Control:
    """Make the direction's component `factor` times what it is: 0 removes it, 1 leaves it, 2 doubles it, -1 mirrors it."""
    direction = as_direction(direction)
    return _control(direction, Part(kind="scale", vectors=direction.basis, dose=factor, scope=scope))


def rotate(direction: Direction, towards: Direction, degrees: float, scope: Scope = EVERYWHERE) -> Control:
    """Turn what lies along the direction towards another one, in the plane of the two; 90 puts it where the other is not yet.

    Raises ControlError where one of them has another rank than 1, where they are made for different structures, or lie in one line.
    """
    direction, towards = as_direction(direction), as_direction(towards)
    _refuse_rank(direction, "rotate")
    _refuse_rank(towards, "rotate")
    if towards.layout.hash != direction.layout.hash:
        raise ControlError(
            f"The directions were found in different structures ({direction.layout.hash} and {towards.layout.hash}) and span no plane."
        )
    plane = orthonormal(library(direction.basis).concat([direction.basis, towards.basis]), tolerance=1e-3)
    if len(plane) < 2:
        raise ControlError("The two directions lie in one line, so there is no plane to rotate in; use scale with factor -1 to mirror.")
    return _control(direction, Part(kind="rotate", vectors=plane, dose=degrees, scope=scope))


def add(
    direction: Direction, dose: float, tokens: Tokens = "last_and_reply", positions: Sequence[int] = (), *, along: Along = "direction"
) -> Control:
    """Move the stream along the direction at its site, on the last prompt token and the reply.

    `tokens="read"` moves the one token at which the direction was read instead: the gap was measured there, and later
    tokens of the reply may carry far less of it. dose is in units of the gap between the classes: -1 takes the `shows` mean to the `lacks` mean, +1 the
    `lacks` mean to the `shows` mean. `along="layers"` shares the dose evenly among all layers from a quarter of the depth to those
    that are too late, each of which moves along its own gap: many small moves harm a reply less than one large one.
    Raises ControlError for a direction of another rank than 1, or one that holds no means of all layers.
    """
    direction = as_direction(direction)
    _refuse_rank(direction, "add")
    if along == "layers":
        return Control(
            parts=tuple(_moves(direction, dose, direction.scope(tokens, positions))), layout=direction.layout, model_name=direction.model_name,
            made_from=direction.made_from("add, along layers"),
        )  # fmt: skip
    moved = direction.gap * direction.basis if direction.write is None else direction.write
    return _control(direction, Part(kind="add", vectors=moved, dose=dose, scope=direction.scope(tokens, positions)))


def _moves(direction: Direction, dose: float, scope: Scope) -> Iterator[Part]:
    """A part for every layer of the middle: its own gap between the class means, and its share of the dose."""
    if direction.layers is None:
        raise ControlError("The direction holds no means of all layers; find it anew, or add it at its own layer alone.")
    shows, lacks = direction.layers
    layers = range(direction.layout.n_layers // 4, layer_limit(direction.layout.n_layers))
    for layer in layers:
        gap = (shows.mean[layer] - lacks.mean[layer]).to(direction.basis)
        yield Part(kind="add", vectors=gap[None], dose=dose / len(layers), scope=replace(scope, site=Site(layer, direction.site.point)))


def clamp(
    direction: Direction, to: Literal["lacks", "shows"] | float = "lacks", tokens: Tokens = "last_and_reply", positions: Sequence[int] = ()
) -> Control:
    """Hold the component along the direction at its site where the mean of a class lies, or at a number (in units of the stream).

    On the last prompt token and the reply: the means were measured there, and holding every token at them destroys answers.
    Raises ControlError for a number where the direction has another rank than 1.
    """
    direction = as_direction(direction)
    if isinstance(to, str):
        if to not in ("lacks", "shows"):
            raise ControlError(f"A component is held at lacks, at shows or at a number, not at {to!r}.")
        target = (direction.lacks if to == "lacks" else direction.shows).mean.double() @ direction.basis.double().T
    else:
        _refuse_rank(direction, "clamp to a number")
        target = direction.basis.new_tensor([to])
    part = Part(
        kind="clamp", vectors=direction.basis, dose=1.0, scope=direction.scope(tokens, positions), target=target.to(direction.basis)
    )
    return _control(direction, part)


def _control(direction: Direction, part: Part) -> Control:
    return Control(parts=(part,), layout=direction.layout, model_name=direction.model_name, made_from=direction.made_from(part.kind))


def _refuse_rank(direction: Direction, what: str) -> None:
    if direction.write is not None and what != "add":
        raise ControlError(
            f"{what} needs a direction that is read and written alike; {direction.estimator} is a reader, so use ablate or add."
        )
    if len(direction.basis) != 1:
        raise ControlError(f"{what} needs a direction of rank 1; this one has rank {len(direction.basis)}.")
