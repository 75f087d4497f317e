"""Workers in a Ray cluster, and the pieces of work that are handed to them.

A piece whose worker dies is given to another one, and Ray starts the worker again wherever there is room. Answers are kept by the
number of their piece, so the result is the same whoever computed which, and however many died.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

from ..errors import DemeanorError, ModelError, WorkersLost
from ..progress import Bar, say, warn
from .connection import connected, placed
from .worker import Call, Worker

SPARE = 3  # deaths that one piece may see, beyond one of each worker, before it is taken for the reason
ALONE = "The Ray cluster answers no more: its head, or this machine's part in it, is gone; start Ray again, and give the same command."
PATIENCE = 10.0  # seconds without any worker after which that is said


class Workers:
    """Processes that each hold what `make` makes; it is called in each of them, so it must be importable there.

    address, workers, cpus, gpus: see `connected` and `placed`. Raises DataError where there is no cluster or no room in it.
    """

    def __init__(
        self, make: Callable[[], Any], address: str | None = None, workers: int | None = None, cpus: float | None = None, gpus: float | None = None
    ) -> None:  # fmt: skip
        self._ray = ray = connected(address)
        self.place = placed(ray, workers, cpus, gpus)
        self.deaths = 0
        # A call is never repeated by Ray: a piece goes to whoever is free, and not to the worker that died with it.
        options = {"num_cpus": self.place.cpus, "num_gpus": self.place.gpus, "max_restarts": -1, "scheduling_strategy": "SPREAD"}
        actor = ray.remote(Worker).options(**options)
        self._actors = [actor.remote(make) for _ in range(self.place.workers)]
        self._idle: list[Any] = []
        self._coming: dict[Any, tuple[Any, bool]] = {}  # who will be free, by what they answer then; whether they were asked only that
        self._shared: dict[int, tuple[Any, Any]] = {}  # what all pieces of the last call share, by place, and where it lies in the cluster
        self._lock = threading.Lock()
        self._waits = False  # whether it was said that no worker is there
        self._none: DemeanorError | None = None  # why there are none, where all had to be left out
        for made in self._actors:
            self._ask(made)

    def __len__(self) -> int:
        """How many there are to be; some may be dead at the moment."""
        return self.place.workers

    def map(self, call: Call, pieces: Sequence[Any], shared: Sequence[Any] = (), what: str = "Working") -> tuple[list[Any], list[str]]:
        """`call(held, piece, *shared)` of every piece, in order, and what the workers warned of. Raises what a worker raises.

        An object that was shared by the call before is not sent again.
        """
        with self._lock:
            return self._map(call, pieces, [self._sent(place, value) for place, value in enumerate(shared)], what)

    def close(self) -> None:
        """Ends the workers."""
        with self._lock:
            for actor in self._actors:
                self._end(actor)
        self._actors, self._idle, self._coming, self._shared = [], [], {}, {}

    # -- pieces -----------------------------------------------------------------------------------

    def _map(self, call: Call, pieces: Sequence[Any], shared: Sequence[Any], what: str) -> tuple[list[Any], list[str]]:
        if self._none is not None:
            raise self._none
        waiting, answers, deaths = deque(range(len(pieces))), dict[int, Any](), Counter[int]()
        at: dict[Any, tuple[Any, int]] = {}  # who does which piece, by what will be its answer
        sentences: list[str] = []
        try:
            with closing(Bar(what, len(pieces))) as bar:
                while len(answers) < len(pieces):
                    while waiting and self._idle:
                        actor, number = self._idle.pop(), waiting.popleft()
                        with _with_cluster():
                            at[actor.do.remote(call, pieces[number], *shared)] = actor, number
                    for answer in self._first([*at, *self._coming], alone=not at):
                        if answer in self._coming:
                            self._welcome(answer)
                            continue
                        actor, number = at[answer]
                        try:
                            answers[number], said = self._got(answer)
                            sentences += said
                            self._idle.append(actor)
                        except _Lost as lost:
                            deaths[number] += 1
                            self._bury(actor, lost, deaths[number])
                            waiting.appendleft(number)
                        del at[answer]
                    bar.to(len(answers))
        finally:
            for answer, (actor, _) in at.items():  # an error or an interrupt left them at work
                self._coming[answer] = actor, False
        return [answers[number] for number in range(len(pieces))], list(dict.fromkeys(sentences))

    def _first(self, answers: list[Any], alone: bool) -> list[Any]:
        """What is answered next; `alone`: whether nobody is at work."""
        with _with_cluster():
            done, _ = self._ray.wait(answers, num_returns=1, timeout=PATIENCE)
            if not done:
                self._refuse_alone()
        if not done and alone and not self._waits:
            say("No worker is there at the moment; waiting for one to start.")
        self._waits = not done and (self._waits or alone)
        return list(done)

    def _refuse_alone(self) -> None:
        """No answer ever comes to a process whose own machine the cluster has given up."""
        own = self._ray.get_runtime_context().get_node_id()
        if not any(machine["Alive"] and machine["NodeID"] == own for machine in self._ray.nodes()):
            raise WorkersLost(ALONE)

    def _got(self, answer: Any) -> Any:
        """An answer. Raises the worker's own error, or _Lost where the worker or its machine died."""
        from ray.exceptions import RayError, RayTaskError

        try:
            return self._ray.get(answer)
        except RayTaskError as error:
            cause = getattr(error, "cause", error)
            raise cause from (None if isinstance(cause, DemeanorError) else error)
        except OSError as error:
            raise WorkersLost(ALONE) from error
        except RayError as error:  # of a worker, a machine, or an answer that lay on it
            raise _Lost(str(error).strip().splitlines()[0]) from error

    def _bury(self, actor: Any, lost: _Lost, deaths: int) -> None:
        self.deaths += 1
        if deaths >= len(self) + SPARE:
            raise WorkersLost(f"One piece of the work ended {deaths} workers, the last one so: {lost} Give workers more memory, or shorter prompts.") from lost
        warn("A worker died; its piece of the work goes to another one.")
        self._ask(actor)

    # -- who is there -----------------------------------------------------------------------------

    def _ask(self, actor: Any) -> None:
        """The worker is free once it answers; Ray asks again until it runs."""
        self._coming[actor.ready.options(max_task_retries=-1).remote()] = actor, True

    def _welcome(self, answer: Any) -> None:
        actor, asked = self._coming.pop(answer)
        if not asked:  # whatever it was at work on is wanted no more
            self._ask(actor)
            return
        try:
            self._got(answer)
        except _Lost as lost:
            self._dismiss(actor, ModelError(f"The workers died: {lost}"))
        except DemeanorError as error:
            self._dismiss(actor, error)
        else:
            self._idle.append(actor)

    def _dismiss(self, actor: Any, error: DemeanorError) -> None:
        """A worker that cannot be had, or cannot hold what it works with; raises the reason where it was the last one."""
        self._actors = [other for other in self._actors if other is not actor]
        self._end(actor)
        if not self._actors:
            self._none = error
            raise error
        warn(f"A worker is left out: {error}")

    def _end(self, actor: Any) -> None:
        with suppress(self._ray.exceptions.RayError, OSError):  # of a cluster that is gone
            self._ray.kill(actor)

    def _sent(self, place: int, value: Any) -> Any:
        if place not in self._shared or self._shared[place][0] is not value:
            with _with_cluster():
                self._shared[place] = value, self._ray.put(value)
        return self._shared[place][1]


@contextmanager
def _with_cluster() -> Iterator[None]:
    """What is asked of Ray inside; a connection that breaks is told in a sentence."""
    try:
        yield
    except OSError as error:
        raise WorkersLost(ALONE) from error


class _Lost(Exception):
    """A worker, its machine, or an answer that lay there is gone."""
