"""`python -m architectures`: examines every causal type of the transformers that is installed, a process for each, and writes the page.

What is done is kept line by line, so that the same command goes on where it was ended.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import logging

from .examine import Examined, examine
from .page import NOT_EXAMINED, page, totals

PAGE = Path(__file__).resolve().parents[1] / "docs" / "architectures.md"
# Of images and text, which have no causal class of their own.
IMAGE_TEXT = (
    "aya_vision", "glm46v", "glm4v", "glm4v_moe", "hyperclovax_vision_v2", "idefics2", "idefics3", "internvl", "janus", "kimi_k25",
    "lfm2_vl", "llava", "llava_next", "llava_onevision", "mistral3", "mistral4", "ovis2", "paligemma", "perception_lm", "qwen2_5_vl",
    "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "shieldgemma2", "smolvlm", "video_llava", "vipllava",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m architectures", description=__doc__)
    parser.add_argument("types", nargs="*", help="model types; all causal ones, and some of images and text, unless told")
    parser.add_argument("--out", type=Path, default=Path("runs/architectures"), help="where lines are kept")
    parser.add_argument("--limit", type=int, default=120, help="seconds for one type")
    parser.add_argument("--page", action="store_true", help="write the page of what is kept, and examine nothing")
    options = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / f"transformers-{transformers.__version__}.jsonl"
    lines = _read(kept)
    types = options.types or [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *IMAGE_TEXT]
    for model_type in types if not options.page else ():
        if model_type not in lines or options.types:
            lines[model_type] = _in_a_process(model_type, options.limit, options.out)
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(lines[model_type]) + "\n")
            print(json.dumps(lines[model_type]), flush=True)
    if not options.types:
        rest = {name: Examined(type=name, reason=NOT_EXAMINED).to_json() for name in types if name not in lines}
        causal = [(lines | rest)[name] for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
        seeing = [(lines | rest)[name] for name in IMAGE_TEXT if name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES]
        PAGE.write_text(page(transformers.__version__, causal, seeing), encoding="utf-8")
        print(totals(causal), totals(seeing), sep="\n")


def _read(kept: Path) -> dict[str, dict[str, object]]:
    if not kept.is_file():
        return {}
    return {line["type"]: line for line in map(json.loads, kept.read_text(encoding="utf-8").splitlines())}


def _in_a_process(model_type: str, limit: int, out: Path) -> dict[str, object]:
    """What `examine` says of a type, in a process of its own, which may take `limit` seconds of processor time and no more."""
    began, told = time.monotonic(), out / f".{model_type}.json"
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_PROF, limit)  # ends the process
        told.write_text(json.dumps(examine(model_type).to_json()), encoding="utf-8")
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    seconds = round(usage.ru_utime + usage.ru_stime, 1)
    if not told.is_file():
        why = f"took more than {limit} seconds" if status == signal.SIGPROF else f"its process was ended by signal {status}"
        return replace(Examined(type=model_type, reason=why, wrong=True), seconds=round(time.monotonic() - began, 1)).to_json()
    line: dict[str, object] = json.loads(told.read_text(encoding="utf-8"))
    told.unlink()
    return {**line, "seconds": seconds}


if __name__ == "__main__":
    main()
