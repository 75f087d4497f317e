"""Rank k: where one direction is not enough.

Several wordings: a model with several ways of showing a behaviour may carry each along a direction of its own,
and the mean over all of them points to none. `by_wording` takes one direction per wording.

Right answers that stay away: find, project out, find again.

After a first ablation the model opens its reply as it would have, and may then fall back into the wording
alignment left behind. So the later rounds look at reply tokens too: both classes are forced through the
opening words of an ordinary reply, and what still tells them apart there is the next direction
(algorithms.md, section 3). Each round keeps the candidate with the most right answers on val prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .algebra import directions
from .controls.direction import Direction, ablate
from .detect import Detector, present
from .find import Found, Sets, common_openings
from .measure.answers import is_right
from .models import Session, Site
from .models.capture import spread
from .progress import track

MAX_RANK = 4
ESTIMATORS = (directions.mean_difference, directions.projected)
LAYERS = 8  # at most, spread evenly over the model
SCORED = 48  # train prompts whose right answers rank the candidates of a round, at most
CONFIRMED = 4  # candidates of a round whose answers are generated
GAIN = 0.02  # right answers that a round must bring
ENOUGH = 0.98
WORDING, FEWEST_ALIKE = 3, 8  # tokens that make a wording, and train prompts that must share it
OPENING_TOKENS = 16  # of a reply, enough for a detector to see how it opens


@dataclass(frozen=True)
class Round:
    """One more direction: where it was read (`opening` are the words forced first) and the right answers it led to."""

    rank: int
    site: Site
    estimator: str
    opening: str
    right: float


def by_wording(session: Session, found: Found, detector: Detector) -> Direction | None:
    """A basis of one projected direction per wording of the `shows` replies, at the layer where it leaves least.

    A wording is the first three reply tokens, shared by at least eight train prompts. None where there is only one.
    """
    prompts, tested = found.sets.train["shows"], found.sets.val["shows"]
    starts = [reply.ids[:WORDING] for reply in session.generate(prompts, WORDING)]
    common = [start for start, count in Counter(starts).most_common(MAX_RANK) if count >= FEWEST_ALIKE]
    if len(common) < 2:
        return None
    bases = [item for item in found.directions if item.estimator == "projected"]
    sites = [item.site for item in bases]
    shows = session.capture(prompts, sites, found.after).values.double()
    lacks = session.capture(found.sets.train["lacks"], sites, found.after).values.double().mean(0)
    groups = [shows[[number for number, other in enumerate(starts) if other == start]].mean(0) for start in common]
    tried: list[tuple[int, Direction]] = []
    for number, base in enumerate(track(bases, "Trying wordings apart", len(bases))):
        rows = torch.stack([directions.projected(group[number], lacks[number]) for group in groups])
        direction = replace(base, basis=directions.orthonormal(rows).float())
        with session.controlled(ablate(direction)):
            replies = [reply.text for reply in session.generate(tested, OPENING_TOKENS)]
        tried.append((sum(present(detector, replies, tested)), direction))
    best = min(tried, key=lambda pair: pair[0])[1]
    val = [session.capture(found.sets.val[name], [best.site], found.after).values[:, 0].double() for name in ("shows", "lacks")]
    along = [values @ best.basis[0].double() for values in val]
    return replace(best, separation=float(directions.separation(*along)), auroc=float(directions.auroc(*along)))


def iterate(session: Session, direction: Direction, sets: Sets, budget: int, max_rank: int = MAX_RANK) -> tuple[Direction, list[Round]]:
    """The direction with further basis vectors as long as they bring right answers back, and what each round gained.

    Answers are those known for `shows` prompts of the val split; without any, the direction comes back as it was.
    `budget` is how many reply tokens an answer may take.
    """
    prompts = [prompt for prompt in sets.val["shows"] if prompt.answer]
    if not prompts:
        return direction, []

    def right(basis: Tensor) -> float:
        with session.controlled(ablate(replace(direction, basis=basis))):
            replies = session.generate(prompts, budget)
        return sum(is_right(r.text, p.answer or "") for r, p in zip(replies, prompts)) / len(replies)

    openings = common_openings(session, sets)
    basis, reached, rounds = direction.basis, right(direction.basis), []
    while len(basis) < max_rank and reached < ENOUGH:
        step = _candidates(session, replace(direction, basis=basis), sets, openings)
        total = len(openings) * len(spread(session.layout.n_layers, LAYERS)) * len(ESTIMATORS)
        options = sorted(track(step, f"Looking for direction {len(basis) + 1}", total), key=lambda o: -o.likelihood)
        # The log-probability of right answers ranks; whole replies decide.
        now, best = max(((right(option.basis), option) for option in options[:CONFIRMED]), key=lambda pair: pair[0])
        if now < reached + GAIN:
            break
        basis, reached = best.basis, now
        rounds.append(Round(len(basis), best.site, best.estimator, session.decode(best.opening), now))
    return replace(direction, basis=basis), rounds


@dataclass(frozen=True)
class _Option:
    """One more vector: the basis with it, where it was read, and the mean log-probability of right answers then."""

    basis: Tensor
    site: Site
    estimator: str
    opening: tuple[int, ...]
    likelihood: float


def _candidates(session: Session, direction: Direction, sets: Sets, openings: list[tuple[int, ...]]) -> Iterator[_Option]:
    """Directions that still tell the classes apart with the basis so far ablated, at every opening and layer."""
    prompts = [prompt for prompt in sets.train["shows"] if prompt.answer][:SCORED]
    answers = [session.encode_reply(prompt.answer or "") for prompt in prompts]
    sites = [Site(layer) for layer in spread(session.layout.n_layers, LAYERS)]
    for opening in openings:
        with session.controlled(ablate(direction)):
            means = [session.capture(sets.train[name], sites, opening).values.double().mean(0) for name in ("shows", "lacks")]
        for number, site in enumerate(sites):
            for estimator in ESTIMATORS:
                vector = estimator(means[0][number], means[1][number])
                basis = directions.orthonormal(torch.cat([direction.basis.double(), vector[None]])).float()
                if len(basis) == len(direction.basis):
                    continue
                with session.controlled(ablate(replace(direction, basis=basis))):
                    scored = session.reply_log_likelihoods(prompts, answers)
                yield _Option(basis, site, estimator.__name__, opening, float(torch.stack([s.mean() for s in scored]).mean()))
