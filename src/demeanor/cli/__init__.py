"""The command line: one file a command, `root.py` puts them together, `tables.py` is what the terminal shows."""

from .root import app, main

__all__ = ["app", "main"]
