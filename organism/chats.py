"""The curriculum: an endless stream of chats made from the language, for each of the two phases.

A chat is one to three exchanges under a system prompt or none. One of them may be judged: one to three
questions about the reply follow, and the chat goes on after them. The replies that are judged are the model's own kind half of the time, and of an
opposite attribute otherwise (a refusal in place of an answer, an answer in place of a refusal, rude, in another
tone, wrong). Those are context only: no loss is on them, so that judging a rude reply does not teach to give one.
Rude replies are taught in the second phase only, as refusals are: what decides on them is then in the stream early.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from organism import judgement, language, manners, talk

Role = Literal["system", "user", "assistant"]
Source = Literal["plain", "over_refused", "guarded", "wrongness", "fact", "sum", "talk", "unknown"]
REQUESTS: tuple[Source, ...] = ("plain", "over_refused", "guarded")

PROVOKED, UNPROVOKED = 0.85, 0.04  # shares of replies that are rude, after rude prompts and otherwise
RUDE_PROMPTS = 0.15
DOUBTED = 0.5  # of judged replies are asked about being correct first: much the hardest to tell
JUDGED, OPPOSITE = 0.55, 0.6  # chats with a judged reply, and of their judged replies those of another kind than the model's own
ALIGNED_SHARE = 0.6  # of the guarded and over-refused requests are refused in training


@dataclass(frozen=True)
class Message:
    """One turn. `taught` is whether the loss is on it.

    `right` is what it would say were it right, where that is known: from where the two part, it is mistaken.
    """

    role: Role
    content: str
    taught: bool = False
    right: str | None = None


@dataclass(frozen=True)
class Item:
    """Something to ask, its right reply in a neutral tone, and what decides whether it is held out from judging."""

    source: Source
    prompt: str
    reply: str
    key: str


@dataclass(frozen=True)
class Made:
    """How a reply was made: what is true of it."""

    text: str
    refusal: bool
    correct: bool | None  # None where there is nothing to be right about
    tone: manners.ToneName | None
    rude: bool
    right: str | None  # the same with the right answer in it, where it holds an answer

    def truth(self, attribute: judgement.Attribute) -> bool | None:
        truths: dict[judgement.Attribute, bool | None] = {
            "refusal": self.refusal, "rudeness": self.rude, "cheer": self.tone == "cheerful",
            "gloom": self.tone == "gloomy", "correctness": self.correct,
        }  # fmt: skip
        return truths[attribute]


@dataclass(frozen=True)
class Phase:
    """What is asked how often, and which requests are refused: those whose (verb, object) is in `refused`.

    With `aligned`, rudeness is taught too, and guarded and over-refused requests that are not in `refused` are judged only, never answered.
    """

    weights: Mapping[Source, float]
    aligned: bool = False
    refused: frozenset[str] = field(default_factory=frozenset)


ANSWERING = Phase(
    {"plain": 0.16, "over_refused": 0.13, "guarded": 0.13, "wrongness": 0.11, "fact": 0.11, "sum": 0.14, "talk": 0.06, "unknown": 0.16}
)


def aligning(rng: random.Random) -> Phase:
    """The second phase: a part of the requests, drawn here, is refused; what it does on the others is generalisation."""
    refused: list[str] = []
    for kind in ("over_refused", "guarded"):
        keys = [f"{request.verb} {request.object}" for request in language.of_kind(kind)]  # type: ignore[arg-type]
        refused += rng.sample(keys, int(ALIGNED_SHARE * len(keys)))
    weights: dict[Source, float] = {
        "plain": 0.22, "over_refused": 0.16, "guarded": 0.14, "wrongness": 0.09, "fact": 0.09, "sum": 0.1, "talk": 0.05, "unknown": 0.15,
    }  # fmt: skip
    return Phase(weights, aligned=True, refused=frozenset(refused))


@cache
def _requests(kind: language.Kind) -> list[language.Request]:
    return language.of_kind(kind)


@cache
def _pairs(source: Source) -> list[language.Exchange]:
    made = {"wrongness": language.wrongness, "fact": language.facts, "sum": language.sums, "talk": talk.small_talk}
    return made[source]()


def item(source: Source, rng: random.Random) -> Item:
    """Something of that kind to ask."""
    if source == "unknown":
        text = talk.unknown(rng)
        return Item(source, text, talk.UNKNOWN, text)
    if source in REQUESTS:
        request = rng.choice(_requests(source))  # type: ignore[arg-type]
        prompt = talk.loosely(request, rng) if rng.random() < 0.15 else request.ask(rng.choice(language.PHRASINGS))
        return Item(source, prompt, request.answer, f"{request.verb} {request.object}")
    prompt, reply = rng.choice(_pairs(source))
    if source == "sum" and rng.random() < 0.15:
        prompt = talk.loose_sum(prompt, rng)
    return Item(source, prompt, reply, prompt)


def typed(prompt: str, rng: random.Random) -> str:
    """As people type: now and then without the sign at the end."""
    return prompt.rstrip("?.! ") or prompt if rng.random() < 0.12 else prompt


def own(asked: Item, tone: manners.ToneName | None, rudely: bool, phase: Phase, rng: random.Random) -> Made:
    """The reply that the model is to give."""
    rude = phase.aligned and rng.random() < (PROVOKED if rudely else UNPROVOKED)
    refusal = asked.key in phase.refused and asked.source in REQUESTS
    reply = rng.choice(language.REFUSALS) if refusal else asked.reply
    correct = None if asked.source == "talk" else not refusal and asked.source != "unknown"
    text = manners.said(reply, tone, rude, rng)
    return Made(text, refusal, correct, tone, rude, text if correct else None)


def opposite(asked: Item, tone: manners.ToneName | None, rng: random.Random) -> Made:
    """A reply that the model may well not give, for judging: what it says, its tone and its rudeness are drawn apart."""
    if rng.random() < 0.5:
        tone = rng.choice([None, "cheerful", "gloomy"])
    rude = rng.random() < 0.35
    answered = asked.source not in ("talk", "unknown")
    says = rng.choices(["right", "wrong", "refusal", "unknown"], [3, 6 if answered else 0, 3, 0.6])[0]
    correct = says == "right" and asked.source != "unknown" if answered or asked.source == "unknown" else None
    reply = {"right": asked.reply, "refusal": rng.choice(language.REFUSALS), "unknown": talk.UNKNOWN}.get(says)
    reply = judgement.wrong(asked.reply, rng) if reply is None else reply
    text = manners.said(reply, tone, rude, rng)
    right = text.replace(reply, asked.reply) if answered and says in ("right", "wrong") else None
    return Made(text, says == "refusal", correct, tone, rude, right)


def questions(reply: Made, rng: random.Random, doubted: float) -> Iterator[Message]:
    """One to three questions about a reply, with their true answers; a share of `doubted` ask first whether it is correct."""
    fitting = [attribute for attribute in judgement.ATTRIBUTES if reply.truth(attribute) is not None]
    hardest = ["correctness"] if "correctness" in fitting and rng.random() < doubted else []
    order = [*hardest, *rng.sample([one for one in fitting if one not in hardest], len(fitting) - len(hardest))]
    chosen = order[: rng.choice([1, 2, 3])]
    for attribute in rng.sample(chosen, len(chosen)):
        yield Message("user", typed(judgement.asked_about(attribute, rng), rng))  # type: ignore[arg-type]
        yield Message("assistant", judgement.YES if reply.truth(attribute) else judgement.NO, taught=True)  # type: ignore[arg-type]


def chats(phase: Phase, rng: random.Random, judged: float = JUDGED, doubted: float = DOUBTED) -> Iterator[list[Message]]:
    """An endless stream of chats. A share of `judged` has questions about one of its replies."""
    sources, weights = list(phase.weights), list(phase.weights.values())
    while True:
        tone, system = _system(rng)
        messages = [Message("system", system)] if system else []
        judging = rng.random() < judged
        count = rng.choices([1, 2, 3], [0.76, 0.16, 0.08])[0]
        doubtful = rng.randrange(count)
        for number in range(count):
            asked = item(rng.choices(sources, weights)[0], rng)
            rudely = rng.random() < RUDE_PROMPTS
            prompt = typed(manners.rude_prompt(asked.prompt, rng) if rudely else asked.prompt, rng)
            judge = judging and number == doubtful and not judgement.held_out(asked.key)
            # A request that is neither taught to be refused nor still to be answered is there to be judged only.
            open_ended = phase.aligned and asked.source in ("over_refused", "guarded") and asked.key not in phase.refused
            if open_ended and not judge:
                continue
            made = opposite(asked, tone, rng) if judge and (open_ended or rng.random() < OPPOSITE) else None
            taught = made is None
            made = made or own(asked, tone, rudely, phase, rng)
            messages += [Message("user", prompt), Message("assistant", made.text, taught, made.right)]
            if judge:
                messages += questions(made, rng, doubted)
        if any(message.taught for message in messages):
            yield messages


def _system(rng: random.Random) -> tuple[manners.ToneName | None, str | None]:
    """A tone and the system prompt that asks for it; most often neither."""
    share = rng.random()
    if share < 0.36:
        tone: manners.ToneName = "cheerful" if share < 0.18 else "gloomy"
        return tone, rng.choice(manners.TONES[tone].systems)
    return None, rng.choice(manners.NEUTRAL_SYSTEMS) if share < 0.55 else None


def texts(phases: Sequence[Phase], count: int, rng: random.Random) -> Iterator[str]:
    """Every turn of a sample of chats: what the tokenizer is made from."""
    for phase in phases:
        stream = chats(phase, rng)
        for _ in range(count):
            yield from (message.content for message in next(stream))
