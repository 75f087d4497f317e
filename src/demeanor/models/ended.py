"""Prompts that have passed a model on disk to its end, some of them under controls: what the output head makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ..progress import Bar
from ..runtime.batches import groups
from ..runtime.capture import one_stream
from ..runtime.control_like import ControlLike
from ..runtime.steering import Steering
from .block_major import BUDGET, BlockMajor
from .chain import Chain, outside_read
from .kept_pass import KeptPass
from .shell import Shell
from .streamed import StreamedSession


class Ended:
    """Rows of token ids behind the last block."""

    def __init__(self, chain: Chain, passed: BlockMajor, batches: Sequence[Sequence[int]], d_model: int) -> None:
        self._chain, self._passed, self._d_model = chain, passed, d_model
        self._places = {row: (number, place) for number, batch in enumerate(batches) for place, row in enumerate(batch)}

    def logits(self, row: int, count: int = 1) -> Tensor:
        """Logits at the last `count` tokens of a row: [token, vocab], float32, on the CPU."""
        stream = self._passed.kept.stream(len(self._chain.names), *self._places[row])
        return self._chain.logits(stream.to(self._passed.shell.device), count)[0].cpu()

    def stream(self, row: int) -> Tensor:
        """The stream of a row behind the last block: [token, d_model], float32, on the CPU."""
        value = self._passed.kept.stream(len(self._chain.names), *self._places[row])
        return one_stream(value, 1, self._d_model)[0].float()


class _OnDisk(Steering):
    """Edits in force in a model whose modules have no weights most of the time."""

    def __init__(self, shell: Shell, *given: object) -> None:
        self._device, self._dtype = shell.device, shell.dtype
        super().__init__(shell.model, *given)  # type: ignore[arg-type]

    def _like(self, name: str) -> Tensor:
        return torch.empty(0, device=self._device, dtype=self._dtype)


@contextmanager
def ended(session: StreamedSession, rows: Sequence[Sequence[int]], controls: Sequence[ControlLike | None], folder: Path) -> Iterator[Ended]:
    """Rows of token ids, each under its control (None: as they are), passed through the model in one pass over its files.

    The structure must be known (see `StreamedSession.layout`). folder: where the pass keeps the stream, and goes on after a kill.
    """
    shell, layout = session.shell, session.layout
    distinct = list({id(control): control for control in controls if control is not None}.values())
    slots = {id(control): number for number, control in enumerate(distinct, start=1)}
    like = layout.writers[0].weights[0].name  # of which the device is asked, and nothing else

    def tensor(name: str) -> Tensor:
        return torch.empty(0, device=shell.device) if name == like else shell.tensor(name)

    edits = [control.interventions(layout, tensor) for control in distinct]
    own = [0 if control is None else slots[id(control)] for control in controls]
    steering = _OnDisk(shell, layout, edits, own) if distinct else None
    batches = groups([len(row) for row in rows], BUDGET, alike=-1)
    passing = BlockMajor(shell, session.name, [torch.tensor([rows[row] for row in batch]) for batch in batches], KeptPass(folder), steering, batches)
    with ExitStack() as acting:
        with outside_read(shell):
            chain = Chain(shell, passing.inputs(0))  # before anything acts
            if steering is not None:
                acting.enter_context(steering.attached())
            _, done = passing.begin(chain)
        _passed(chain, passing, done)
    with outside_read(shell):
        yield Ended(chain, passing, batches, layout.d_model)


def _passed(chain: Chain, passing: BlockMajor, done: int) -> None:
    """All batches through all blocks that are left."""
    if done:
        chain.shell.drop(chain.names[0])
    with closing(Bar("Trying directions", len(chain.names))) as bar:
        for number in range(done, len(chain.names)):
            for _ in passing.through(chain, number):
                pass
            passing.kept.passed(number + 1)
            bar.to(number + 1)
