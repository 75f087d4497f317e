"""The study of a search: Optuna proposes settings, and every finished trial lies in its storage.

Trials are proposed and finished by batches. A batch is proposed by a sampler whose seed is that of the study, the process and the batch, from
all trials of earlier batches; so a search that was killed proposes the same again, leaves out what is recorded, and ends where it would have.
Proposing works on a copy in memory: a storage is written once per trial, when its values are known, and never holds half of one.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..io.claims import runs, this_process
from .objective import Quick
from .space import NO_GATE, Axis, Params, Space

if TYPE_CHECKING:
    import optuna

STARTUP = 32  # trials before the sampler looks at what others gave
ATTRIBUTE, FIRST = "demeanor", "first"  # what a trial says of itself; the process that proposes as if it were alone
DATABASE = "study.db"


def check_extra() -> None:
    """DataError, naming the extra, where Optuna is not installed."""
    if find_spec("optuna") is None:
        raise DataError("A search takes optuna, which the extra `search` brings: pip install 'demeanor[search]'.")


@dataclass(frozen=True)
class Recorded:
    """A finished trial: its number in the study, its setting, what it gave, and in which batch of which process it was made."""

    number: int
    params: Params
    quick: Quick
    batch: tuple[str, int] = ("", 0)

    @property
    def gate(self) -> str:
        return str(self.params.get("gate", NO_GATE))

    @property
    def setting(self) -> str:
        """What is alike for the same control behind other gates."""
        return json.dumps({name: value for name, value in self.params.items() if name != "gate"}, sort_keys=True)


@dataclass(frozen=True)
class Limits:
    """What a trial must keep to be feasible."""

    guard: float
    drift: float

    def violations(self, quick: Quick) -> dict[str, float]:
        """By name; 0 and less is within."""
        guard = {} if quick.guard is None else {"guard": self.guard - quick.guard}
        return {**guard, "drift": quick.drift - self.drift}

    def hold(self, quick: Quick) -> bool:
        return all(value <= 0 for value in self.violations(quick).values())


class Study:
    """One process's view of a study. `url` is an Optuna storage; the study in it has the name `name`, and is made where there is none."""

    def __init__(self, url: str, name: str, costs: Sequence[str], seed: int, limits: Limits) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.url, self.name, self.seed, self.limits = url, name, seed, limits
        self.storage = _storage(url)
        self.study, began = _opened(self.storage, name, costs)
        self.salt = self._salt(began)
        self._copy = optuna.create_study(directions=["minimize"] * len(costs))
        self._known: set[int] = set()  # numbers of trials in the copy

    def _salt(self, began: bool) -> str:
        """What tells this process's proposals from others': nothing for the one that began the study, or goes on where that one was killed."""
        own, first = this_process(), self.study.user_attrs.get(FIRST)
        if began or (first is not None and (first == own or not runs(first))):
            self.study.set_user_attr(FIRST, own)
            return ""
        return sha256(f"{own} {os.urandom(8).hex()}".encode()).hexdigest()[:12]

    # -- what is recorded -------------------------------------------------------------------------

    def recorded(self) -> list[Recorded]:
        """Every finished trial, of all processes."""
        return [recorded for trial in self._finished() if (recorded := _recorded(trial))]

    def _finished(self) -> list[optuna.trial.FrozenTrial]:
        from optuna.trial import TrialState

        return [trial for trial in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if ATTRIBUTE in trial.user_attrs]

    def batches(self) -> tuple[int, frozenset[int]]:
        """The batch that this process is in, and which of its trials are recorded: the last one where some are missing, else the next."""
        own: dict[int, list[Mapping[str, Any]]] = {}
        for trial in self._finished():
            told = trial.user_attrs[ATTRIBUTE]
            if told["salt"] == self.salt:
                own.setdefault(told["batch"], []).append(told)
        if not own:
            return 0, frozenset()
        last = max(own)
        if len(own[last]) < own[last][0]["of"]:
            return last, frozenset(told["index"] for told in own[last])
        return last + 1, frozenset()

    # -- proposing and recording ------------------------------------------------------------------

    def propose(self, space: Space, batch: int, count: int) -> list[Params]:
        """`count` settings for a batch, from all trials but its own."""
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        self._copy_new(batch)
        digest = sha256(f"{self.seed} {self.salt} {batch}".encode()).digest()
        with _quiet():
            self._copy.sampler = TPESampler(seed=int.from_bytes(digest[:4], "big"), multivariate=True, group=True, n_startup_trials=STARTUP)
        asked = [self._copy.ask() for _ in range(count)]
        settings: list[Params] = []
        for trial in asked:
            axes = dict(space.common)
            params = {name: _suggested(trial, name, axis) for name, axis in axes.items()}
            params |= {name: _suggested(trial, name, axis) for name, axis in space.axes(params["kind"]).items()}
            settings.append(params)
        for trial in asked:
            self._copy.tell(trial, state=TrialState.FAIL)  # what was recorded of it comes as a trial of its own
        return settings

    def _copy_new(self, batch: int) -> None:
        """Into the copy go the trials that are not there yet, those of this process's own batch left out."""
        for trial in self._finished():
            told = trial.user_attrs[ATTRIBUTE]
            if trial.number not in self._known and not (told["salt"] == self.salt and told["batch"] >= batch):
                self._copy.add_trial(trial)
                self._known.add(trial.number)

    def record(self, space: Space, params: Params, quick: Quick, place: tuple[int, int, int]) -> None:
        """A finished trial; `place` is its batch, its number there, and how many the batch has."""
        from optuna.trial import create_trial

        batch, index, of = place
        axes = {**space.common, **space.axes(params["kind"])}
        told = {"salt": self.salt, "batch": batch, "index": index, "of": of, "quick": quick.to_json()}
        self.study.add_trial(
            create_trial(
                params=dict(params), distributions={name: _distribution(axes[name]) for name in params}, values=list(quick.costs),
                user_attrs={ATTRIBUTE: told}, constraints=self.limits.violations(quick),
            )
        )  # fmt: skip

    def close(self) -> None:
        """Nothing is held in a file beside the database any more."""
        self.storage.remove_session()
        self.storage.engine.dispose()

    def importance(self, cost: int) -> dict[str, float]:
        """How much of the spread of one cost each axis explains (PED-ANOVA), largest first; empty where there are too few trials."""
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        try:
            with _quiet():
                return get_param_importances(
                    self.study, evaluator=PedAnovaImportanceEvaluator(), target=lambda trial: trial.values[cost], params=_shared_names(self._finished())
                )
        except (ValueError, RuntimeError):
            return {}


