"""Edited tensors of GGUF files in the types that they had: read by the package gguf the edit is there, and the file is otherwise the same to the byte."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import demeanor as dm
from demeanor.controls import Control
from demeanor.errors import ControlError
from demeanor.export.gguf_in_place import Rounding, patch_matrix
from demeanor.export.low_rank import Halves
from demeanor.io.checkpoint import Stored
from demeanor.io.gguf_codes import BLOCKS
from demeanor.runtime.adapters import Adapter
from making import PROMPTS, ablation
from tiny_gguf import packed, tiny_gpt2, tiny_llama, write_gguf

FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16}
BEFORE, BEHIND = b"before", b"behind"
WRITERS = ("self_attn.o_proj.weight", "mlp.down_proj.weight", "embed_tokens.weight")


class Tensors:
    """A tensor of some type alone in a file, with other bytes about it."""

    def __init__(self, folder: Path, values: Tensor, kind: str) -> None:
        self.shape, self.kind = values.shape, kind
        rows = values.reshape(-1, values.shape[-1])
        raw = (rows.to(FLOATS[kind]).view(torch.uint8).numpy() if kind in FLOATS else packed(rows.numpy(), kind)).tobytes()
        self.source, self.target = folder / "source", folder / "target"
        for file in (self.source, self.target):
            file.write_bytes(BEFORE + raw + BEHIND)
        self.stored = Stored("source", kind, tuple(values.shape), len(BEFORE), len(BEFORE) + len(raw))

    def read(self, file: Path) -> Tensor:
        raw = np.frombuffer(file.read_bytes()[len(BEFORE) : -len(BEHIND)], np.uint8)
        return torch.from_numpy(dequantize(raw.reshape(*self.shape[:-1], -1), GGMLQuantizationType[self.kind]).copy()).view(self.shape)

    def patch(self, halves: Halves, by_rows: bool) -> Rounding:
        source, target = os.open(self.source, os.O_RDONLY), os.open(self.target, os.O_RDWR)
        try:
            done = patch_matrix(source, target, self.stored, len(BEFORE), halves, by_rows)
        finally:
            os.close(source)
            os.close(target)
        assert done is not None
        return done


def taking_out(outputs: Tensor, basis: Tensor) -> Halves:
    """What a stack [expert, out, in] gains where the span of basis [k, out] goes out of it."""
    return Halves(basis @ outputs, -basis.mT.expand(len(outputs), -1, -1), True, basis)


def nearest(tensors: Tensors, exact: Tensor) -> Tensor:
    """The values with the same scales that are nearest, found by trying every code."""
    if tensors.kind in FLOATS:
        return exact.to(FLOATS[tensors.kind]).float()
    form, best, least = BLOCKS[tensors.kind], None, None
    rows = np.frombuffer(tensors.source.read_bytes()[len(BEFORE) : -len(BEHIND)], np.uint8).reshape(-1, exact.shape[-1] // form.weights * form.size)
    for code in range(len(form.levels)):
        changed = form.with_codes(rows, np.full((len(rows), exact.shape[-1]), code))
        values = torch.from_numpy(dequantize(changed, GGMLQuantizationType[tensors.kind]).copy()).view(exact.shape)
        off = (values - exact).abs()
        best, least = (values, off) if least is None else (torch.where(off < least, values, best), torch.minimum(off, least))
    assert best is not None
    return best


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("kind", [*BLOCKS, *FLOATS])
def test_next_to_nothing_is_put_back_in_any_type(tmp_path: Path, kind: str, by_rows: bool, rank: int) -> None:
    """Directions that matrices hold thrice as much as chance has it."""
    rng = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(512, rank, generator=rng)).Q.mT.contiguous()
    outputs = 0.02 * torch.randn(512, 256, generator=rng)
    outputs += 2 * basis.mT @ (basis @ outputs)
    tensors = Tensors(tmp_path, outputs if by_rows else outputs.mT.contiguous(), kind)
    turn = (lambda values: values) if by_rows else (lambda values: values.mT)
    before = turn(tensors.read(tensors.source))
    told = tensors.patch(taking_out(before[None], basis), by_rows)
    exact = before - basis.mT @ (basis @ before)
    after, plain = turn(tensors.read(tensors.target)), turn(nearest(tensors, turn(exact).contiguous()))
    left, was = float((basis @ after).norm()), float((basis @ before).norm())
    assert left < 5e-4 * was
    assert left < float((basis @ plain).norm())
    assert float((after - exact).norm()) < 1.8 * float((plain - exact).norm())
    assert told.put_back.share == pytest.approx(left / was, rel=0.05, abs=1e-6)
    assert told.off == pytest.approx(float((after - exact).square().sum()), rel=1e-3)
    assert told.edit == pytest.approx(float((exact - before).square().sum()), rel=1e-3)
    assert tensors.target.read_bytes()[: len(BEFORE)] == BEFORE
    assert tensors.target.read_bytes()[-len(BEHIND) :] == BEHIND


@pytest.mark.parametrize("kind", [*BLOCKS, *FLOATS])
@settings(max_examples=10, deadline=None)
@given(experts=st.integers(0, 3), rows=st.integers(1, 40), blocks=st.integers(1, 3), by_rows=st.booleans(), seed=st.integers(0, 1 << 30))
def test_what_gains_nothing_stays_and_scales_always_do(tmp_path_factory: pytest.TempPathFactory, kind: str, experts: int, rows: int, blocks: int, by_rows: bool, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    shape = (*((experts,) if experts else ()), rows, blocks * (256 if kind.endswith("K") else 32))
    tensors = Tensors(tmp_path_factory.mktemp("tensors"), torch.randn(shape, generator=rng), kind)
    values = tensors.read(tensors.source)
    stack = (values if by_rows else values.mT).reshape(max(1, experts), *(shape[-2:] if by_rows else shape[:-3:-1]))
    basis = torch.nn.functional.normalize(torch.randn(1, stack.shape[1], generator=rng))
    halves = taking_out(stack, basis)
    told = tensors.patch(Halves(0 * halves.a, halves.b, True, basis), by_rows)
    assert (told.off, told.edit) == (0, 0)
    assert tensors.target.read_bytes() == tensors.source.read_bytes()
    tensors.patch(halves, by_rows)
    if kind in BLOCKS:
        form = BLOCKS[kind]
        rows_of = [np.frombuffer(file.read_bytes()[len(BEFORE) : -len(BEHIND)], np.uint8).reshape(-1, form.size) for file in (tensors.source, tensors.target)]
        cleared = [form.with_codes(one, np.zeros((len(one), form.weights))) for one in rows_of]
        assert np.array_equal(*cleared)


def test_a_matrix_that_is_done_in_parts_is_done_whole(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    basis = torch.nn.functional.normalize(torch.randn(1, 512, generator=rng))
    tensors = Tensors(tmp_path, torch.randn(512, 4128, generator=rng), "Q4_0")
    before = tensors.read(tensors.source)
    tensors.patch(taking_out(before[None], basis), True)
    assert ((basis @ tensors.read(tensors.target)).abs() < 2e-3 * (basis @ before).square().mean().sqrt()).all()


@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K", "F16"])
def test_every_expert_is_edited_by_itself(tmp_path: Path, kind: str, by_rows: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    tensors = Tensors(tmp_path, torch.randn(3, 256, 512, generator=rng) * torch.tensor([1.0, 2.0, 3.0])[:, None, None], kind)
    before = tensors.read(tensors.source)
    outputs = before if by_rows else before.mT
    basis = torch.nn.functional.normalize(torch.randn(1, outputs.shape[1], generator=rng))
    tensors.patch(taking_out(outputs, basis), by_rows)
    after = tensors.read(tensors.target) if by_rows else tensors.read(tensors.target).mT
    exact = outputs - basis.mT @ (basis @ outputs)
    for one, wanted, was in zip(after, exact, outputs):
        assert (basis @ one).norm() < 5e-4 * (basis @ was).norm()
        assert (one - wanted).norm() < 0.5 * (wanted - was).norm()


def test_codes_without_a_scale_stay(tmp_path: Path) -> None:
    tensors, form = Tensors(tmp_path, torch.zeros(64, 32), "Q4_0"), BLOCKS["Q4_0"]
    codes = np.random.default_rng(0).integers(0, 16, (64, 32))
    rows = np.frombuffer(tensors.source.read_bytes()[len(BEFORE) : -len(BEHIND)], np.uint8).reshape(64, -1)
    for file in (tensors.source, tensors.target):
        file.write_bytes(BEFORE + form.with_codes(rows, codes).tobytes() + BEHIND)
    basis = torch.nn.functional.normalize(torch.ones(1, 64))
    assert tensors.patch(Halves(torch.ones(1, 1, 32), basis.mT[None], True, basis), True).put_back.share == pytest.approx(1)
    assert tensors.target.read_bytes() == tensors.source.read_bytes()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model with its writers in one type, by that type, and its session."""
    folder, model, sessions = tmp_path_factory.mktemp("models"), tiny_llama(width=256, inner=256), {}

    def one(kind: str) -> tuple[Path, dm.Session]:
        if kind not in sessions:
            file = write_gguf(folder / f"{kind}.gguf", model, kinds=dict.fromkeys(WRITERS, kind))
            sessions[kind] = (file, dm.load(file, device="cpu"))
        return sessions[kind]

    return one


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K", "Q5_1", "Q4_K", "Q4_0", "Q3_K"])
def test_a_file_has_the_edit_and_is_else_the_same_to_the_byte(written: Any, tmp_path: Path, kind: str) -> None:
    file, session = written(kind)
    control = ablation(session)
    done = dm.export_gguf(session, control, tmp_path / "out.gguf", "stored")
    assert (done.tensors, done.packed, done.head) == (7, 7, False)
    assert 0 < done.left <= done.worst_left < 5e-4
    assert "7 tensors edited (each in the type that it had)" in str(done)
    assert f"put back {done.left:.3%} of the edit, {done.worst_left:.3%} in the worst tensor. It moved weights by {done.off:.2g} times" in str(done)
    before, after = file.read_bytes(), (tmp_path / "out.gguf").read_bytes()
    assert len(before) == len(after)
    edited = {"token_embd.weight", *(f"blk.{layer}.{writer}.weight" for layer in range(3) for writer in ("attn_output", "ffn_down"))}
    same = np.frombuffer(before, np.uint8) == np.frombuffer(after, np.uint8)
    for tensor in GGUFReader(file).tensors:
        if tensor.name in edited:
            same[tensor.data_offset : tensor.data_offset + tensor.n_bytes] = True
    assert same.all()
    shares = []
    for was, now in zip(GGUFReader(file).tensors, GGUFReader(tmp_path / "out.gguf").tensors):
        if was.name in edited:
            old, new = (torch.from_numpy(dequantize(one.data, one.tensor_type).copy()) for one in (was, now))
            axis, basis = -1 if "embd" in was.name else 0, control.parts[0].vectors
            read = old.movedim(axis, -1) @ basis.mT
            assert (new.movedim(axis, -1) @ basis.mT).norm() < 5e-4 * read.norm(), was.name
            exact = old - (read @ basis).movedim(-1, axis)
            shares.append(float((new - exact).square().sum() / (exact - old).square().sum()))
    assert len(shares) == 7
    assert done.off == pytest.approx(np.mean(shares) ** 0.5, rel=1e-3)


