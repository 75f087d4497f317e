"""Unit vectors and orthonormal bases, of numpy's arrays or torch's."""

from __future__ import annotations

from ..arrays import A, cast, dtype_name, library, zeros


def unit(x: A) -> A:
    """x / |x| along the last axis; zero stays zero."""
    of = library(x)
    norm = of.linalg.vector_norm(x, axis=-1, keepdims=True)
    return of.where(norm > 0, x / of.clip(norm, of.finfo(x.dtype).tiny, None), of.zeros_like(x))


def reject(x: A, basis: A) -> A:
    """x [..., d] minus its part in the span of the orthonormal rows of basis [k, d]; done twice, for digits."""
    for _ in range(2):
        x = x - (x @ basis.mT) @ basis
    return x


def orthonormal(rows: A, tolerance: float = 1e-6) -> A:
    """An orthonormal basis [k, d] of the span of rows [n, d], dependent rows dropped (Gram-Schmidt, in order).

    Computed in float64, returned in the dtype of the rows.
    """
    of, exact = library(rows), cast(rows, "float64")
    basis = zeros((0, rows.shape[-1]), exact)
    for row in exact:
        left = reject(row, basis)
        length = of.linalg.vector_norm(row)
        if of.linalg.vector_norm(left) > tolerance * of.clip(length, of.finfo(exact.dtype).tiny, None):
            basis = of.concat([basis, unit(left)[None]])
    return cast(basis, dtype_name(rows))


def is_orthonormal(rows: A, tolerance: float = 1e-2) -> bool:
    """Whether rows [k, d] have length 1 and are at right angles to each other, as far as half precision tells."""
    of, exact = library(rows), cast(rows, "float64")
    gram = exact @ exact.mT
    return bool((abs(gram - of.eye(len(rows), dtype=exact.dtype, device=exact.device)) <= tolerance).all())
