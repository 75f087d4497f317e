"""A journal: what was computed in a long job, kept on disk line by line, so that a killed job goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Journal:
    """Values that JSON can hold, by what they depend on. Without a path nothing is kept.

    A line that a kill cut short, and whatever follows it, is computed anew.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._values: dict[str, Any] = {}
        self.recalled = 0
        if path is not None and path.is_file():
            self._read(path)

    def _read(self, path: Path) -> None:
        """Every whole line; the file is cut where one is not, so that what is written next starts a line."""
        whole = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    entry = json.loads(line)
                except ValueError:
                    break
                self._values[entry["key"]] = entry["value"]
                whole += len(line)
        with path.open("rb+") as file:
            file.truncate(whole)

    @property
    def keeps(self) -> bool:
        return self._path is not None

    def __len__(self) -> int:
        return len(self._values)

    def recall(self, depends_on: object, compute: Callable[[], Any]) -> Any:
        """The value that was kept for the same `depends_on` (anything whose `repr` tells it from others), or a new one, which is kept."""
        if self._path is None:
            return compute()
        key = hashlib.sha256(repr(depends_on).encode()).hexdigest()
        if key in self._values:
            self.recalled += 1
            return self._values[key]
        value = compute()
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "value": value}) + "\n")
        self._values[key] = value
        return value
