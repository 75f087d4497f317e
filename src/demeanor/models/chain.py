"""The blocks of a model whose weights are on disk, and what each of them is called with for a batch, told without running any.

Blocks are replaced by what hands the stream on as it is. What else a block is given (masks, rotary positions) then comes out of one
pass, with only the embedding read. Nothing is concluded from a name: two such passes, with different streams, must give every block
the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AccountingError, ModelError
from ..structure.blocks import UNABLE, outermost
from ..structure.calls import STREAM, returned
from .shell import Shell

BESIDE = "what stands beside the stream"
SHARED = (dict, list, set)  # what blocks may hand each other something in


@dataclass(frozen=True)
class Given:
    """What a block is given besides the stream; by_keyword: whether the stream comes by its keyword."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_keyword: bool

    def call(self, block: nn.Module, stream: Tensor) -> Any:
        """All that the block returns."""
        return block(**{STREAM: stream}, **self.kwargs) if self.by_keyword else block(stream, *self.args, **self.kwargs)

    def run(self, block: nn.Module, stream: Tensor) -> Tensor:
        """What the block makes of the stream. Raises ModelError where it cannot be run by itself."""
        try:
            out = self.call(block, stream)
        except UNABLE as error:
            raise ModelError(f"its blocks could not be run one by one ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from error
        passed = returned(out)
        if not isinstance(passed, Tensor):
            raise ModelError(f"its blocks return a value of type {type(passed).__name__} and no stream")
        return passed


@dataclass(frozen=True)
class Begun:
    """A batch as it comes to the first block: its stream, and what every block is given besides."""

    stream: Tensor
    given: tuple[Given, ...]

    @property
    def hands_on(self) -> bool:
        """Whether blocks may leave something for each other besides the stream, in what all of them are given."""
        return any(isinstance(value, SHARED) or not _plain(value) for one in self.given for value in (*one.args, *one.kwargs.values()))


class _First(Exception):
    """A block was called."""

    def __init__(self, block: nn.Module, given: Given, stream: Tensor) -> None:
        super().__init__()
        self.block, self.given, self.stream = block, given, stream


class Chain:
    """The blocks that text passes, by name in order; `skipped` are those that it does not come by.

    inputs: a batch of text, to find them with; what is outside of the blocks must be read (see `outside_read`). The first block is left
    with its weights. Raises AccountingError where there is no such chain.
    """

    def __init__(self, shell: Shell, inputs: dict[str, Any]) -> None:
        self.shell, model = shell, shell.model
        self._names = {module: name for name, module in model.named_modules()}
        candidates = candidates_of(model)
        first = self._first(candidates, inputs)
        self.modules: list[nn.Module] = next(blocks for blocks in candidates if first.block in blocks)
        self._form: Callable[[Tensor, Any], Any] = self._form_of(first)
        # What is beside the stream is None in one of the two passes, and something that no block may be given in the other.
        twice = [self._passed(inputs, lambda stream: stream), self._passed(inputs, lambda stream: -0.5 * stream.flip(-2), BESIDE)]
        ran = [place for place, given in enumerate(twice[0][1]) if given is not None]
        self.skipped = tuple(self._names[block] for place, block in enumerate(self.modules) if place not in ran)
        self.modules = [self.modules[place] for place in ran]
        self.names = tuple(self._names[block] for block in self.modules)
        for name, one, other in zip(self.names, *([given for given in calls if given is not None] for _, calls in twice), strict=True):
            if not _same((one.args, one.kwargs), (other.args, other.kwargs)):
                raise AccountingError(f"{name} is given what earlier blocks made, beside the stream; this model cannot be read block by block yet.")

    def begun(self, inputs: dict[str, Any]) -> Begun:
        """A batch as it comes to the first block. What is outside of the blocks must be read (see `outside_read`)."""
        stream, calls = self._passed(inputs, lambda stream: stream)
        given = tuple(call for call in calls if call is not None)
        if len(given) != len(self.modules):
            raise AccountingError(f"Text of another length comes by other blocks of {self.shell.name}; this model cannot be read block by block yet.")
        return Begun(stream, given)

    @torch.no_grad()
    def logits(self, stream: Tensor, count: int) -> Tensor:
        """The output head's logits at the last `count` tokens [row, token, vocab], of the stream behind the last block. What is behind the blocks must be read."""

        def ended(*_: Any, **__: Any) -> Any:
            return self._form(stream, None)

        try:
            with _instead(dict.fromkeys(self.modules, ended)):  # the embedding is not read again: what comes before the last block is not used
                logits: Tensor = self.shell.model(inputs_embeds=stream, use_cache=False, logits_to_keep=count).logits
        except UNABLE as error:
            raise self._unable(error) from error
        return logits.float()

    def _first(self, candidates: Sequence[Sequence[nn.Module]], inputs: dict[str, Any]) -> _First:
        def stop(block: nn.Module) -> Callable[..., Any]:
            def called(*args: Any, **kwargs: Any) -> Any:
                raise _First(block, *_split(args, kwargs))

            return called

        try:
            with _instead({block: stop(block) for blocks in candidates for block in blocks}):
                self._run(inputs)
        except _First as first:
            return first
        raise AccountingError(f"{type(self.shell.model).__name__} has no list of blocks that pass a stream on; this model cannot be read block by block.")

    def _form_of(self, first: _First) -> Callable[[Tensor, Any], Any]:
        """How a block returns the stream: alone, or with something beside it."""
        self.shell.read(self._names[first.block])  # it stays: it is the first that is run
        try:
            with torch.no_grad():
                out = first.given.call(first.block, first.stream)
        except UNABLE as error:
            raise self._unable(error) from error
        if isinstance(out, Tensor):
            return lambda stream, beside: stream
        if not isinstance(out, tuple):
            raise AccountingError(f"{self._names[first.block]} returns a value of type {type(out).__name__}; this model cannot be read block by block yet.")
        return lambda stream, beside: (stream, *[beside] * (len(out) - 1))

    @torch.no_grad()
    def _passed(self, inputs: dict[str, Any], change: Callable[[Tensor], Tensor], beside: Any = None) -> tuple[Tensor, list[Given | None]]:
        """The stream as the first block gets it, and what each block is given; none of them does more to it than `change`, and all hand on
        `beside` where they have more than a stream to return."""
        calls: list[Given | None] = [None] * len(self.modules)
        came: list[Tensor] = []
        handed: list[Tensor] = []  # the last stream that was handed on

        def instead(place: int) -> Callable[..., Any]:
            def called(*args: Any, **kwargs: Any) -> Any:
                given, stream = _split(args, kwargs)
                name = self._names[self.modules[place]]
                if calls[place] is not None:
                    raise AccountingError(f"{name} runs more than once in one pass (layers in a loop); this model cannot be read block by block.")
                if handed and not torch.equal(stream, handed.pop()):
                    raise AccountingError(f"The stream is changed before {name}; this model cannot be read block by block.")
                calls[place] = given
                if not came:
                    came.append(stream.clone())
                changed = change(stream)
                handed.append(changed.clone())
                return self._form(changed, beside)

            return called

        with _instead({block: instead(place) for place, block in enumerate(self.modules)}):
            self._run(inputs)
        return came[0], calls

    def _run(self, inputs: dict[str, Any]) -> None:
        try:
            with torch.no_grad():
                self.shell.model.base_model(**inputs)
        except UNABLE as error:
            raise self._unable(error) from error

    def _unable(self, error: BaseException) -> AccountingError:
        said = " ".join(str(error).split())[:200]
        return AccountingError(f"{self.shell.name} could not be run in parts ({type(error).__name__}: {said}); this model cannot be read block by block yet.")


def candidates_of(model: Any) -> list[list[nn.Module]]:
    """Lists of modules that may be the blocks: as many as the configuration has layers, or where none has, the outermost ones."""
    lists = outermost([list(module) for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)])
    n_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    return [blocks for blocks in lists if len(blocks) == n_layers] or [blocks for blocks in lists if len(blocks) > 1]


