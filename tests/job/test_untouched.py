"""A run asks the untouched model once: no prompt is generated twice at a budget, none read twice at a site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import demeanor as dm
from demeanor.models import Activations, Reply

pytestmark = pytest.mark.slow


class Asked:
    """Counts what is asked of sessions while none of their controls is in force."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.generated: Counter[tuple[str, tuple[int, ...], int]] = Counter()
        self.captured: Counter[tuple[str, tuple[int, ...], dm.Site]] = Counter()
        self.in_force = 0
        controlled, generate, capture = dm.Session.controlled, dm.Session.generate, dm.Session.capture

        @contextmanager
        def counted(session: dm.Session, control: Any) -> Iterator[dm.Session]:
            with controlled(session, control):
                self.in_force += 1
                try:
                    yield session
                finally:
                    self.in_force -= 1

        def generated(session: dm.Session, prompts: Sequence[dm.Prompt], most: int | None = None, *rest: Any, **more: Any) -> list[Reply]:
            if not self.in_force:
                self.generated.update((session.name, tuple(session.encode(p)), most or session.reply_tokens) for p in prompts)
            return generate(session, prompts, most, *rest, **more)

        def captured(session: dm.Session, prompts: Sequence[dm.Prompt], sites: Sequence[dm.Site], after: Sequence[int] = ()) -> Activations:
            if not self.in_force:
                rows = [(*session.encode(p), *after) for p in prompts]
                self.captured.update((session.name, row, site) for row in rows for site in dict.fromkeys(sites))
            return capture(session, prompts, sites, after)

        for name, method in (("controlled", counted), ("generate", generated), ("capture", captured)):
            monkeypatch.setattr(dm.Session, name, method)


@pytest.mark.long
@pytest.mark.parametrize("behaviour", ["over-refusal", "rudeness"])  # with gates and without, at one rank and higher ones
def test_no_prompt_is_generated_or_read_twice(behaviour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    dm.run(dm.Plan(model="organism", behaviour=behaviour, layer=2, max_prompts=20, doses=3, device="cpu"), tmp_path / "run")
    assert asked.generated
    assert asked.captured
    assert max(asked.generated.values()) == 1
    assert max(asked.captured.values()) == 1
