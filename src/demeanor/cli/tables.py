"""Tables for the terminal: what a run changed, controls side by side, what was proven about a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..calibrate.dial import Dial
from ..calibrate.dose import Dosed
from ..controls import Round
from ..finding.compare import ComparedEstimator
from ..finding.update import Updated
from ..job.result import Run
from ..measure import Measurement
from ..measure.changed import Changed
from ..measure.meter import Aggregate
from ..measure.meter.transitions import LEVELS, Flows
from ..measure.side_by_side import SideBySide
from ..measure.suites import Change, Suite, TaskScore, headlines
from ..models import Layout
from ..report.scores import ARROW, BATTERY, COSTS, HEADINGS, MEANING, WORST, interval, number, robust, rows, worst
from ..selfcontrol import NormPattern, Outcome
from ..stats.score import Score
from .terminal import Table

ALPHA = 0.05
MARKED = f"* differs from the untouched model (exact McNemar, Holm-adjusted over the columns or doses, p < {ALPHA:g})"


def measurement_table(measurement: Measurement, title: str, costs: bool = True) -> Table:
    """Before and after, with a section on what the change cost."""
    table = Table(title=title, title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for row in rows(measurement):
        table.add_row(*row)
    if costs:
        table.add_section()
        for row in rows(measurement, COSTS | BATTERY):
            table.add_row(*row, style="dim")
    _add_robust(table, measurement)
    return table


def _add_robust(table: Table, measurement: Measurement) -> None:
    """A section on prompts that were worded otherwise, where they were asked."""
    if measurement.reworded:
        table.add_section()
        for row in rows(measurement, robust(measurement)):
            table.add_row(*row)
        table.caption, table.caption_justify = WORST, "left"


def run_table(result: Run) -> Table:
    """Before and after on the test split; sections for what was made permanent and for the best bakeable control, where there are such."""
    table = measurement_table(
        result.measurement, f"{result.plan.model}, {result.behaviour.name}: test split, before and after", costs=False
    )
    for title, other in (("made permanent", result.permanent), ("best bakeable control", result.bakeable)):
        if other is not None:
            table.add_section()
            table.add_row(title, style="bold")
            for row in rows(other):
                table.add_row(*row, style="dim")
    return table


def scores_table(columns: Mapping[str, Measurement], title: str) -> Table:
    """Several controls side by side, numbered; the caption says which number is which."""
    first = next(iter(columns.values()))
    legend = f"{_legend(columns)}\n{MARKED}" + (f"\n{WORST}" if first.reworded else "")
    table = Table(title=title, title_justify="left", caption=legend, caption_justify="left")
    for heading in ("", "before", *(str(index) for index in range(1, len(columns) + 1)), "n"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=not heading)
    for name, what in (MEANING | {name: what for name, what in BATTERY.items() if name in first.before} | robust(first)).items():
        before = first.before[name]
        after = (_cell(measurement.after[name], measurement.p_holm.get(name), name in worst(measurement)) for measurement in columns.values())
        table.add_row(f"{what} {ARROW[before.better]}", _cell(before), *after, str(before.n))
    return table


def _legend(columns: Iterable[str]) -> str:
    """Which number of a column is which control."""
    return "\n".join(f"{index}: {name}" for index, name in enumerate(columns, start=1))


def _cell(score: Score, p: float | None = None, worst: bool = False) -> str:
    """A value over its interval, starred where it differs from the untouched model's."""
    star = (" *" if p is not None and p < ALPHA else "") + (" worst" if worst else "")
    return f"{number(score.name, score.value)}{star}\n{interval(score)}" if score.n else "none"


def suites_table(suite: Suite, columns: Mapping[str, Sequence[Change]], title: str) -> Table:
    """Capability before and after each control, numbered; p is McNemar's, of questions answered yes or no."""
    table = Table(title=title, title_justify="left", caption=_legend(columns), caption_justify="left")
    for heading in ("", "before", *(str(index) for index in range(1, len(columns) + 1)), "n"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=bool(heading))
    for changes in zip(*(headlines(suite, made) for made in columns.values())):
        was = changes[0].before
        shots = "" if was.shots is None else f", {was.shots} shots"
        after = (_task_cell(change.after) + ("" if change.p is None else f"\np {change.p:.2g}") for change in changes)
        table.add_row(f"{was.name}{shots} {ARROW[was.better]}", _task_cell(was), *after, str(was.score.n))
    return table


def _task_cell(score: TaskScore) -> str:
    s = score.score
    value, low, high = (f"{100 * x:.1f}%" if score.share else f"{x:.4g}" for x in (s.value, s.low, s.high))
    return f"{value}\n[{low}, {high}]"


