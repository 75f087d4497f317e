"""What steering costs: tokens per second of generation, unsteered, with one control and with one per row.

A Llama-shaped random model generates replies of a fixed length for a batch of prompts. One control ablates a direction at
every writer, in all layers; "different" gives every row such a control of its own. All three run in turn in one process, again and again, and
medians are compared, so that whatever else the machine does falls on all alike; on a CPU, the time that the process
had the processor is compared too, which other processes hardly touch.

    python benchmarks/steer.py                                            # one thread of a CPU, float32
    python benchmarks/steer.py --device cuda --dtype bfloat16 --compile   # blocks through torch.compile

Each way has a model of its own with its hooks on, so that `--compile` compiles every block with them once; the first round is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import demeanor as dm
from demeanor.algebra.bases import orthonormal
from demeanor.controls import Control, Part
from demeanor.models.loading import resolve

# At least this much of the unsteered speed is kept.
TARGETS: dict[str, float | None] = {"one": 0.95, "different": 0.90}


def arguments(about: str) -> argparse.ArgumentParser:
    """The options that benchmarks of generation share."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true", help="compile every block with its hooks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=16, help="tokens of a prompt; rows differ in length by up to a half of it")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of every reply")
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    return parser


def main() -> None:
    options = arguments(str(__doc__)).parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        save(Path(folder), options)
        sessions = {name: dm.load(folder, device=options.device, dtype=options.dtype) for name in ("unsteered", *TARGETS)}
        steer(sessions, options, stack)
        report(sessions["unsteered"], timed(sessions, options), options, TARGETS)


def save(folder: Path, options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=options.width, intermediate_size=options.width * 11 // 4, num_hidden_layers=options.layers,
        num_attention_heads=options.width // 64, num_key_value_heads=options.width // 64, max_position_embeddings=2048,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve("organism")[0]).save_pretrained(folder)


def steer(sessions: dict[str, dm.Session], options: argparse.Namespace, stack: ExitStack) -> None:
    """Every model keeps its own hooks, so that it is compiled once."""
    layout, name = sessions["one"].layout, sessions["one"].name

    def control(seed: int) -> Control:
        rng = torch.Generator().manual_seed(seed)
        basis = orthonormal(torch.randn(options.rank, layout.d_model, generator=rng, dtype=torch.float64)).float()
        return Control(parts=(Part(kind="ablate", vectors=basis, dose=1.0, scope=dm.Scope()),), layout=layout, model_name=name)

    stack.enter_context(sessions["one"].controlled(control(0)))
    stack.enter_context(sessions["different"].controlled_rows([control(seed) for seed in range(options.batch)]))
    if options.compile:
        for session in sessions.values():
            for block in session.layout.blocks:
                session.model.get_submodule(block).compile(dynamic=True)


def timed(sessions: dict[str, dm.Session], options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Seconds per generation (by the clock, of the processor), by way and round; a first round is not counted."""
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 700, (options.batch, options.prompt), generator=rng)
    mask = torch.ones_like(ids)
    for row in range(options.batch):
        mask[row, : row * options.prompt // (2 * options.batch)] = 0
    ids, mask = ids.to(options.device), mask.to(options.device)
    fixed = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens, "do_sample": False, "disable_compile": True}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sessions}
    names = list(sessions)
    for turn in range(options.rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            session = sessions[name]
            synchronise(session)
            started = time.perf_counter(), time.process_time()
            out = session.model.generate(ids, attention_mask=mask, **fixed)
            synchronise(session)
            if turn:
                seconds[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
            assert out.shape[1] == options.prompt + options.tokens
    return seconds


def synchronise(session: dm.Session) -> None:
    if session.device.type == "cuda":
        torch.cuda.synchronize()


def report(
    session: dm.Session, seconds: dict[str, list[tuple[float, float]]], options: argparse.Namespace, targets: dict[str, float | None]
) -> None:
    """Every way's speed, and as a share of that of the first, the plain model `session`."""
    plain = next(iter(seconds))
    made = options.batch * options.tokens
    clocks = ["clock", "processor"] if session.device.type == "cpu" else ["clock"]
    rows = []
    for number, clock in enumerate(clocks):
        own = {name: [found[number] for found in values] for name, values in seconds.items()}
        for name, values in own.items():
            speed = made / statistics.median(values)
            ratio = statistics.median(own[plain]) / statistics.median(values)
            paired = statistics.median(one / value for one, value in zip(own[plain], values, strict=True))
            rows.append(
                {"by": clock, "way": name, "tokens_per_second": speed, "ratio": ratio, "paired": paired, "target": targets.get(name)}
            )
    parameters = sum(parameter.numel() for parameter in session.model.parameters())
    if options.json:
        print(json.dumps({"parameters": parameters, "options": vars(options), "rows": rows}))
        return
    print(
        f"{parameters / 1e6:.1f} M parameters, {options.device}, {options.dtype}{', compiled' if options.compile else ''}; batch {options.batch}, "
        f"{options.tokens} tokens, rank {options.rank}; medians of {options.rounds} rounds"
    )
    for row in rows:
        line = f"{row['by']:9} {row['way']:10} {row['tokens_per_second']:9.1f} tokens/s"
        if row["way"] != plain:
            target = f"; target {row['target']:.2f}" if row["target"] else ""
            line += f", {row['ratio']:.3f} x {plain} (round by round {row['paired']:.3f}{target})"
        print(line)


if __name__ == "__main__":
    main()
