"""Weights that are stored in few bits with scales beside them: what each form looks like in the files.

FP8 (e4m3) in blocks, per channel or per tensor; MXFP4 of gpt-oss (`_blocks`, `_scales`) and of single weights; NVFP4 of ModelOpt and of
compressed-tensors; whole numbers of compressed-tensors (4 and 8 bits).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import ModelError
from ..io.checkpoint import Checkpoint, Stored

Scaling = Literal["times", "divided"]  # by what lies beside the scales, for all of a tensor
FP8, FP4, INT4, INT8 = "FP8", "FP4", "INT4", "INT8"
OTHERS = {"qweight": "GPTQ or AWQ", "weight_zero_point": "whole numbers with zero points", "weight_g_idx": "whole numbers in a changed order", "absmax": "bitsandbytes"}
EXPONENTS = ("F8_E8M0", "U8")
SCALES = ("F32", "F16", "BF16", "F8_E4M3")


@dataclass(frozen=True)
class Packed:
    """How one weight lies in the files.

    codes, scales: names of tensors; overall: one more scale, of the whole tensor. kind: what the codes mean. shape: of the weight,
    [out, in], or [experts, out, in] where `turned` says that the model has it as [experts, in, out].
    """

    form: str
    kind: str
    codes: str
    scales: str
    shape: tuple[int, ...]
    overall: str | None = None
    scaling: Scaling = "times"
    turned: bool = False

    @property
    def per_byte(self) -> int:
        return 2 if self.kind in (FP4, INT4) else 1


def unpacked(source: Checkpoint) -> tuple[Checkpoint, dict[str, Packed]]:
    """The checkpoint as the model has it, every packed weight one tensor by its own name and shape; and how those lie in the files.

    A form that is not known stays as it is; `refuse_form` names it where it is to be edited.
    """
    found: dict[str, Packed] = {}
    beside: set[str] = set()
    for key in source.tensors:
        name, packed = _recognised(key, source.tensors)
        if packed is not None:
            found[name] = packed
            beside |= {packed.codes, packed.scales} | ({packed.overall} if packed.overall else set())
    tensors = {key: stored for key, stored in source.tensors.items() if key not in beside}
    for name, packed in found.items():
        shape = (packed.shape[0], packed.shape[2], packed.shape[1]) if packed.turned else packed.shape
        tensors[name] = replace(source.tensors[packed.codes], dtype=packed.form, shape=shape)
    return replace(source, tensors=tensors), found


def _recognised(key: str, held: Mapping[str, Stored]) -> tuple[str, Packed | None]:
    """The weight whose codes are the tensor `key`, by its name in the model; None where `key` is no codes of a known form."""
    stored = held[key]
    rows, columns = stored.shape[:-1], stored.shape[-1] if stored.shape else 0
    stem = key.removesuffix("_packed").removesuffix("_blocks")
    scales = {end: f"{stem}{end}" for end in ("_scale_inv", "_scale", "_scales") if f"{stem}{end}" in held}
    if key.endswith(".weight") and f"{key.removesuffix('.weight')}.scale" in held:
        scales["scale"] = f"{key.removesuffix('.weight')}.scale"
    if not scales or any(f"{stem.removesuffix('.weight')}.{other}" in held for other in OTHERS):
        return key, None
    by = next(iter(scales.values()))
    exponents = held[by].dtype in EXPONENTS
    overall = next((name for end in ("_global_scale", "_scale_2") if (name := f"{stem}{end}") in held), None)
    wide = (*rows, 2 * columns)
    if stored.dtype == "F8_E4M3":
        return stem, Packed("FP8", FP8, key, by, stored.shape)
    if key.endswith("_blocks") and stored.dtype == "U8" and len(stored.shape) == 4:
        count, out, blocks, half = stored.shape
        return stem, Packed("MXFP4", FP4, key, by, (count, out, 2 * blocks * half), turned=True)
    if stored.dtype in ("U8", "I8") and exponents:
        return stem, Packed("MXFP4", FP4, key, by, wide)
    if stored.dtype == "U8" and overall is not None:
        return stem, Packed("NVFP4", FP4, key, by, wide, overall, "divided" if overall.endswith("_global_scale") else "times")
    if stored.dtype == "I32" and key.endswith("_packed"):
        return stem, Packed("INT4", INT4, key, by, (*rows, 8 * columns))
    if stored.dtype == "I8":
        return stem, Packed("INT8", INT8, key, by, stored.shape)
    return key, None


def refuse_form(source: Checkpoint, name: str) -> None:
    """Raises ModelError for a weight that lies in the files in a form that is not known, and names the form."""
    module = name.removesuffix(".weight")
    seen = next((told for end, told in OTHERS.items() if any(key.startswith(f"{module}.") and key.endswith(end) for key in source.tensors)), None)
    method = source.section("quantization_config").get("quant_method")
    stored = source.tensors.get(name)
    form = seen or method or (stored.dtype if stored else None)
    if form and (seen or method or (stored and stored.dtype not in SCALES)):
        raise ModelError(f"{name} in {source.folder} is stored as {form}, which cannot be edited exactly; use an unquantised copy, or one in FP8, MXFP4, NVFP4 or int4.")
