"""Runs in the environment of vLLM: `python engines/steered_vllm.py ORDER.json`. An engine that does what it is told line by line, so that two of them take turns.

A line of its input is JSON: `controls`, one for each prompt (None for none), `prompts`, and `out`, the file that answers go to (they are those of `in_vllm.py`), or `seconds`, which
prints how long the replies took (and how much processor time); `refused` prints what a request is told. DEMEANOR_CONTROLS and VLLM_PLUGINS say whether controls are laid into the model.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from in_vllm import answers, engine
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

MARK = "@@ "


def asked(controls: list[str | None]) -> list[Any]:
    return [None if name is None else {"demeanor": name} for name in controls]


def seconds(llm: Any, prompts: list[list[int]], controls: list[str | None], new_tokens: int) -> tuple[float, float]:
    """Until the replies are there, and of processor time in all processes of the engine."""
    how = [SamplingParams(temperature=0.0, detokenize=False, ignore_eos=True, max_tokens=new_tokens, extra_args=one) for one in asked(controls)]
    began, used = time.perf_counter(), processor_seconds()
    llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], how, use_tqdm=False)
    return time.perf_counter() - began, processor_seconds() - used


def processor_seconds() -> float:
    own = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (own, *own.children(recursive=True)))


def cached(llm: Any, told: dict[str, Any]) -> int:
    """How many tokens of the prompts, asked once more, are not computed anew."""
    asking = [SamplingParams(temperature=0.0, detokenize=False, max_tokens=1, extra_args=one) for one in asked(told["controls"])]
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in told["prompts"]], asking, use_tqdm=False)
    return sum(output.num_cached_tokens or 0 for output in outputs)


def refused(llm: Any, prompt: list[int], control: Any) -> str:
    try:
        llm.generate([{"prompt_token_ids": prompt}], SamplingParams(max_tokens=1, extra_args={"demeanor": control}), use_tqdm=False)
    except VLLMValidationError as error:
        return str(error)
    return ""


def main() -> None:
    order = json.loads(Path(sys.argv[1]).read_text())
    llm = engine({"model": order["model"], "dtype": "float32"})
    print(MARK + json.dumps("ready"), flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        if "refused" in told:
            said: Any = refused(llm, told["prompts"][0], told["refused"])
        elif "out" in told:
            np.savez(told["out"], **answers(llm, told["prompts"], order["new_tokens"], order["end"], extra_args=asked(told["controls"])))
            said = cached(llm, told)
        else:
            said = seconds(llm, told["prompts"], told["controls"], order["new_tokens"])
        print(MARK + json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