def study_url(storage: str | None, folder: Path) -> str:
    """The storage of a study: the one that was named, or a file in a folder."""
    return storage or f"sqlite:///{(folder / DATABASE).absolute()}"


def _storage(url: str) -> optuna.storages.RDBStorage:
    """Raises DataError, in one sentence, where there is no such storage."""
    import optuna
    from sqlalchemy import event
    from sqlalchemy.exc import SQLAlchemyError

    try:
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None)
    except (SQLAlchemyError, ImportError, ValueError, RuntimeError, optuna.exceptions.OptunaError) as error:
        raise DataError(f"The storage {url} cannot be used: {str(error).splitlines()[0]}; name one such as sqlite:///study.db.") from error
    if url.startswith("sqlite"):

        @event.listens_for(storage.engine, "connect")
        def _fast(connection: Any, _: Any) -> None:
            # A killed process loses nothing by this: what it wrote is the system's by then.
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=OFF")

        storage.engine.dispose()
        storage.scoped_session.remove()
    return storage


def _opened(storage: optuna.storages.RDBStorage, name: str, costs: Sequence[str]) -> tuple[optuna.Study, bool]:
    """The study of that name, and whether this process began it."""
    import optuna

    try:
        study = optuna.create_study(storage=storage, study_name=name, directions=["minimize"] * len(costs))
    except optuna.exceptions.DuplicatedStudyError:
        return optuna.load_study(storage=storage, study_name=name), False
    with _quiet():
        study.set_metric_names(list(costs))
    return study, True


def _recorded(trial: optuna.trial.FrozenTrial) -> Recorded | None:
    told = trial.user_attrs[ATTRIBUTE]
    quick = Quick(**{**told["quick"], "best": tuple(told["quick"]["best"])})
    return Recorded(trial.number, dict(trial.params), quick, (told["salt"], told["batch"]))


def _suggested(trial: optuna.Trial, name: str, axis: Axis) -> Any:
    if axis.choices:
        return trial.suggest_categorical(name, axis.choices)
    if isinstance(axis.step, int) or float(axis.step).is_integer():
        return trial.suggest_int(name, int(axis.low), int(axis.high))
    return round(trial.suggest_float(name, axis.low, axis.high, step=axis.step), 6)


def _distribution(axis: Axis) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.choices:
        return CategoricalDistribution(axis.choices)
    if float(axis.step).is_integer():
        return IntDistribution(int(axis.low), int(axis.high))
    return FloatDistribution(axis.low, axis.high, step=axis.step)


def _shared_names(trials: Sequence[optuna.trial.FrozenTrial]) -> list[str]:
    """The axes that every trial along a direction has: what other trials lack of them tells nothing."""
    known = [set(trial.params) for trial in trials if "estimator" in trial.params]
    return sorted(set.intersection(*known)) if known else []


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's notes, on what it calls experimental and the like, are not for users of this package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

