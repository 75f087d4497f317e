"""Links lead somewhere: on a plain view of the repository, and on the site, which is built where its extra is installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from pages.links import broken
from pages.staging import CODE, OUTSIDE, ROOT, NoSuchPage, stage, staged

PAGES = sorted([*(ROOT / name for name in OUTSIDE), *(ROOT / "docs").rglob("*.md")])
MADE = {"reference/command-line.md", "reference/python.md"}  # when the site is built
HEADING = re.compile(r"^#{1,6} (.*)$", re.MULTILINE)


def prose(page: Path) -> str:
    """A page without its code."""
    return "".join(CODE.split(page.read_text(encoding="utf-8"))[::2])


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links, as the site of a repository makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in HEADING.findall(text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_in_the_repository(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if re.match(r"[a-z]+:", link):
            continue
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("notebook", sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_links_of_a_notebook_lead_somewhere(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    for link in re.findall(r"\]\(([^)\s#]+)", "".join(line for cell in cells if cell["cell_type"] == "markdown" for line in cell["source"])):
        assert (notebook.parent / link).exists(), link


def test_every_page_is_in_the_navigation_once() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def named(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [page for value in values for page in named(value)]  # type: ignore[union-attr, attr-defined]

    shown = named(config["nav"])
    assert len(shown) == len(set(shown))
    there = {staged(page.relative_to(ROOT).as_posix()) for page in PAGES} | MADE
    assert set(shown) == {page for page in there if not re.match(r"decisions/0", page)}


def test_a_link_off_the_site_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("[a](../src/x.py)")
    monkeypatch.setattr("pages.staging.ROOT", tmp_path)
    monkeypatch.setattr("pages.staging.OUTSIDE", {})
    with pytest.raises(NoSuchPage, match=r"src/x\.py"):
        stage(tmp_path / "staged", lambda tex, display: tex)


def test_a_broken_link_of_the_site_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<a href='b.html#there'>1</a><a href='b.html#no'>2</a><img src='c.png'><h2 id='x'>x</h2><a href='#x'>3</a>")
    (tmp_path / "b.html").write_text("<h1 id='there'>b</h1>")
    assert broken(tmp_path) == ["a.html: b.html#no", "a.html: c.png"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("zensical") is None or find_spec("latex2mathml") is None, reason="the extra `docs` is not installed; `make docs` brings it")
def test_the_site_is_built_without_a_broken_link(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "pages", tmp_path / "site"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0 broken links" in done.stdout
    page = (tmp_path / "site" / "reference" / "command-line.html").read_text(encoding="utf-8")
    assert "demeanor control selective" in page
    assert "--max-prompts" in page