@pytest.mark.parametrize(("kind", "bound"), [("Q8_0", 0.05), ("Q6_K", 0.1)])
def test_a_file_whose_steps_are_fine_answers_as_the_control_does(written: Any, tmp_path: Path, kind: str, bound: float) -> None:
    """With coarser steps rounding moves logits by as much as the edit does, so that they say nothing of it."""
    _, session = written(kind)
    control = ablation(session)
    dm.export_gguf(session, control, tmp_path / "out.gguf", "stored")
    with session.controlled(control):
        wanted = session.logits(PROMPTS)
    got, before = dm.load(tmp_path / "out.gguf", device="cpu").logits(PROMPTS), session.logits(PROMPTS)
    off, moved = ((one - wanted).square().mean().sqrt() / wanted.std() for one in (got, before))
    assert off < bound < moved / 2


def test_where_rounding_moves_much_beside_the_edit_it_is_told(written: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "demeanor"):
        fine = dm.export_gguf(written("Q8_0")[1], ablation(written("Q8_0")[1]), tmp_path / "fine.gguf", "stored")
        assert fine.off < 0.5
        assert not caplog.records
        coarse = dm.export_gguf(written("Q4_0")[1], ablation(written("Q4_0")[1]), tmp_path / "coarse.gguf", "stored")
    assert coarse.off > 0.5
    (record,) = caplog.records
    assert f"{coarse.off:.2g} times what the edit moves them by" in record.getMessage()
    assert "--edited-as q8_0 or f16" in record.getMessage()


