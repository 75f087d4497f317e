"""Reading a direction from its file."""

from __future__ import annotations

from pathlib import Path

from ..algebra.bases import is_orthonormal
from ..algebra.moments import Moments
from ..errors import DataError
from ..io.tensors import Stored, read_tensors
from .direction import Direction
from .header import DirectionHeader, refuse_site


def load_direction(path: str | Path) -> Direction:
    """A direction from its file. Raises DataError for a file that is damaged, or holds what is no direction."""
    stored = read_tensors(Path(path), "direction")
    header = stored.decoded(DirectionHeader)
    layout = header.structure(stored.path)
    refuse_site(header.site, layout, stored.path)
    basis = stored.numbers("basis", None, layout.d_model)
    if not is_orthonormal(basis):
        raise DataError(f"{stored.path}: the vectors of the basis are not of length 1 and at right angles to each other; find it again.")
    write = stored.maybe("write", None, layout.d_model)
    if write is not None and len(write) != len(basis):
        raise DataError(f"{stored.path} reads {len(basis)} vectors and writes {len(write)}; find it again.")
    shows, lacks = _moments(stored, header, "", (layout.d_model,))
    everywhere = _moments(stored, header, "layers.", (layout.n_layers, layout.d_model)) if "layers.shows.mean" in stored.tensors else None
    plain = {name: getattr(header, name) for name in ("site", "estimator", "separation", "auroc", "split_half_cosine", "p", "candidates")}
    return Direction(
        basis=basis, shows=shows, lacks=lacks, layout=layout, model_name=header.model, behaviour=header.behaviour, after=header.after,
        rounds=header.rounds, layers=everywhere, write=write, **plain,
    )  # fmt: skip


def _moments(stored: Stored, header: DirectionHeader, prefix: str, shape: tuple[int, ...]) -> tuple[Moments, Moments]:
    """Of shows and of lacks."""
    shows, lacks = (
        Moments(n, stored.numbers(f"{prefix}{name}.mean", *shape), stored.numbers(f"{prefix}{name}.variance", *shape))
        for name, n in zip(("shows", "lacks"), header.n)
    )
    return shows, lacks
