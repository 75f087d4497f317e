"""Every link of the built site leads somewhere: to a file that is there, and to a heading in it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

NOT_FOUND = "404.html"  # the generator's own page, whose links are those of the site's root


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.names |= {value for key in ("id", "name") if (value := values.get(key))}
        self.links += [value for key in ("href", "src") if (value := values.get(key)) and tag in ("a", "img", "link", "script")]


def broken(site: Path) -> list[str]:
    """Links that lead nowhere, each with the page that it stands on. Links to the network are looked at by nobody."""
    pages = {path.resolve(): _read(path) for path in sorted(site.rglob("*.html")) if path.name != NOT_FOUND}
    wrong = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].names):
                wrong.append(f"{path.relative_to(site.resolve())}: {link}")
    return wrong


def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page
