"""What most tools do: a model loaded by transformers, edited in memory and saved. A process of its own, as they are used, or a function of `bake.py`.

    python benchmarks/load_edit_save.py SOURCE CONTROL OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open


def load_edit_save(source: Path, control: Path, out: Path) -> None:
    """One direction out of every writer, as a control file says."""
    from transformers import AutoModelForCausalLM

    with safe_open(control, framework="pt") as file:
        r = file.get_tensor("0.vectors")[0]
        writers = json.loads(file.metadata()["demeanor"])["layout"]["writers"]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    with torch.no_grad():
        for writer in writers:
            weight = model.get_parameter(writer["weights"][0]["name"])
            exact = weight.float()
            weight.copy_(exact - torch.outer(exact @ r, r) if writer["role"] == "embed" else exact - torch.outer(r, r @ exact))
    model.save_pretrained(out)


if __name__ == "__main__":
    load_edit_save(*map(Path, sys.argv[1:]))