@contextmanager
def outside_read(shell: Shell) -> Iterator[None]:
    """Modules outside of the blocks get the weights that they hold themselves when they are first called; all of them go when the context ends."""
    inside = {module for blocks in candidates_of(shell.model) for block in blocks for module in block.modules()}
    read: list[str] = []

    def before(name: str) -> Callable[..., None]:
        def reading(*_: Any) -> None:
            if name not in read:
                read.append(name)
                shell.read(name, recurse=False)

        return reading

    handles = [module.register_forward_pre_hook(before(name)) for name, module in shell.model.named_modules() if module not in inside]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name in read:
            shell.drop(name, recurse=False)


@contextmanager
def _instead(calls: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Other functions in the place of what modules compute."""
    own = {module: vars(module).get("forward") for module in calls}
    try:
        for module, call in calls.items():
            module.forward = call
        yield
    finally:
        for module, forward in own.items():
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Given, Tensor]:
    """What a block is given besides the stream, and the stream."""
    by_keyword = not args
    stream = kwargs.get(STREAM) if by_keyword else args[0]
    if not isinstance(stream, Tensor):
        raise AccountingError(f"A block is given a value of type {type(stream).__name__} and no stream; this model cannot be read block by block yet.")
    rest = {key: value for key, value in kwargs.items() if not (by_keyword and key == STREAM)}
    return Given(args[1:], rest, by_keyword), stream


def _plain(value: Any) -> bool:
    """Whether nothing can be left in a value: a tensor, a number, or some of them together."""
    if isinstance(value, tuple):
        return all(_plain(part) for part in value)
    return value is None or isinstance(value, Tensor | bool | int | float | str | torch.dtype | torch.device)


def _same(one: Any, other: Any) -> bool:
    """Whether two values are alike, the tensors in them in every number."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, tuple | list) and type(one) is type(other):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if _plain(one) or isinstance(one, set | frozenset):
        return type(one) is type(other) and bool(one == other)
    return type(one) is type(other)  # nothing is known of how such a thing is compared
