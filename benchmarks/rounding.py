"""What rounding leaves of a direction: to the nearest value, and so that the edit is kept, interleaved on the same matrices.

A matrix [d, n] on the grid of a form holds its directions one, three or ten times as much as chance. Prints one JSON line a case: the share of r^T W that
is left, the distance to the exact edit in units of the nearest rounding's, the least distance that any values without an error can have (Lagrange's bound, found slowly),
and processor time for a million weights in seconds.

    python benchmarks/rounding.py --width 2048
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from torch import Tensor

from demeanor.algebra.rounding import Grid, carried, carriers
from demeanor.algebra.settling import settled
from demeanor.export.packed import ENOUGH
from demeanor.structure.stored_values import E2M1, E4M3

FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16}
GGUF = {"Q6_K": (6, 16, True), "Q5_1": (5, 32, False), "Q4_0": (4, 32, True), "Q4_K": (4, 32, False), "Q3_K": (3, 16, True), "Q2_K": (2, 16, False)}  # bits, weights with one scale, whether zero is a level


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=256)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--times", type=float, nargs="+", default=[1, 3, 10])
    parser.add_argument("--forms", nargs="+", default=["bf16", "fp16", "FP8", "int8", "MXFP4", "NVFP4", "int4", *GGUF])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for form in options.forms:
        for rank in options.ranks:
            for times in options.times:
                print(json.dumps({"form": form, "rank": rank, "times_chance": times, "width": options.width, **case(form, rank, times, options)}), flush=True)


def case(form: str, rank: int, times: float, options: argparse.Namespace) -> dict[str, float]:
    rng = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(options.width, rank, generator=rng)).Q.T.contiguous()
    weight = 0.02 * torch.randn(options.width, options.columns, generator=rng)
    weight += (times - 1) * basis.T @ (basis @ weight)
    common = torch.zeros(()) if GGUF.get(form, (0, 0, True))[2] else weight.view(len(weight), -1, GGUF[form][1]).amin(-1).clamp_max(0).repeat_interleave(GGUF[form][1], 1)
    weight = weight - common  # what groups have in common stays as it is
    grid = None if form in FLOATS else grid_of(form, weight)
    weight = rounded(weight, form, grid)
    gone = basis @ (weight + common)
    exact = weight - basis.T @ gone
    nearest = rounded(exact, form, grid)
    removed = gone.norm()
    start = time.process_time()
    if grid is None:
        by = carriers(basis.numpy())
        kept = nearest.clone()
        values, _ = carried(exact[by.rows].numpy(), (basis @ (nearest - exact)).numpy(), by, lambda values: rounded(torch.from_numpy(values), form, None).numpy())
        kept[by.rows] = torch.from_numpy(values)
    else:
        kept = grid.values(settled(exact, basis, grid, ENOUGH * float(removed) / options.columns**0.5)[0])
    seconds = time.process_time() - start
    return {
        "left_nearest": round(float((basis @ (nearest + common)).norm() / removed), 6), "left": round(float((basis @ (kept + common)).norm() / removed), 6),
        "distance": round(float((kept - exact).norm() / (nearest - exact).norm()), 3),
        "least_distance": round(least(exact, basis, grid) / float((nearest - exact).norm()), 3) if grid else None, "s_a_million": round(1e6 * seconds / weight.numel(), 3),
    }  # fmt: skip


def least(exact: Tensor, basis: Tensor, grid: Grid) -> float:
    """A distance that no values without an error go below: Lagrange's function, many short steps up its slope."""
    m, best = basis.new_zeros(len(basis), exact.shape[1]), basis.new_zeros(exact.shape[1])
    step = 8 * grid.scale.mean() * grid.levels.diff().median()
    for number in range(400):
        off = grid.values(grid.nearest(exact - basis.T @ m)) - exact
        error = basis @ off
        best = torch.maximum(best, off.square().sum(0) + 2 * (m * error).sum(0))
        m = m + step * 0.985**number * error / error.norm(dim=0).clamp_min(1e-12)
    return float(best.sum().sqrt())


def rounded(values: Tensor, form: str, grid: Grid | None) -> Tensor:
    return values.to(FLOATS[form]).float() if grid is None else grid.values(grid.nearest(values))


def grid_of(form: str, weight: Tensor) -> Grid:
    """The grid that a quantiser would choose for a matrix."""
    if form == "FP8":
        blocks = weight.view(weight.shape[0] // 128, 128, -1, 128).abs().amax((1, 3)) / 448
        return Grid(E4M3[E4M3.isfinite()].unique(), blocks.repeat_interleave(128, 0).repeat_interleave(128, 1))
    if form in GGUF:
        bits, size, around_zero = GGUF[form]
        levels = torch.arange(1 << bits) - (1 << bits - 1) * around_zero
        return Grid(levels.float(), (weight.view(len(weight), -1, size).abs().amax(-1) / levels.max()).repeat_interleave(size, 1))
    size = {"MXFP4": 32, "NVFP4": 16, "int4": 128, "int8": 32}[form]
    most = weight.view(len(weight), -1, size).abs().amax(-1)
    if form == "int4":
        return Grid(torch.arange(-8.0, 8), (most / 7.5).repeat_interleave(size, 1))
    if form == "int8":
        return Grid(torch.arange(-128.0, 128), (most / 127).repeat_interleave(size, 1))
    overall = most.max() / 6 / 448
    scales = (most.log2().floor() - 2).exp2() if form == "MXFP4" else (most / 6 / overall).to(torch.float8_e4m3fn).float() * overall
    return Grid(E2M1.unique(), scales.repeat_interleave(size, 1))


if __name__ == "__main__":
    main()
