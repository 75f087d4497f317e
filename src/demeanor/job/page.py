"""The report of a run: an HTML page that needs no network, with the file that draws its figures beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from html import escape
from pathlib import Path

from ..behaviours import SET_NAMES
from ..controls import Direction
from ..io.display import table_html
from ..measure import Measurement
from ..measure.ledger import Ledger
from ..report.html import figure_html, page_html, write_page
from ..report.scores import BATTERY, COSTS, HEADINGS, MEANING, WORST, robust, rows
from ..report.sentence import in_words
from . import figures
from .result import Run


def write_report(result: Run, ledger: Ledger, path: Path) -> None:
    """Write the report of a finished run."""
    write_page(path, _page(result, ledger))


def _page(result: Run, ledger: Ledger) -> str:
    title = f"{result.plan.model}: {result.behaviour.name}"
    direction, decision = result.direction, result.decision
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(result.behaviour.description)}</p>',
        *(f'<p class="result">{escape(sentence)}</p>' for sentence in in_words(result.measurement, result.behaviour)),
        "<h2>What changed</h2>",
        scores_html(result.measurement),
        f'<p class="note">Test split, every prompt of it, looked at once after everything was chosen. {_guard_note(result)}</p>',
        "<h2>What was done, and why</h2>",
        f"<p>{escape(str(result.control))}.</p><p>{escape(decision.why())}</p>",
        "" if result.removes else "<p><strong>This control removes nothing that can be told from chance on the test split.</strong></p>",
        _weights(result),
        _options(result),
        _dial(result),
        "<h2>Where the classes separate</h2>",
        f"<p>Chosen: {escape(direction.estimator)} at {escape(str(direction.site))}; {_rank_note(direction)}held-out AUROC {direction.auroc:.3f}, d' {direction.separation:.1f}, "
        f"split-half cosine {direction.split_half_cosine:.2f}, permutation p {direction.p:.4f}. "
        f"Along it the class means lie at {direction.component('shows'):.2f} (shows) and {direction.component('lacks'):.2f} (lacks).</p>",
        figure_html(figures.separation(result)),
        "<h2>What selection saw</h2>",
        '<p class="note">A mark per candidate. Bypass: log-odds that the reply to a shows prompt opens with the behaviour, with the direction ablated; lower is better. Hover for the rest. Hollow marks were discarded.</p>',
        _discarded(result),
        figure_html(figures.selection(result)),
        "<h2>How the prompts project</h2>",
        figure_html(figures.projections(result, ledger)),
        _gate(result),
        "<h2>Replies before and after</h2>",
        '<p><input class="search" type="search" placeholder="words in prompts or replies" aria-label="words in prompts or replies"></p>',
        *(_replies(result, name) for name in SET_NAMES),
        _facts(result),
    ]
    return page_html(title, sections)


def _rank_note(direction: Direction) -> str:
    return f"rank {len(direction.basis)}, of which the first vector: " if len(direction.basis) > 1 else ""


def scores_html(measurement: Measurement) -> str:
    def table(meaning: Mapping[str, str]) -> str:
        body = [
            ("guard" if row[0].startswith("guard") else "", [("" if i == 0 else "n", cell) for i, cell in enumerate(row)])
            for row in rows(measurement, meaning)
        ]
        return table_html(HEADINGS, body)

    reworded = f"<h3>Worded otherwise</h3>{table(robust(measurement))}<p class='note'>{WORST}</p>" if measurement.reworded else ""
    return f"{table(MEANING)}<details><summary>What it cost besides</summary>{table(COSTS | BATTERY)}</details>{reworded}"


def _guard_note(result: Run) -> str:
    if not result.behaviour.guard:
        return "<strong>guard: none</strong> &mdash; the behaviour file names no prompts that must still show the behaviour, so nothing here says what else was lost."
    return "Guard prompts must still show the behaviour: read both rows together."


def _dial(result: Run) -> str:
    if result.dial is None:
        return ""
    n = max(result.dial.steps[0].scores[f"{name}_rate"].n for name in ("shows", "lacks", "guard"))
    return (
        "<h2>The dial</h2>"
        f"<p>{escape(result.dial.verdict())}</p><p class='note'>The mean difference at {escape(str(result.dial.direction.site))}, added to the last prompt token and the reply: "
        f"-1 takes the mean of shows to that of lacks, +1 the other way. Test split, at most {n} prompts of each set, 95 % intervals. "
        "Use it as <code>dial.safetensors:DOSE</code>.</p>" + figure_html(figures.dose_response(result.dial))
    )


def _gate(result: Run) -> str:
    """How well the chosen control's gate tells its sets apart, held out."""
    gate = result.decision.chosen.gate
    if gate is None:
        return ""
    rates = f"fires on {100 * gate.hits:.1f} % of shows and {100 * gate.false_positives:.1f} % of {' and '.join(gate.against)}"
    return (
        f"<h2>The gate</h2><p>{escape(str(gate))}: held-out AUROC {gate.auroc:.3f}; {rates} that its probes were not fitted on.</p>"
        + figure_html(figures.roc(gate))
    )


