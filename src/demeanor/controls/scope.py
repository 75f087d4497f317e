"""Where and when an edit acts: at which writers or site, on which tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..models import Site
from ..models.intervene import Tokens


@dataclass(frozen=True)
class Scope:
    """At every residual writer (`site` None), or at one site; on all tokens, or on the last prompt token and the reply."""

    site: Site | None = None
    tokens: Tokens = "all"

    def __str__(self) -> str:
        where = "every writer" if self.site is None else f"layer {self.site.layer} {self.site.point}"
        return f"{where}, {'all tokens' if self.tokens == 'all' else 'last prompt token and reply'}"

    def to_json(self) -> dict[str, Any]:
        site = self.site and {"layer": self.site.layer, "point": self.site.point}
        return {"site": site, "tokens": self.tokens}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Scope:
        return cls(Site(**values["site"]) if values["site"] else None, values["tokens"])
