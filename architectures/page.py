"""The page docs/architectures.md, made of what was examined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Line = dict[str, Any]
NOT_EXAMINED = "not examined"
MARK = {True: "yes", False: "no", None: ""}
HEAD = """# Architectures

Written by `make architectures`; not by hand. transformers {version}.

Every row is a tiny random model of one type: about four layers, 64 channels, one layer of every kind that its defaults name.

- proven: everything that writes to its residual stream was found. With a direction taken out of all of it nothing of the direction is in the
  stream, and with any one weight left as it is something is.
- exact: a model baked with a direction taken out, loaded by transformers alone, has the logits of the control at run time (within 1e-4 of their
  standard deviation), and nothing of the direction in what its blocks return.
- batch: prompts of several lengths together give what each gives alone.
- parts: what comes into a block and its parts make up what goes out of it; or the parts are refused by name.

The reason is the sentence that a user is told.
"""


def totals(lines: Sequence[Line]) -> str:
    count = {name: sum(bool(line[name]) for line in lines) for name in ("built", "proven", "exact", "batch", "parts", "right", "wrong")}
    weights, left_out = (sum(line[name] for line in lines) for name in ("weights", "left_out"))
    unseen = sum(line["reason"] == NOT_EXAMINED for line in lines)
    return (
        f"{len(lines)} types, of which {unseen} are not examined yet: {count['proven']} proven, {count['exact']} exact, {count['batch']} in any batch, {count['parts']} with their parts told "
        f"rightly, {count['right']} right in everything; {count['wrong']} with a fault; {len(lines) - unseen - count['built']} of which no tiny model could be made. "
        f"Of {weights} weights that were left out one by one, {left_out} were found out."
    )


def table(lines: Sequence[Line]) -> str:
    rows = ["| type | proven | exact | batch | parts | why not |", "| --- | --- | --- | --- | --- | --- |"]
    for line in lines:
        marks = " | ".join(MARK[line[name]] for name in ("proven", "exact", "batch", "parts"))
        rows.append(f"| {line['type']} | {marks} | {str(line['reason']).replace('|', '/')} |")
    return "\n".join(rows)


def page(version: str, causal: Sequence[Line], seeing: Sequence[Line]) -> str:
    return "\n".join([
        HEAD.format(version=version), "## Causal types", "", totals(causal), "", table(causal), "",
        "## Types of images and text, by what they do with text", "", totals(seeing), "", table(seeing), "",
    ])  # fmt: skip
