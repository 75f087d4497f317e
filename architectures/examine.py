"""One model type looked at from outside: whether it is proven, baked exactly, read in any batch, and told by its parts; or why not."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

import demeanor as dm
from demeanor.algebra.bases import orthonormal
from demeanor.algebra.edits import ablate, edited
from demeanor.controls import Control, Part, Scope
from demeanor.errors import DemeanorError, ModelError
from demeanor.models.loading import resolve
from demeanor.structure.layout import Layout, writer_edits

from .tiny import tiny_config, tiny_model

PROMPTS = ("how do i crack an egg ?", "what is 3 plus 4 ?", "please tell me how to wash a friend's bike . it is urgent , is it not ?", "hello")
TOLERANCE = 1e-4  # of logits, in their standard deviations


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What became of one type. Each of the four is None where it was not come to. `left_out` of `weights` were found out when left out.

    reason: why it is not right in everything, one sentence; wrong: that something is not what it is said to be, which is a fault of ours.
    """

    type: str
    built: bool = False
    proven: bool = False
    exact: bool | None = None
    batch: bool | None = None
    parts: bool | None = None
    weights: int = 0
    left_out: int = 0
    reason: str = ""
    wrong: bool = False
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        return self.proven and bool(self.exact and self.batch and self.parts) and self.left_out == self.weights

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "right": self.right}


def examine(model_type: str) -> Examined:
    """Examine a tiny random model of this type."""
    examined = Examined(type=model_type)
    with tempfile.TemporaryDirectory() as folder:
        try:
            model = tiny_model(tiny_config(model_type))
            model.save_pretrained(Path(folder) / "model")
            AutoTokenizer.from_pretrained(resolve("organism")[0]).save_pretrained(Path(folder) / "model")
        except Exception as error:  # noqa: BLE001 (whatever the type's own code raises is a line of the table)
            return replace(examined, reason=f"no tiny model could be made: {_said(error)}")
        examined = replace(examined, built=True)
        try:
            session = dm.load(Path(folder) / "model", device="cpu", dtype="float32", prove=True)
        except DemeanorError as error:
            return replace(examined, reason=str(error).replace(f"{folder}/model", "it"))
        except Exception as error:  # noqa: BLE001 (a traceback that a user would see)
            return replace(examined, reason=f"a traceback: {_said(error)}", wrong=True)
        return _checked(replace(examined, proven=True), session, Path(folder))


def _checked(examined: Examined, session: dm.Session, folder: Path) -> Examined:
    reasons: list[str] = []
    checks = {"exact": _exact, "batch": _batch, "parts": _parts}
    for name, check in checks.items():
        try:
            fault = check(session, folder)
        except DemeanorError as error:
            examined = replace(examined, **{name: False})
            reasons.append(f"{name}: {error}".replace(str(folder), ""))
        except Exception as error:  # noqa: BLE001 (a traceback that a user would see)
            examined = replace(examined, **{name: False}, wrong=True)
            reasons.append(f"{name}: a traceback: {_said(error)}")
        else:
            examined = replace(examined, **{name: not fault}, wrong=examined.wrong or bool(fault))
            reasons += [f"{name}: {fault}"] if fault else []
    weights, unnoticed = _left_out(session)
    if unnoticed:
        reasons.append(f"{len(unnoticed)} of {weights} weights may be left out unnoticed ({unnoticed[0]} first)")
    return replace(examined, weights=weights, left_out=weights - len(unnoticed), reason="; ".join(reasons))


def ablation(session: dm.Session, rank: int = 2) -> Control:
    rng = torch.Generator().manual_seed(0)
    basis = orthonormal(torch.randn(rank, session.layout.d_model, generator=rng, dtype=torch.float64)).float()
    part = Part(kind="ablate", vectors=basis, dose=1.0, scope=Scope())
    return Control(parts=(part,), layout=session.layout, model_name=session.name, made_from={"behaviour": "a test"})


@torch.no_grad()
def _left_out(session: dm.Session) -> tuple[int, list[str]]:
    """How many weights lie behind writers, each expert that tokens come to counted, and which of them may be left as they are without a trace in the stream."""
    model, layout = session.model, session.layout
    rng = torch.Generator().manual_seed(3)
    r = orthonormal(torch.randn(1, layout.d_model, generator=rng, dtype=torch.float64)).float()
    edits = [item for writer in layout.writers for item in writer_edits(writer, ablate(r), model.get_parameter)]
    kept = {name: model.get_parameter(name).detach().clone() for name, _, _ in edits}
    for name, axis, edit in edits:
        model.get_parameter(name).copy_(edited(model.get_parameter(name), axis, edit))
    nothing = _left(session, r)
    pieces = [(name, index) for name, _, _ in edits for index in (range(len(kept[name])) if kept[name].dim() == 3 else [slice(None)])]
    unnoticed, unreached = [], 0
    for name, index in pieces:
        parameter, without = model.get_parameter(name), model.get_parameter(name).detach().clone()
        parameter[index] = kept[name][index]
        if not _left(session, r) > max(1e-4, 20 * nothing):
            if index != slice(None) and _unreached(session, parameter, index):
                unreached += 1
            else:
                unnoticed.append(name if index == slice(None) else f"expert {index} of {name}")
        parameter.copy_(without)
    for name, values in kept.items():
        model.get_parameter(name).copy_(values)
    return len(pieces) - unreached, unnoticed


