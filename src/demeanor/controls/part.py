"""One part of a control: which edit, with what vectors and dose, where, and behind which gates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from ..algebra import edits
from ..algebra.bases import is_orthonormal
from ..algebra.doses import LARGEST_DOSE, usable_dose
from ..arrays import Array, all_finite
from ..errors import ControlError, mistaken
from ..models import Layout
from ..runtime.intervene import Intervention, at_writers
from ..runtime.sites import taps
from ..structure.layout import Writer
from .gate import Gate
from .scope import Scope

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["ablate", "scale", "rotate", "add", "clamp", "transport"]
HELD: tuple[Kind, ...] = ("clamp", "transport")  # kinds with a target
READING: tuple[Kind, ...] = ("ablate", "transport")  # kinds that may read along other vectors than they write
LARGEST_ANGLE = 360
UNIT = {"ablate": "dose", "scale": "factor", "rotate": "degrees", "add": "dose", "clamp": "dose", "transport": "dose"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One edit of a control, `dose` of it.

    ablate: vectors [k, d_model] orthonormal, dose = strength; with `read` [k, d_model], what those read is removed along
    `vectors`, which then need not be orthonormal. scale: the same vectors, dose = factor. rotate: two orthonormal vectors,
    dose = degrees from the first towards the second. add: one offset [1, d_model]. clamp: orthonormal vectors,
    their components held at `target` [k]; dose 1, or 0 for nothing. transport: what the orthonormal `read` [k, d_model] read is
    multiplied by `vectors` [k, d_model] and added, with `target` [k] along `read`; dose = how much of that.
    """

    kind: Kind
    vectors: Array
    dose: float
    scope: Scope
    gates: tuple[Gate, ...] = ()
    read: Array | None = None
    target: Array | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ControlError(f"{self.kind!r} is no kind of edit; use one of {', '.join(get_args(Kind))}.")
        if not isinstance(self.scope, Scope):
            raise ControlError(
                mistaken("A scope", self.scope, 'make one with Scope(...): Scope() is every writer, Scope(tokens="reply") the reply alone')
            )
        usable_dose(self.dose, self.kind, UNIT[self.kind], LARGEST_ANGLE if self.kind == "rotate" else LARGEST_DOSE)
        if self.kind in ("add", *HELD) and self.scope.site is None:
            raise ControlError(f"{self.kind} acts at one site: at every writer its offset would come in again and again.")
        if (self.kind in HELD) != (self.target is not None) or (self.read is not None and self.kind not in READING):
            raise ControlError("Components are held by clamp and transport alone, and read along other vectors by ablate and transport alone.")
        if self.kind == "transport" and self.read is None:
            raise ControlError("transport reads along vectors of its own; name them by read.")
        self._check_vectors()

    def _check_vectors(self) -> None:
        """Raises ControlError for vectors that are not what the kind of edit takes; see the class."""
        numbers = [tensor for tensor in (self.vectors, self.read, self.target) if tensor is not None]
        if not all(map(all_finite, numbers)):
            raise ControlError(f"The vectors of {self.kind} are not finite numbers; make the control anew.")
        count = {"add": 1, "rotate": 2}.get(self.kind)
        if self.vectors.ndim != 2 or len(self.vectors) == 0 or (count is not None and len(self.vectors) != count):
            shape = f"[{'k' if count is None else count}, d_model]"
            raise ControlError(f"{self.kind} takes vectors {shape}, not {list(self.vectors.shape)}; make the control anew.")
        if self.read is not None and self.read.shape != self.vectors.shape:
            raise ControlError(f"What is read has the shape {list(self.read.shape)}, and what is written {list(self.vectors.shape)}; make both alike.")
        if self.target is not None and self.target.shape != self.vectors.shape[:1]:
            raise ControlError(f"{self.kind} holds {len(self.vectors)} components, and the target has the shape {list(self.target.shape)}; give one each.")
        if self.kind == "transport" and self.read is not None and not is_orthonormal(self.read):
            raise ControlError("What transport reads along is not of length 1 and at right angles to each other; make it so.")
        if self.kind != "add" and self.read is None and not is_orthonormal(self.vectors):
            raise ControlError(f"The vectors of {self.kind} are not of length 1 and at right angles to each other; make them so.")

    def scaled(self, dose: float) -> Part:
        """`dose` times the edit: ablate, add, rotate and transport by so much more or less, scale by a factor so much further from 1.

        Raises ControlError for clamp, which holds a component or does not, unless dose is 0 or 1.
        """
        if self.kind == "clamp" and dose not in (0, 1):
            raise ControlError("clamp holds a component or does not, so it cannot be scaled; use dose 0 or 1, or clamp to another value.")
        if self.kind == "scale":
            return replace(self, dose=1 + dose * (self.dose - 1))
        return replace(self, dose=self.dose * dose)

    def edit(self) -> edits.Edit:
        if self.kind == "add":
            return edits.add(self.vectors[0] * self.dose)
        if self.kind == "scale":
            return edits.scale(self.vectors, self.dose)
        if self.kind == "rotate":
            return edits.rotate(self.vectors, self.dose)
        if self.target is not None and self.read is not None:
            return edits.transport(self.read, self.vectors, self.target).scaled(self.dose)
        if self.target is not None:
            return edits.clamp(self.vectors, self.target).scaled(self.dose)
        if self.read is not None:
            return edits.oblique(self.read, self.vectors, self.dose)
        return edits.ablate(self.vectors, self.dose)

    def at_writer(self, writer: Writer, layout: Layout) -> edits.Edit | None:
        """The edit of one writer's contribution, None where the scope leaves it alone."""
        weight = self.scope.weight(writer, layout)
        return self.scaled(weight).edit() if weight else None

    def interventions(self, layout: Layout, tensor: Callable[[str], Tensor]) -> list[Intervention]:
        """The part as edits at the modules of a model with this layout; `tensor` gives its parameters by name."""
        site, reach = self.scope.site, self.scope.reach(self.gates)
        if site is None:
            like = tensor(layout.writers[0].weights[0].name)
            moved = self.to(like)
            return at_writers(layout, lambda writer: moved.at_writer(writer, layout), tensor, reach)
        if layout.copies > 1:
            raise ControlError(f"This model hands on {layout.copies} copies of its stream, so nothing can be edited at one site; use an edit at every writer.")
        places = taps(layout, site)
        if len(places) != 1 or places[0].scale != 1.0:
            raise ControlError(f"An edit cannot act at {site.point} of this model; use resid_pre or resid_post.")
        return [Intervention(places[0].module, places[0].side, self.edit(), reach)]

    def to(self, like: Tensor) -> Part:
        """The same with its tensors where `like` is."""
        return self.converted(lambda tensor: tensor.to(like.device))

    def converted(self, convert: Callable[[Array], Array]) -> Part:
        """The same with its arrays as `convert` makes them; those of its gates stay."""
        read, target = (None if array is None else convert(array) for array in (self.read, self.target))
        return replace(self, vectors=convert(self.vectors), read=read, target=target)

    def bakeable(self, layout: Layout) -> str | None:
        """None when weights can do exactly the same, else the reason why they cannot."""
        if self.gates:
            return "it is gated per request; distil it (demeanor train prefix --from), or bake it without its gate"
        if self.kind in ("add", *HELD) or not self.scope.everywhere:
            return f"{self.kind} at {self.scope} is done at run time; only what acts on every token at the writers can be written into the weights"
        if self.read is not None and any(writer.post_norm for writer in layout.writers):
            return "it reads and writes along different vectors, which does not pass the norms behind this model's writers"
        return None

    def __str__(self) -> str:
        rank = "" if self.kind == "rotate" else f"rank {len(self.vectors)}, "
        dose = f"{UNIT[self.kind]} {self.dose:g}"
        if self.kind == "clamp" and self.target is not None:
            target = ", ".join(f"{value:.4g}" for value in self.target.tolist())
            dose = f"held at {target}" if self.dose else "off"
        text = f"{self.kind} ({rank}{dose}) at {self.scope}"
        text += ", read along other vectors" if self.read is not None and self.kind == "ablate" else ""
        return f"{text}, where {' and '.join(map(str, self.gates))}" if self.gates else text