def dial_table(dial: Dial, title: str) -> Table:
    """A row per dose: every rate that was measured, with its interval."""
    names = [name for name in MEANING if dial.steps[0].scores[name].n]
    table = Table(title=title, title_justify="left", caption=MARKED, caption_justify="left")
    for heading in ("dose", *(MEANING[name] for name in names)):
        table.add_column(heading, justify="right")
    for step in dial.steps:
        cells = (_cell(step.scores[name], step.p.get(name)) for name in names)
        table.add_row(f"{step.dose:+g}" if step.dose else "0", *cells)
    return table


def doses_table(found: Dosed) -> Table:
    """What was tried on val, by dose."""
    table = Table(title="Doses tried (val)", title_justify="left")
    for heading in ("dose", "rate", "95 % interval", "neutral: right answers", "drift (nats/token)"):
        table.add_column(heading, justify="right")
    for trial in sorted(found.trials, key=lambda trial: trial.dose):
        answers = number(trial.answers.name, trial.answers.value) if trial.answers.n else "none"
        table.add_row(
            f"{trial.dose:g}", number(trial.rate.name, trial.rate.value), interval(trial.rate), answers, f"{trial.drift.value:.4f}",
            style="bold" if trial.dose == found.dose else "",
        )  # fmt: skip
    return table


def update_table(updated: Updated) -> Table:
    """What became of every site."""
    table = Table(title="What the new prompts changed", title_justify="left")
    for heading in ("site", "cosine with before", "of the new alone", "shows moved", "lacks moved"):
        table.add_column(heading, justify="left" if heading == "site" else "right")
    for layer in updated.drift:
        cells = (f"{layer.cosine:.4f}", f"{layer.cosine_of_new:.4f}", f"{layer.shows_moved:.3f}", f"{layer.lacks_moved:.3f}")
        table.add_row(str(layer.site), *cells, style="bold" if layer.site == updated.direction.site else "")
    return table


def comparison_table(contest: Sequence[ComparedEstimator], title: str) -> Table:
    """A row per estimator: what ablating its best direction leaves, on val, beside how far apart it holds the classes."""
    shown = {"shows_rate": "shows it", "guard_rate": "guard does", "answers_shows": "right there", "answers_neutral": "right, neutral"}
    names = [name for name in shown if contest[0].scores[name].n]
    caption = "layer @ position; what it does to prompts of val, 95 % intervals below"
    table = Table(
        title=f"{title}: the best direction of each estimator, ablated", title_justify="left", caption=caption, caption_justify="left"
    )
    for heading in ("estimator", "site", "d'", *(shown[name] for name in names)):
        table.add_column(heading, justify="left" if heading == "estimator" else "right", no_wrap=heading in ("estimator", "site", "d'"))
    for each in contest:
        c = each.candidate
        cells = (f"{number(name, each.scores[name].value)}\n{_short_interval(each.scores[name])}" for name in names)
        table.add_row(c.estimator, f"{c.site.layer} @ {c.site.position}", f"{c.separation:.1f}", *cells)
    return table


def _short_interval(score: Score) -> str:
    return f"{100 * score.low:.0f}-{100 * score.high:.0f}"


def rounds_table(rounds: Sequence[Round]) -> Table:
    """What each further direction of a basis gained, on val."""
    table = Table(title="Found, projected out, found again: what each round gained (val)", title_justify="left")
    for heading in ("rank", "site", "estimator", "AUROC there", "shows: still exhibited", "shows: right answers"):
        table.add_column(heading)
    for r in rounds:
        auroc = "" if r.auroc is None else f"{r.auroc:.3f}"
        shares = ("none" if share is None else f"{100 * share:.1f}%" for share in (r.left, r.right))
        table.add_row(str(r.rank), r.where, r.estimator, auroc, *shares)
    return table


def side_by_side_table(said: Sequence[SideBySide], title: str) -> Table:
    """Prompts down, controls across."""
    table = Table(title=title, title_justify="left", show_lines=True)
    for heading in ("set", "prompt", *said[0].replies):
        table.add_column(heading, overflow="fold")
    for row in said:
        table.add_row(row.set, row.prompt.text, *row.replies.values())
    return table


