"""The engine on a session: continuous batching. Requests join and leave between steps, so a short one never waits for a long one.

One thread runs all passes. What goes wrong in a pass over newcomers is the fault of one of them, so each is tried alone.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import DemeanorError
from ..models import Session
from ..progress import warn
from ..runtime.acting import lock_of
from ..runtime.running_rows import Row, RunningRows
from ..runtime.shared_prefix import UNABLE
from ..runtime.slots import Seen, Slot
from .engine import Asked, Busy, Ended, Failed, Heard, Piece, Status, Steer, Token
from .reply_text import ReplyText
from .sampling import Sampler

READ = 2048  # padded prompt tokens that are read between two steps: so long those that run wait at most
SLOTS = 256  # controls at a dose whose edits are kept ready
TRY_AGAIN = 1  # seconds, at least, that a refused caller is told to wait


@dataclass(eq=False)
class Job:
    """A request that was taken, from its queue to its end."""

    asked: Asked
    heard: Heard
    row: Row
    sampler: Sampler
    text: ReplyText
    until: float
    tokens: int = 0
    last: int = 0
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class Batching:
    """See the module. most_rows run together; most_waiting more may wait."""

    def __init__(self, session: Session, most_rows: int = 64, most_waiting: int = 256) -> None:
        self.session, self.most_rows, self.most_waiting = session, most_rows, most_waiting
        self._slots: OrderedDict[str, Slot] = OrderedDict()
        self._waiting: deque[Job] = deque()
        self._jobs: dict[Row, Job] = {}
        self._changed = threading.Condition()
        self._open, self._closing = True, False
        self._rate, self._last = 0.0, time.monotonic()  # requests ended per second, lately
        self._rows = session.running_rows()
        self._thread = threading.Thread(target=self._run, name="batching", daemon=True)
        self._thread.start()

    # -- for callers -------------------------------------------------------------------------------

    def submit(self, asked: Asked, heard: Heard) -> Job:
        slot = self._slot(asked.steer)
        job = Job(
            asked, heard, Row(asked.ids, slot, Seen() if asked.receipt else None), Sampler(asked.sampling),
            ReplyText(self.session.decode, asked.stop, asked.opened), time.monotonic() + asked.seconds,
        )  # fmt: skip
        with self._changed:
            if not self._open:
                raise Busy("The server is about to end and takes no more requests.", TRY_AGAIN, closing=True)
            if len(self._waiting) >= self.most_waiting:
                seconds = max(TRY_AGAIN, round(len(self._waiting) / self._rate)) if self._rate else TRY_AGAIN
                raise Busy(f"{len(self._waiting)} requests wait already; try again later.", min(seconds, 60))
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def status(self) -> Status:
        with self._changed:
            return Status(len(self._jobs), len(self._waiting), self._open and self._thread.is_alive())

    def drain(self, seconds: float) -> bool:
        with self._changed:
            self._open = False
            return self._changed.wait_for(lambda: not self._jobs and not self._waiting, seconds)

    def close(self) -> None:
        with self._changed:
            self._open, self._closing = False, True
            self._changed.notify_all()
        self._thread.join()

    def _slot(self, steer: Steer | None) -> Slot | None:
        if steer is None:
            return None
        with self._changed:
            slot = self._slots.get(steer.key)
        if slot is None:
            slot = self.session.slot(steer.control)
        with self._changed:
            slot = self._slots.setdefault(steer.key, slot)
            self._slots.move_to_end(steer.key)
            while len(self._slots) > SLOTS:
                self._slots.popitem(last=False)
        return slot

    # -- in the engine's thread --------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        finally:  # whatever ended it, nobody waits for ever
            with self._changed:
                self._open = False
                jobs, self._jobs, self._waiting = [*self._jobs.values(), *self._waiting], {}, deque()
                self._changed.notify_all()
            for job in jobs:
                job.heard(Failed("The server has ended.", "cancelled"))

    def _serve(self) -> None:
        with self._rows.attached() as rows:
            while True:
                with self._changed:
                    self._changed.notify_all()  # who drains looks again
                    self._changed.wait_for(lambda: bool(self._waiting or self._jobs) or self._closing)
                    if self._closing:
                        return
                    self._forget()
                    newcomers = self._admitted(rows)
                with lock_of(self.session.model), self.session.runner.threads():
                    self._pass(rows, newcomers)

    def _forget(self) -> None:
        """Those that nobody waits for any more, and those that waited too long."""
        now, kept = time.monotonic(), deque[Job]()
        for job in self._waiting:
            if job.cancelled:
                continue
            if now > job.until:
                job.heard(Failed(f"The request was not begun within {job.asked.seconds:g} seconds.", "timeout"))
                continue
            kept.append(job)
        self._waiting = kept

    def _admitted(self, rows: RunningRows) -> list[Job]:
        """The next ones, as many as there is room for; a row that looks at whole prompts is read alone."""
        room = (self.most_rows if rows.mixes else 1) - len(self._jobs)
        taken: list[Job] = []
        while self._waiting and len(taken) < room:
            job = self._waiting[0]
            longest = max(len(other.asked.ids) for other in (*taken, job))
            alone = any(other.row.slot is not None and other.row.slot.states for other in (*taken, job))
            if taken and (alone or longest * (len(taken) + 1) > READ):
                break
            taken.append(self._waiting.popleft())
            self._jobs[job.row] = job
        return taken

    def _pass(self, rows: RunningRows, newcomers: Sequence[Job]) -> None:
        now = time.monotonic()
        for job in [job for job in self._jobs.values() if job.row in rows.running and (job.cancelled or now > job.until)]:
            if not job.cancelled:
                job.heard(Failed(f"The reply took more than {job.asked.seconds:g} seconds.", "timeout"))
            self._leave(rows, [job])
        running = [self._jobs[row] for row in rows.running]
        if running:
            try:
                logits = rows.step({job.row: job.last for job in running})
            except UNABLE as error:
                self._fail(rows, running, error)
            else:
                self._said(rows, running, logits)
        self._read(rows, newcomers)

    def _read(self, rows: RunningRows, newcomers: Sequence[Job]) -> None:
        if not newcomers:
            return
        try:
            logits = rows.read([job.row for job in newcomers])
        except (*UNABLE, DemeanorError) as error:
            if len(newcomers) == 1:
                self._fail(rows, newcomers, error)
                return
            for job in newcomers:
                self._read(rows, [job])
        else:
            self._said(rows, newcomers, logits)

    def _fail(self, rows: RunningRows, jobs: Sequence[Job], error: Exception) -> None:
        """These end with an error; the log has its words, the caller is told no more than that it happened."""
        warn(f"{len(jobs)} requests failed in a pass: {' '.join(str(error).split())[:200]}")
        for job in jobs:
            job.heard(Failed(str(error) if isinstance(error, DemeanorError) else "The model could not be run on this request."))
        self._leave(rows, jobs)

    def _said(self, rows: RunningRows, jobs: Sequence[Job], logits: Tensor) -> None:
        """The next token of every row, told; rows whose reply is whole leave."""
        broken = logits.isnan().any(-1).tolist()
        likeliest = logits.argmax(-1).tolist()
        gone = []
        for number, job in enumerate(jobs):
            if broken[number]:
                job.heard(Failed("The control makes the model compute what is no number; lower its dose."))
            elif self._continues(job, Token(likeliest[number]) if job.sampler.plain else job.sampler.choose(logits[number])):
                continue
            gone.append(job)
        self._leave(rows, gone)

    def _continues(self, job: Job, token: Token) -> bool:
        """Tells a token; whether the reply goes on after it."""
        job.last, job.tokens = token.id, job.tokens + 1
        ends = token.id in self.session.end_ids
        piece = "" if ends else job.text.add(token.id)
        if not ends:
            job.heard(Piece(piece, token))
        if not (ends or job.text.stopped or job.tokens >= job.asked.max_tokens):
            return True
        rest = job.text.rest()
        if rest:
            job.heard(Piece(rest, None))
        reason = "stop" if ends or job.text.stopped else "length"
        seen, fired = job.row.seen, tuple((str(gate), said) for gate, said in job.row.fired.items())
        changed = None if seen is None else {
            "prompt_tokens": seen.prompt_tokens, "reply_tokens": seen.reply_tokens, "places": len(seen.places),
            "adapter_layers": 0 if job.row.slot is None else sum(len(adapter.low_rank) for adapter in job.row.slot.adapters),
        }  # fmt: skip
        job.heard(Ended(job.text.text, reason, len(job.asked.ids), job.tokens, fired, changed))  # type: ignore[arg-type]
        return False

    def _leave(self, rows: RunningRows, jobs: Sequence[Job]) -> None:
        rows.leave([job.row for job in jobs])
        with self._changed:
            for job in jobs:
                self._jobs.pop(job.row, None)
        if jobs:
            self._ended(len(jobs))

    def _ended(self, count: int) -> None:
        """How many end per second, weighted towards the latest."""
        now = time.monotonic()
        before, self._last = self._last, now
        self._rate += 0.1 * (count / max(now - before, 1e-3) - self._rate)
