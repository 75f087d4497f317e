"""The layout of a loaded model: proven, then tried out as run time edits it; kept, so that the next time it need not be."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..algebra.bases import unit
from ..algebra.edits import ablate
from ..errors import AccountingError
from ..runtime.acting import as_it_is, lock_of
from ..runtime.batches import Batch, EvenBatch, left_pad
from ..runtime.capture import Reader
from ..runtime.intervene import at_writers
from ..runtime.shared_prefix import last_logits
from ..runtime.sites import Site
from ..runtime.steering import Steering
from ..structure.blocks import UNABLE
from ..structure.layout import Layout
from ..structure.proof import prove
from .kept_proof import keep, key_of, recalled

SAMPLES = 16  # values of each weight, that tell a model in memory from others


class Proven(NamedTuple):
    """A layout, and whether its proof was kept of an earlier time."""

    layout: Layout
    cached: bool


def proven_layout(model: Any, name: str, weights: str = "", anew: bool = False) -> Proven:
    """The layout of a causal language model, which the user calls `name`. AccountingError where anything of it cannot be proven.

    weights: what tells its weights from others, kept in the layout. anew: it is proven again, whatever was kept.
    """
    key = key_of(model, weights)
    kept = recalled(key) if key is not None and not anew else None
    layout = replace(kept or _proven(model, name), weights=weights)
    if key is not None and kept is None:
        keep(key, layout)
    return Proven(layout, kept is not None)


def _proven(model: Any, name: str) -> Layout:
    """The proof takes gradients, whatever the caller has switched off."""
    with lock_of(model), as_it_is(model), torch.inference_mode(False), torch.enable_grad():
        try:
            layout = prove(model)
        except AccountingError as error:
            raise AccountingError(f"{name} ({model.config.model_type}): {error}") from error
        except UNABLE as error:  # a model's own code may raise anything where it is run in parts
            said = " ".join(str(error).split())[:200]
            raise AccountingError(f"{name} ({model.config.model_type}): its parts could not be run one by one ({type(error).__name__}: {said}); this model cannot be edited yet.") from error
        _check_ablation(model, layout, name)
        return replace(layout, even_rows=_reads_pads(model))


@torch.no_grad()
def weights_in_memory(model: Any) -> str:
    """What tells the weights of a model in memory from others: some values of each, spread over it; empty where they are packed."""
    if getattr(model, "hf_quantizer", None) is not None:
        return ""
    told = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        places = torch.linspace(0, weight.numel() - 1, SAMPLES, dtype=torch.float64, device=weight.device).long()
        values = weight.detach().reshape(-1)[places].double().cpu().numpy().tobytes() if weight.numel() else b""
        told.update(repr((name, tuple(weight.shape))).encode() + values)
    return f"{str(model.dtype).removeprefix('torch.')} {told.hexdigest()[:16]}"


@torch.no_grad()
def _reads_pads(model: Any) -> bool:
    """Whether a row that is padded, with its positions counted from its first token, comes out otherwise than as it is."""
    rows = [list(range(5, 14)), list(range(7, 12))]
    short = torch.tensor([rows[1]], device=model.device)
    alone = last_logits(model, EvenBatch((0,), short, torch.ones_like(short)), 1)[0, -1].float()
    try:
        padded = last_logits(model, Batch((0, 1), *left_pad(rows, 0, model.device)), 1)[1, -1].float()
    except UNABLE:  # it takes no mask, or no positions
        return True
    return bool((padded - alone).norm() > max(1e-3, 8 * torch.finfo(model.dtype).eps) * alone.norm())


@torch.no_grad()
def _check_ablation(model: Any, layout: Layout, name: str) -> None:
    """The last step of the proof: with a direction ablated, none of it is left in the stream anywhere.

    The direction is what the unedited stream points to at its end, so that much of it would be left if the edit
    did nothing, in every dtype.
    """
    sites = [Site(0, "embed"), *(Site(layer, "resid_post") for layer in range(layout.n_layers))]
    ids = torch.arange(5, 14, device=model.device)[None] % model.get_input_embeddings().num_embeddings
    reader = Reader(model, layout, sites)

    def stream() -> Tensor:
        return reader.read(lambda: model.base_model(input_ids=ids, use_cache=False), torch.tensor([9], device=model.device))[0]

    r = unit(stream()[-1:])
    with Steering(model, layout, [at_writers(layout, lambda writer: ablate(r), model.get_parameter)]).attached():
        values = stream()
    left = ((values @ r[0]).abs() / values.norm(dim=-1)).max()
    bound = max(1e-5, 16 * torch.finfo(model.dtype).eps)
    if left > bound:
        raise AccountingError(
            f"{name}: {left:.1e} of an ablated direction is left in the stream (at most {bound:.0e}); this model cannot be edited yet."
        )