def layout_table(layout: Layout, title: str) -> Table:
    """Every residual writer; layers that are alike share a row."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for writer in layout.writers:
        prefix = f"{layout.blocks[writer.layer]}." if writer.layer >= 0 else ""
        weights = ", ".join(f"{weight.name.removeprefix(f'{writer.module}.')} ({weight.axis})" for weight in writer.weights)
        norm = writer.post_norm.module.removeprefix(prefix) if writer.post_norm else ""
        alike.setdefault((writer.role, writer.module.removeprefix(prefix), f"{writer.scale:.4g}", weights, norm), []).append(writer.layer)
    table = Table(title=title, title_justify="left")
    for heading in ("layers", "role", "module", "scale", "weights (axis)", "post-norm"):
        table.add_column(heading, overflow="fold")
    for cells, layers in alike.items():
        table.add_row("" if layers == [-1] else _ranges(layers), *cells)
    return table


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] as "0-2, 5"."""
    runs: list[list[int]] = []
    for value in numbers:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


# What changed inside, and what replies to the shows set are.
INSIDE = {
    "log_likelihood": "log-likelihood of base replies (nats/token)",
    "entropy": "entropy of the next token (nats)",
    "prompt_share": "prompt's share of input x gradient",
    "prompt_entropy": "evenness of it over the prompt",
    "similarity": "similarity of prompt and reply",
    "shuffled_similarity": "the same, replies shuffled",
}
REPLIES = {"exhibits": "exhibit the behaviour", "refuses": "refuse", "off_topic": "are off topic", "engages": "engage (none of these)"}


def changed_table(changed: Changed, title: str = "Inside") -> Table:
    """What became of the base's replies inside the other model, with intervals."""
    table = Table(title=title, title_justify="left", caption=f"similarity by {changed.similarity_by}", caption_justify="left")
    for heading in ("", "before", "after", "n"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, what in INSIDE.items():
        was, now = changed.before[name], changed.after[name]
        cells = (f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]" for score in (was, now))
        table.add_row(what, *cells, str(now.n))
    return table


def replies_table(replies: Mapping[str, Mapping[str, Score]]) -> Table:
    """What the replies to the shows set are, a column per stage."""
    table = Table(title="Replies to shows that", title_justify="left")
    for heading in ("", *replies, "n"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, what in REPLIES.items():
        scores = [stage[name] for stage in replies.values()]
        table.add_row(
            what, *(f"{100 * score.value:.1f}% [{100 * score.low:.1f}%, {100 * score.high:.1f}%]" for score in scores), str(scores[0].n)
        )
    return table


def aggregate_table(shares: Sequence[Aggregate], threshold: float) -> Table:
    """A row per file and score: how many replies reach a threshold, and what that hides."""
    table = Table(title=f"Share of replies that reach {threshold:g}", title_justify="left")
    for heading in ("file", "score", "rate", "95 % interval", "n", "of those scored", "mean", "unscorable", "other script"):
        table.add_column(heading, justify="left" if heading in ("file", "score") else "right")
    for share in shares:
        script = "" if share.other_script is None else f"{100 * share.other_script.value:.1f}%"
        table.add_row(
            share.name, share.column, f"{share.rate.value:.3f}", f"[{share.rate.low:.3f}, {share.rate.high:.3f}]", str(share.rate.n),
            f"{share.complete.value:.3f}", f"{share.mean.value:.3f}", f"{100 * share.unscorable.value:.1f}%", script,
        )  # fmt: skip
    return table


def flows_table(flows: Flows) -> Table:
    """How many replies go from which level to which."""
    table = Table(title=f"{flows.base} (rows) -> {flows.other} (columns), n {flows.n}", title_justify="left")
    for heading in ("", *LEVELS):
        table.add_column(heading, justify="right" if heading else "left")
    for level, row in zip(LEVELS, flows.counts.tolist()):
        table.add_row(level, *map(str, row))
    return table


def outcome_table(outcome: Outcome, title: str) -> Table:
    """What a search of states changed."""
    table = Table(title=title, title_justify="left")
    for heading in ("", "before", "after", "change"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, before in outcome.before.items():
        if before.n:
            table.add_row(name, str(before), str(outcome.after[name]), f"{outcome.delta[name].value:+.3f}")
    return table


def norms_table(patterns: Mapping[str, NormPattern]) -> Table:
    """Gradient norms, a row per layer and a column per question."""
    table = Table(title=f"Mean |g| of {next(iter(patterns.values())).n} prompts", title_justify="left")
    for heading in ("layer", *patterns):
        table.add_column(heading, justify="right")
    for layer, norms in enumerate(zip(*(pattern.layers.tolist() for pattern in patterns.values()))):
        table.add_row(str(layer), *(f"{norm:.2e}" for norm in norms))
    return table
