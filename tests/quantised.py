"""Model folders in few bits, written and read number by number as the formats say: the slow reference of what a bake does to them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
Tensors = Mapping[str, Tensor]


def _fp4(values: Tensor) -> Tensor:
    """The nearest codes, two in a byte, the first in its low half."""
    codes = (values[..., None] - E2M1).abs().argmin(-1).to(torch.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4


def _of_fp4(packed: Tensor) -> Tensor:
    return E2M1[torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()]


def fp8_blocks(name: str, w: Tensor) -> dict[str, Tensor]:
    rows, columns = (-(-size // 128) for size in w.shape)
    padded = torch.zeros(rows * 128, columns * 128)
    padded[: w.shape[0], : w.shape[1]] = w
    scales = padded.abs().view(rows, 128, columns, 128).amax((1, 3)) / 448
    spread = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[: w.shape[0], : w.shape[1]]
    return {name: (w / spread).to(torch.float8_e4m3fn), f"{name}_scale_inv": scales}


def of_fp8_blocks(name: str, held: Tensors) -> Tensor:
    w = held[name].float()
    return w * held[f"{name}_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)[: w.shape[0], : w.shape[1]]


def fp8_tensor(name: str, w: Tensor) -> dict[str, Tensor]:
    scale = w.abs().max() / 448
    return {name: (w / scale).to(torch.float8_e4m3fn), f"{name}_scale": scale.reshape(1)}


def of_fp8_tensor(name: str, held: Tensors) -> Tensor:
    return held[name].float() * held[f"{name}_scale"]


def mxfp4(name: str, w: Tensor) -> dict[str, Tensor]:
    blocks = w.view(len(w), -1, 32)
    exponents = (blocks.abs().amax(-1).clamp_min(1e-30).log2().floor() - 2).clamp(-127, 127)
    codes = _fp4((blocks / exponents.exp2()[..., None]).flatten(1)).view(torch.int8)
    return {name: codes, f"{name.removesuffix('.weight')}.scale": (exponents + 127).to(torch.uint8).view(torch.float8_e8m0fnu)}


def of_mxfp4(name: str, held: Tensors) -> Tensor:
    scales = (held[f"{name.removesuffix('.weight')}.scale"].view(torch.uint8).float() - 127).exp2()
    return _of_fp4(held[name].view(torch.uint8)) * scales.repeat_interleave(32, 1)


def nvfp4(name: str, w: Tensor) -> dict[str, Tensor]:
    most = w.abs().view(len(w), -1, 16).amax(-1) / 6
    overall = most.max() / 448
    scales = (most / overall).to(torch.float8_e4m3fn)
    codes = _fp4(w / (scales.float() * overall).clamp_min(1e-12).repeat_interleave(16, 1))
    return {name: codes, f"{name}_scale": scales, f"{name}_scale_2": overall}


def of_nvfp4(name: str, held: Tensors) -> Tensor:
    return _of_fp4(held[name]) * held[f"{name}_scale"].float().repeat_interleave(16, 1) * held[f"{name}_scale_2"]


def nvfp4_compressed(name: str, w: Tensor) -> dict[str, Tensor]:
    held = nvfp4(name, w)
    return {f"{name}_packed": held[name], f"{name}_scale": held[f"{name}_scale"], f"{name}_global_scale": 1 / held[f"{name}_scale_2"].reshape(1)}


def of_nvfp4_compressed(name: str, held: Tensors) -> Tensor:
    return _of_fp4(held[f"{name}_packed"]) * held[f"{name}_scale"].float().repeat_interleave(16, 1) / held[f"{name}_global_scale"]


def int4(name: str, w: Tensor) -> dict[str, Tensor]:
    scales = (w.abs().view(len(w), -1, 32).amax(-1) / 7.5).bfloat16()
    codes = (w / scales.float().repeat_interleave(32, 1)).round().clamp(-8, 7).long() + 8
    words = sum(codes[:, place::8] << 4 * place for place in range(8))
    assert isinstance(words, Tensor)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words).int()
    return {f"{name}_packed": words, f"{name}_scale": scales, f"{name}_shape": torch.tensor(w.shape)}


def of_int4(name: str, held: Tensors) -> Tensor:
    words = held[f"{name}_packed"].long() & 0xFFFFFFFF
    codes = torch.stack([(words >> 4 * place) & 15 for place in range(8)], -1).flatten(1)
    return (codes.float() - 8) * held[f"{name}_scale"].float().repeat_interleave(32, 1)


FORMS: dict[str, tuple[Callable[[str, Tensor], dict[str, Tensor]], Callable[[str, Tensors], Tensor], str]] = {
    "FP8 in blocks": (fp8_blocks, of_fp8_blocks, "fp8"),
    "FP8 per tensor": (fp8_tensor, of_fp8_tensor, "modelopt"),
    "MXFP4": (mxfp4, of_mxfp4, "fp8"),
    "NVFP4 of ModelOpt": (nvfp4, of_nvfp4, "modelopt"),
    "NVFP4 of compressed-tensors": (nvfp4_compressed, of_nvfp4_compressed, "compressed-tensors"),
    "INT4 of compressed-tensors": (int4, of_int4, "compressed-tensors"),
}


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def packed_names(held: Tensors) -> list[str]:
    """The weights that such models hold in few bits: linear layers of the blocks."""
    return [name for name, tensor in held.items() if ".layers." in name and name.endswith("_proj.weight") and tensor.dim() == 2]


def pack(source: Path, folder: Path, form: str) -> Path:
    """A copy of a model folder with its linear layers in a form."""
    packing, _, method = FORMS[form]
    shutil.copytree(source, folder)
    held = tensors_of(folder)
    for name in packed_names(held):
        held |= packing(name, held.pop(name).float())
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
    return folder


def unpack(packed: Path, plain: Path, folder: Path, form: str) -> Path:
    """A copy of a model folder with its linear layers in float32, as plain transformers loads it. plain: the model before it was packed."""
    unpacking = FORMS[form][1]
    shutil.copytree(packed, folder)
    held, names = tensors_of(packed), packed_names(tensors_of(plain))
    values = {name: unpacking(name, held) for name in names}
    rest = {name: tensor for name, tensor in held.items() if not any(name.startswith(one.removesuffix(".weight") + ".") for one in names)}
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_file({name: tensor.float().contiguous() for name, tensor in {**rest, **values}.items()}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32", "torch_dtype": "float32"}))
    return folder
