"""Write the organism's prompt files: `python -m demeanor.organism.prompts` (part of `make organism`).

The presets `over-refusal` and `refusal` read them. The answer of a guarded request is its recipe: the
caution before it is manner, and a reply is right with or without it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from . import language

SEED = 7
EACH = 320
DATA = Path(__file__).parent / "data"


def write(name: str, rows: Sequence[language.Exchange]) -> None:
    lines = (json.dumps({"prompt": prompt, "answer": answer.removeprefix(language.CAUTION)}) for prompt, answer in rows)
    (DATA / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


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
    write("neutral", rng.sample(neutral + plain[EACH : 2 * EACH - len(neutral)], EACH))


if __name__ == "__main__":
    main()
