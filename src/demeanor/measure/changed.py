"""What changed inside, from one model (or control) to another, on prompts that both were asked. algorithms.md, section 7."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..behaviours import SET_NAMES, Prompt
from ..errors import DataError
from ..models.attribution import input_x_gradient, mean_states
from ..models.thinking import spoken
from ..stats import intervals
from ..stats.score import Score
from .condition import Condition
from .ledger import KEPT
from .observation import Observation, Outcome

TOKENS = 32  # of a reply
PROMPTS = 64  # that are looked into; a backward pass each
Embed = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class Changed:
    """Scores before and after, by name.

    log_likelihood: of the base's own reply tokens, nats per token; entropy: of the next token over that reply, nats;
    prompt_share: the prompt's share of |input x gradient| for that reply; prompt_entropy: how evenly it is spread over the
    prompt, entropy / log(length), 1 for evenly; similarity: cosine of prompt and one's own reply, and
    shuffled_similarity: the same with the reply to another prompt.
    """

    before: Mapping[str, Score]
    after: Mapping[str, Score]
    similarity_by: str

    def to_json(self) -> dict[str, Any]:
        sides = {"before": self.before, "after": self.after}
        values: dict[str, Any] = {side: {name: score.to_json() for name, score in scores.items()} for side, scores in sides.items()}
        return {**values, "similarity_by": self.similarity_by}

    def __str__(self) -> str:
        lines = [f"{'':<22}{'before':<34}after"]
        lines += [f"{name:<22}{self.before[name]!s:<34}{score}" for name, score in self.after.items()]
        return "\n".join(lines)


def changed(was: Condition, now: Condition, seen: tuple[Observation, Observation], embedder: str | None = None) -> Changed:
    """What became of the base's replies under the other, from what both said to the same prompts.

    Prompts are taken from all sets in turn, 64 at most. `embedder`: a sentence-transformers model by name or folder; the mean of
    the base's own last states otherwise. Raises DataError where the two have different vocabularies or nothing was said.
    """
    pairs = _sample(seen)
    if was.session.vocabulary != now.session.vocabulary:
        raise DataError(
            f"{was.session.name} and {now.session.name} have different vocabularies, so their replies cannot be compared by token."
        )
    prompts = [one.prompt for one, _ in pairs]
    replies = [one.reply.ids[:TOKENS] for one, _ in pairs]
    embed: Embed = (lambda texts: mean_states(was.session, texts)) if embedder is None else _sentence_model(embedder)
    said = ([spoken(one.reply.text) for one, _ in pairs], [spoken(other.reply.text) for _, other in pairs])
    sides = [{**_likelihoods(who, prompts, replies), **_attributions(who, prompts, replies)} for who in (was, now)]
    with was.session.uncontrolled():
        asked = embed([prompt.text for prompt in prompts])
        for side, texts in zip(sides, said):
            side |= _similarities(asked, embed(texts))
    by = embedder or f"mean-pooled states of {was.session.name}"
    return Changed(sides[0], sides[1], by)


def _sample(seen: tuple[Observation, Observation]) -> list[tuple[Outcome, Outcome]]:
    """(before, after) outcomes, the sets in turn, of prompts to which the base said something."""
    sets = [list(zip(seen[0].sets[name], seen[1].sets[name], strict=True)) for name in SET_NAMES]
    longest = max(map(len, sets), default=0)
    turns = [some[place] for place in range(longest) for some in sets if place < len(some)]
    kept = [(one, other) for one, other in turns if one.reply.ids][:PROMPTS]
    if len(kept) < 2:
        raise DataError("The base said nothing to compare with; measure on more prompts.")
    return kept


def _likelihoods(who: Condition, prompts: Sequence[Prompt], replies: Sequence[Sequence[int]]) -> dict[str, Score]:
    few = max(1, KEPT // (TOKENS * who.session.vocabulary))
    rows: list[tuple[float, float, float]] = []
    for start in range(0, len(prompts), few):
        some = replies[start : start + few]
        for reply, log_probs in zip(some, who.reply_log_probs(prompts[start : start + few], some), strict=True):
            own = log_probs.gather(1, torch.tensor(reply)[:, None]).double().sum()
            entropy = -(log_probs.double().exp() * log_probs.double()).nan_to_num().sum()
            rows.append((float(own), float(entropy), float(len(reply))))
    own_sums, entropies, counts = torch.tensor(rows, dtype=torch.float64).T
    return {
        "log_likelihood": intervals.mean("log_likelihood", own_sums / counts, counts),
        "entropy": intervals.mean("entropy", entropies / counts, counts),
    }


def _attributions(who: Condition, prompts: Sequence[Prompt], replies: Sequence[Sequence[int]]) -> dict[str, Score]:
    asked = who.asked(prompts)
    with who.acting() as session:
        shares = input_x_gradient(session, asked, replies)
    of_prompt, evenness = [], []
    for weights, reply in zip(shares, replies, strict=True):
        prompt = weights[: len(weights) - len(reply)].double()
        of_prompt.append(float(prompt.sum() / weights.double().sum().clamp_min(1e-30)))
        spread = prompt / prompt.sum().clamp_min(1e-30)
        evenness.append(float(torch.special.entr(spread).sum() / torch.tensor(max(2, len(prompt))).log()))
    return {
        "prompt_share": intervals.mean("prompt_share", torch.tensor(of_prompt, dtype=torch.float64)),
        "prompt_entropy": intervals.mean("prompt_entropy", torch.tensor(evenness, dtype=torch.float64)),
    }


def _similarities(prompts: Tensor, replies: Tensor) -> dict[str, Score]:
    """Cosines of each prompt with its reply, and with the next prompt's: neighbours are of different sets where there are several."""
    own = torch.cosine_similarity(prompts.double(), replies.double())
    shuffled = torch.cosine_similarity(prompts.double(), replies.double().roll(1, 0))
    return {
        "similarity": intervals.mean("similarity", own),
        "shuffled_similarity": intervals.mean("shuffled_similarity", shuffled),
    }


def _sentence_model(name: str) -> Embed:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise DataError(
            f"The embedder {name!r} takes sentence-transformers: pip install sentence-transformers; or leave it out, and the model's own states are used."
        ) from error
    try:
        model = SentenceTransformer(name, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"The embedder {name!r} could not be loaded: {' '.join(str(error).split())[:200]}") from error
    return lambda texts: torch.as_tensor(model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)).float().cpu()
