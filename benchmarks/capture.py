"""What reading the stream costs: `Session.capture`, a pass with `output_hidden_states=True`, and a bare pass that reads nothing.

All begin with prompts as text, run the same batches without the output head, and take turns in one process, so that whatever else the machine does
falls on all alike. Of every layer the value at the last prompt token is wanted. On a CPU, the time that the process had the processor is
compared too, which other processes hardly touch.

    python benchmarks/capture.py organism
    python benchmarks/capture.py organism --system "answer in one word"
    python benchmarks/capture.py model.gguf --prompts 64 --tokens 40
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

import demeanor as dm
from demeanor.runtime.batches import Batch, each

# Capture is at least so many times as fast.
TARGETS = {"hidden states": 1.6, "bare": 0.95}
WORDS = ["a", "map", "the", "egg", "how", "do", "i", "wash", "find", "or", "get", "fold", "what", "is", "and", "it", "sing", "bee", "owl", "lamp"]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--system", help="system prompt that all have in common")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=40, help="tokens of a prompt with its template, on average")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    session = dm.load(options.model, device=options.device, dtype=options.dtype)
    prompts = list(made_up(session, options))
    lengths = [len(session.encode(prompt)) for prompt in prompts]
    found = timed(ways(session, prompts), session, options.rounds)
    report(found, session, f"{len(prompts)} prompts of {min(lengths)} to {max(lengths)} tokens (mean {statistics.mean(lengths):.1f})", options)


def made_up(session: dm.Session, options: argparse.Namespace) -> Iterator[dm.Prompt]:
    """Prompts that begin alike only as far as their template and system prompt do."""
    rng = torch.Generator().manual_seed(0)
    for number in range(options.prompts):
        words, aim = [WORDS[number % len(WORDS)]], options.tokens + number % 9 - 4
        while len(session.encode(dm.Prompt.of(" ".join(words), system=options.system))) < aim:
            words.append(WORDS[int(torch.randint(len(WORDS), (1,), generator=rng))])
        yield dm.Prompt.of(" ".join(words), system=options.system)


def ways(session: dm.Session, prompts: Sequence[dm.Prompt]) -> dict[str, Callable[[], Tensor]]:
    """What is compared; those that read every layer give [prompt, layer, d_model]."""
    sites = [dm.Site(layer) for layer in range(session.layout.n_layers)]

    def batched(run: Callable[[Batch], Sequence[Tensor]]) -> list[Tensor]:
        return session.runner.in_batches([session.encode(prompt) for prompt in prompts], run, "Reading")

    def hidden(batch: Batch) -> Sequence[Tensor]:
        states = session.decoder(**batch.inputs(), output_hidden_states=True).hidden_states
        return list(each(torch.stack([state[:, -1] for state in states[1:]], 1)))

    def bare(batch: Batch) -> Sequence[Tensor]:
        return list(session.decoder(**batch.inputs()).last_hidden_state[:, -1])

    return {
        "capture": lambda: session.capture(prompts, sites).values,
        "hidden states": lambda: torch.stack(batched(hidden)),
        "bare": lambda: torch.stack(batched(bare)),
    }


@torch.no_grad()
def timed(found: dict[str, Callable[[], Tensor]], session: dm.Session, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds (by the clock, of the processor), by way and round; a first round is not counted, in which the values are compared."""
    values = {name: way() for name, way in found.items()}
    ours, theirs = values["capture"], values["hidden states"]
    off = (ours[:, :-1] - theirs[:, :-1]).norm(dim=-1) / theirs[:, :-1].norm(dim=-1)  # the last entry there is after the final norm
    print(f"capture and hidden states differ by {off.max():.1e} of a value at most; {dict(session.runner.prefixes)}")
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    names = list(found)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter(), time.process_time()
            found[name]()
            if session.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
    return seconds


def report(found: dict[str, list[tuple[float, float]]], session: dm.Session, prompts: str, options: argparse.Namespace) -> None:
    """How many times as fast capture is as the others: of medians, and round by round."""
    rows = []
    for number, clock in enumerate(["clock", "processor"] if session.device.type == "cpu" else ["clock"]):
        own = {name: [values[number] for values in rounds] for name, rounds in found.items()}
        for name, values in own.items():
            paired = sorted(other / ours for other, ours in zip(values, own["capture"], strict=True))
            rows.append(
                {"by": clock, "way": name, "seconds": statistics.median(values), "paired": statistics.median(paired),
                 "quartiles": (paired[len(paired) // 4], paired[-1 - len(paired) // 4]), "target": TARGETS.get(name)}
            )  # fmt: skip
    if options.json:
        print(json.dumps({"options": vars(options), "rows": rows}))
        return
    print(f"{session.name}: {prompts}, {session.dtype_name} on {session.device}, {options.threads} threads; medians of {options.rounds} rounds")
    for row in rows:
        low, high = row["quartiles"]
        line = f"{row['by']:9} {row['way']:13} {row['seconds']:8.3f} s"
        print(line + (f"; capture is {row['paired']:.2f} x as fast ({low:.2f} to {high:.2f}; target {row['target']})" if row["target"] else ""))


if __name__ == "__main__":
    main()
