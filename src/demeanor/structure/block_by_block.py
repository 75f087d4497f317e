"""The proof of a model whose blocks are in memory one after another: the same as `proof.prove`, a block at a time.

Each block is accounted for in float64 on what it receives, as there. That the stream is changed nowhere between blocks, and that each
of them is given the same whatever the others do, is told by whoever runs them (`models/chain.py`). What is not done here is the
check over all of its depth, with a direction ablated at run time: every block is checked by itself (`finding/streamed_trials.py` does it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from ..errors import AccountingError
from .account import Account, account, build_of, like
from .blocks import UNABLE
from .layout import Writer
from .replay import Call, Replay
from .writers import Unreached

BYTES, OF_LARGEST = 8, 24  # of every number of a block, in float64; and of those of its largest weight: a gradient, and what it is compared with


def memory_of(block: nn.Module) -> int:
    """Bytes that a proof of a block takes."""
    sizes = [parameter.numel() for parameter in block.parameters()]
    return BYTES * sum(sizes) + OF_LARGEST * max(sizes, default=0)


class BlockByBlock:
    """What was found in the blocks up to now, by name. name: what the user calls the model."""

    def __init__(self, model: Any, name: str, d_model: int) -> None:
        self.model, self.name, self.d_model = model, name, d_model
        self.accounts: dict[str, Account] = {}
        self._built: dict[str, Account] = {}

    def add(self, block: nn.Module, calls: Sequence[Call]) -> None:
        """Account for the next block, which has its weights. calls: what it received and returned; the first in which tokens reach all of it is used.

        Raises AccountingError, with the model's name, for a block that cannot be accounted for.
        """
        layer, name = len(self.accounts), calls[0].name
        experts = self.model.get_experts_implementation()
        self.model.set_experts_implementation("eager")  # the fast ways of running experts know no float64
        try:
            with torch.inference_mode(False), torch.enable_grad():
                found = self._found(block, calls, layer)
        except AccountingError as error:
            raise AccountingError(f"{self.name} ({self.model.config.model_type}): {error}") from error
        except UNABLE as error:
            said = " ".join(str(error).split())[:200]
            raise AccountingError(f"{self.name} ({self.model.config.model_type}): {name} could not be run by itself ({type(error).__name__}: {said}); this model cannot be edited yet.") from error
        finally:
            self.model.set_experts_implementation(experts)
        self.recall(name, found, build_of(block))

    def recall(self, name: str, found: Account, build: str) -> None:
        """What was found in the next block earlier."""
        self.accounts[name] = found
        self._built.setdefault(build, found)

    def _found(self, block: nn.Module, calls: Sequence[Call], layer: int) -> Account:
        build = build_of(block)
        for number, call in enumerate(calls):
            if not call.out.isfinite().all():
                raise AccountingError(f"{call.name} returns values that are not numbers; use another dtype, such as --dtype float32, or download the model again.")
            found = like(self._built[build], Replay(block, call, self.d_model, None), layer) if build in self._built else None
            if found is not None:
                return found
            try:
                return account(Replay(block, call, self.d_model, None), layer)
            except Unreached:
                if number == len(calls) - 1:
                    raise
        raise AccountingError(f"{calls[0].name} was never run.")


def account_to_json(found: Account) -> dict[str, Any]:
    """What was found in a block, as JSON holds it."""
    return {"writers": [asdict(writer) for writer in found.writers], "alpha": found.alpha, "residual": found.residual}


def account_of_json(kept: dict[str, Any]) -> Account:
    return Account(TypeAdapter(tuple[Writer, ...]).validate_python(kept["writers"]), kept["alpha"], kept["residual"])
