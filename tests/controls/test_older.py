"""Control files of the first format are read where they say the same today, and refused by name where they may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import demeanor as dm
from demeanor.errors import DataError

SCOPE = {"site": None, "tokens": "all", "offset": 0}
PART = {"kind": "ablate", "dose": 0.5, "scope": SCOPE, "gate": None}


def written(session: dm.Session, folder: Path, part: dict[str, Any], **header: Any) -> Path:
    """A control of the first format with one part."""
    values = {
        "format": 1, "kind": "control", "model": "organism", "layout": session.layout.to_json(), "layout_hash": session.layout.hash,
        "parts": [part], "gates": [], "made_from": {}, **header,
    }  # fmt: skip
    vector = torch.nn.functional.one_hot(torch.tensor([3]), session.layout.d_model).float()
    save_file({"0.vectors": vector}, folder / "c.safetensors", {"demeanor": json.dumps(values)})
    return folder / "c.safetensors"


def test_a_plain_ablation_is_what_it_was(organism: dm.Session, tmp_path: Path) -> None:
    control = dm.load_control(written(organism, tmp_path, PART))
    (part,) = control.parts
    assert (part.kind, part.dose, part.scope, part.gates) == ("ablate", 0.5, dm.Scope(), ())
    with organism.controlled(control):
        organism.chat("hello")


@pytest.mark.parametrize(
    "changed",
    [{"gate": 0}, {"kind": "add"}, {"scope": {**SCOPE, "tokens": "last_and_reply"}}, {"scope": {**SCOPE, "site": {"layer": 2, "point": "resid_post"}}}],
)
def test_what_may_mean_something_else_is_refused(organism: dm.Session, tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="an older version"):
        dm.load_control(written(organism, tmp_path, {**PART, **changed}))
