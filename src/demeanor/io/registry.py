"""What others may bring, by name: registered here, by an entry point of an installed package, or in a Python file.

A registry holds functions of one kind with what each says of itself (its traits), so that no caller asks for a name.
`path.py:name` is `name` in that file. A file is loaded once, under a module name of its own, and stays as it was loaded
while the program runs: a file that changes under a long run would change what is measured half-way.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from ..errors import DataError, did_you_mean
from ..progress import warn
from .claims import refuse_output

Factory = TypeVar("Factory", bound=Callable[..., Any])
Registered = TypeVar("Registered", bound=Callable[..., Any])
Traits = TypeVar("Traits")
OWN = __name__.partition(".")[0]  # the package whose names nobody else may take
# What the import of a foreign module may end in; a mistake in it must not stop what does not need it.
UNLOADABLE = (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, LookupError, OSError, RuntimeError)

_LOADING = threading.RLock()


@dataclass(frozen=True)
class Record(Generic[Factory, Traits]):
    """A function under its name, what it says of itself, and where it came from."""

    name: str
    factory: Factory
    traits: Traits
    origin: str


class Registry(Generic[Factory, Traits]):
    """Functions of one kind (`noun`), those of the entry point group `group` among them; `plain` are the traits of one that tells none."""

    def __init__(self, noun: str, group: str, plain: Traits) -> None:
        self.noun, self.group, self.plain = noun, group, plain
        self._records: dict[str, Record[Factory, Traits]] = {}
        self._declared: list[tuple[Callable[..., Any], Traits]] = []
        self._installed: dict[str, Record[Factory, Traits]] = {}
        self._left_out: set[str] = set()

    def register(self, name: str, traits: Traits) -> Callable[[Registered], Registered]:
        """A decorator that keeps a function under a name; the latest of a name counts. DataError for a name that is taken here."""
        if not isinstance(name, str):
            raise DataError(f'A decorated {self.noun} needs a name: write @{self.noun}("NAME").')

        def kept(factory: Registered) -> Registered:
            origin = _module_name(factory)
            if origin != OWN and self._is_own(name):
                raise DataError(f"The {self.noun} {name!r} is one of {OWN}'s own; give the one in {origin} another name.")
            self._declared.append((factory, traits))
            self._records[name] = Record(name, factory, traits, origin)  # type: ignore[arg-type]
            return factory

        return kept

    def named(self, name: str) -> Record[Factory, Traits]:
        """What a name stands for. Raises DataError where there is none, or where its file or its package cannot be used."""
        if name in self._records:
            return self._records[name]
        in_file = file_and_name(name)
        if in_file is not None:
            return self._record(name, _defined(*in_file, what=f"The {self.noun} {name!r}"), f"the file {in_file[0]}")
        if name not in self._installed:
            self._installed[name] = self._from_package(name)
        return self._installed[name]

    def own_names(self) -> tuple[str, ...]:
        """The names that come with the package, in the order in which they were registered."""
        return tuple(name for name in self._records if self._is_own(name))

    def names(self) -> tuple[str, ...]:
        """All names but those of files; nothing is loaded for it."""
        return tuple(dict.fromkeys([*self._records, *(point.name for point in self._entry_points())]))

    def every(self) -> tuple[Record[Factory, Traits], ...]:
        """All but those in files. What a package brings and cannot be used is told, once, and left out."""
        for point in self._entry_points():
            if self._is_own(point.name):
                self._leave_out(f"the package {_package(point)} brings the {self.noun} {point.name!r}, a name that is {OWN}'s own.")
        records = []
        for name in self.names():
            try:
                records.append(self.named(name))
            except DataError as error:
                self._leave_out(str(error))
        return tuple(records)

    def _is_own(self, name: str) -> bool:
        return name in self._records and self._records[name].origin == OWN

    def _leave_out(self, reason: str) -> None:
        if reason not in self._left_out:
            warn(f"Left out: {reason}")
        self._left_out.add(reason)

    def _entry_points(self) -> Iterable[importlib.metadata.EntryPoint]:
        return importlib.metadata.entry_points(group=self.group)

    def _from_package(self, name: str) -> Record[Factory, Traits]:
        points = [point for point in self._entry_points() if point.name == name]
        if not points:
            raise DataError(self._unknown(name))
        packages = " and ".join(sorted(_package(point) for point in points))
        what = f"The {self.noun} {name!r} of the package {packages}"
        if len(points) > 1:
            raise DataError(
                f"{what} is there more than once; uninstall all packages but one, or name a function in a file as FILE.py:NAME."
            )
        try:
            brought = points[0].load()
        except UNLOADABLE as error:
            raise DataError(f"{what} cannot be loaded ({type(error).__name__}: {error}); mend or uninstall that package.") from error
        return self._record(name, _called(brought, what), f"the package {packages}")

    def _record(self, name: str, factory: Any, origin: str) -> Record[Factory, Traits]:
        declared = (traits for known, traits in reversed(self._declared) if known is factory)
        return Record(name, factory, next(declared, self.plain), origin)

    def _unknown(self, name: str) -> str:
        if name.endswith((".py", ".py:")):
            return f"{name!r} names a file and not what is in it; write {name.rstrip(':')}:NAME for the {self.noun} NAME."
        known = self.names()
        return f"There is no {self.noun} {name!r}{did_you_mean(name, known)}; the {self.noun}s are {', '.join(sorted(known))}."


def file_and_name(text: str) -> tuple[Path, str] | None:
    """The parts of `path.py:name`; None for a text that is not of that form."""
    file, _, name = text.rpartition(":")
    return (Path(file), name) if file.endswith(".py") and name else None


def misfit(function: Callable[..., Any], *arguments: Any, **named: Any) -> str | None:
    """Why a function cannot be called with these arguments; None where it can. It is not called, so what it does itself is not hidden."""
    try:
        inspect.signature(function).bind(*arguments, **named)
    except ValueError:  # of some that are not written in Python nothing is known
        return None
    except TypeError as error:
        return str(error)
    return None


def _defined(file: Path, name: str, what: str) -> Any:
    """What a file calls by a name, which can be called."""
    if not file.is_file():
        raise DataError(
            f"{what} names a file that is not there: {file}; a path is relative to the behaviour file, or to the current folder."
        )
    module = _module(file)
    if name not in vars(module):
        callables = [other for other, value in vars(module).items() if callable(value) and inspect.getmodule(value) is module]
        holds = f"it defines {', '.join(callables)}" if callables else "it defines nothing that can be called"
        raise DataError(f"{what} is not in that file{did_you_mean(name, callables)}; {holds}.")
    return _called(vars(module)[name], what)


def _called(value: Any, what: str) -> Any:
    if not callable(value):
        raise DataError(f"{what} is of type {type(value).__name__} and cannot be called; name a function or a class.")
    return value


def _module(file: Path) -> ModuleType:
    """A file as a module; what goes wrong in it is told as Python tells it."""
    path = file.resolve()
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    with _LOADING, ExitStack() as unfinished:
        if name in sys.modules:
            return sys.modules[name]
        refuse_output(path)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None  # a .py file has a loader
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # data classes look their module up there
        unfinished.callback(sys.modules.pop, name)
        spec.loader.exec_module(module)
        unfinished.pop_all()
    return module


def _module_name(value: Any) -> str:
    """The package or file that a function or class was written in."""
    module = inspect.getmodule(value)
    return "?" if module is None else module.__name__.partition(".")[0]


def _package(point: importlib.metadata.EntryPoint) -> str:
    return "?" if point.dist is None else point.dist.name
