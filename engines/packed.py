"""`python -m engines.packed --llama PYTHON`: whole GGUF files with an edit in them, by the type of the file and of what is edited, as files and in llama.cpp.

SmolLM2 is packed by llama.cpp's own quantiser in each type (where a matrix is too narrow for it, in the one that llama.cpp takes instead), a direction is taken out at every writer, and
each result is compared with that whose edited tensors are float32, in llama.cpp. Prints one JSON line a file. Answers are kept, so that the same command goes on where it was ended.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter, dequantize
from torch import Tensor

import demeanor as dm
from demeanor.algebra.bases import orthonormal
from demeanor.algebra.rounding import Grid
from demeanor.controls import Control
from demeanor.io.gguf_codes import BLOCKS
from demeanor.io.gguf_writing import EMBEDDING, Values, copy_header

from .compare import distance
from .prepare import Prepared, model_file, prepare, write_all_f32, write_order

TYPES = ("Q8_0", "Q6_K", "Q5_1", "Q4_K", "Q4_1", "Q4_0")
TOO_NARROW = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # as llama.cpp does
FORMS = ("f32", "f16", "q8_0", "stored")
HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m engines.packed", description=__doc__)
    parser.add_argument("--llama", required=True, help="Python of the environment of llama.cpp")
    parser.add_argument("--out", type=Path, default=Path("runs/packed").resolve(), help="where files and answers are kept")
    parser.add_argument("--types", nargs="+", default=TYPES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    prepared = prepare(options.out)
    controls = {1: prepared.controls["ablate"], 4: four(prepared.controls["ablate"])}
    if not (prepared / "plain.gguf").is_file():
        write_all_f32(Values(model_file()), prepared / "plain.gguf")
    for kind in options.types:
        source = pack(prepared / "plain.gguf", prepared / f"{kind}.gguf", kind, library(options.llama))
        told = exported(prepared, kind, source, controls)
        answer(prepared, kind, options.llama)
        for name, line in told.items():
            print(json.dumps({"file": kind, "edited": name, **line, **beside(prepared, kind, name)}), flush=True)


def four(control: Control) -> Control:
    """The same with three random directions beside: what there is of those in a matrix is what chance has, the hardest to keep out."""
    found, random = control.parts[0].vectors, torch.randn(3, control.layout.d_model, generator=torch.Generator().manual_seed(0))
    return replace(control, parts=(replace(control.parts[0], vectors=orthonormal(torch.cat([found, random]).double()).to(found)),))


def library(python: str) -> Any:
    command = [python, "-c", "import xllamacpp; print(xllamacpp.__path__[0])"]
    place = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    loaded = ctypes.CDLL(str(next(Path(place).glob("*.so"))))
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    loaded.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return loaded


def pack(plain: Path, path: Path, kind: str, by: Any) -> Path:
    """The file with every matrix in a type, packed by llama.cpp."""
    if path.is_file():
        return path
    source, work = Values(plain), path.with_suffix(".part")
    writer: Any = GGUFWriter(work, source.architecture)
    copy_header(source, writer)
    for name, tensor in source.tensors.items():
        values = np.ascontiguousarray(tensor.data)
        if values.ndim < 2:
            writer.add_tensor(name, values)
            continue
        used = GGMLQuantizationType[kind if values.shape[-1] % BLOCKS[kind].weights == 0 else TOO_NARROW[kind]]
        weights, size = GGML_QUANT_SIZES[used]
        blocks = np.empty((len(values), values.shape[-1] // weights * size), np.uint8)
        done = by.ggml_quantize_chunk(int(used), values.ctypes.data, blocks.ctypes.data, 0, len(values), values.shape[-1], None)
        assert done == blocks.nbytes
        writer.add_tensor(name, blocks, raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(work, path)
    return path


def exported(prepared: Prepared, kind: str, source: Path, controls: dict[int, Control]) -> dict[str, dict[str, Any]]:
    """Every form by its name, with what is seen in the files; each is written once."""
    kept = prepared / f"{kind}.json"
    if kept.is_file():
        told: dict[str, dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8"))
        return told
    told = {"not edited": {"bytes": source.stat().st_size}}
    session = dm.load(source, device="cpu")
    for rank, control in controls.items():
        for form in FORMS if rank == 1 else ("f32", "q8_0", "stored"):
            name = form if rank == 1 else f"{form}, rank {rank}"
            start = time.process_time()
            done = dm.export_gguf(session, control, prepared / f"{kind}-{name}.gguf", form)  # type: ignore[arg-type]
            seconds, size = time.process_time() - start, done.file.stat().st_size
            told[name] = {"bytes": size, "told": {"left": done.left, "worst_left": done.worst_left, "off": done.off}, "processor_seconds": round(seconds, 1)}
            exact = prepared / f"{kind}-{name.replace(form, 'f32')}.gguf"
            told[name].update(seen(source, exact, done.file, orthonormal(torch.cat([part.vectors for part in control.parts]).double()).float()))
    kept.write_text(json.dumps(told), encoding="utf-8")
    return told


def seen(source: Path, exact: Path, written: Path, basis: Tensor) -> dict[str, Any]:
    """In the files themselves, unpacked by the package gguf: what is left of the edit, and distances, beside the nearest codes with the scales of the source."""
    left, moved, off, nearest, shares, types = 0.0, 0.0, 0.0, 0.0, [], set()
    for was, now, wanted in tensors(source, exact, written):
        old, new, to = (unpacked(one) for one in (was, now, wanted))
        axis = -1 if was.name == EMBEDDING else 0
        along, change = ((one.movedim(axis, 0).mT @ basis.mT).square().sum() for one in (new - to, to - old))
        left, moved = left + float(along), moved + float(change)
        shares.append(float((new - to).square().sum() / (to - old).square().sum()))
        off, nearest = off + float((new - to).square().sum()), nearest + float((nearest_codes(was, old, to) - to).square().sum())
        types.add(f"{was.tensor_type.name} to {now.tensor_type.name}")
    return {
        "types": sorted(types), "left": (left / moved) ** 0.5, "off_beside_edit": float(np.mean(shares)) ** 0.5, "off_beside_nearest": (off / nearest) ** 0.5
    }


def tensors(source: Path, exact: Path, written: Path) -> Iterator[tuple[Any, Any, Any]]:
    """Every edited matrix: as it was, as it is written, as it was to be."""
    was, now, wanted = ({tensor.name: tensor for tensor in GGUFReader(file).tensors} for file in (source, written, exact))
    for name, tensor in was.items():
        if len(tensor.shape) > 1 and tensor.tensor_type != wanted[name].tensor_type:
            yield tensor, now[name], wanted[name]


def unpacked(tensor: Any) -> Tensor:
    return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())


def nearest_codes(tensor: Any, old: Tensor, wanted: Tensor) -> Tensor:
    form, rows = BLOCKS[tensor.tensor_type.name], np.asarray(tensor.data)
    grid = Grid(torch.from_numpy(form.levels), torch.from_numpy(form.scale(rows)))
    common = old - grid.values(torch.from_numpy(form.codes(rows)).int())
    return grid.values(grid.nearest(wanted - common)) + common


def answer(prepared: Prepared, kind: str, python: str) -> None:
    """What llama.cpp says with every form, and with the file itself."""
    files = {"not edited": f"{kind}.gguf", **{form: f"{kind}-{form}.gguf" for form in FORMS}}
    jobs = [{"name": f"{kind} {name}", "model": str(prepared / file)} for name, file in files.items() if not (prepared / f"{kind} {name}.npz").is_file()]
    if jobs:
        subprocess.run([python, str(HERE / "in_llama_cpp.py"), str(write_order(prepared, prepared / "order.json", jobs))], check=True)


def beside(prepared: Prepared, kind: str, name: str) -> dict[str, Any]:
    """llama.cpp's answers beside those with the edited tensors in float32: nats, root mean square of centred log-probabilities, and how often the reply is the same."""
    if not (prepared / f"{kind} {name}.npz").is_file():
        return {}
    got, wanted = (dict(np.load(prepared / f"{kind} {one}.npz")) for one in (name, "f32"))
    one = distance(got, wanted)
    centred = [row - row.mean(1, keepdims=True) for row in (got["log_probs"], wanted["log_probs"])]
    rms = float(np.sqrt(np.square(centred[0] - centred[1]).mean()))
    return {"n": one.n, "kl": one.kl, "logits_off": rms, "logits_std": float(centred[1].std()), "same_first": one.first, "same_replies": one.texts}


if __name__ == "__main__":
    main()
