"""Damage: valid values, tensors and files as they may come back from an editor, a broken download or another tool."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 10**6, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308, float("nan"), float("inf"), -float("inf"),
    "", " ", "x", "1", "nan", "\ud800", "\x00", "[/x]", "a.b", "../up", "=1", [], [None], [[]], [1, "a"], {}, {"": None}, {"x": {}}, "y" * 300,
)  # fmt: skip
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.complex64)


def damaged(value: Any, rng: random.Random) -> Any:
    """A copy of plain values with one or two places changed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2))):
        value = _changed(value, rng)
    return value


def _changed(value: Any, rng: random.Random) -> Any:
    places = list(_places(value))
    if not places or rng.random() < 0.02:
        return rng.choice(ODD)
    holder, key = rng.choice(places)
    act = rng.randrange(5)
    if act == 0:
        del holder[key]
    elif act == 1 and isinstance(holder, dict):
        holder[rng.choice(("x", "", "kind", f"{key} "))] = holder.pop(key)
    elif act == 2 and isinstance(holder[key], (list, str)):
        holder[key] = holder[key] * 2 if rng.random() < 0.5 else holder[key][: len(holder[key]) // 2]
    elif act == 3:
        holder[key] = rng.choice(([holder[key]], {"x": holder[key]}, str(holder[key])))
    else:
        holder[key] = rng.choice(ODD)
    return value


def _places(value: Any) -> Any:
    """(holder, key or index) of everything inside plain values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


def damaged_tensors(tensors: Mapping[str, Tensor], rng: random.Random) -> dict[str, Tensor]:
    """Tensors of which one is missing, renamed, or of other sizes, numbers or dtype."""
    changed = dict(tensors)
    name = rng.choice(sorted(changed))
    tensor = changed.pop(name)
    acts: tuple[Callable[[Tensor], Tensor | None], ...] = (
        lambda t: None,
        lambda t: t[..., :0],
        lambda t: t.flatten()[:1].reshape(()),
        lambda t: t[None],
        lambda t: t.repeat(*(2 for _ in t.shape)) if t.dim() else t[None],
        lambda t: t[..., :-1] if t.dim() else t,
        lambda t: t.double() * float("nan"),
        lambda t: t.double() + float("inf"),
        lambda t: t.double() * 1e300,
        lambda t: t * 0,
        lambda t: t.to(rng.choice(DTYPES)),
    )
    other = rng.choice(acts)(tensor)
    if other is not None:
        changed[rng.choice((name, name, name, f"{name}x"))] = other.contiguous()
    return changed


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """A file that was cut, or of which some bytes were changed."""
    at = rng.randrange(len(content) + 1)
    if rng.random() < 0.4:
        return content[:at]
    middle = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
    return content[:at] + middle + content[at + len(middle) * rng.randrange(2) :]
