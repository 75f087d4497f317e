"""HTML that pages share: the style, the figures and how a page is written; tables are those of `io.display`.

The program that draws the figures (plotly.js, 4.5 MB) lies beside the pages of a folder as one file, not in each of them. A page
that was moved away from it fetches the same version from its makers' network, and says so where it cannot.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs_version

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
p.lead { color: #555; margin-top: 0; } p.note { color: #555; font-size: .9rem; } p.result { font-size: 1.1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; overflow-wrap: normal; }
td, th { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid #e5e5e5; vertical-align: top; }
th { font-weight: 600; border-bottom: 2px solid #bbb; } td.n, table.figures th:not(:first-child) { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.guard td { background: #fbf0f5; } td.shown { color: #a4420a; } td.not { color: #00664b; } summary { cursor: pointer; font-weight: 600; margin: .6rem 0; }
code { background: #f3f3f3; padding: 0 .25rem; border-radius: 3px; } input.search { font: inherit; width: 100%; max-width: 26rem; padding: .3rem .5rem; box-sizing: border-box; }
@media (max-width: 600px) { body { margin: 1rem auto; padding: 0 .6rem; font-size: 14px; } td, th { padding: .25rem .2rem; } table.replies td { min-width: 9rem; } }
"""
SEARCH = """
document.querySelectorAll("input.search").forEach(box => box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\\s+/);
  const rows = [...document.querySelectorAll("table.replies tr:has(td)")];
  rows.forEach(row => { row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word)); });
  if (box.value) document.querySelectorAll("details:has(table.replies)").forEach(part => { part.open = true; });
}));
"""
NO_FIGURES = "The figures are drawn by plotly.js, which is neither beside this page nor to be had from the network."


def page_html(title: str, sections: Iterable[str]) -> str:
    """A whole page from pieces of HTML; its figures are drawn by a file beside it (`write_page`)."""
    head = (
        f"<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'><title>{escape(title)}</title>"
        f"<style>{STYLE}</style>{_plotly_script()}"
    )
    return f"<!doctype html><html lang='en'><head>{head}</head><body>" + "\n".join(sections) + f"<script>{SEARCH}</script></body></html>\n"


def write_page(path: Path, page: str) -> None:
    """Write a page, and beside it the file that draws its figures, unless it lies there already."""
    path.write_text(page, encoding="utf-8")
    beside_page(path)


def beside_page(path: Path) -> None:
    """The file that draws figures, beside a page: the same bytes as in the installed package where the file system can share them."""
    target = path.parent / _plotly_name()
    if not target.exists():
        try:
            os.link(_plotly_file(), target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(_plotly_file(), target)


def _plotly_name() -> str:
    return f"plotly-{get_plotlyjs_version()}.min.js"


def _plotly_file() -> Path:
    return Path(str(resources.files("plotly") / "package_data" / "plotly.min.js"))


@cache
def _plotly_script() -> str:
    """The file beside the page; where it is not there, the same file (by its hash) from the network; else a sentence."""
    digest = base64.b64encode(hashlib.sha384(_plotly_file().read_bytes()).digest()).decode()
    network = (
        f"<script src='https://cdn.plot.ly/{_plotly_name()}' integrity='sha384-{digest}' crossorigin='anonymous'></script>"
        f"<script>window.Plotly || document.addEventListener('DOMContentLoaded', () => document.body.insertAdjacentHTML('afterbegin', '<p><strong>{NO_FIGURES}</strong></p>'))</script>"
    )
    as_text = json.dumps(network).replace("</", "<\\/")  # a script ends where its end tag stands, in a text too
    return f"<script src='{_plotly_name()}'></script><script>window.Plotly || document.write({as_text})</script>"


def figure_html(figure: go.Figure) -> str:
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True})
    return str(drawn)


# Colours that people who see fewer of them tell apart too (Okabe and Ito, 2008).
COLOURS = {"shows": "#d55e00", "lacks": "#0072b2", "guard": "#cc79a7", "neutral": "#009e73"}


def styled(figure: go.Figure, height: int) -> go.Figure:
    """A figure in the style of all pages, readable on a telephone: the legend lies under it, and what does not fit is wrapped."""
    font = {"family": "system-ui, sans-serif", "size": 13}
    legend = {"orientation": "h", "yanchor": "top", "y": -0.22, "xanchor": "left", "x": 0}
    figure.update_layout(template="simple_white", height=height + 40, margin={"l": 10, "r": 10, "t": 40, "b": 10}, font=font, legend=legend)
    figure.update_xaxes(automargin=True)
    return figure.update_yaxes(automargin=True)
