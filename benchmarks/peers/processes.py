"""Other programs run as their users run them: timed, written to a log, and answered where they ask."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

Answer = Callable[[str], str | None]  # what has been said since the last answer -> the line to type, or None where nothing is asked
TAIL = 1500


@dataclass(frozen=True)
class Ended:
    """`settled`: seconds until the search was over, None where that was never said. `seconds`: until the result was written. `how`: in words.
    `began`: seconds until the search began, the same. `processor`: seconds of all processors until the process ended; `trying`: those from the
    search's beginning to its end, None where that was not said or the system does not tell."""

    settled: float | None
    seconds: float
    how: str
    tail: str
    began: float | None = None
    processor: float = 0.0
    trying: float | None = None


def timed(
    command: list[str], folder: Path, env: Mapping[str, str], log: Path, *, settled: str, over: str | None, answer: Answer | None, limit: float,
    began: str = "", interrupt: float | None = None,
) -> Ended:  # fmt: skip
    """Runs a command in `folder`. `began`, `settled` and `over` are what it says when its search begins, when that is over, and when its result is written
    (at its end, unless told). It is interrupted, as by Ctrl+C, after `interrupt` seconds, and ended after `limit` seconds."""
    start, before = time.monotonic(), _processor()
    process = subprocess.Popen(
        command, cwd=folder, env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    talk = _Talk(process, answer, [mark for mark in (began, settled, over) if mark], start)
    late = False
    try:
        with log.open("w", encoding="utf-8") as file:
            while not late and talk.goes_on(file):
                passed = time.monotonic() - start
                late = passed > limit
                if interrupt is not None and passed > interrupt:
                    process.send_signal(signal.SIGINT)
                    interrupt = None
    finally:  # also where this program is interrupted: it must not work on by itself
        if process.poll() is None and (late or not talk.silent):
            os.killpg(process.pid, signal.SIGKILL)
    seen, heard = talk.seen, talk.heard
    code = process.wait()
    seconds = seen.get(over or "", time.monotonic() - start)
    how = f"ended after {limit:g} seconds" if late else "done" if code == 0 else f"ended with status {code}"
    at = {mark: round(when, 2) for mark, when in seen.items()}
    spent = [talk.spent.get(mark) for mark in (began, settled)]
    trying = None if spent[0] is None or spent[1] is None else round(spent[1] - spent[0], 2)
    return Ended(at.get(settled), round(seconds, 1), how, heard[-TAIL:], at.get(began), round(_processor() - before, 1), trying)


def _processor() -> float:
    """Processor time of the processes that this one has started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _spent(process: int) -> float | None:
    """Processor time of a process at work, all its threads together; None where there is no /proc."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime


@dataclass
class _Talk:
    """What a process says, as it says it. `seen`: when it first said each of the marks, in seconds; `spent`: its processor time then."""

    process: subprocess.Popen[bytes]
    answer: Answer | None
    marks: list[str]
    start: float
    heard: str = ""
    fresh: str = ""
    silent: bool = False  # it has closed its output
    seen: dict[str, float] = field(default_factory=dict)
    spent: dict[str, float | None] = field(default_factory=dict)

    def goes_on(self, file: TextIO) -> bool:
        """Takes what was said since the last call, and answers it; False once nothing more can come."""
        assert self.process.stdout is not None
        piece = self.process.stdout.read()
        if piece is None:  # nothing yet
            time.sleep(0.02)
            return True
        if not piece:
            self.silent = True
            return False
        text = piece.decode("utf-8", "replace")
        file.write(text)
        file.flush()
        self.heard, self.fresh = self.heard[-TAIL:] + text, self.fresh + text
        for mark in self.marks:
            if mark in self.heard and mark not in self.seen:
                self.seen[mark], self.spent[mark] = time.monotonic() - self.start, _spent(self.process.pid)
        line = self.answer(self.fresh) if self.answer is not None else None
        if line is not None:
            self.fresh = ""
            assert self.process.stdin is not None
            self.process.stdin.write(f"{line}\n".encode())
            self.process.stdin.flush()
        return True


class HereticMenu:
    """Answers to Heretic's menu by lines: saves the first trials of its Pareto front, spread over it, and leaves. `saved`: folders by trial."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self.saved: dict[str, Path] = {}
        self._wanted: list[str] | None = None
        self._now: str | None = None

    def __call__(self, said: str) -> str | None:
        asked = said.rstrip(" ")
        if asked.endswith("Enter number:"):
            return self._number({title: number for number, title in re.findall(r"^\[(\d+)\] (.+)$", said, re.MULTILINE)})
        if asked.endswith("Path to the folder::") and self._now is not None:
            folder = self.folder / str(len(self.saved))
            self.saved[self._now], self._now = folder, None
            return str(folder)
        return None

    def _number(self, entries: Mapping[str, str]) -> str:
        """The number of the entry that is wanted next."""
        trials = [title for title in entries if title.startswith("[Trial")]
        if trials:
            if self._wanted is None:
                steps = max(1, min(self.most, len(trials)))
                self._wanted = [trials[round(step * (len(trials) - 1) / max(1, steps - 1))] for step in range(steps)]
            left = [title for title in self._wanted if " ".join(title.split()) not in self.saved]
            if not left:
                return entries["Exit program"]
            self._now = " ".join(left[0].split())
            return entries[left[0]]
        return entries["Save the model to a local folder" if self._now is not None else "Return to the trial selection menu"]
