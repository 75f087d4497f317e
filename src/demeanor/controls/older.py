"""Control files of older formats, as far as they say the same today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EVERYWHERE = {"site": None, "tokens": "all", "offset": 0}  # a scope of format 1: every writer, all tokens


def of_format_1(header: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Ablations at every writer, on all tokens, without a gate: the common kind. None for all others, whose tokens were counted otherwise."""
    parts = header.get("parts")
    if header.get("gates") or not isinstance(parts, list):
        return None
    if any(not isinstance(part, dict) or part.get("scope") != EVERYWHERE or part.get("gate") is not None or part.get("kind") != "ablate" for part in parts):
        return None
    scope = {"site": None, "tokens": "all"}
    today = [{"kind": part["kind"], "dose": part.get("dose"), "scope": scope, "gates": []} for part in parts]
    return {**header, "parts": today, "gates": [], "states": [], "adapters": []}
