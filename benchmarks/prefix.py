"""What a trained prefix costs: tokens per second of generation with a LoRA adapter merged, with it in force, and with adaption prompts.

The model and the measuring are those of `steer.py`; the adapters are random, on every linear layer or in every attention layer.

    python benchmarks/prefix.py --rank 16
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import steer
import torch
from torch import Tensor

import demeanor as dm
from demeanor.controls import Control
from demeanor.runtime.adapter import Adapter

# At least this much of the plain speed is kept; what adaption prompts cost is told.
TARGETS: dict[str, float | None] = {"merged": 0.95, "in force": None, "adaption prompts": None}
PROMPT = 10  # states per layer


def main() -> None:
    options = steer.arguments(str(__doc__)).parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        steer.save(Path(folder) / "plain", options)
        plain = dm.load(Path(folder) / "plain", device=options.device, dtype=options.dtype)
        lora, prompts = (
            Control(parts=(), layout=plain.layout, model_name=plain.name, adapters=(adapter,)) for adapter in adapters(plain, options.rank)
        )
        dm.bake(Path(folder) / "plain", lora, Path(folder) / "merged")
        places = {"plain": "plain", "merged": "merged", "in force": "plain", "adaption prompts": "plain"}
        sessions = {way: dm.load(Path(folder) / place, device=options.device, dtype=options.dtype) for way, place in places.items()}
        stack.enter_context(sessions["in force"].controlled(lora))
        stack.enter_context(sessions["adaption prompts"].controlled(prompts))
        steer.report(sessions["plain"], steer.timed(sessions, options), options, TARGETS)


def adapters(session: dm.Session, rank: int) -> tuple[Adapter, Adapter]:
    """A random LoRA on every linear layer but the head, and random adaption prompts in every layer."""
    rng = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return 0.02 * torch.randn(*shape, generator=rng)

    linear = {name: module for name, module in session.model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"}
    lora = {name: (noise(rank, module.in_features), noise(module.out_features, rank)) for name, module in linear.items()}
    attention = [f"{block}.self_attn" for block in session.layout.blocks]
    return Adapter(low_rank=lora), Adapter(prompts={name: (noise(1, PROMPT, session.layout.d_model), noise(1)) for name in attention})


if __name__ == "__main__":
    main()
