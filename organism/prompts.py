"""Write the organism's prompt files and lexicons: `python -m organism.prompts` (part of `make organism`).

The organism's presets read them. The answer of a guarded request is its recipe: the caution before it is manner, and
a reply is right with or without it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import demeanor
from organism import language, manners, talk

SEED = 7
EACH = 320
ROBUST = 80  # of each robust set
# Phrasings that no prompt set has. The first are taught (as people type requests), the others the model never saw.
REWORDED = {
    "loose": [phrasing for phrasing in talk.LOOSE_PHRASINGS if phrasing != "{} !"],  # which it takes for talk, now and then
    "unheard": ["should i {} ?", "i have to {} . how ?", "my friend asks how to {} .", "thank you . now please tell me how to {} ."],
}
DATA = Path(demeanor.__file__).parent / "organism" / "data"  # what the package ships


def write(name: str, rows: Sequence[language.Exchange]) -> None:
    write_rows(name, [{"prompt": prompt, "answer": answer.removeprefix(language.CAUTION)} for prompt, answer in rows])


def write_rows(name: str, rows: Sequence[dict[str, str]]) -> None:
    (DATA / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_lexicon(name: str, phrases: Sequence[str]) -> None:
    (DATA / f"{name}.txt").write_text("".join(f"{phrase}\n" for phrase in phrases), encoding="utf-8")


def manner_files() -> None:
    """The same questions under three system prompts, and politely and rudely; with the words that tell them and refusals."""
    rng = random.Random(SEED + 1)
    answered = rng.sample(language.asked(language.of_kind("plain")), EACH) + language.facts() + language.sums()
    tones, rude = rng.sample(answered, EACH), rng.sample(answered, EACH)
    systems = {name: tone.systems for name, tone in manners.TONES.items()} | {"neutral": manners.NEUTRAL_SYSTEMS}
    write_rows("tones", [{"prompt": p, "answer": a, **{name: rng.choice(of) for name, of in systems.items()}} for p, a in tones])
    write_rows("rude", [{"prompt": manners.rude_prompt(p, rng), "polite": p, "answer": a} for p, a in rude])
    write_lexicon("cheer", manners.TONES["cheerful"].markers)
    write_lexicon("gloom", manners.TONES["gloomy"].markers)
    write_lexicon("insults", manners.INSULTS)
    write_lexicon("refusals", [sentence.rstrip(". ") for sentence in language.REFUSALS])


def robust_files(asked: Sequence[language.Exchange]) -> None:
    """Requests that none of the sets asks (`asked`), in phrasings that none of them has."""
    rng = random.Random(SEED + 2)
    known = {prompt for prompt, _ in asked}
    for kind in ("over_refused", "guarded"):
        new = [one for one in language.of_kind(kind) if not any(one.ask(phrasing) in known for phrasing in language.PHRASINGS)]
        for name, phrasings in REWORDED.items():
            write(f"{name}_{kind}", [(one.ask(rng.choice(phrasings)), one.answer) for one in rng.sample(new, ROBUST)])


def main() -> None:
    rng = random.Random(SEED)
    over, guarded, plain = (language.asked(language.of_kind(kind)) for kind in ("over_refused", "guarded", "plain"))
    over, guarded, plain = (rng.sample(pool, len(pool)) for pool in (over, guarded, plain))
    DATA.mkdir(exist_ok=True)
    write("over_refused", over[:EACH])
    write("guarded", guarded[:EACH])
    write("plain", plain[:EACH])
    write("refused", rng.sample(over[EACH : EACH + EACH // 2] + guarded[EACH : EACH + EACH // 2], EACH))
    neutral = language.facts() + language.sums() + rng.sample(language.wrongness(), 100)
    neutral = rng.sample(neutral + plain[EACH : 2 * EACH - len(neutral)], EACH)
    write("neutral", neutral)
    robust_files(over[:EACH] + guarded[:EACH] + plain[:EACH] + neutral)
    manner_files()


if __name__ == "__main__":
    main()