def test_a_head_that_was_the_embedding_is_added_behind_codes_that_change_in_place(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tied.gguf", tiny_llama(tied=True, width=256, inner=256), kinds=dict.fromkeys(WRITERS, "Q4_1"))
    session = dm.load(file, device="cpu")
    done = dm.export_gguf(session, ablation(session), tmp_path / "out.gguf", "stored")
    assert done.head
    before, after = ({tensor.name: tensor for tensor in GGUFReader(one).tensors} for one in (file, tmp_path / "out.gguf"))
    assert np.array_equal(after["output.weight"].data, before["token_embd.weight"].data)
    basis = ablation(session).parts[0].vectors.numpy()
    for name, sides in {"token_embd.weight": lambda values: values.T, "blk.1.ffn_down.weight": lambda values: values}.items():
        assert after[name].tensor_type == before[name].tensor_type
        was, now = (basis @ sides(dequantize(one[name].data, one[name].tensor_type)) for one in (before, after))
        assert np.linalg.norm(now) < 5e-4 * np.linalg.norm(was)


def test_numbers_that_hold_the_edit_exactly_hold_it_in_place_too(tmp_path: Path) -> None:
    """Biases, layers that the model holds the other way round, and a file of several types."""
    for architecture, model, count in (("gpt2", tiny_gpt2(), 0), ("llama", tiny_llama(), 3)):
        file = write_gguf(tmp_path / f"{architecture}.gguf", model, architecture, kinds={"mlp.down_proj.weight": "Q8_0"})
        session = dm.load(file, device="cpu")
        control = ablation(session)
        done = dm.export_gguf(session, control, tmp_path / f"{architecture}-out.gguf", "stored")
        assert (done.packed, done.left is None, done.off is None) == (count, not count, not count)
        with session.controlled(control):
            wanted = session.logits(PROMPTS)
        bound = 0.1 if count else 1e-4
        assert (dm.load(done.file, device="cpu").logits(PROMPTS) - wanted).abs().max() < bound * wanted.std()


def test_a_type_that_is_not_known_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    model, kind = tiny_llama(width=256, inner=256), GGMLQuantizationType.IQ4_NL
    file = write_gguf(tmp_path / "other.gguf", model, kinds={"mlp.down_proj.weight": "Q4_0"})
    held = bytearray(file.read_bytes())
    name = b"blk.1.ffn_down.weight"
    place = held.index(name) + len(name) + 4 + 2 * 8  # behind its name: how many axes, and their sizes
    assert held[place] == GGMLQuantizationType.Q4_0
    assert GGML_QUANT_SIZES[kind] == GGML_QUANT_SIZES[GGMLQuantizationType.Q4_0]
    held[place] = kind
    file.write_bytes(held)
    session = dm.load(file, device="cpu")
    with pytest.raises(ControlError, match=r"layers\.1\.mlp\.down_proj\.weight is stored as IQ4_NL, .* f16 or q8_0"):
        dm.export_gguf(session, ablation(session), tmp_path / "out.gguf", "stored")
    assert not (tmp_path / "out.gguf").exists()


def test_the_command_tells_the_price(written: Any, demeanor: Any, tmp_path: Path) -> None:
    file, session = written("Q4_0")
    dm.save_control(ablation(session), tmp_path / "c.safetensors")
    ended = demeanor("export", file, "-c", tmp_path / "c.safetensors", "--as", "gguf", "--edited-as", "stored", "-o", tmp_path / "out.gguf", "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert told["left"] <= told["worst_left"] < 5e-4
    assert told["off"] > 0.5
    assert "times what the edit moves them by" in " ".join(ended.err.split())


def test_an_edit_out_of_all_bounds_is_refused(written: Any, tmp_path: Path) -> None:
    _, session = written("Q8_0")
    adapter = Adapter(low_rank={"model.layers.1.mlp.down_proj": (torch.full((1, 256), 1e20), torch.full((256, 1), 1e20))})
    control = Control(parts=(), layout=session.layout, model_name=session.name, made_from={}, adapters=(adapter,))
    with pytest.raises(ControlError, match=r"down_proj\.weight that are too large for Q8_0"):
        dm.export_gguf(session, control, tmp_path / "out.gguf", "stored")
    assert not (tmp_path / "out.gguf").exists()
