"""What rounding leaves of a direction: to the nearest value, and so that the edit is kept, interleaved on the same matrices.

A matrix [d, n] on the grid of a form holds its directions one, three or ten times as much as chance. Prints one JSON line a case: the share of r^T W that
is left, the distance to the exact edit in units of the nearest rounding's, and microseconds a thousand weights.

    python benchmarks/rounding.py --width 2048
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from torch import Tensor

from demeanor.algebra.rounding import Grid, carried, carriers, settled
from demeanor.structure.forms import E2M1, E4M3

FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for form in ("bf16", "fp16", "FP8", "MXFP4", "NVFP4", "int4"):
        for rank in (1, 4):
            for times in (1, 3, 10):
                print(json.dumps({"form": form, "rank": rank, "times_chance": times, "width": options.width, **case(form, rank, times, options)}), flush=True)


def case(form: str, rank: int, times: int, options: argparse.Namespace) -> dict[str, float]:
    rng = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(options.width, rank, generator=rng)).Q.T.contiguous()
    weight = 0.02 * torch.randn(options.width, options.columns, generator=rng)
    weight += (times - 1) * basis.T @ (basis @ weight)
    grid = None if form in FLOATS else grid_of(form, weight)
    weight = rounded(weight, form, grid)
    exact = weight - basis.T @ (basis @ weight)
    nearest = rounded(exact, form, grid)
    start = time.perf_counter()
    if grid is None:
        by = carriers(basis)
        kept = nearest.clone()
        kept[by.rows] = carried(exact[by.rows], basis @ (nearest - exact), by, lambda values: values.to(FLOATS[form]).float())[0]
    else:
        kept = grid.values(settled(exact, basis, grid)[0])
    seconds = time.perf_counter() - start
    removed = (basis @ weight).norm()
    return {
        "left_nearest": round(float((basis @ nearest).norm() / removed), 6), "left": round(float((basis @ kept).norm() / removed), 6),
        "distance": round(float((kept - exact).norm() / (nearest - exact).norm()), 3), "us_a_thousand": round(1e9 * seconds / weight.numel(), 2),
    }  # fmt: skip


def rounded(values: Tensor, form: str, grid: Grid | None) -> Tensor:
    return values.to(FLOATS[form]).float() if grid is None else grid.values(grid.nearest(values))


def grid_of(form: str, weight: Tensor) -> Grid:
    """The grid that a quantiser would choose for a matrix."""
    if form == "FP8":
        blocks = weight.view(weight.shape[0] // 128, 128, -1, 128).abs().amax((1, 3)) / 448
        return Grid(E4M3[E4M3.isfinite()].unique(), blocks.repeat_interleave(128, 0).repeat_interleave(128, 1))
    size = {"MXFP4": 32, "NVFP4": 16, "int4": 128}[form]
    most = weight.view(len(weight), -1, size).abs().amax(-1)
    if form == "int4":
        return Grid(torch.arange(-8.0, 8), (most / 7.5).repeat_interleave(size, 1))
    overall = most.max() / 6 / 448
    scales = (most.log2().floor() - 2).exp2() if form == "MXFP4" else (most / 6 / overall).to(torch.float8_e4m3fn).float() * overall
    return Grid(E2M1.unique(), scales.repeat_interleave(size, 1))


if __name__ == "__main__":
    main()
