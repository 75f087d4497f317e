"""Sites: places of the residual stream, and where each is found in a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import DataError, ModelError, mistaken
from ..structure.layout import Layout, contributions
from .positions import LAST, REPLY, Position

Point = Literal["embed", "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
POINTS: tuple[str, ...] = get_args(Point)


@dataclass(frozen=True, order=True)
class Site:
    """Where the stream is read or edited. `position` counts from the end of what is read, a prompt and what it is forced through:
    -1 is the last token. "reply" (REPLY) is the mean over the tokens of the reply that comes with it."""

    layer: int
    point: Point = "resid_post"
    position: Position = LAST

    def __post_init__(self) -> None:
        if self.position != REPLY and not isinstance(self.position, int):
            raise DataError(f'{self.position!r} is no position; count from the prompt\'s end (-1 is its last token), or use "reply".')

    def __str__(self) -> str:
        return f"layer {self.layer} {self.point} {'over the reply' if self.position == REPLY else f'at {self.position}'}"


def as_sites(sites: Iterable[Site]) -> list[Site]:
    """Several sites. Raises DataError for a single one, and for what is no site."""
    if isinstance(sites, (str, Site)) or not isinstance(sites, Iterable):
        raise DataError(mistaken("A list of sites", sites, "put a single site in a list, as in [Site(3)]"))
    sites = list(sites)
    for other in sites:
        if not isinstance(other, Site):
            raise DataError(mistaken("A site", other, "make one with Site(layer)"))
    return sites


@dataclass(frozen=True)
class Tap:
    """One side of one module; a site's value is the sum of its taps, each times its scale."""

    module: str
    side: Literal["input", "output"]
    scale: float = 1.0


def taps(layout: Layout, site: Site) -> list[Tap]:
    """Where a site is found in this model, or a ModelError when this model has no such place."""
    if not 0 <= site.layer < layout.n_layers:
        raise ModelError(f"The model has layers 0 to {layout.n_layers - 1}; there is no layer {site.layer}.")
    block = layout.blocks[site.layer]
    if site.point == "resid_post":
        return [Tap(block, "output")]
    if site.point == "resid_pre":
        return [Tap(block, "input")]
    if site.point == "embed":
        return [Tap(w.contribution, "output", w.scale) for w in contributions(w for w in layout.writers if w.role == "embed")]
    if site.point not in ("attn_out", "resid_mid", "mlp_out"):
        raise ModelError(f"{site.point!r} is not a point of the stream; use one of {', '.join(get_args(Point))}.")
    alpha = layout.alpha(site.layer)
    if alpha is None:
        raise ModelError(
            f"The parts of layer {site.layer} of this model are mixed token by token before they come into its stream, so it has no {site.point}; use resid_pre or resid_post."
        )
    writers = layout.writers_of(site.layer, "mlp" if site.point == "mlp_out" else "attn")
    if not writers:
        raise ModelError(f"There is no {site.point} in layer {site.layer} of this model; use resid_pre or resid_post.")
    parts = [Tap(writer.contribution, "output", writer.scale) for writer in contributions(writers)]
    return [Tap(block, "input", alpha), *parts] if site.point == "resid_mid" else parts


def spread(n_layers: int, count: int) -> list[int]:
    """At most `count` layers, the first and the last among them, spread evenly."""
    count = min(count, n_layers)
    return [round(step * (n_layers - 1) / max(1, count - 1)) for step in range(count)]
