"""The text of a reply as its tokens come: what is settled is told once, and nothing that may still change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

HALF = "\ufffd"  # the bytes of one character may come as several tokens


class ReplyText:
    """`add` gives what one more token settles. `stopped` once one of the texts `stop` was said: the reply ends before it."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = (), opened: str = "") -> None:
        self._decode, self._stop, self._opened = decode, tuple(stop), opened
        self._ids: list[int] = []
        self._told = 0
        self.text = opened
        self.stopped = False

    def add(self, token: int) -> str:
        self._ids.append(token)
        self.text = self._opened + self._decode(self._ids)
        ends = [place for place in (self.text.find(text, len(self._opened)) for text in self._stop) if place >= 0]
        if ends:
            self.text, self.stopped = self.text[: min(ends)], True
            return self._tell(len(self.text))
        return self._tell(len(self.text) - self._open())

    def rest(self) -> str:
        """What is left to tell once no token follows."""
        return self._tell(len(self.text))

    def _tell(self, end: int) -> str:
        piece = self.text[self._told : end]
        self._told += len(piece)
        return piece

    def _open(self) -> int:
        """How many characters at the end may still become others, or the beginning of a text to stop at."""
        half = len(self.text) - len(self.text.rstrip(HALF))
        longest = max((len(text) - 1 for text in self._stop), default=0)
        begun = (
            size for size in range(min(longest, len(self.text)), 0, -1) if any(text.startswith(self.text[-size:]) for text in self._stop)
        )
        return max(half, next(begun, 0))
