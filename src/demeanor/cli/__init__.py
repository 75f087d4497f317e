"""The command line: one file a command, `root.py` puts them together, `tables.py` is what the terminal shows.

Nothing is imported here but what the first moment needs: `starting.py` makes an interrupt end quietly while the rest is read.
"""

import os
from typing import TYPE_CHECKING, Any

from .starting import at_once, own_garbage

if TYPE_CHECKING:
    from .root import app as app

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the command line."""
    # Read when torch is imported. Threads that spin while they wait take the cores from what runs beside them (benchmarks/waiting.py).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with own_garbage():
        with at_once():
            from .root import main as run
        run()


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .root import app

    return app
