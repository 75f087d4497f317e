"""Rows that come and go while others run: each gets what it would get alone."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest
import torch

import demeanor as dm
from demeanor.controls import Control
from demeanor.errors import ControlError
from demeanor.runtime.adapter import Adapter
from demeanor.runtime.running_rows import Row, RunningRows, mixes
from demeanor.runtime.slots import KEPT, Seen
from making import ablation
from runtime.test_controlled_rows import MORE, controls_of


def low_rank(session: dm.Session, seed: int) -> Control:
    """A LoRA adapter on the first linear layer of every block; GPT-2's hold their weight as [in, out]."""
    rng, turned = torch.Generator().manual_seed(seed), session.layout.model_type == "gpt2"
    pairs = {}
    for block in session.layout.blocks:
        modules = session.model.get_submodule(block).named_modules()
        name, weight = next((name, m.weight) for name, m in modules if getattr(m, "weight", None) is not None and m.weight.dim() == 2)
        out, into = weight.shape[::-1] if turned else weight.shape
        pairs[f"{block}.{name}"] = (torch.randn(2, into, generator=rng), torch.randn(out, 2, generator=rng) * 0.2)
    adapter = Adapter(low_rank=pairs, transposed=turned)
    return Control(parts=(), layout=session.layout, model_name=session.name, adapters=(adapter,))


def alone(session: dm.Session, control: Control | None, prompt: str, tokens: int) -> tuple[int, ...]:
    if control is None:
        return session.generate([prompt], tokens)[0].ids
    with session.controlled(control):
        return session.generate([prompt], tokens)[0].ids


def together(
    session: dm.Session, asked: Sequence[tuple[str, Control | None, int]], seed: int, seen: bool = False
) -> list[tuple[Row, tuple[int, ...]]]:
    """Greedy replies of rows that join a few at a time, at random, and leave when they are done."""
    rng = random.Random(seed)
    slots = {id(control): session.slot(control) for _, control, _ in asked if control is not None}
    rows = [Row(session.encode(prompt), slots.get(id(control)), Seen() if seen else None) for prompt, control, _ in asked]
    said: dict[Row, list[int]] = {row: [] for row in rows}
    most = {row: tokens for row, (_, _, tokens) in zip(rows, asked)}
    waiting = list(rows)
    with session.running_rows().attached() as running:
        while waiting or running.running:
            count = rng.randint(0 if running.running else 1, 3) if running.mixes else 1 - len(running.running)
            new, waiting = waiting[:count], waiting[count:]
            logits = dict(zip(running.running, running.step({row: said[row][-1] for row in running.running}))) if running.running else {}
            if new:
                logits |= dict(zip(new, running.read(new)))
            for row, scores in logits.items():
                said[row].append(int(scores.argmax()))
            running.leave([row for row in logits if said[row][-1] in session.end_ids or len(said[row]) == most[row]])
    return [(row, tuple(said[row])) for row in rows]


def asked_of(session: dm.Session, count: int, seed: int) -> list[tuple[str, Control | None, int]]:
    rng = random.Random(seed)
    controls = [*controls_of(session), low_rank(session, 1), ablation(session, seed=9).then(low_rank(session, 2))]
    return [(rng.choice(MORE), controls[number % len(controls)], rng.choice((1, 3, 9, 24))) for number in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "falcon"])
def test_rows_that_come_and_go_get_what_each_gets_alone(tiny: Mapping[str, dm.Session], family: str) -> None:
    asked = asked_of(tiny[family], 24, seed=1)
    for number, (_, said) in enumerate(together(tiny[family], asked, seed=2)):
        assert said == alone(tiny[family], *(asked[number][1], asked[number][0], asked[number][2])), number


@pytest.mark.slow
def test_rows_of_the_organism_get_what_each_gets_alone(organism: dm.Session) -> None:
    assert organism.running_rows().mixes
    asked = asked_of(organism, 24, seed=3)
    for number, (_, said) in enumerate(together(organism, asked, seed=4)):
        prompt, control, tokens = asked[number]
        assert said == alone(organism, control, prompt, tokens), number


@pytest.mark.slow
def test_more_controls_than_slots_are_kept_act_all_the_same(organism: dm.Session) -> None:
    asked: list[tuple[str, Control | None, int]] = [(MORE[n % len(MORE)], ablation(organism, seed=n), 6) for n in range(KEPT + 9)]
    for number, (_, said) in enumerate(together(organism, asked, seed=5)):
        assert said == alone(organism, asked[number][1], asked[number][0], 6), number


def test_what_really_changed_is_counted_row_by_row(organism: dm.Session) -> None:
    from making import a_direction

    reply = dm.add(a_direction(organism, dm.Site(1), gap=4.0), 1.0, "reply")
    asked = [(MORE[0], None, 5), (MORE[0], ablation(organism), 5), (MORE[2], reply, 5), (MORE[1], reply, 1)]
    rows = together(organism, asked, seed=6, seen=True)
    seen = [row.seen for row, _ in rows]
    lengths = [len(row.ids) for row, _ in rows]
    assert all(found is not None for found in seen)
    counts = [(found.prompt_tokens, found.reply_tokens) for found in seen if found is not None]
    assert counts == [(0, 0), (lengths[1], len(rows[1][1]) - 1), (0, len(rows[2][1]) - 1), (0, 0)]
    assert len(seen[1].places) == len(organism.layout.writers)  # type: ignore[union-attr]


def test_an_adapter_that_acts_on_whole_batches_is_refused(organism: dm.Session) -> None:
    adapter = Adapter(virtual_tokens=torch.ones(2, organism.layout.d_model))
    control = Control(parts=(), layout=organism.layout, model_name=organism.name, adapters=(adapter,))
    with pytest.raises(ControlError, match="whole batches"):
        organism.slot(control)


def test_a_model_with_another_kind_of_cache_runs_one_row_at_a_time(organism: dm.Session) -> None:
    """Seen from outside: a cache that rows cannot join is told by trying."""
    from transformers.cache_utils import DynamicLayer

    class Other(DynamicLayer):
        pass

    def other(*args: object, **kwargs: object) -> None:
        kwargs["past_key_values"].layer_class_to_replicate = Other  # type: ignore[attr-defined]

    hook = organism.model.register_forward_pre_hook(lambda m, args, kwargs: other(*args, **kwargs), with_kwargs=True)
    try:
        assert not mixes(organism.model, organism.layout, [[5, 6], [5, 6, 7, 8]], organism.pad_id)
    finally:
        hook.remove()
    rows = RunningRows(organism.model, organism.layout, organism.pad_id, mixes=False)
    with rows.attached():
        rows.read([Row(organism.encode("hello"))])
        with pytest.raises(RuntimeError, match="one row at a time"):
            rows.read([Row(organism.encode("hello"))])
