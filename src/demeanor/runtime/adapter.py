"""An adapter as a value: what training added to a model's weights or puts beside its prompts. In force it is hooks (`adapters.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ..algebra.doses import usable_dose
from ..arrays import Array, all_finite
from ..errors import ControlError

Pair = tuple[Array, Array]
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # of PEFT's folders


@dataclass(frozen=True, eq=False, kw_only=True)
class Adapter:
    """What training added to a model, by the names of its modules; `dose` of it.

    low_rank: A [rank, in] and B [out, rank] of a linear layer, whose output gains B A x; `transposed` where such layers hold
    their weight as [in, out]. prompts: states [1, length, d_model] that an attention layer attends to besides, and how
    much of that it gains [1]. virtual_tokens: embeddings [token, d_model] read before every prompt.
    """

    low_rank: Mapping[str, Pair] = field(default_factory=dict)
    prompts: Mapping[str, Pair] = field(default_factory=dict)
    virtual_tokens: Array | None = None
    transposed: bool = False
    dose: float = 1.0

    def __post_init__(self) -> None:
        tensors = [tensor for pair in (*self.low_rank.values(), *self.prompts.values()) for tensor in pair]
        tensors += [] if self.virtual_tokens is None else [self.virtual_tokens]
        if not tensors or not all(map(all_finite, tensors)):
            raise ControlError("An adapter without tensors, or with ones that are not finite, cannot be used; train it again.")
        usable_dose(self.dose, "an adapter")
        if any(states.ndim != 3 or len(states) != 1 or gate.ndim != 1 for states, gate in self.prompts.values()):
            raise ControlError("Adaption prompts are states [1, length, d_model] and how much of them is gained [1]; save the adapter again.")
        if any(a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1] for a, b in self.low_rank.values()):
            raise ControlError("The two halves of a low-rank map do not fit each other; save the adapter again.")

    def scaled(self, dose: float) -> Adapter:
        """`dose` times what it adds. Raises ControlError for embeddings that open prompts, unless dose is 1."""
        if self.virtual_tokens is not None and dose != 1:
            raise ControlError("Embeddings that open every prompt are read or are not, so they cannot be scaled; use dose 1.")
        return replace(self, dose=self.dose * dose)

    def converted(self, convert: Callable[[Array], Array]) -> Adapter:
        """The same with its arrays as `convert` makes them."""
        low_rank, prompts = ({name: (convert(one), convert(other)) for name, (one, other) in pairs.items()} for pairs in (self.low_rank, self.prompts))
        return replace(self, low_rank=low_rank, prompts=prompts, virtual_tokens=None if self.virtual_tokens is None else convert(self.virtual_tokens))

    def bakeable(self) -> str | None:
        """None when weights can do exactly the same, else the reason why they cannot."""
        if self.prompts or self.virtual_tokens is not None:
            return "its adaption prompts or virtual_tokens embeddings are read at run time; train a LoRA adapter instead"
        return None

    def __str__(self) -> str:
        parts = []
        if self.low_rank:
            parts.append(f"LoRA (rank {max(len(a) for a, _ in self.low_rank.values())}) on {len(self.low_rank)} linear layers")
        if self.prompts:
            parts.append(f"adaption prompts in {len(self.prompts)} layers")
        if self.virtual_tokens is not None:
            parts.append(f"{len(self.virtual_tokens)} embeddings before every prompt")
        return f"{' and '.join(parts)} (dose {self.dose:g})"
