"""Finding where a model carries a behaviour when its weights stay on disk: one pass over its files, and what can be told from values alone.

No reply is generated, since each of its tokens would take all of the files. So prompts are not filtered by what the model does, no opening is
forced, and directions are ranked by how well they tell held-out prompts apart (`streamed_trials.py` tries some of them in a second pass).
"""

from __future__ import annotations

import hashlib
import math
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..algebra import directions
from ..algebra.moments import Moments
from ..algebra.schedule import layer_limit
from ..behaviours import Behaviour, BehaviourLike, Prompt, as_behaviour
from ..controls.direction import Candidate, Direction
from ..errors import DataError
from ..models import Site, StreamedSession
from ..models.kept_pass import of_key
from ..progress import say, warn
from ..runtime.positions import REPLY, Position
from ..version import __version__
from .classes import Chance
from .estimators import ESTIMATORS, Estimator, named_estimators, usual_estimators
from .filter import Sets, as_given
from .layer_found import Estimated, LayerFound
from .plan import FindPlan
from .select import TOO_LATE

POSITIONS = 5  # of the template after the user's message, at most
ALIKE = 3  # decimals of AUROC: directions that agree so far are told apart by d'


@dataclass(frozen=True, kw_only=True)
class StreamedFindings:
    """What one pass saw: all directions, best first, those of layers that are too late last. counts: prompts by set. bytes_read: of the files of `size` bytes."""

    directions: tuple[Direction, ...]
    chance: Chance
    counts: dict[str, int]
    bytes_read: int
    size: int


def find_streamed(
    session: StreamedSession, behaviour: BehaviourLike, plan: FindPlan | None = None, *, folder: Path | None = None
) -> StreamedFindings:
    """Every direction of a model on disk, ranked by what is told from values: held-out AUROC, then d'.

    Of directions that tell alike those come first that leave `lacks` where it is when they are ablated, for nothing is tried. folder: where
    the pass keeps what it has, so that it goes on there after a kill; a temporary one unless given. Raises NoUsableDirection when the
    classes differ no more than chance allows, DataError for what a plan asks that takes replies.
    """
    plan = plan or FindPlan()
    _refuse(plan, session)
    behaviour = as_behaviour(behaviour, session)
    behaviour.needs_prompts()
    estimators = named_estimators(behaviour, plan.estimators or usual_estimators(behaviour))
    sets = as_given(behaviour, plan.max_prompts)
    positions: list[Position] = [REPLY] if behaviour.has_replies else list(range(-min(POSITIONS, session.template_length()), 0))
    _tell(session, behaviour, sets)
    begun = session.shell.bytes_read
    with nullcontext(str(folder)) if folder is not None else tempfile.TemporaryDirectory() as work:
        layers = _layers(session, sets, positions, estimators, of_key(Path(work), _key(session, sets, positions, estimators)))
    chance = _chance(layers, sets)
    sites = [Site(layer, "resid_post", position) for layer in range(len(layers)) for position in positions]
    chance.refuse(sites)
    return StreamedFindings(
        directions=tuple(_ranked(session, behaviour, plan, layers, positions, chance)),
        chance=chance,
        counts={name: len(sets.train[name]) + len(sets.val[name]) for name in sets.train},
        bytes_read=session.shell.bytes_read - begun,
        size=session.shell.values.files.size,
    )


def _refuse(plan: FindPlan, session: StreamedSession) -> None:
    wrong = "rank_by" if plan.rank_by not in (None, "gap") else "trying" if plan.trying is not None else None
    if wrong is not None:
        raise DataError(f"`{wrong}` says how directions are tried, and none can be in a model that is read block by block; leave it out.")
    if plan.read == "replies":
        raise DataError("The model says nothing while it is read block by block, so its replies cannot be read; give them as data, or leave `read` out.")
    if plan.layer is not None and not 0 <= plan.layer < session.n_layers:
        raise DataError(f"{session.name} has layers 0 to {session.n_layers - 1}; there is no layer {plan.layer}.")


def _tell(session: StreamedSession, behaviour: Behaviour, sets: Sets) -> None:
    """What is done elsewhere and not here."""
    counts = ", ".join(f"{name} {len(sets.train[name]) + len(sets.val[name])}" for name in sets.train)
    unfiltered = "" if behaviour.has_replies else f"prompts ({counts}) are taken as they are given, whatever the model says to them; "
    warn(f"{session.name} is read block by block: {unfiltered}directions are ranked by held-out statistics, and no reply is generated.")


def _layers(
    session: StreamedSession, sets: Sets, positions: Sequence[Position], estimators: Sequence[Estimator], work: Path
) -> list[LayerFound]:
    """What was found in every layer, from the pass or from what an earlier one kept in the folder."""
    prompts: dict[Prompt, int] = {}
    for name in ("shows", "lacks", "guard"):
        for prompt in (*sets.train.get(name, ()), *(sets.val[name] if name != "guard" else ())):  # of guard nothing is held out
            prompts.setdefault(prompt, len(prompts))
    rows = [{name: torch.tensor([prompts[prompt] for prompt in part[name]]) for name in names} for part, names in ((sets.train, sets.train), (sets.val, ("shows", "lacks")))]
    say(f"{len(prompts)} prompts pass {session.name} at {len(positions)} positions each.")
    for layer in session.layers(list(prompts), positions, work):
        train, val = ({name: layer.values[numbers].double() for name, numbers in part.items()} for part in rows)
        LayerFound.of(train, val, estimators).save(_file(work, layer.layer))
    return [LayerFound.read(_file(work, layer)) for layer in range(session.layout.n_layers)]


