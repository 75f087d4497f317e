"""The pages of the repository as the site's generator takes them: one folder, links rewritten, formulas as MathML.

The pages stay as they are: they are read in the repository too, where a page outside docs/ is `../NAME`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs"
# Pages outside docs/, and what they are called on the site.
OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md", "SECURITY.md": "security.md", "real/README.md": "real.md"}
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
INLINE = re.compile(r"\$([^$\n]+)\$")  # outside of code, dollars are formulas
MATH = re.compile(r"^```math\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class NoSuchPage(Exception):
    """A link to something that is not on the site."""


def stage(folder: Path, formula: Callable[[str, str], str]) -> None:
    """Writes all pages, pictures and notebooks into an empty `folder`; `formula` makes MathML of TeX, inline or as a block. Raises NoSuchPage for a link that leads off the site."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / DOCS, folder)
    for name in [*OUTSIDE, *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / DOCS).rglob("*.md")))]:
        text = (ROOT / name).read_text(encoding="utf-8")
        text = MATH.sub(lambda found: f"<div class='formula'>{formula(found[1].strip(), 'block')}</div>", text)
        parts = CODE.split(text)  # prose and code in turn
        parts[::2] = [INLINE.sub(lambda found: formula(found[1], "inline"), _linked(part, name)) for part in parts[::2]]
        (folder / staged(name)).write_text("".join(parts), encoding="utf-8")


def staged(name: str) -> str:
    """Where a file of the repository lies on the site."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    if not name.startswith(f"{DOCS}/"):
        raise NoSuchPage(f"{name} is not on the site; name it in backticks, without a link")
    return name.removeprefix(f"{DOCS}/")


def _linked(text: str, page: str) -> str:
    """Text outside of code, with its links as they are on the site."""
    here = PurePosixPath(staged(page)).parent

    def rewritten(found: re.Match[str]) -> str:
        path, mark, anchor = found[2].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return found[0]
        return f"{found[1]}{relpath(staged(normpath(PurePosixPath(page).parent / path)), here)}{mark}{anchor}{found[3]}"

    return LINK.sub(rewritten, text)
