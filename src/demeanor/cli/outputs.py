"""Where results go: the options that name an output, and what a command does before its work so that the result will have a place."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Optional, get_args

import typer

from ..errors import DataError
from ..io.claims import Kind, claimed, refuse_output


@dataclass(frozen=True)
class Output:
    """Marks a parameter of a command as the name of an output; one that is a folder or a file is whichever stands there."""

    kind: Kind
    or_file: bool = False

    def of(self, target: Path) -> Kind:
        return "file" if self.or_file and target.is_file() else self.kind


Target = Annotated[Path, typer.Option("-o", "--out", help="File that the result is written to.", show_default=False), Output("file")]
MaybeTarget = Annotated[
    Optional[Path], typer.Option("-o", "--out", help="File that the result is also written to.", show_default=False), Output("file")
]
TargetFolder = Annotated[Path, typer.Option("-o", "--out", help="Folder that the result is written to.", show_default=False), Output("folder")]
Force = Annotated[bool, typer.Option("--force", help="Replace a result that stands there already; never an input, a link or a device.")]
FORCE = "force"


def claiming(function: Callable[..., None]) -> Callable[..., None]:
    """A command that claims its outputs before its work, with --force to replace results; one without outputs stays as it is.

    A command may have the parameter `force` itself, where it writes more than what is named. `reads` is a file that the
    command has read already (its plan).
    """
    signature = inspect.signature(function, eval_str=True)
    outputs = {name: output for name, parameter in signature.parameters.items() if (output := _output(parameter.annotation))}
    if not outputs:
        return function
    takes_force = FORCE in signature.parameters

    @functools.wraps(function)
    def command(*args: Any, reads: Path | None = None, **values: Any) -> None:
        force = values[FORCE] if takes_force else values.pop(FORCE)
        targets = {name: values[name] for name in outputs if values.get(name) is not None}
        if len({target.absolute() for target in targets.values()}) < len(targets):
            raise DataError("Two outputs have the same name; give each its own.")
        with ExitStack() as claims:
            for name, target in targets.items():
                claims.enter_context(claimed(target, outputs[name].of(target), replaces=force))
            if reads is not None:
                refuse_output(reads)
            function(*args, **values)

    added = [] if takes_force else [inspect.Parameter(FORCE, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Force)]
    extended = signature.replace(parameters=[*signature.parameters.values(), *added])
    command.__signature__ = extended  # type: ignore[attr-defined]
    command.__annotations__ = {name: parameter.annotation for name, parameter in extended.parameters.items()}
    return command


def _output(annotation: Any) -> Output | None:
    return next((mark for mark in get_args(annotation)[1:] if isinstance(mark, Output)), None)
