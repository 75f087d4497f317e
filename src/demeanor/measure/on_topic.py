"""Whether a reply answers its own prompt: is it likelier there than after other prompts?

Words need not be shared, and no second model is needed: the untouched model says what a reply has to do with a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..behaviours import Prompt
from ..models import Session

OTHERS = 3  # prompts that a reply is tried on besides its own


def on_topic(
    session: Session, prompts: Sequence[Prompt], replies: Sequence[Sequence[int]], against: Sequence[Prompt] = ()
) -> list[bool] | None:
    """Per reply, whether the uncontrolled model finds it likelier after its own prompt than, on average, after others.

    The others are taken from `against`, or from the prompts themselves. None where all are alike, so that there is nothing to
    compare with; an empty reply is on no topic.
    """
    keys = [prompt.key for prompt in prompts]
    first = {prompt.key: prompt for prompt in [*against, *prompts]}
    distinct = list(first)
    if len(distinct) < 2:
        return None
    place = {key: number for number, key in enumerate(distinct)}
    kept = [number for number, reply in enumerate(replies) if reply]
    asked, said = [], []
    count = min(OTHERS, len(distinct) - 1)
    for number in kept:
        at = place[keys[number]]
        # Spread over the prompts, so that neighbours, which may ask the same in other words, are not all there is.
        others = [distinct[(at + 1 + step * (len(distinct) - 1) // count) % len(distinct)] for step in range(count)]
        asked += [prompts[number], *(first[key] for key in others)]
        said += [replies[number]] * (count + 1)
    topical = [False] * len(prompts)
    if kept:
        with session.uncontrolled():
            likelihoods = session.reply_log_likelihoods(asked, said)
        means = torch.stack([row.mean() for row in likelihoods]).view(-1, count + 1)
        for number, own, other in zip(kept, means[:, 0].tolist(), means[:, 1:].mean(1).tolist()):
            topical[number] = own > other
    return topical
