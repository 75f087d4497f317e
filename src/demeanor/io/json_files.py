"""JSON files that every reader of JSON takes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, values: Any) -> None:
    """One value, indented."""
    path.write_text(json_text(values) + "\n", encoding="utf-8")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One row a line (JSONL); text stays as it is."""
    path.write_text("".join(json.dumps(_finite(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def json_text(values: Any) -> str:
    """Indented JSON; nan and infinity are null, since JSON has no name for them."""
    return json.dumps(_finite(values), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