def _unreached(session: dm.Session, parameter: Tensor, index: int) -> bool:
    """Whether no token comes to an expert: its values change nothing."""
    ids = torch.randint(5, session.vocabulary, (4, 200), generator=torch.Generator().manual_seed(4))
    before = session.model(input_ids=ids, use_cache=False).logits
    parameter[index] = 0.0
    return torch.equal(before, session.model(input_ids=ids, use_cache=False).logits)


def _left(session: dm.Session, r: Tensor) -> float:
    """The largest share of r in what the embedding gives and what blocks return."""
    ids = torch.randint(5, session.vocabulary, (4, 200), generator=torch.Generator().manual_seed(4))
    with _streams(session.model, session.layout) as streams:
        session.model(input_ids=ids, use_cache=False)
    return max(float((stream @ r[0]).abs().div(stream.norm(dim=-1).clamp_min(1e-9)).max()) for stream in streams)


def _exact(session: dm.Session, folder: Path) -> str:
    """What is wrong with a bake, seen by transformers alone: its logits, and what is left of the directions in what blocks return."""
    control = ablation(session)
    dm.bake(folder / "model", control, folder / "baked")
    before = session.logits(PROMPTS)
    with session.controlled(control):
        wanted = _one_by_one(session)
    plain = type(session.model).from_pretrained(folder / "baked", dtype=torch.float32).eval()
    r = control.parts[0].vectors
    worst, left = 0.0, 0.0
    with torch.no_grad():
        for row, prompt in enumerate(PROMPTS):
            with _streams(plain, session.layout) as streams:
                got = plain(input_ids=torch.tensor([session.encode(prompt)])).logits[0, -1]
            worst = max(worst, float((got - wanted[row]).abs().max() / wanted.std()))
            left = max(left, *(float((s @ r.T).abs().amax(-1).div(s.norm(dim=-1).clamp_min(1e-9)).max()) for s in streams))
    if not worst < TOLERANCE:
        return f"the baked model's logits are {worst:.1e} standard deviations from run time's"
    if not left < 1e-4:
        return f"{left:.1e} of the directions is left in the baked model's stream"
    return "" if float((before - wanted).abs().max() / before.std()) > TOLERANCE else "the edit does nothing"


@contextmanager
def _streams(model: nn.Module, layout: Layout) -> Iterator[list[Tensor]]:
    """What comes into the first block and what every block returns, each copy of the stream as [..., d_model]."""
    seen: list[Tensor] = []

    def first(module: nn.Module, args: Any, kwargs: Any) -> None:
        value = args[0] if args else kwargs["hidden_states"]
        seen.append(value.float().reshape(-1, layout.d_model))

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        seen.append(value.float().reshape(-1, layout.d_model))

    handles = [model.get_submodule(block).register_forward_hook(keep) for block in layout.blocks]
    handles.append(model.get_submodule(layout.blocks[0]).register_forward_pre_hook(first, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _one_by_one(session: dm.Session, prompts: Sequence[str] = PROMPTS) -> Tensor:
    return torch.cat([session.logits([prompt]) for prompt in prompts])


def _batch(session: dm.Session, folder: Path) -> str:
    """What becomes of prompts of several lengths together, against each of them alone, without the session's own batches."""
    with torch.no_grad():
        alone = torch.stack([session.model(input_ids=torch.tensor([session.encode(p)])).logits[0, -1] for p in PROMPTS])
    together = session.logits(PROMPTS)
    off = float((together - alone).abs().max() / alone.std())
    if not off < TOLERANCE:
        return f"prompts of several lengths together differ by {off:.1e} standard deviations from each alone"
    with session.controlled(ablation(session)):
        off = float((session.logits(PROMPTS) - _one_by_one(session)).abs().max() / alone.std())
    if not off < TOLERANCE:
        return f"under a control, prompts of several lengths together differ by {off:.1e} standard deviations from each alone"
    said = [session.generate([prompt], 6)[0].ids for prompt in PROMPTS]
    return "" if [reply.ids for reply in session.generate(PROMPTS, 6)] == said else "replies depend on the batch"


def _parts(session: dm.Session, folder: Path) -> str:
    """Whether resid_pre * alpha + attn_out is resid_mid, and that with mlp_out resid_post, in every block; or the parts are refused."""
    for layer in range(session.layout.n_layers):
        values = {}
        for point in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"):
            site = dm.Site(layer, point)
            try:
                values[point] = session.capture(PROMPTS, [site]).at(site).double()
            except ModelError:  # it has no such part, or what it has is no part of a sum
                continue
        if "resid_pre" not in values or "resid_post" not in values:
            return f"the stream cannot be read in layer {layer}"
        whole = [values[point] for point in ("attn_out", "mlp_out") if point in values]
        if not whole:
            continue
        alpha = session.layout.alpha(layer)
        off = (alpha * values["resid_pre"] + sum(whole) - values["resid_post"]).norm() / values["resid_post"].norm()
        if not off < TOLERANCE:
            return f"resid_pre and the parts of layer {layer} miss resid_post by {off:.1e}"
        if "resid_mid" in values and "attn_out" in values:
            off = (alpha * values["resid_pre"] + values["attn_out"] - values["resid_mid"]).norm() / values["resid_mid"].norm()
            if not off < TOLERANCE:
                return f"resid_pre and attn_out of layer {layer} miss resid_mid by {off:.1e}"
    return ""


def _said(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}: {' '.join(str(error).split())[:200]}"
