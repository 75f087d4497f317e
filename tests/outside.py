"""What lies outside of the package for its tests: real data, where there is some beside the project, and what a command left."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


class Ended(NamedTuple):
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The error message: the one line that a mistake ends in."""
        lines = [line for line in self.err.splitlines() if line.startswith("demeanor: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]
