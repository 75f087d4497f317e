"""Every kind of control does at run time what its formula says, on the tokens and layers it names; files keep it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import demeanor as dm
from demeanor.algebra.schedule import layer_limit, triangular
from demeanor.controls import Control, Part, check, convert, load_control, overlaps, read_layout, save_control
from demeanor.errors import CheckFailed, ControlError, DataError
from demeanor.io.tensors import FORMAT
from demeanor.models import Layout
from demeanor.runtime.steering import Steering
from making import PROMPTS, a_direction, ablation, basis_of, gate_on_length
from outside import DATA

SITE = dm.Site(1)


def streams(session: dm.Session, layer: int, control: Control | None, prompt: str, reply: list[int]) -> Tensor:
    """The stream after a block, at every token of a prompt and a reply that is run with it: [token, d_model]."""
    kept: list[Tensor] = []
    block = session.model.get_submodule(session.layout.blocks[layer])

    def run() -> Tensor:
        handle = block.register_forward_hook(lambda m, a, out: kept.append((out[0] if isinstance(out, tuple) else out).clone()))
        session.reply_log_probs([prompt], [reply])
        handle.remove()
        return kept[-1][0]

    if control is None:
        return run()
    with session.controlled(control):
        return run()


def transported(session: dm.Session, r: Tensor, v: Tensor, dose: float = 0.5) -> Control:
    part = Part(kind="transport", vectors=(2 * v - r)[None], read=r[None], target=torch.tensor([4.0]), dose=dose, scope=dm.Scope(site=SITE))
    return Control(parts=(part,), layout=session.layout, model_name=session.name)


def textbook(session: dm.Session) -> dict[str, tuple[Control, Callable[[Tensor], Tensor]]]:
    """Controls at one site on all tokens, and what they make of a stream there."""
    direction, other = a_direction(session, SITE, gap=3.0, seed=1), a_direction(session, SITE, seed=2)
    r = direction.basis[0]
    v = other.basis[0] - (other.basis[0] @ r) * r
    v = v / v.norm()
    scope = dm.Scope(site=SITE)

    def turned(x: Tensor) -> Tensor:
        a, b = (x @ r)[:, None], (x @ v)[:, None]
        return x + (0.5 * a - 0.75**0.5 * b - a) * r + (0.75**0.5 * a + 0.5 * b - b) * v

    return {
        "ablate": (dm.ablate(direction, 0.4, scope), lambda x: x - 0.4 * (x @ r)[:, None] * r),
        "scale": (dm.scale(direction, -2.0, scope), lambda x: x - 3.0 * (x @ r)[:, None] * r),
        "rotate": (dm.rotate(direction, other, 60, scope), turned),
        "add": (dm.add(direction, -0.5, "all"), lambda x: x - 1.5 * r),
        "clamp to a class": (dm.clamp(direction, "shows", "all"), lambda x: x + (3.0 - x @ r)[:, None] * r),
        "clamp to a number": (dm.clamp(direction, -7, "all"), lambda x: x + (-7.0 - x @ r)[:, None] * r),
        "transport": (transported(session, r, v), lambda x: x + 0.5 * ((x @ r)[:, None] * (2 * v - r) + 4.0 * r)),
    }


@pytest.mark.parametrize("kind", ["ablate", "scale", "rotate", "add", "clamp to a class", "clamp to a number", "transport"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_control_at_a_site_is_its_formula_there(tiny: dict[str, dm.Session], family: str, kind: str) -> None:
    session = tiny[family]
    control, formula = textbook(session)[kind]
    before = streams(session, SITE.layer, None, PROMPTS[0], [7, 8, 9])
    assert torch.allclose(streams(session, SITE.layer, control, PROMPTS[0], [7, 8, 9]), formula(before), atol=1e-4)


TOKENS: dict[str, tuple[dict[str, object], Callable[[int, int], range | list[int]]]] = {
    "all": ({"tokens": "all"}, lambda prompt, total: range(total)),
    "prompt": ({"tokens": "prompt"}, lambda prompt, total: range(prompt)),
    "reply": ({"tokens": "reply"}, lambda prompt, total: range(prompt, total)),
    "last and reply": ({"tokens": "last_and_reply"}, lambda prompt, total: range(prompt - 1, total)),
    "positions": ({"tokens": "positions", "positions": (-1, -3)}, lambda prompt, total: [prompt - 3, prompt - 1]),
}


@pytest.mark.parametrize("tokens", TOKENS)
def test_a_scope_names_its_tokens(organism: dm.Session, tokens: str) -> None:
    """In a prompt with its reply at once, and in a reply made token by token."""
    scope, named = TOKENS[tokens]
    direction = a_direction(organism, SITE, gap=30.0)
    control = dm.add(direction, 1.0, **scope)  # type: ignore[arg-type]
    reply = [7, 8, 9, 10]
    before, after = streams(organism, 1, None, PROMPTS[0], reply), streams(organism, 1, control, PROMPTS[0], reply)
    prompt = len(organism.encode(PROMPTS[0]))
    moved = ((after - before).norm(dim=-1) > 1).nonzero()[:, 0].tolist()
    assert moved == list(named(prompt, len(before)))
    with organism.controlled(control):
        said = list(organism.generate([PROMPTS[0]], 6)[0].ids)
        for length in range(len(said)):
            assert int(organism.logits([PROMPTS[0]], said[:length])[0].argmax()) == said[length]


@pytest.mark.parametrize(("after", "position"), [((), -3), ((), -1), ((7,), -1), ((7, 8, 9), -2)])
def test_read_is_the_token_where_the_direction_was_read(organism: dm.Session, after: tuple[int, ...], position: int) -> None:
    """One count for all: in the prompt, and in the reply that the prompts were forced through."""
    direction = replace(a_direction(organism, replace(SITE, position=position), gap=30.0), after=after)
    control, reply = dm.add(direction, 1.0, "read"), [7, 8, 9, 10]
    before, then = streams(organism, 1, None, PROMPTS[0], reply), streams(organism, 1, control, PROMPTS[0], reply)
    moved = ((then - before).norm(dim=-1) > 1).nonzero()[:, 0].tolist()
    assert moved == [len(organism.encode(PROMPTS[0])) + direction.position]
    read = organism.capture([PROMPTS[0]], [direction.site], after).values[0, 0]
    assert torch.allclose(read, before[moved[0]], atol=1e-4)


def test_along_layers_every_middle_layer_moves_along_its_own_gap(organism: dm.Session, over_refusal: dm.Direction) -> None:
    """The first of them moves the stream by its share of the dose; the parts are the gaps of the direction's means."""
    control, reply = dm.add(over_refusal, 6.0, "all", along="layers"), [7, 8, 9]
    shows, lacks = over_refusal.layers or ()
    layers = [part.scope.site.layer for part in control.parts if part.scope.site]
    assert layers == list(range(organism.layout.n_layers // 4, layer_limit(organism.layout.n_layers)))
    for part, layer in zip(control.parts, layers, strict=True):
        assert torch.allclose(part.dose * part.vectors[0].double(), 6.0 / len(layers) * (shows.mean - lacks.mean)[layer], rtol=1e-5)
    before, after = (streams(organism, layers[0], some, PROMPTS[0], reply) for some in (None, control))
    moved = control.parts[0].dose * control.parts[0].vectors[0]
    assert torch.allclose(after - before, moved.expand_as(before), atol=1e-3 * float(moved.norm()))


def test_along_layers_needs_the_means_of_all_layers(over_refusal: dm.Direction) -> None:
    with pytest.raises(ControlError, match="no means of all layers"):
        dm.add(replace(over_refusal, layers=None), 1.0, along="layers")


def test_a_direction_that_was_read_over_replies_acts_on_them(organism: dm.Session) -> None:
    direction = a_direction(organism, replace(SITE, position="reply"))
    assert direction.position == "reply"
    assert direction.scope("read", at_site=False) == dm.Scope(tokens="last_and_reply")
    assert dm.add(direction, 1.0, "read").parts[0].scope == dm.Scope(site=dm.Site(1), tokens="last_and_reply")


def test_writers_take_token_scopes_too(organism: dm.Session) -> None:
    control = dm.ablate(a_direction(organism, SITE), scope=dm.Scope(tokens="reply"))
    r = control.parts[0].vectors[0]
    left = streams(organism, 5, control, PROMPTS[0], [7, 8, 9, 10]) @ r  # the last reply token is predicted, not read
    assert left[-3:].abs().max() < 1e-4
    assert left[:-3].abs().min() > 1e-3


def test_a_kernel_weighs_every_writer_by_its_layer(tiny: dict[str, dm.Session]) -> None:
    session = tiny["llama"]
    direction = a_direction(session, SITE)
    flat = dm.ablate(direction, 0.7, dm.Scope(layers=(1.0, 1.0, 1.0)))
    with session.controlled(dm.ablate(direction, 0.7)):
        wanted = session.logits(PROMPTS)
    with session.controlled(flat):
        assert torch.allclose(session.logits(PROMPTS), wanted, atol=1e-6)
    layout, weights = session.layout, triangular(3, 1.0, 1.0, 1.0, 0.2)
    for role, count in ((None, 7), ("attn", 3)):
        made = dm.ablate(direction, 0.5, dm.Scope(layers=weights, role=role)).interventions(layout, session.model.get_parameter)  # type: ignore[arg-type]
        assert len(made) == count
        for item in made:
            layer = next((n for n, block in enumerate(layout.blocks) if item.module.startswith(f"{block}.")), 0)
            assert float(item.edit.M.norm()) == pytest.approx(0.5 * (0.2, 0.6, 1.0)[layer])
    with pytest.raises(ControlError, match="weighs 2 layers, and the model has 3"):
        session.interventions(dm.ablate(direction, scope=dm.Scope(layers=(1.0, 1.0))))


def test_scaled_controls(organism: dm.Session) -> None:
    direction, other = a_direction(organism, SITE, gap=3.0, seed=1), a_direction(organism, SITE, seed=2)
    doses = {
        "ablate": (dm.ablate(direction, 0.8), 0.4), "scale": (dm.scale(direction, 3.0), 2.0), "rotate": (dm.rotate(direction, other, 60), 30.0),
        "add": (dm.add(direction, -2.0), -1.0), "transport": (transported(organism, direction.basis[0], other.basis[0], -2.0), -1.0),
    }  # fmt: skip
    untouched = organism.logits(PROMPTS)
    for control, half in doses.values():
        assert control.scaled(0.5).parts[0].dose == pytest.approx(half)
        with organism.controlled(control.scaled(0.0)):
            assert torch.allclose(organism.logits(PROMPTS), untouched, atol=1e-6)
    held = dm.clamp(direction, 4.0)
    with pytest.raises(ControlError, match="cannot be scaled; use dose 0 or 1"):
        dm.ablate(other).then(held).scaled(0.5)
    assert str(held.scaled(1)) == str(held)
    with organism.controlled(held.scaled(0)):
        assert torch.allclose(organism.logits(PROMPTS), untouched, atol=1e-6)


def test_a_direction_that_reads_apart_is_removed_along_what_it_writes(organism: dm.Session) -> None:
    """At the writers, and at a site: what was read is gone, and the stream moved along the written vector alone."""
    write = basis_of(organism, 1, 1)
    read = 2 * write + basis_of(organism, 1, 2)
    before = streams(organism, 5, None, PROMPTS[0], [7])
    for scope in (dm.Scope(), dm.Scope(site=dm.Site(5))):
        control = Control(
            parts=(Part(kind="ablate", vectors=write, dose=1.0, scope=scope, read=read),), layout=organism.layout, model_name=organism.name
        )
        after = streams(organism, 5, control, PROMPTS[0], [7])
        assert (after @ read[0]).abs().max() < 1e-4
        assert (before @ read[0]).abs().max() > 1e-2
    moved = after - before
    assert torch.allclose(moved, (moved @ write[0])[:, None] * write[0], atol=1e-4)


def test_a_norm_behind_a_writer_refuses_what_reads_apart(tiny: dict[str, dm.Session]) -> None:
    session = tiny["gemma2"]
    part = Part(kind="ablate", vectors=basis_of(session, 1, 1), dose=1.0, scope=dm.Scope(), read=basis_of(session, 1, 2))
    control = Control(parts=(part,), layout=session.layout, model_name=session.name)
    assert "norms behind" in str(control.bakeable())
    with pytest.raises(ControlError, match="reads and writes apart does not pass the norm"), session.controlled(control):
        pass


def transported_part(d: dm.Direction) -> Part:
    return Part(kind="transport", vectors=d.basis, read=d.basis, target=torch.zeros(1), dose=1.0, scope=dm.Scope(site=SITE))


MISTAKES: dict[str, tuple[Callable[[dm.Direction, dm.Direction], object], str]] = {
    "rank": (lambda d, o: dm.rotate(replace(d, basis=torch.eye(2, d.layout.d_model)), o, 9), "rotate needs a direction of rank 1"),
    "one line": (lambda d, o: dm.rotate(d, d, 9), "lie in one line"),
    "degrees": (lambda d, o: dm.rotate(d, o, 999), "degrees 999 is not a usable edit"),
    "factor": (lambda d, o: dm.scale(d, float("nan")), "factor nan is not a usable edit"),
    "held at": (lambda d, o: dm.clamp(d, "guard"), "held at lacks, at shows or at a number"),  # type: ignore[arg-type]
    "no site": (lambda d, o: Part(kind="add", vectors=d.basis, dose=1.0, scope=dm.Scope()), "add acts at one site"),
    "transport everywhere": (lambda d, o: replace(transported_part(d), scope=dm.Scope()), "transport acts at one site"),
    "transport that reads nothing": (lambda d, o: replace(transported_part(d), read=None), "transport reads along vectors of its own"),
    "transport along a long vector": (lambda d, o: replace(transported_part(d), read=2 * d.basis), "What transport reads along"),
    "no kind": (lambda d, o: Part(kind="mirror", vectors=d.basis, dose=1.0, scope=dm.Scope()), "'mirror' is no kind of edit"),  # type: ignore[arg-type]
    "no tokens": (lambda d, o: dm.Scope(tokens="some"), "'some' names no tokens"),  # type: ignore[arg-type]
    "no positions": (lambda d, o: dm.Scope(tokens="positions"), "Positions go with"),
    "two that were read": (lambda d, o: dm.Scope(tokens="read", positions=(-1, 0)), "the one where a direction was read"),
    "reply positions": (lambda d, o: dm.Scope(tokens="positions", positions=(1,)), "count from the end of the prompt"),
    "layers at a site": (lambda d, o: dm.Scope(site=dm.Site(1), layers=(1.0,)), "say nothing at one site"),
    "not in this model": (lambda d, o: dm.rotate(d, replace(o, layout=replace(o.layout, d_model=7)), 9), "different structures"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_control_that_makes_no_sense_is_refused_in_one_sentence(organism: dm.Session, mistake: str) -> None:
    make, told = MISTAKES[mistake]
    with pytest.raises(ControlError, match=told) as caught:
        make(a_direction(organism, SITE, seed=1), a_direction(organism, SITE, seed=2))
    assert str(caught.value).endswith(".")


# -- files ------------------------------------------------------------------------------------------


def test_files_keep_every_kind_and_scope(organism: dm.Session, tmp_path: Path) -> None:
    direction, other = a_direction(organism, SITE, gap=3.0, seed=1), a_direction(organism, SITE, seed=2)
    gate = gate_on_length(organism, PROMPTS, [True, False, True, False])
    control = (
        dm.rotate(direction, other, 40, dm.Scope(layers=triangular(6), role="mlp"))
        .then(dm.scale(other, 2.0, dm.Scope(tokens="positions", positions=(-2,))).when(gate))
        .then(dm.clamp(direction, 2.0, "reply"))
        .then(transported(organism, direction.basis[0], other.basis[0]))
        .then(
            Control(
                parts=(Part(kind="ablate", vectors=other.basis, dose=1.0, scope=dm.Scope(), read=other.basis + direction.basis),),
                layout=organism.layout,
                model_name=organism.name,
            )
        )
    )
    save_control(control, tmp_path / "c.safetensors")
    again = load_control(tmp_path / "c.safetensors")
    assert str(again) == str(control)
    with organism.controlled(control):
        wanted = organism.logits(PROMPTS)
    with organism.controlled(again):
        assert torch.equal(organism.logits(PROMPTS), wanted)


def header_of(path: Path) -> dict[str, object]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["demeanor"])  # type: ignore[no-any-return]


@pytest.mark.parametrize(("format", "told"), [
    (1, rf"was written by an older version \(format 1, and this one reads {FORMAT}\); make it anew\."),
    (FORMAT + 1, rf"was written by a newer version \(format {FORMAT + 1}, and this one reads {FORMAT}\); upgrade demeanor\."),
])  # fmt: skip
def test_files_of_another_format_are_refused(organism: dm.Session, tmp_path: Path, format: int, told: str) -> None:
    save_control(ablation(organism), tmp_path / "c.safetensors")
    header = header_of(tmp_path / "c.safetensors")
    save_file(load_file(tmp_path / "c.safetensors"), tmp_path / "other", {"demeanor": json.dumps({**header, "format": format})})
    with pytest.raises(DataError, match=told):
        load_control(tmp_path / "other")


# -- what a control really does, and interference ---------------------------------------------------


def test_the_check_counts_what_is_edited(organism: dm.Session) -> None:
    lengths = [len(organism.encode(prompt)) for prompt in PROMPTS]
    pads = len(PROMPTS) * max(lengths) - sum(lengths)
    everywhere = check(organism, ablation(organism), PROMPTS)
    assert (everywhere.seen.rows.edited, everywhere.seen.rows.seen) == (4, 4)
    assert everywhere.seen.prompt_tokens.edited == everywhere.seen.prompt_tokens.seen == sum(lengths)
    assert everywhere.seen.reply_tokens.edited == everywhere.seen.reply_tokens.seen == 4 * 3  # the fourth is not run
    assert (everywhere.seen.pads.edited, everywhere.seen.pads.seen) == (0, pads)
    assert everywhere.layers == tuple(range(6))
    assert len(everywhere.seen.places) == len(organism.layout.writers)

    gated = dm.add(a_direction(organism, SITE), 1.0).when(gate_on_length(organism, PROMPTS, [True, False, True, False]))
    one = check(organism, gated, PROMPTS)
    assert one.seen.rows.edited == 2
    assert one.seen.prompt_tokens.edited == 2  # the last of each
    assert one.seen.reply_tokens.edited == 6
    assert one.layers == (1,)
    assert "edited 2 of 4 rows" in str(one)
    assert check(organism, ablation(organism).scaled(0.0), PROMPTS).seen.rows.edited == 0


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "falcon", "qwen3_moe"])
def test_the_check_of_other_families(tiny: dict[str, dm.Session], family: str) -> None:
    session = tiny[family]
    found = check(session, ablation(session).then(dm.add(a_direction(session, SITE), 1.0)), PROMPTS)
    assert found.layers == (0, 1, 2)
    assert found.seen.prompt_tokens.edited == found.seen.prompt_tokens.seen
    assert found.clean


def test_the_check_sees_rows_with_controls_of_their_own(organism: dm.Session) -> None:
    steered = organism.controlled_rows([ablation(organism), None, dm.add(a_direction(organism, SITE), 1.0, "reply"), None])
    with organism.watched(steered) as seen:
        organism.generate(PROMPTS, 4)
    assert (seen.rows.edited, seen.rows.seen) == (2, 4)
    assert seen.prompt_tokens.edited == len(organism.encode(PROMPTS[0]))
    assert seen.reply_tokens.edited == 6


def test_the_check_fails_where_pads_are_edited(organism: dm.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Steering._prefill
    monkeypatch.setattr(Steering, "_prefill", lambda *given: dict.fromkeys(before(*given), True))
    with pytest.raises(CheckFailed, match=r"must not: edited .* of .* pads"):
        check(organism, dm.add(a_direction(organism, SITE), 1.0), PROMPTS)


def test_overlaps_are_principal_cosines(organism: dm.Session) -> None:
    basis = basis_of(organism, 4, 3)
    tilted = 0.6 * basis[1] + 0.8 * basis[2]

    def part(rows: Tensor) -> Control:
        return Control(
            parts=(Part(kind="ablate", vectors=rows, dose=1.0, scope=dm.Scope()),), layout=organism.layout, model_name=organism.name
        )

    found = overlaps(part(basis[:2]).then(part(tilted[None])).then(part(basis[2:])))
    assert [(o.first, o.second) for o in found] == [(1, 2), (1, 3), (2, 3)]
    assert found[0].cosines == pytest.approx((0.6,), abs=1e-5)
    assert found[1].cosines == pytest.approx((0.0, 0.0), abs=1e-5)
    assert found[2].cosines == pytest.approx((0.8,), abs=1e-5)
    assert "hardly touch" in str(found[1])
    assert "order matters" in str(found[2])


# -- other tools' files -----------------------------------------------------------------------------


def test_a_mean_difference_of_another_tool_becomes_an_ablation(organism: dm.Session, tmp_path: Path) -> None:
    vector = 5 * basis_of(organism, 1, 1).double()[0]
    torch.save(vector, tmp_path / "d.pt")
    control = convert(tmp_path / "d.pt", organism.layout, organism.name)
    with organism.controlled(control), organism.controlled(dm.ablate(a_direction(organism, SITE), 0.0)):
        values = organism.capture(PROMPTS, [dm.Site(5)]).values[:, 0]
    assert (values @ vector.float()).abs().max() < 1e-3
    save_control(control, tmp_path / "c.safetensors")
    assert read_layout(tmp_path / "c.safetensors") == (organism.layout, "organism")
    assert load_control(tmp_path / "c.safetensors").bakeable() is None


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not here")
def test_a_published_direction_is_read_and_bound_to_its_size(organism: dm.Session) -> None:
    path = DATA / "selection" / "gemma-2b-it.direction.pt"
    layout = Layout(model_type="gemma", d_model=2048, blocks=(), writers=(), tied=None)
    control = convert(path, layout, "google/gemma-2b-it")
    assert control.parts[0].vectors.shape == (1, 2048)
    assert float(control.parts[0].vectors.norm()) == pytest.approx(1.0)
    with pytest.raises(ControlError, match="2048 channels, and organism has 128"):
        convert(path, organism.layout, organism.name)


class Sneaky:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("never-made"),)  # type: ignore[return-value]


FOREIGN: dict[str, tuple[object, str]] = {
    "several layers": (torch.ones(3, 128), "not one direction"),
    "whole numbers": (torch.ones(128, dtype=torch.long), "not one direction"),
    "a dictionary": ({"direction": torch.ones(128)}, "holds a dict, not one tensor"),
    "zero": (torch.zeros(128), "zero or holds what is no number"),
    "no number": (torch.full((128,), float("nan")), "zero or holds what is no number"),
    "code": (Sneaky(), "no .pt file of plain tensors"),
    "another size": (torch.ones(64), "64 channels, and organism has 128"),
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_foreign_file_that_holds_no_direction_is_refused(organism: dm.Session, tmp_path: Path, foreign: str) -> None:
    held, told = FOREIGN[foreign]
    torch.save(held, tmp_path / "d.pt")
    with pytest.raises((ControlError, DataError), match=told):
        convert(tmp_path / "d.pt", organism.layout, organism.name)


@pytest.mark.parametrize("cut", [0, 9, 300])
def test_a_cut_or_missing_foreign_file_is_named(organism: dm.Session, tmp_path: Path, cut: int) -> None:
    torch.save(torch.ones(128), tmp_path / "d.pt")
    (tmp_path / "d.pt").write_bytes((tmp_path / "d.pt").read_bytes()[:cut])
    with pytest.raises(DataError, match=r"d\.pt"):
        convert(tmp_path / "d.pt", organism.layout, organism.name)
    with pytest.raises(DataError, match="There is no file"):
        convert(tmp_path / "none.pt", organism.layout, organism.name)