def _key(session: StreamedSession, sets: Sets, positions: Sequence[Position], estimators: Sequence[Estimator]) -> str:
    """What a pass and what is made of it depend on, as a hash."""
    prompts = [(name, [[session.encode(prompt), prompt.reply] for prompt in part[name]]) for part in (sets.train, sets.val) for name in part]
    told = [__version__, session.told, prompts, list(positions), [(record.name, record.origin, _code(record)) for record in estimators]]
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _code(estimator: Estimator) -> str:
    """The file that holds an estimator, as text: what its layers already are must not be mixed with what it has become."""
    file = getattr(sys.modules.get(estimator.factory.__module__), "__file__", None)
    return Path(file).read_text(encoding="utf-8") if file else ""


def _file(work: Path, layer: int) -> Path:
    return work / f"layer-{layer:04d}.safetensors"


def _chance(layers: Sequence[LayerFound], sets: Sets) -> Chance:
    rng = torch.Generator().manual_seed(0)
    shows, lacks = (torch.zeros(len(sets.train[name]), 1, 1) for name in ("shows", "lacks"))
    directions.split_half_cosine(shows, lacks, rng)  # what is drawn before the permutations elsewhere
    train, val = (torch.arange(len(part["shows"]) + len(part["lacks"])) < len(part["shows"]) for part in (sets.train, sets.val))
    p = directions.permutation_p_of(torch.cat([layer.products for layer in layers]), train, val, rng)
    return Chance(torch.cat([layer.separation for layer in layers]), torch.cat([layer.cosine for layer in layers]), p)


def _ranked(
    session: StreamedSession, behaviour: Behaviour, plan: FindPlan, layers: Sequence[LayerFound], positions: Sequence[Position], chance: Chance
) -> list[Direction]:
    """All directions, best first, each with every candidate."""
    limit = layer_limit(len(layers)) if plan.layer is None else len(layers)
    entries = [(layer, one) for layer, found in enumerate(layers) for one in found.estimated if plan.layer in (None, layer)]
    candidates = [_candidate(layer, one, layers, positions, limit) for layer, one in entries]

    def key(number: int) -> tuple[bool, bool, float, float]:
        candidate, by = candidates[number], plan.rank_by
        keeps = ESTIMATORS.named(candidate.estimator).traits.keeps_lacks
        told = -candidate.gap if by == "gap" else -candidate.separation
        return bool(candidate.discarded), not keeps and by is None, 0.0 if by == "gap" else -round(candidate.auroc, ALIKE), told

    order = sorted(range(len(entries)), key=key)
    every = tuple(candidates[number] for number in order)
    everywhere = [_everywhere(layers, place) for place in range(len(positions))]
    made = []
    for number in order:
        layer, one = entries[number]
        direction = _direction(session, behaviour, layers[layer], one, candidates[number], everywhere[one.position])
        cosine = float(chance.cosine[layer * len(positions) + one.position])
        made.append(replace(direction, candidates=every, p=chance.p, split_half_cosine=cosine))
    return made


def _candidate(layer: int, one: Estimated, layers: Sequence[LayerFound], positions: Sequence[Position], limit: int) -> Candidate:
    found, nothing = layers[layer], math.nan
    gap = abs(float((found.shows.mean - found.lacks.mean)[one.position] @ one.estimate.read))
    return Candidate(
        site=Site(layer, "resid_post", positions[one.position]), estimator=one.estimator, bypass=nothing, induce=nothing, kl=nothing,
        auroc=one.auroc, separation=one.separation, gap=gap, discarded=(TOO_LATE,) if layer >= limit else (),
    )  # fmt: skip


def _everywhere(layers: Sequence[LayerFound], place: int) -> tuple[Moments, Moments]:
    """Moments of shows and lacks at all layers and one position: [layer, d_model]."""

    def stacked(parts: Sequence[Moments]) -> Moments:
        return Moments(parts[0].n, torch.stack([part.mean[place] for part in parts]), torch.stack([part.variance[place] for part in parts]))

    return stacked([layer.shows for layer in layers]), stacked([layer.lacks for layer in layers])


def _direction(
    session: StreamedSession, behaviour: Behaviour, found: LayerFound, one: Estimated, candidate: Candidate, everywhere: tuple[Moments, Moments]
) -> Direction:
    shows, lacks = (Moments(part.n, part.mean[one.position], part.variance[one.position]) for part in (found.shows, found.lacks))
    write = one.estimate.write
    return Direction(
        basis=one.estimate.read.float()[None], site=candidate.site, estimator=one.estimator, shows=shows, lacks=lacks, separation=one.separation,
        auroc=one.auroc, split_half_cosine=math.nan, p=math.nan, candidates=(), layout=session.layout, model_name=session.name, behaviour=behaviour.name,
        layers=everywhere, write=None if write is None else write.float()[None],
    )  # fmt: skip
