"""SelfControl's search against the same search done one thing at a time: samples per second at equal final score.

The reference takes one prompt at a time, reads the gradient with one backward pass per layer, and gives every step size and
every first token a generation of its own, from reading the prompt on, and every reply a judgement of its own. Both search
the same prompts by the same rules, each as far as it goes (there is no goal), in turn in one process, again and again; medians are compared, and the time that the process
had the processor beside the time that passed, because other processes hardly touch it.

    python benchmarks/selfcontrol.py                   # the embedded model, one thread, batch 32
    python benchmarks/selfcontrol.py --device cuda
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import demeanor as dm
from demeanor.behaviours import Question, questions_of
from demeanor.behaviours.questions import opposites
from demeanor.detect.suffix import exchange_scores, suffix
from demeanor.runtime.prompt_states import adding
from demeanor.selfcontrol import Settings, Trace, search
from demeanor.selfcontrol.prompt_gradients import Gradients
from demeanor.selfcontrol.searching import Candidate, Reach, Search
from demeanor.selfcontrol.settings import LADDER

TARGET = 10.0
SCORE_TOLERANCE = 0.005  # of the mean final score


class OneAtATime(Search):
    """The reference: made for one prompt, and nothing in it is shared."""

    def gradients(self, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], given: Tensor) -> Gradients:
        ((prompt,), (reply,)) = prompts, replies
        leaves = [layer.detach().requires_grad_() for layer in given]
        ends = torch.tensor([len(prompt) - 1], device=self.session.device)
        total = torch.zeros((), device=self.session.device)
        weight = sum(each.weight for each in self.suffixes)
        stream: dict[int, Tensor] = {}
        with torch.enable_grad():
            for each in self.suffixes:
                row = torch.tensor([[*prompt, *reply, *each.ids]], device=self.session.device)
                with adding(self.session.model, self.session.layout, leaves.__getitem__, ends, stream.__setitem__):
                    logits = self.session.model(input_ids=row, use_cache=False, logits_to_keep=1).logits[:, -1].float()
                total = total + each.weight / weight * each.score(logits)[0]
            # The last block's output at the prompt is not read by what comes after it.
            found = [torch.autograd.grad(total, leaf, retain_graph=True, allow_unused=True)[0] for leaf in leaves]
        gradient = torch.stack([torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found)])
        seen = torch.stack([stream[layer].detach()[0, len(prompt) - 1].float().cpu() for layer in range(len(leaves))])
        return Gradients(total.detach().cpu()[None], gradient, seen[None])

    def candidates(self, active: list[int], of: list[int], reach: Reach, branches: int) -> list[Candidate]:
        (number,) = active
        made = []
        for rung in LADDER:
            eta = rung * self.eta[number]
            for branch in range(branches):
                ids = self.generated(self.ids[number], reach, eta, branch, branches)
                made.append(Candidate(row=0, eta=eta, branch=branch, ids=ids, score=self.score([(number, ids)])[0]))
        return made

    @torch.no_grad()
    def generated(self, prompt: Sequence[int], reach: Reach, eta: float, branch: int, branches: int) -> tuple[int, ...]:
        """One greedy reply of one row, with a cache, opened with the first token of that place."""
        session = self.session
        row, ends = torch.tensor([list(prompt)], device=session.device), torch.tensor([len(prompt) - 1], device=session.device)
        with adding(session.model, session.layout, lambda layer: reach.at(layer, [0], [eta]), ends):
            out = session.model(input_ids=row, use_cache=True, logits_to_keep=1)
        logits = out.logits[0, -1].float()
        best = int(logits.argmax())
        if branch:
            logits[[best, *session.end_ids]] = float("-inf")
            best = int(logits.topk(branches - 1).indices[branch - 1])
        said = [best]
        while len(said) < self.most and said[-1] not in session.end_ids:
            token = torch.tensor([[said[-1]]], device=session.device)
            out = session.model(input_ids=token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
            said.append(int(out.logits[0, -1].argmax()))
        return tuple(said)

    def score(self, exchanges: Sequence[tuple[int, tuple[int, ...]]]) -> list[float]:
        rows = ([*self.ids[number], *self._said(ids)] for number, ids in exchanges)
        return [float(exchange_scores(self.session, [row], self.suffixes)) for row in rows]


def one_at_a_time(session: dm.Session, prompts: Sequence[dm.Prompt], questions: Sequence[Question], settings: Settings) -> list[Trace]:
    suffixes = [suffix(session, question) for question in questions]
    return [trace for prompt in prompts for trace in OneAtATime(session, suffixes, settings, [prompt]).run()]


def timed(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    session = dm.load(options.model, device=options.device)
    prompts = list(dm.behaviour("over-refusal").settled(session).set("shows", "train", options.batch))
    questions = questions_of(options.question, session)
    questions = opposites(questions) if options.less else questions
    settings = Settings(iterations=options.iterations, branches=options.branches, goal=1.0, batch_size=options.batch)
    ways: dict[str, Callable[[list[dm.Prompt]], Sequence[Trace]]] = {
        "batched": lambda some: search(session, some, questions, settings).traces,
        "one at a time": lambda some: one_at_a_time(session, some, questions, settings),
    }
    found: dict[str, dict[str, list[float]]] = {name: {"wall": [], "processor": [], "score": [], "steps": []} for name in ways}
    for way in ways.values():
        way(prompts[:2])  # not counted
    for _ in range(options.rounds):
        for name, way in ways.items():
            start, cpu = time.perf_counter(), time.process_time()
            traces = way(prompts)
            found[name]["wall"].append(time.perf_counter() - start)
            found[name]["processor"].append(time.process_time() - cpu)
            found[name]["score"].append(statistics.fmean(trace.score for trace in traces))
            found[name]["steps"].append(float(sum(len(trace.steps) for trace in traces)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", default="organism", help="the embedded model, or one made from it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32, help="prompts, and how many are searched side by side")
    parser.add_argument("--branches", type=int, default=Settings().branches)
    parser.add_argument("--iterations", type=int, default=Settings().iterations)
    parser.add_argument("--question", default="refusal")
    parser.add_argument("--towards", dest="less", action="store_false", help="steer towards what is asked, not away from it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = timed(options)
    medians = {name: {key: statistics.median(values) for key, values in each.items()} for name, each in found.items()}
    fast, slow = medians["batched"], medians["one at a time"]
    apart = abs(fast["score"] - slow["score"])
    ratio, of_processor = (slow[key] / fast[key] for key in ("wall", "processor"))
    told = {"medians": medians, "ratio": ratio, "ratio_processor": of_processor, "target": TARGET}
    if options.json:
        print(json.dumps({**told, "options": vars(options)}, indent=2))
    else:
        for name, each in medians.items():
            rate = options.batch / each["wall"]
            print(
                f"{name:<14} {rate:8.3f} samples/s  {each['wall']:8.2f} s  {each['processor']:8.2f} s of processor  mean S {each['score']:.4f}  {each['steps']:.0f} steps"
            )
        print(f"ratio {ratio:.1f} (of processor time {of_processor:.1f}; target {TARGET:g}), mean scores {apart:.4f} apart")
    if ratio < TARGET or apart > SCORE_TOLERANCE:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
