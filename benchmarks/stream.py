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
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

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
    """Write the model, some layers a shard, and a tokenizer; returns the bytes of its tensors. Layers hold the same numbers, moved along."""
    rng = torch.Generator().manual_seed(0)
    inner, places, size = 4 * d_model, dict[str, str](), 0
    pool = (d_model**-0.5 * torch.randn(inner * d_model, generator=rng)).bfloat16()
    shapes = {**{f"self_attn.{name}_proj": (d_model, d_model) for name in "qkvo"}, "mlp.gate_proj": (inner, d_model), "mlp.up_proj": (inner, d_model), "mlp.down_proj": (d_model, inner)}
    folder.mkdir()

    def taken(number: int, shape: tuple[int, int]) -> Tensor:
        return pool.roll(number * 7919)[: shape[0] * shape[1]].reshape(shape).contiguous()

    def shard(tensors: dict[str, Tensor]) -> int:
        name = f"model-{len(set(places.values())):05d}.safetensors"
        save_file(tensors, folder / name, {"format": "pt"})
        places.update(dict.fromkeys(tensors, name))
        return sum(tensor.nbytes for tensor in tensors.values())

    ones = torch.ones(d_model, dtype=torch.bfloat16)
    size += shard({"model.embed_tokens.weight": taken(1, (WORDS, d_model)), "lm_head.weight": taken(2, (WORDS, d_model)), "model.norm.weight": ones})
    for first in range(0, layers, PER_SHARD):
        tensors: dict[str, Tensor] = {}
        for layer in range(first, min(first + PER_SHARD, layers)):
            tensors |= {f"model.layers.{layer}.{name}.weight": taken(layer * 10 + number, shape) for number, (name, shape) in enumerate(shapes.items(), 3)}
            tensors |= {f"model.layers.{layer}.{norm}_layernorm.weight": ones.clone() for norm in ("input", "post_attention")}
        size += shard(tensors)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": places}))
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": d_model, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": WORDS, "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
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
