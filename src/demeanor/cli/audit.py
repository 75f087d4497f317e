"""`demeanor audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ..audit import Audit
from ..audit import audit as audited
from ..audit.audited import refuse_nothing
from ..audit.page import HEADINGS, audit_page
from ..audit.plan import AuditPlan
from ..audit.verdict import notes, rows, verdict
from ..controls import save_control
from ..io.atomic import new_file
from ..models import Loading
from ..report.html import beside_page
from .from_model import from_plans
from .options import AsJson, print_json
from .outputs import MaybeTarget, Output
from .terminal import Table, out, say_result

Page = Annotated[Optional[Path], typer.Option("--page", help="HTML file that pictures and the table are written to.", show_default=False), Output("file")]


@from_plans
def audit(plan: AuditPlan, loading: Loading, target: MaybeTarget = None, page: Page = None, as_json: AsJson = False) -> None:
    """What was done to a model, read from its files and those of the model before; -o writes it as a control."""
    found = audited(plan.base, plan.edited, loading)
    if target is not None:
        save_control(refuse_nothing(found), target)
    if page is not None:
        with new_file(page) as work:
            work.write_text(audit_page(found), encoding="utf-8")
        beside_page(page)
    if as_json:
        print_json(_facts(found))
        return
    say_result(verdict(found))
    for note in notes(found):
        say_result(note)
    table = Table(*HEADINGS, title="Writers")
    for row in rows(found):
        table.add_row(*row)
    if found.kind == "ablation":
        out.print(table)
        say_result(f"As a control: {found.control}." + ("" if target is None else f" Written to {target}."))


def _facts(found: Audit) -> dict[str, object]:
    matrices = [
        {"name": one.pair.name, "expert": one.pair.number if one.pair.count > 1 else None, "layer": one.layer, "role": one.role, "strength": one.value, "error": one.error, "change": one.relative}
        for one in found.strengths
    ]  # fmt: skip
    return {
        "verdict": verdict(found), "kind": found.kind, "rank": len(found.basis), "strength": found.strength, "share": found.share, "rest": found.rest,
        "rounding": found.rounding, "kept": found.kept, "missed": [one.pair.where for one in found.missed], "matrices": matrices,
        "trained": [{"name": name, "change": size} for name, size in found.trained], "unused": list(found.unused), "alone": list(found.alone),
        "control": None if found.control is None else str(found.control),
    }  # fmt: skip
