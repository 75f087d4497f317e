"""The picture of README: `python -m pages.picture RUN/scores.json docs/pictures/demo.svg` draws what the demo measured, before and after."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# What a bar is of, in words, and its colour (of `demeanor.report.html`, for people who see fewer of them too).
BARS = (
    ("shows_rate", "harmless requests refused", "#d55e00"),
    ("guard_rate", "guard requests refused", "#cc79a7"),
    ("answers", "right answers", "#009e73"),
)
WIDTH, LEFT, FULL, ROW = 780, 270, 380, 62


def picture(scores: dict[str, Any]) -> str:
    """The picture as SVG: a pair of bars for each score, with its interval of 95 % and n."""
    height = ROW * len(BARS) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="14" role="img" aria-label="{_said(scores)}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for number, (name, words, colour) in enumerate(BARS):
        top = 12 + number * ROW
        parts.append(f'<text x="10" y="{top + 26}">{words}</text>')
        for below, when in ((0, "before"), (1, "after")):
            parts += _bar(scores[when][name], when, top + 22 * below, colour)
    parts.append(f'<text x="10" y="{height - 6}" font-size="12" fill="#555">embedded model, test split; lines are intervals of 95 %</text></svg>')
    return "\n".join(parts) + "\n"


def _bar(score: dict[str, Any], when: str, y: int, colour: str) -> list[str]:
    length, low, high = (LEFT + FULL * score[key] for key in ("value", "low", "high"))
    faint = ' fill-opacity=".45"' if when == "before" else ""
    return [
        f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end" font-size="12" fill="#555">{when}</text>',
        f'<rect x="{LEFT}" y="{y}" width="{length - LEFT:.1f}" height="17" fill="{colour}"{faint}/>',
        f'<path d="M{low:.1f} {y + 8.5}H{high:.1f}" stroke="#222" stroke-width="1.5"/>',
        f'<text x="{LEFT + FULL + 10}" y="{y + 13}">{_percent(score)} <tspan font-size="12" fill="#555">n {score["n"]}</tspan></text>',
    ]


def _percent(score: dict[str, Any]) -> str:
    return f"{100 * score['value']:.1f} %"


def _said(scores: dict[str, Any]) -> str:
    told = (f"{words}: {_percent(scores['before'][name])} before, {_percent(scores['after'][name])} after" for name, words, _ in BARS)
    return "; ".join(told)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(picture(json.loads(source.read_text(encoding="utf-8"))), encoding="utf-8")
