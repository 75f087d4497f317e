"""Tensors of files that are changed block by block."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demeanor.algebra.bases import orthonormal
from demeanor.algebra.edits import ablate
from demeanor.export import patch
from demeanor.export.changes import Change, LowRank
from demeanor.export.patch import patched, tasks
from demeanor.io.checkpoint import Stored

ROWS, COLUMNS, START = 96, 640, 24


@pytest.mark.parametrize("block", [None, 1 << 14])
@pytest.mark.parametrize("keep_norms", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_tensor_changed_in_its_place_becomes_what_it_becomes_in_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, axis: int, keep_norms: bool, block: int | None
) -> None:
    """In one block, and in several tasks of several blocks each."""
    if block is not None:
        monkeypatch.setattr(patch, "BLOCK_BYTES", block)
        monkeypatch.setattr(patch, "BLOCKS", 3)
    rng = torch.Generator().manual_seed(0)
    kind = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[dtype]
    weight = (0.02 * torch.randn(ROWS, COLUMNS, generator=rng)).to(kind)
    content = b"\1" * START + weight.view(torch.uint8).numpy().tobytes() + b"\2" * 7
    d, n = (ROWS, COLUMNS) if axis == 0 else (COLUMNS, ROWS)
    added = LowRank(0.01 * torch.randn(d, 2, generator=rng), torch.randn(2, n, generator=rng))
    removed = orthonormal(torch.randn(1, d, generator=rng, dtype=torch.float64)).float()
    basis = orthonormal(torch.cat([removed, added.left.mT]).double()).float()
    change = Change(axis, added, ablate(removed), basis, keep_norms=keep_norms)
    stored = Stored("file", dtype, (ROWS, COLUMNS), START, len(content) - 7)
    for name in ("source", "place", "other"):
        (tmp_path / name).write_bytes(content)
    with (tmp_path / "source").open("rb") as source, (tmp_path / "other").open("r+b") as other, (tmp_path / "place").open("r+b") as place:
        assert (len(tasks(stored, change)) > 1) is (block is not None and axis == 1)
        for task in tasks(stored, change):
            there = patched(source.fileno(), other.fileno(), stored, change, task)
            here = patched(place.fileno(), place.fileno(), stored, change, task)
            assert here == there
    written = (tmp_path / "place").read_bytes()
    assert written == (tmp_path / "other").read_bytes() != content
    assert (written[:START], written[-7:]) == (content[:START], content[-7:])
    result = torch.frombuffer(bytearray(written[START:-7]), dtype=kind).reshape(ROWS, COLUMNS).float()
    result, was = (result, weight.float()) if axis == 0 else (result.mT, weight.float().mT)
    assert (removed @ result).norm() < 2e-3 * (removed @ (was + added.left @ added.right)).norm()
    exact = ablate(removed)((was + added.left @ added.right).mT).mT
    exact = exact * was.norm(dim=0) / exact.norm(dim=0) if keep_norms else exact
    assert (result - exact).norm() < 0.01 * exact.norm()
