"""How strongly an edit acts in each layer, and which layers are too late for one. algorithms.md, section 5."""

from __future__ import annotations


def layer_limit(n_layers: int) -> int:
    """The first layer that is too late: floor(0.8 L), without floating point."""
    return 4 * n_layers // 5


def triangular(n_layers: int, peak: float = 1.0, position: float = 0.5, half_width: float = 0.5, edge: float = 0.0) -> tuple[float, ...]:
    """A weight per layer: `peak` at `position`, falling evenly to `edge` at `half_width` from it, 0 beyond.

    position and half_width are fractions of the way from the first layer (0) to the last (1).
    Raises ValueError where half_width is not positive.
    """
    if half_width <= 0:
        raise ValueError(f"a half-width is positive, not {half_width:g}")
    weights = []
    for layer in range(n_layers):
        away = abs(layer / max(1, n_layers - 1) - position) / half_width
        weights.append(peak + (edge - peak) * away if away <= 1 + 1e-9 else 0.0)
    return tuple(weights)
