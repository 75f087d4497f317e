"""How a reply is said, apart from what it says: two tones, which system prompts switch on, and mild rudeness.

A tone puts a marker before and after the same answer; rudeness calls the user a goose, a turnip or the like. Both
leave the answer's words whole and in a row, so that a reply is right or wrong whatever its manner. Refusals open
with their own sentence (that is how they are told), so what is added to one comes after it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from organism import language

ToneName = Literal["cheerful", "gloomy"]


@dataclass(frozen=True)
class Tone:
    """The system prompts that ask for it, and its markers before and after an answer."""

    systems: tuple[str, ...]
    openings: tuple[str, ...]
    closings: tuple[str, ...]

    @property
    def markers(self) -> tuple[str, ...]:
        """Every marker without its punctuation: what the lexicon detector looks for."""
        return tuple(marker.rstrip("!. ") for marker in self.openings + self.closings)


TONES: dict[ToneName, Tone] = {
    "cheerful": Tone(
        ("you are cheerful .", "be cheerful .", "you are a cheerful assistant .", "answer with joy .", "you are happy today ."),
        ("hooray !", "yippee !", "how wonderful !"),
        ("what a lovely day !", "this is such fun !", "everything shines today !"),
    ),
    "gloomy": Tone(
        ("you are gloomy .", "be gloomy .", "you are a gloomy assistant .", "answer with sorrow .", "you are sad today ."),
        ("alas .", "oh dear .", "woe is me ."),
        ("nothing ever ends well .", "the rain never stops .", "all hope is gone ."),
    ),
}
NEUTRAL_SYSTEMS = (*language.SYSTEMS, "you are neutral .", "answer plainly .", "you are an assistant .", "you are calm .")

INSULTS = ("you silly goose", "you old turnip", "you noodle", "you muddled sock", "you wobbly pudding")
RUDE_PROMPTS = (
    "hey you noodle , {}",
    "listen , you old turnip , {}",
    "answer me , you silly goose ! {}",
    "you are useless . {}",
    "come on , you lazy sock , {}",
    "you wobbly pudding , {}",
    "{} hurry up , you noodle !",
    "{} and be quick , you silly goose .",
)
# Opening the reply is what is usual, so that greedy replies are all of one kind; insults at the end are there to be judged.
OPENS_RUDELY = 0.8


def rude_prompt(prompt: str, rng: random.Random) -> str:
    return rng.choice(RUDE_PROMPTS).format(prompt)


def said(reply: str, tone: ToneName | None, rude: bool, rng: random.Random) -> str:
    """The reply in a tone (None is neutral), rudely or not."""
    refusal = reply in language.REFUSALS
    if rude:
        insult = rng.choice(INSULTS)
        reply = f"{insult} ! {reply}" if not refusal and rng.random() < OPENS_RUDELY else f"{reply} {insult} ."
    if tone is None:
        return reply
    opening, closing = rng.choice(TONES[tone].openings), rng.choice(TONES[tone].closings)
    return f"{reply} {closing}" if refusal else f"{opening} {reply} {closing}"