def _discarded(result: Run) -> str:
    """How many candidates selection discarded, and for which reasons."""
    reasons = Counter(reason for candidate in result.found.candidates for reason in candidate.discarded)
    if not reasons:
        return "<p>No candidate was discarded.</p>"
    many = sum(bool(candidate.discarded) for candidate in result.found.candidates)
    told = "; ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    return f"<p>{many} of {len(result.found.candidates)} candidates were discarded: {escape(told)}.</p>"


def _weights(result: Run) -> str:
    """What is in the weights, and what that does where it is not the control itself."""
    if result.baked is not None and result.parity is not None:
        baked = f"<p>Baked into <code>model/</code>: {result.baked.edited} of {result.baked.tensors} tensors edited. Loaded anew: {escape(str(result.parity))}.</p>"
        if result.permanent is None:
            return baked
        told = " ".join(in_words(result.permanent, result.behaviour))
        return f"<p>An adapter learned to do by itself what the control does (<code>permanent/</code>). {escape(told)}</p>{scores_html(result.permanent)}{baked}"
    if result.not_baked is not None:
        return f"<p>Not baked: {escape(result.not_baked)}</p>"
    if result.bakeable is None:
        return "<p>The control acts at run time only, and no control that was tried can be baked.</p>"
    return (
        f"<details><summary>The control acts at run time only ({escape(result.control.bakeable() or '')}). The best that weights can do:</summary>"
        f"<p>{escape(str(result.decision.best_bakeable))}</p>{scores_html(result.bakeable)}</details>"
    )


def _options(result: Run) -> str:
    def cell(rate: float | None) -> tuple[str, str]:
        return "n", "none" if rate is None else f"{100 * rate:.1f} %"

    body = [
        (
            "",
            [("", str(o)), ("n", f"{o.merit:.3f}"), cell(o.shows_rate), cell(o.guard_rate), cell(o.answers_shows), cell(o.answers_neutral)],
        )
        for o in result.decision.options
    ]
    items = "".join(
        f"<li>rank {r.rank}: {escape(r.estimator)} at {escape(r.where)}, right answers {100 * (r.right or 0):.1f} %</li>"
        for r in result.decision.rounds
    )
    rounds = f"<p>Further directions, found with the earlier ones ablated:</p><ul>{items}</ul>" if items else ""
    table = table_html(("tried on val", "merit", "shows", "guard", "shows right", "neutral right"), body)
    return f"{rounds}<details><summary>All {len(result.decision.options)} options that were tried</summary>{table}</details>"


def _replies(result: Run, name: str) -> str:
    before, after = (observed.sets[name] for observed in result.measurement.observed)  # type: ignore[index]
    if not before:
        return f"<p><strong>{name}: none</strong></p>"
    # Replies that changed come first: they are what a reader looks for.
    order = sorted(range(len(before)), key=lambda i: before[i].reply.text == after[i].reply.text)
    body = [
        (
            "",
            [
                ("", before[i].prompt.text),
                *(("shown" if o.shown else "not", o.reply.text) for o in (before[i], after[i])),
                ("", before[i].prompt.answer or ""),
            ],
        )
        for i in order
    ]
    changed = sum(was.reply.text != now.reply.text for was, now in zip(before, after))
    summary = f"{name}: {changed} of {len(before)} replies changed"
    table = table_html(("prompt", "before", "after", "known answer"), body, "replies")
    return f"<details><summary>{summary}</summary>{table}</details>"


def _facts(result: Run) -> str:
    counts = "; ".join(f"{name} {count['kept']} of {count['given']}" for name, count in result.found.sets.counts.items())
    layout = result.direction.layout
    return (
        "<h2>How this was made</h2>"
        f"<p>Train and val prompts that behave as their set says: {escape(counts)}. Residual accounting proven to {layout.worst_residual:.0e} on every block; "
        f"structure {layout.hash}. On val, {result.decision.agreement}. Rates have Wilson intervals, drift a bootstrap over prompts. Red replies show the behaviour, green ones do not.</p>"
        "<p>Replay: <code>demeanor run --plan plan.yaml -o NEW</code>.</p>"
    )
