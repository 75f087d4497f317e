"""Baking beside copying: a random Llama in bf16 on disk, `cp -r`, the same with the copy on the disk, load-edit-save, and bake, interleaved; the last two in this process and
as processes of their own.

`bake` ends when the result is on the disk, `cp` when it is in memory. So copies are told with the disk and without it, and bakes too: `bake, not flushed` is the same
work as `bake`, and does not wait for the disk. Prints one JSON line a way with the median of its seconds, the ratio to `cp -r` and the processor seconds of
all its threads and processes, the same of a process that imports torch and does nothing, and the peak memory of a bake in a process of its own.

    python benchmarks/bake.py --layers 20 --repeats 5        # 0.8 GB
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import random_llama
import torch
from load_edit_save import load_edit_save

import demeanor as dm
from demeanor.controls import Control, Part, Scope
from demeanor.export import shards
from demeanor.structure.layout import Layout, Weight, Writer

D_MODEL, WORDS, PER_SHARD = 1024, 32000, 6
HELD = random_llama.shapes(D_MODEL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="where the models are written; a folder that is gone afterwards unless given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, out, control = Path(folder) / "source", Path(folder) / "out", Path(folder) / "c.safetensors"
        size = save(source, options.layers)
        dm.save_control(ablation(options.layers), control)
        command = [sys.executable, "-m", "demeanor", "bake", str(source), "-c", str(control), "-o", str(out), "--no-verify"]
        other = [sys.executable, str(Path(__file__).with_name("load_edit_save.py")), str(source), str(control), str(out)]
        read = dm.load_control(control)
        # An installed program has its modules' bytecode: a first process writes what is missing of it.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        subprocess.run([*command[:3], "bake", "--help"], check=True, capture_output=True, env=environment)
        ways: dict[str, Callable[[], object]] = {
            "cp -r": lambda: subprocess.run(["cp", "-r", str(source), str(out)], check=True),
            "cp -r, sync": lambda: subprocess.run(f"cp -r {source} {out} && sync -f {out}", shell=True, check=True),
            "bake": lambda: dm.bake(source, read, out),
            "bake, not flushed": lambda: not_flushed(source, read, out),
            "import torch": lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True),
            "bake, process": lambda: subprocess.run(command, check=True, capture_output=True, env=environment),
            "load, edit, save": lambda: load_edit_save(source, control, out),
            "load, edit, save, process": lambda: subprocess.run(other, check=True, capture_output=True, env=environment),
        }
        seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(options.repeats):
            for way, run in ways.items():
                shutil.rmtree(out, ignore_errors=True)
                os.sync()
                start, used = time.perf_counter(), processor_seconds()
                run()
                seconds[way].append((time.perf_counter() - start, processor_seconds() - used))
        copied = statistics.median(wall for wall, _ in seconds["cp -r"])
        for way, times in seconds.items():
            median, used = map(statistics.median, zip(*times))
            told = {"median_s": round(median, 3), "times_cp": round(median / copied, 2), "processor_s": round(used, 3)}
            print(json.dumps({"way": way, "bytes": size, **told, "n": len(times)}))
        shutil.rmtree(out)
        measured = "import sys; from demeanor.cli import main; sys.argv[0] = 'demeanor'\ntry: main()\nexcept SystemExit: print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
        shown = subprocess.run([sys.executable, "-c", measured, *command[3:]], check=True, capture_output=True, text=True).stdout
        print(json.dumps({"way": "bake, peak memory", "MB": round(int(shown.split()[-1]) / 1024)}))  # of its own: ru_maxrss has the parent's in it


def processor_seconds() -> float:
    """Of all threads of this process, and of all that it started and that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def not_flushed(source: Path, control: Control, out: Path) -> None:
    """A bake that ends as `cp` does, when all is in memory."""
    with replaced(os, "fsync", lambda handle: None), replaced(shards, "begin_writing", lambda handle: None):
        dm.bake(source, control, out)


@contextmanager
def replaced(module: ModuleType, name: str, function: Callable[[int], None]) -> Iterator[None]:
    usual = getattr(module, name)
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, usual)


def save(folder: Path, layers: int) -> int:
    """Write the model; returns its bytes."""
    rng = torch.Generator().manual_seed(0)
    return random_llama.save(folder, layers, D_MODEL, WORDS, PER_SHARD, lambda shape: (0.02 * torch.randn(shape, generator=rng)).bfloat16())


def ablation(layers: int) -> Control:
    """One random direction out of every writer; the structure is known, so nothing is loaded to prove it."""
    writers = [Writer(module="model.embed_tokens", layer=-1, role="embed", scale=1.0, weights=(Weight("model.embed_tokens.weight", 1, (WORDS, D_MODEL)),))]
    for layer in range(layers):
        for role, name in (("attn", "self_attn.o_proj"), ("mlp", "mlp.down_proj")):
            module = f"model.layers.{layer}.{name}"
            weight = Weight(f"{module}.weight", 0, HELD[name])
            writers.append(Writer(module=module, layer=layer, role=role, scale=1.0, weights=(weight,)))  # type: ignore[arg-type]
    blocks = tuple(f"model.layers.{layer}" for layer in range(layers))
    layout = Layout(model_type="llama", d_model=D_MODEL, blocks=blocks, writers=tuple(writers), tied=None, one_name_each=True)
    basis = torch.nn.functional.normalize(torch.randn(1, D_MODEL, generator=torch.Generator().manual_seed(1)), dim=-1)
    return Control(parts=(Part(kind="ablate", vectors=basis, dose=1.0, scope=Scope()),), layout=layout, model_name="random")


if __name__ == "__main__":
    main()
