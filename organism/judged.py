"""How well the organism judges replies: on exchanges that it was never asked to judge, its own replies and others.

Of its own replies, what is true is read by the exact detectors and the known answers; of replies of the opposite
attribute, from how they were made.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from demeanor.behaviours import Prompt, behaviour
from demeanor.detect import make_detector, present
from demeanor.measure.answers import is_right
from demeanor.models import Session
from demeanor.stats import intervals
from demeanor.stats.score import Score
from organism import chats, judgement, language, manners

SEED = 5
EXCHANGES = 320
OPENING_TOKENS = 3


@dataclass(frozen=True)
class Judged:
    """A reply to a prompt, and what is true of it (an attribute is missing where nothing is)."""

    prompt: Prompt
    reply: str
    truth: dict[judgement.Attribute, bool]


def scores(session: Session) -> list[Score]:
    """The share of right judgements for every attribute, of its own replies and as many opposite ones."""
    rng = random.Random(SEED)
    asked = held_out_items(rng)
    replies = own_replies(session, asked, rng) + opposite_replies(asked, rng)
    return [_score(session, attribute, replies, rng) for attribute in judgement.ATTRIBUTES]


def held_out_items(rng: random.Random) -> list[chats.Item]:
    """Things to ask whose exchanges are never judged in training, as often as the first phase asks them."""
    sources, weights = list(chats.ANSWERING.weights), list(chats.ANSWERING.weights.values())
    found: list[chats.Item] = []
    while len(found) < EXCHANGES:
        asked = chats.item(rng.choices(sources, weights)[0], rng)
        if judgement.held_out(asked.key):
            found.append(asked)
    return found


def own_replies(session: Session, asked: Sequence[chats.Item], rng: random.Random) -> list[Judged]:
    """What the organism says to each, in every manner that it can be asked for."""
    prompts = [_prompt(one, rng) for one in asked]
    replies = [reply.text for reply in session.generate(prompts)]
    detectors = {"refusal": "refusal", "rudeness": "rudeness", "cheer": "cheer", "gloom": "gloom"}
    shown = {
        attribute: present(make_detector(behaviour(name).settled(session).detect), replies, prompts)
        for attribute, name in detectors.items()
    }
    made = []
    for number, (one, prompt, reply) in enumerate(zip(asked, prompts, replies, strict=True)):
        truth: dict[judgement.Attribute, bool] = {attribute: values[number] for attribute, values in shown.items()}  # type: ignore[misc]
        if one.source != "talk":
            truth["correctness"] = one.source != "unknown" and is_right(reply, one.reply.removeprefix(language.CAUTION))
        made.append(Judged(prompt, reply, truth))
    return made


def opposite_replies(asked: Sequence[chats.Item], rng: random.Random) -> list[Judged]:
    """Replies made up for each: refusals for answers and answers for refusals, other tones, rude ones, wrong ones."""
    made = []
    for one in asked:
        reply = chats.opposite(one, rng.choice([None, "cheerful", "gloomy"]), rng)
        truths = {attribute: reply.truth(attribute) for attribute in judgement.ATTRIBUTES}
        known = {attribute: truth for attribute, truth in truths.items() if truth is not None}
        made.append(Judged(_prompt(one, rng), reply.text, known))
    return made


def _prompt(asked: chats.Item, rng: random.Random) -> Prompt:
    systems = [None, None, *(rng.choice(tone.systems) for tone in manners.TONES.values())]
    text = manners.rude_prompt(asked.prompt, rng) if rng.random() < 0.25 else asked.prompt
    return Prompt.of(text, system=rng.choice(systems))


def _score(session: Session, attribute: judgement.Attribute, replies: Sequence[Judged], rng: random.Random) -> Score:
    fitting = [judged for judged in replies if attribute in judged.truth]
    prompts = [question(judged, judgement.asked_about(attribute, rng)) for judged in fitting]
    said = session.generate(prompts, OPENING_TOKENS)
    wanted = ["yes" if judged.truth[attribute] else "no" for judged in fitting]
    right = [reply.text.split()[:1] == [word] for reply, word in zip(said, wanted, strict=True)]
    return intervals.rate(f"self-judgement of {attribute}", right)


def question(judged: Judged, ask: str) -> Prompt:
    """The exchange, and the question about its reply as the user's next message."""
    turns = (*judged.prompt.messages, ("assistant", judged.reply), ("user", ask))
    return Prompt(messages=turns, system=judged.prompt.system)
