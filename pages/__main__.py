"""`python -m pages [SITE]`: the whole site, into `build/site` unless another folder is named. It takes the extra `docs`, and no network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from . import commands, python
from .links import broken
from .staging import ROOT, NoSuchPage, stage

STAGED = ROOT / "build" / "pages"  # as mkdocs.yml names it
BUILT = ROOT / "build" / "site"


def main(site: Path) -> str | None:
    """Builds the site; a sentence where it cannot be, or where a link leads nowhere."""
    missing = next((name for name in ("zensical", "latex2mathml") if find_spec(name) is None), None)
    if missing is not None:
        return f"The site takes {missing}, which the extra `docs` brings: pip install 'demeanor[docs]'."
    from latex2mathml.converter import convert

    try:
        stage(STAGED, lambda tex, display: convert(tex, display=display))
    except NoSuchPage as error:
        return f"{error}."
    for name, made in (("command-line.md", commands.reference()), ("python.md", python.reference())):
        (STAGED / "reference" / name).write_text(made, encoding="utf-8")
    generator = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", str(ROOT / "mkdocs.yml")]
    built = subprocess.run(generator, cwd=ROOT, capture_output=True, text=True)
    if built.returncode:
        return f"The generator found mistakes:\n{built.stdout}"
    wrong = broken(BUILT)
    if wrong:
        return f"{len(wrong)} links lead nowhere:\n" + "\n".join(wrong)
    if site != BUILT:
        shutil.copytree(BUILT, site, dirs_exist_ok=True)
    print(f"{len(list(BUILT.rglob('*.html')))} pages in {site}, 0 broken links.")
    return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else BUILT))
