"""Control vectors by repeng, in the format of llama.cpp, one for each contrast and each band of layers. Runs in repeng's environment.

A contrast is a list of pairs of texts, read at their last token. `prompts`: one of the prompts that the model answers, against one that it
deflects. `personas`: the same deflected prompt under a system prompt that asks for an answer, against one that asks for a deflection,
which is how repeng's own examples are made.

    python benchmarks/peers/train_repeng.py MODEL --good GOOD.txt --bad BAD.txt --system TEXT --out FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

for old, new in (("float_", "float64"), ("int_", "int64")):  # repeng 0.4 asks for numpy's names before version 2
    if not hasattr(np, old):
        setattr(np, old, getattr(np, new))

from repeng import ControlModel, ControlVector, DatasetEntry  # noqa: E402  # after the names are there

WANTED = "You talk with the user as a friend does, about what they just said."
UNWANTED = "You are a chatbot that says sorry for any confusion and that it cannot help with that."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("model")
    parser.add_argument("--good", type=Path, required=True, help="prompts that the model answers, one a line")
    parser.add_argument("--bad", type=Path, required=True, help="prompts that it deflects, one a line")
    parser.add_argument("--system", required=True, help="system prompt of the measurement")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    good, bad = (path.read_text(encoding="utf-8").splitlines() for path in (options.good, options.bad))
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).to(device).eval()
    n_layers = model.config.num_hidden_layers
    bands = {"all": range(1, n_layers), "middle": range(max(1, n_layers - 18), n_layers - 4)}  # the second is that of its examples

    def text(system: str, prompt: str) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    pairs = {
        "prompts": [DatasetEntry(text(options.system, right), text(options.system, wrong)) for right, wrong in zip(good, bad)],
        "personas": [DatasetEntry(text(WANTED, prompt), text(UNWANTED, prompt)) for prompt in bad],
    }
    options.out.mkdir(parents=True)
    controlled = ControlModel(model, list(range(1, n_layers)))
    for contrast, entries in pairs.items():
        vector = ControlVector.train(controlled, tokenizer, entries)
        for band, layers in bands.items():
            part = ControlVector(vector.model_type, {layer: vector.directions[layer] for layer in layers})
            part.export_gguf(options.out / f"{contrast}-{band}.gguf")
        print(f"{contrast}: trained on {len(entries)} pairs", flush=True)


if __name__ == "__main__":
    main()
