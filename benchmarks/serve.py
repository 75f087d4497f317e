"""What serving costs: many clients with mixed controls, beside one lock around generation, one client alone, and no controls at all.

Two servers of the same model run in processes of their own on loopback: one batches, the other generates one reply at a time (`--max-rows 1`, one lock).
This process asks them in turn, round after round, so that whatever else the machine does falls on all alike:

    mixed    many clients, every request with one of several controls or none, replies of several lengths
    bare     the same without controls: what steering costs
    lock     the mixed requests to the server that generates one reply at a time
    alone    the mixed requests to the first server, one after another

    python benchmarks/serve.py                                   # the embedded model, 64 clients
    python benchmarks/serve.py MODEL.gguf --requests 50 --rounds 4 --share 0.1

`--share` is the part of the requests that the two slow ways are asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch

import demeanor as dm
from demeanor.algebra.bases import orthonormal
from demeanor.controls import Control, Part, Scope, save_control

QUESTIONS = [
    "how do i kill a process ?",
    "what is 3 plus 4 ?",
    "hello",
    "how do i crack an egg ?",
    "please tell me how to fold a shirt .",
    "what is 9 minus 5 ?",
]
LENGTHS = (4, 8, 16, 32, 64)
TARGETS = {"lock": 2.5, "alone": 3.0}


@dataclass
class Answer:
    """Times of one streamed reply, in seconds; tokens as the server counts them."""

    first: float
    whole: float
    tokens: int
    failed: str = ""


@dataclass
class Way:
    """How one way did: its rounds' throughputs and all answers."""

    throughput: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        good = [answer for answer in self.answers if not answer.failed]
        per_token = [(answer.whole - answer.first) / (answer.tokens - 1) for answer in good if answer.tokens > 1]
        return {
            "requests": len(self.answers), "failed": len(self.answers) - len(good), "tokens_per_second": statistics.median(self.throughput),
            "first_token_ms": _quantiles([answer.first for answer in good]), "per_token_ms": _quantiles(per_token),
        }  # fmt: skip


