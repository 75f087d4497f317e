"""Controls, gates, scopes and their files."""

from typing import TYPE_CHECKING

from ..deferred import attributes

if TYPE_CHECKING:
    from .checked import Checked, check
    from .constructors import ablate, add, clamp, rotate, scale
    from .control import Control
    from .direction import Candidate, Direction, Round, save_direction
    from .direction_files import load_direction
    from .files import digest, load_control, read_layout, save_control
    from .foreign import convert
    from .gate import Gate
    from .interference import Overlap, overlaps
    from .part import Part
    from .scope import Scope

__getattr__, __dir__ = attributes(__name__, {
    ".checked": "Checked check",
    ".constructors": "ablate add clamp rotate scale",
    ".control": "Control",
    ".direction": "Candidate Direction Round save_direction",
    ".direction_files": "load_direction",
    ".files": "digest load_control read_layout save_control",
    ".foreign": "convert",
    ".gate": "Gate",
    ".interference": "Overlap overlaps",
    ".part": "Part",
    ".scope": "Scope",
})  # fmt: skip

__all__ = [
    "Candidate", "Checked", "Control", "Direction", "Gate", "Overlap", "Part", "Round", "Scope", "ablate", "add", "check", "clamp",
    "convert", "digest", "load_control", "load_direction", "overlaps", "read_layout", "rotate", "save_control", "save_direction", "scale",
]  # fmt: skip
