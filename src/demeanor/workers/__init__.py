"""Workers: processes of a Ray cluster that hold something each, and do pieces of work with it."""

from .connection import Place, connected
from .worker import Worker
from .workers import Workers

__all__ = ["Place", "Worker", "Workers", "connected"]
