"""Sums over two weights that are read in blocks, beside the same of whole matrices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from demeanor.audit.common import leading
from demeanor.audit.pairs import Pair
from demeanor.audit.passes import along, powered, sketch
from demeanor.export import matrices
from demeanor.export.matrices import Matrix
from demeanor.io.checkpoint import open_checkpoint


def matrix(folder: Path, name: str, stacked: torch.Tensor, number: int, outputs: int) -> Matrix:
    (folder / name).mkdir(exist_ok=True)
    save_file({"w": stacked.contiguous()}, folder / name / "model.safetensors")
    (folder / name / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return Matrix(open_checkpoint(folder / name), "w", number, *stacked.shape[1:], outputs, None)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6), d=st.integers(2, 9), n=st.integers(2, 9), outputs=st.sampled_from([0, 1]), k=st.integers(1, 2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), block=st.integers(1, 90), scaled=st.booleans(),
)  # fmt: skip
def test_sums_by_blocks_are_those_of_whole_matrices(
    tmp_path: Path, seed: int, d: int, n: int, outputs: int, k: int, dtype: torch.dtype, block: int, scaled: bool
) -> None:
    rng = torch.Generator().manual_seed(seed)
    before, after = (torch.randn(2, d, n, generator=rng).to(dtype) for _ in range(2))
    basis, scale = torch.linalg.qr(torch.randn(d, k, generator=rng))[0].mT, torch.rand(d, generator=rng) + 0.5
    stored = (before, after) if outputs == 0 else (before.mT, after.mT)
    pair = Pair("w", 1, 2, *(matrix(tmp_path, name, one, 1, outputs) for name, one in zip(("one", "two"), stored)), writer=None)
    w, delta = before[1].double(), after[1].double() - before[1].double()
    seen = delta * scale.double()[:, None] if scaled else delta
    q = basis.double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrices, "BLOCK", block)
        sketched = sketch(pair, scale if scaled else None, 3, seed=0)
        right, product = powered(pair, scale if scaled else None, basis)
        found = along(pair, basis)
    random = torch.randn(n, 3, generator=torch.Generator().manual_seed(0)).double()
    assert sketched.columns is not None
    for got, wanted in [
        (torch.tensor([sketched.weight, sketched.change]), torch.stack([w.square().sum(), seen.square().sum()])),
        (sketched.columns, seen @ random), (right, q @ seen), (product, seen @ seen.mT @ q.mT),
        (found.before, (q @ w).square().sum(1)), (found.moved, (q @ delta).square().sum(1)), (found.both, ((q @ w) * (q @ delta)).sum(1)),
        (torch.tensor(found.columns), _changed(w, delta, 0)), (torch.tensor(found.rows), _changed(w, delta, 1)),
        (torch.tensor(found.shorter), w.square().sum() - (w + delta).square().sum()),
    ]:  # fmt: skip
        torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-4)


def _changed(w: torch.Tensor, delta: torch.Tensor, axis: int) -> torch.Tensor:
    before, after = w.square().sum(axis), (w + delta).square().sum(axis)
    return ((after - before) / before).square().mean()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), d=st.integers(1, 12), n=st.integers(0, 30), count=st.integers(1, 6))
def test_few_columns_stand_for_many(seed: int, d: int, n: int, count: int) -> None:
    columns = torch.randn(d, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    few, wanted = leading(columns, count), torch.linalg.svdvals(columns)[:count]
    assert few.shape == (d, min(count, d, n))
    torch.testing.assert_close(torch.linalg.svdvals(few), wanted)
