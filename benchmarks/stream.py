"""Finding a direction of a model larger than a limit on memory: a random Llama in bf16 on disk, its files read and nothing else, and `find --stream`.

Both begin with none of the files in the system's cache. The limit is on the address space of the process, libraries included. Prints one JSON line a way with the
median of its seconds, and of `find` the bytes that were read for each byte of the files, by the command's own count and by the kernel's, and its peak memory.

    python benchmarks/stream.py --layers 90 --limit 4     # 12.1 GB under 4 GB
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import random_llama
import torch

from demeanor.models.loading import resolve

WORDS, PER_SHARD = 1200, 8  # words of the embedded model's tokenizer, which the random one borrows
MEASURED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(float(sys.argv[1]) * 2**30),) * 2)
from demeanor.cli import main
sys.argv = ["demeanor", *sys.argv[2:]]
try:
    main()
except SystemExit as end:
    status, io = open("/proc/self/status").read(), open("/proc/self/io").read()
    print("VmHWM", status.split("VmHWM:")[1].split()[0], "VmPeak", status.split("VmPeak:")[1].split()[0], "read", io.split("read_bytes:")[1].split()[0], file=sys.stderr)
    raise
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--d-model", type=int, default=2048)
    parser.add_argument("--limit", type=float, default=4.0, help="GiB of address space")
    parser.add_argument("--prompts", type=int, default=24, help="of each set; a quarter of them is left out as test")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", help="where the model is written; a folder that is gone afterwards unless given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, sets = Path(folder) / "source", behaviour(Path(folder), options.prompts)
        size = save(source, options.layers, options.d_model)
        seconds: dict[str, list[float]] = {"read": [], "find --stream": []}
        for _ in range(options.repeats):
            forget(source)
            start = time.perf_counter()
            read(source)
            seconds["read"].append(time.perf_counter() - start)
            forget(source)
            words = ["find", str(source), "-b", str(sets), "--stream", "--device", "cpu", "--json", "-o", str(Path(folder) / "d.safetensors")]
            start = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", MEASURED, str(options.limit), *words], capture_output=True, text=True, check=False)
            seconds["find --stream"].append(time.perf_counter() - start)
            if done.returncode:
                sys.exit(done.stderr)
        print(done.stderr, file=sys.stderr)
        alone, told = statistics.median(seconds["read"]), dict(zip(*[iter(done.stderr.split()[-6:])] * 2))
        print(json.dumps({"way": "read", "bytes": size, "median_s": round(alone, 1), "n": options.repeats}))
        found, median = json.loads(done.stdout), statistics.median(seconds["find --stream"])
        print(json.dumps({
            "way": "find --stream", "limit_GiB": options.limit, "median_s": round(median, 1), "times_read": round(median / alone, 1), "n": options.repeats,
            "read_by_count": round(found["bytes read, of the files"], 4), "read_by_kernel": round(int(told["read"]) / size, 4),
            "peak_resident_MB": round(int(told["VmHWM"]) / 1024), "peak_address_space_MB": round(int(told["VmPeak"]) / 1024), "prompts": found["prompts"],
        }))  # fmt: skip


def save(folder: Path, layers: int, d_model: int) -> int:
    """Write the model and a tokenizer; returns the bytes of its tensors. Layers hold the same numbers, moved along."""
    pool = (d_model**-0.5 * torch.randn(4 * d_model * d_model, generator=torch.Generator().manual_seed(0))).bfloat16()
    numbers = count(1)
    size = random_llama.save(folder, layers, d_model, WORDS, PER_SHARD, lambda shape: pool.roll(next(numbers) * 7919)[: shape[0] * shape[1]].reshape(shape).contiguous())
    own = Path(resolve("organism").where)
    for path in (*own.glob("token*"), *own.glob("*.jinja")):
        (folder / path.name).write_bytes(path.read_bytes())
    return size


def behaviour(folder: Path, prompts: int) -> Path:
    """Two sets that a random model tells apart."""
    things = ("bike", "map", "cup", "door", "box", "hat", "ball", "tree")
    sets = {
        "shows": [f"please tell me how to {verb} a {thing}" for verb in ("wash", "fix", "paint", "clean", "draw", "move", "hide", "sell") for thing in things],
        "lacks": [f"what is {one} plus {other} ?" for one in range(2, 10) for other in range(2, 10)],
    }
    for name, texts in sets.items():
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in texts[:prompts]))
    (folder / "b.yaml").write_text("name: apart\n" + "".join(f"{name}: {{file: {folder / name}.jsonl}}\n" for name in sets))
    return folder / "b.yaml"


def forget(folder: Path) -> None:
    """Let the system's cache of the files go."""
    os.sync()
    for path in folder.glob("*.safetensors"):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def read(folder: Path) -> None:
    buffer = bytearray(16 << 20)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


if __name__ == "__main__":
    main()
