"""Rank k: where one direction is not enough. Find, project out, find again.

As often as asked: `find_again` looks, with what was found ablated, for what still tells the classes apart, with the estimator
that made the first direction, and says what each round gained. Readers are refused: what they read is ablated at its own site only.

Several wordings: a model with several ways of showing a behaviour may carry each along a direction of its own,
and the mean over all of them points to none. `by_wording` takes one direction per wording.

Right answers that stay away: `iterate`. After a first ablation the model opens its reply as it would have, and may then fall back into the wording
alignment left behind. So the later rounds look at reply tokens too: both classes are forced through the
opening words of an ordinary reply, and what still tells them apart there may be the next direction
(algorithms.md, section 3). What keeps an answer away need not tell the classes apart at any one place, though: so the directions
whose ablation makes the known answers likelier, to first order, are tried too. Each round keeps the candidate with the most
right answers on val prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from ..algebra import directions
from ..algebra.bases import orthonormal
from ..algebra.estimators import most_gaining
from ..behaviours import Prompt
from ..controls import ablate
from ..controls.direction import Direction, Round
from ..errors import ControlError, NoCandidate
from ..measure.bench import Bench
from ..models import Session, Site
from ..models.attribution import ablation_gain
from ..progress import say, track
from ..runtime.sites import spread
from .estimators import ESTIMATORS, Estimator, estimate
from .filter import Sets
from .find import Findings
from .signal import common_openings

MAX_RANK = 4
TELLS_APART = 0.6  # held-out AUROC below which nothing is left to find
LAYERS = 8  # at most, spread evenly over the model
ATTRIBUTED = 128  # train prompts whose right answers say what ablation would gain, at most
GAINING = 6  # directions that would gain most, which are tried
SCORED = 48  # train prompts whose right answers rank the candidates of a round, at most
CONFIRMED = 4  # candidates of a round whose answers are generated
GAIN = 0.02  # right answers that a round must bring
ENOUGH = 0.98
WORDING, FEWEST_ALIKE = 3, 8  # tokens that make a wording, and train prompts that must share it


def refuse_readers(estimators: Sequence[str]) -> None:
    """Raises ControlError where every one of these estimators is a reader, beside whose direction no further one can be found."""
    if all(ESTIMATORS.named(name).traits.reads for name in estimators):
        raise ControlError(
            f"{' and '.join(estimators)} read along one vector and write along another, at one site only, so nothing further can be found"
            " beside that; leave out --rank, or name an estimator that is no reader."
        )


def extensible(findings: Findings) -> list[Direction]:
    """The directions that survived selection and that are read and written alike, best first: further ones can be found beside them."""
    return [direction for direction in findings.ranked() if direction.write is None]


def find_again(bench: Bench, findings: Findings, rank: int) -> Direction:
    """The best direction of a search with further ones, each found with the earlier ones ablated, up to `rank` in all.

    It ends early where no site tells held-out prompts apart any more (AUROC < 0.6). `rounds` of the result say what every
    round gained: how much of the behaviour is left on val, and how many answers are right. Where the classes differ in
    more than the behaviour, rounds go on finding those differences: look at what they gain. Where the first direction leaves
    more wrong answers than behaviour, the rounds are those of `iterate`, as long as they bring answers back. Raises
    ControlError where only readers were tried.
    """
    refuse_readers(findings.estimators)
    session, first = bench.session, _first(findings)
    on_shows = _on_shows(bench, findings.sets)
    sites = list(dict.fromkeys(item.site for item in findings.directions if item.site.layer < findings.layer_limit))
    estimator = ESTIMATORS.named(first.estimator)
    left, right = _left_and_right(on_shows, first)
    direction = replace(
        first, rounds=(Round(rank=1, site=first.site, estimator=first.estimator, auroc=first.auroc, left=left, right=right),)
    )
    if right is not None and right < ENOUGH and left < 1 - right:  # more is wrong than still shows the behaviour
        wide = _for_answers(bench, findings, direction, rank)
        if len(wide.basis) > 1:
            return wide
    while len(direction.basis) < rank:
        with session.controlled(ablate(direction)):
            train, val = (
                {name: session.capture(sets[name], sites, findings.after).values.double() for name in names}
                for sets, names in (
                    (findings.sets.train, estimator.traits.needs | {"shows", "lacks"}),
                    (findings.sets.val, ("shows", "lacks")),
                )
            )
        vectors = _at_every_site(estimator, train)
        along = [torch.einsum("nsd,sd->ns", val[name], vectors) for name in ("shows", "lacks")]
        best = int(directions.separation(*along).nan_to_num(nan=-torch.inf).argmax())
        auroc = float(directions.auroc(along[0][:, best], along[1][:, best]))
        basis = orthonormal(torch.cat([direction.basis.double(), vectors[best][None]])).float()
        if auroc < TELLS_APART or len(basis) == len(direction.basis):
            say(f"Rank {len(direction.basis)} is all there is: with it ablated, no site tells the classes apart (AUROC {auroc:.2f}).")
            break
        direction = replace(direction, basis=basis)
        left, right = _left_and_right(on_shows, direction)
        gained = Round(
            rank=len(basis),
            site=sites[best],
            estimator=estimator.name,
            opening=session.decode(findings.after),
            auroc=auroc,
            left=left,
            right=right,
        )
        direction = replace(direction, rounds=(*direction.rounds, gained))
    return direction


def _first(findings: Findings) -> Direction:
    """The best direction that further ones can be found beside; it is told where that is not the best of all."""
    ranked, alike = findings.ranked(), extensible(findings)
    if not alike:
        raise NoCandidate("Every candidate but those of readers was discarded; see find without --rank for the reasons.")
    if alike[0] is not ranked[0]:
        say(f"{ranked[0].estimator} is best and a reader; further directions are looked for beside the best of {alike[0].estimator}.")
    return alike[0]


def _at_every_site(estimator: Estimator, values: Mapping[str, Tensor]) -> Tensor:
    """What an estimator makes of values [prompt, site, d_model], site by site: [site, d_model]."""
    count = values["shows"].shape[1]
    return torch.stack([estimate(estimator, {name: rows[:, number] for name, rows in values.items()}).read for number in range(count)])


def contrasting(findings: Findings) -> tuple[Estimator, ...]:
    """The estimators of a search that can be asked again of shows and lacks."""
    return tuple(record for record in map(ESTIMATORS.named, findings.estimators) if record.traits.repeats)


def _for_answers(bench: Bench, findings: Findings, direction: Direction, rank: int) -> Direction:
    """`iterate`, its rounds saying how much of the behaviour is left too."""
    wide, gained = iterate(bench, direction, findings.sets, contrasting(findings), rank)
    on_shows = _on_shows(bench, findings.sets)
    left = [_left_and_right(on_shows, replace(wide, basis=wide.basis[: r.rank]))[0] for r in gained]
    return replace(wide, rounds=(*direction.rounds, *(replace(r, left=share) for r, share in zip(gained, left, strict=True))))


def _on_shows(bench: Bench, sets: Sets) -> Bench:
    """The val prompts that show the behaviour, alone."""
    return bench.on({"shows": sets.val["shows"]})


def _left_and_right(on_shows: Bench, direction: Direction) -> tuple[float, float | None]:
    """With a direction ablated: the share of `shows` prompts that still exhibit the behaviour, and of right answers."""
    trial = on_shows.try_(ablate(direction))
    return trial.rate("shows_rate") or 0.0, trial.rate("answers_shows")


def by_wording(bench: Bench, findings: Findings) -> Direction | None:
    """A basis of one direction per wording of the `shows` replies, at the layer where it leaves least.

    Of the estimators of the search those are used that keep the mean of `lacks` in its place. A wording is the first three reply
    tokens, shared by at least eight train prompts. None where there is only one, or no such estimator.
    """
    ledger, on_shows, prompts = bench.ledger, _on_shows(bench, findings.sets), findings.sets.train["shows"]
    starts = [reply.ids for reply in ledger.replies(prompts, WORDING)]
    common = [start for start, count in Counter(starts).most_common(MAX_RANK) if count >= FEWEST_ALIKE]
    if len(common) < 2:
        return None
    keeping = {record.name: record for record in contrasting(findings) if record.traits.keeps_lacks and not record.traits.paired}
    bases = [item for item in findings.directions if item.estimator in keeping]
    if not bases:
        return None
    sites = [item.site for item in bases]
    shows = ledger.capture(prompts, sites, findings.after).values.double()
    lacks = ledger.capture(findings.sets.train["lacks"], sites, findings.after).values.double()
    groups = [shows[[number for number, other in enumerate(starts) if other == start]] for start in common]
    tried: list[tuple[float, Direction]] = []
    for number, base in enumerate(track(bases, "Trying wordings apart", len(bases))):
        at_site = ({"shows": group[:, number], "lacks": lacks[:, number]} for group in groups)
        rows = torch.stack([estimate(keeping[base.estimator], values).read for values in at_site])
        direction = replace(base, basis=orthonormal(rows).float())
        tried.append((_left_and_right(on_shows, direction)[0], direction))
    best = min(tried, key=lambda pair: pair[0])[1]
    val = [ledger.capture(findings.sets.val[name], [best.site], findings.after).values[:, 0].double() for name in ("shows", "lacks")]
    along = [values @ best.basis[0].double() for values in val]
    return replace(best, separation=float(directions.separation(*along)), auroc=float(directions.auroc(*along)))


def iterate(
    bench: Bench, direction: Direction, sets: Sets, estimators: Sequence[Estimator], max_rank: int = MAX_RANK
) -> tuple[Direction, list[Round]]:
    """The direction with further basis vectors as long as they bring right answers back, and what each round gained.

    Answers are those known for `shows` prompts of the val split; without any, the direction comes back as it was.
    `estimators` look for what still tells the classes apart.
    """
    session, on_shows = bench.session, _on_shows(bench, sets)
    if not any(prompt.answer for prompt in sets.val["shows"]):
        return direction, []

    def right(basis: Tensor) -> float:
        return on_shows.try_(ablate(replace(direction, basis=basis))).rate("answers_shows") or 0.0

    openings = common_openings(bench.ledger, sets)
    basis, reached, rounds = direction.basis, right(direction.basis), []
    while len(basis) < max_rank and reached < ENOUGH:
        step = _extensions(session, replace(direction, basis=basis), sets, openings, estimators)
        total = GAINING + len(openings) * len(spread(session.layout.n_layers, LAYERS)) * len(estimators)
        options = sorted(track(step, f"Looking for direction {len(basis) + 1}", total), key=lambda o: -o.likelihood)
        # The log-probability of right answers ranks; whole replies decide.
        now, best = max(((right(option.basis), option) for option in options[:CONFIRMED]), key=lambda pair: pair[0])
        if now < reached + GAIN:
            break
        basis, reached = best.basis, now
        rounds.append(Round(rank=len(basis), site=best.site, estimator=best.estimator, opening=session.decode(best.opening), right=now))
    return replace(direction, basis=basis, rounds=(*direction.rounds, *rounds)), rounds


@dataclass(frozen=True)
class _Further:
    """A vector that may be the next: what made it, and where it was read (no site: at every writer)."""

    vector: Tensor
    estimator: str
    site: Site | None = None
    opening: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Extension(_Further):
    """The same with the basis that it makes, and the mean log-probability of right answers with that ablated."""

    basis: Tensor
    likelihood: float


def _extensions(
    session: Session, direction: Direction, sets: Sets, openings: list[tuple[int, ...]], estimators: Sequence[Estimator]
) -> Iterator[_Extension]:
    """Every further vector, tried."""
    known = [prompt for prompt in sets.train["shows"] if prompt.answer]
    answers = [session.encode_reply(prompt.answer or "") for prompt in known]
    gaining = _gaining(session, direction, known[:ATTRIBUTED], answers[:ATTRIBUTED])
    for further in chain(gaining, _contrasts(session, direction, sets, openings, estimators)):
        basis = orthonormal(torch.cat([direction.basis.double(), further.vector[None]])).float()
        if len(basis) == len(direction.basis):
            continue
        with session.controlled(ablate(replace(direction, basis=basis))):
            scored = session.reply_log_likelihoods(known[:SCORED], answers[:SCORED])
        yield _Extension(**vars(further), basis=basis, likelihood=float(torch.stack([s.mean() for s in scored]).mean()))


def _gaining(session: Session, direction: Direction, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]) -> Iterator[_Further]:
    """Directions whose ablation makes right answers likelier, to first order, with the basis so far ablated."""
    with session.controlled(ablate(direction)):
        form = ablation_gain(session, prompts, answers)
    yield from (_Further(vector, "most_gaining") for vector in most_gaining(form, direction.basis, GAINING))


def _contrasts(
    session: Session, direction: Direction, sets: Sets, openings: list[tuple[int, ...]], estimators: Sequence[Estimator]
) -> Iterator[_Further]:
    """Directions that still tell the classes apart with the basis so far ablated, at every opening and layer."""
    sites = [Site(layer) for layer in spread(session.layout.n_layers, LAYERS)]
    for opening in openings:
        with session.controlled(ablate(direction)):
            values = {name: session.capture(sets.train[name], sites, opening).values.double() for name in ("shows", "lacks")}
        for number, site in enumerate(sites):
            for estimator in estimators:
                read = estimate(estimator, {name: rows[:, number] for name, rows in values.items()}).read
                yield _Further(read, estimator.name, site, opening)