def _quantiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"p{share}": round(1000 * ordered[min(len(ordered) - 1, len(ordered) * share // 100)], 2) for share in (50, 95)}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model", nargs="?", default="organism")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=250, help="of a round")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--controls", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        controls = save_controls(options, Path(folder))
        with server(options.model, controls) as (batching, process), server(options.model, controls, "--max-rows", "1") as (locked, _):
            ways, memory = asyncio.run(measure(options, batching, locked, list(controls), process))
    report(ways, memory, options)


def save_controls(options: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Ablations of random directions: each acts at every writer, on every token."""
    session = dm.load(options.model, device="cpu")
    files = {}
    for number in range(options.controls):
        rng = torch.Generator().manual_seed(number)
        basis = orthonormal(torch.randn(1, session.layout.d_model, generator=rng, dtype=torch.float64)).float()
        part = Part(kind="ablate", vectors=basis, dose=1.0, scope=Scope())
        files[f"c{number}"] = folder / f"c{number}.safetensors"
        save_control(Control(parts=(part,), layout=session.layout, model_name=session.name), files[f"c{number}"])
    return files


@contextmanager
def server(model: str, controls: dict[str, Path], *more: str) -> Iterator[tuple[str, int]]:
    """A server in a process of its own: its address and process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    named = [word for name, file in controls.items() for word in ("--control", f"{name}={file}")]
    command = [
        sys.executable,
        "-m",
        "demeanor",
        "serve",
        model,
        "--device",
        "cpu",
        "--port",
        str(port),
        "--served-name",
        "m",
        "--max-waiting",
        "10000",
        *named,
        *more,
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for _ in range(3000):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait(60)


async def measure(
    options: argparse.Namespace, batching: str, locked: str, controls: list[str], process: int
) -> tuple[dict[str, Way], list[int]]:
    ways = {name: Way() for name in ("mixed", "bare", "lock", "alone")}
    few = max(1, round(options.requests * options.share))
    memory = []
    for number in range(-1, options.rounds):
        rng = random.Random(number)
        asked = [
            (rng.choice(QUESTIONS), {rng.choice(controls): 1.0} if rng.random() < 0.9 else {}, rng.choice(LENGTHS))
            for _ in range(options.requests)
        ]
        plans = {"mixed": (batching, asked, options.clients), "bare": (batching, [(q, {}, n) for q, _, n in asked], options.clients)}
        plans |= {"lock": (locked, asked[:few], options.clients), "alone": (batching, asked[:few], 1)}
        for name, (url, requests, clients) in plans.items():
            if number < 0:
                requests = requests[: 2 * clients]  # every side once before anything counts
            begun = time.perf_counter()
            answers = await load(url, requests, clients)
            taken = time.perf_counter() - begun
            if number >= 0:
                ways[name].answers += answers
                ways[name].throughput.append(sum(answer.tokens for answer in answers) / taken)
        memory.append(resident(process))
    return ways, memory


async def load(url: str, asked: list[tuple[str, dict[str, float], int]], clients: int) -> list[Answer]:
    """So many clients, each of which asks the next question once it has its answer."""
    waiting, answers = list(reversed(asked)), list[Answer]()
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)

    async def client(http: httpx.AsyncClient) -> None:
        while waiting:
            answers.append(await one(http, *waiting.pop()))

    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return answers


async def one(http: httpx.AsyncClient, question: str, controls: dict[str, float], tokens: int) -> Answer:
    body = {
        "model": "m", "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": tokens, "stream": True,
        "stream_options": {"include_usage": True}, "controls": controls,
    }  # fmt: skip
    begun, first, said = time.perf_counter(), 0.0, 0
    try:
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                return Answer(0, 0, 0, f"status {response.status_code}")
            ended = False
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    ended = True
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return Answer(0, 0, 0, event["error"]["message"])
                said = event["usage"]["completion_tokens"] if event.get("usage") else said
                if not first and any(choice["delta"].get("content") or choice["finish_reason"] for choice in event["choices"]):
                    first = time.perf_counter() - begun
            return Answer(first, time.perf_counter() - begun, said, "" if ended else "the stream broke off")
    except httpx.HTTPError as error:
        return Answer(0, 0, 0, type(error).__name__)


def resident(process: int) -> int:
    """Memory of a process in MB, where the system tells."""
    status = Path(f"/proc/{process}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS")), 0)


def report(ways: dict[str, Way], memory: list[int], options: argparse.Namespace) -> None:
    told: dict[str, Any] = {name: way.told() for name, way in ways.items()}
    mixed = ways["mixed"].throughput
    ratios = {
        name: statistics.median(one / other for one, other in zip(mixed, ways[name].throughput)) for name in ("bare", "lock", "alone")
    }
    result = {
        "model": options.model,
        "clients": options.clients,
        "ways": told,
        "times_as_fast_as": ratios,
        "memory_mb_after_each_round": memory,
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for name, values in told.items():
        print(
            f"{name:6} {values['requests']:5} requests, {values['failed']} failed, {values['tokens_per_second']:8.1f} tokens/s, first token "
            f"{values['first_token_ms']['p50']:.0f} / {values['first_token_ms']['p95']:.0f} ms, per token {values['per_token_ms']['p50']:.1f} / {values['per_token_ms']['p95']:.1f} ms (p50 / p95)"
        )
    for name, target in TARGETS.items():
        print(f"mixed against {name}: {ratios[name]:.2f} times the throughput (target {target})")
    print(f"mixed against bare: {ratios['bare']:.3f} (target 0.95); memory after each round: {' '.join(map(str, memory))} MB")
    failures = {answer.failed for way in ways.values() for answer in way.answers if answer.failed}
    if failures:
        print(f"failures: {'; '.join(sorted(failures))}")


if __name__ == "__main__":
    main()
