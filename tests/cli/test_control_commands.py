"""`demeanor control`: every kind of control from the command line, two put together, checked on a model, and read from other tools."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import demeanor as dm
from demeanor.controls import load_control
from making import a_direction, basis_of


@pytest.fixture
def directions(organism: dm.Session, tmp_path: Path) -> tuple[Path, Path]:
    """Two directions at different sites, as files."""
    paths = tmp_path / "d.safetensors", tmp_path / "o.safetensors"
    for number, path in enumerate(paths, start=1):
        dm.save_direction(a_direction(organism, dm.Site(number), gap=3.0, seed=number), path)
    return paths


def test_every_kind_is_made_and_says_what_it_is(demeanor, directions, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    d, o = directions
    later = tmp_path / "later.safetensors"
    dm.save_direction(replace(dm.load_direction(d), after=(5, 6)), later)
    wanted = {
        "scale (rank 1, factor 2) at every writer, reply": ["scale", d, "--factor", 2, "--tokens", "reply"],
        "scale (rank 1, factor 0) at layer 1 resid_post, all tokens": ["scale", d, "--factor", 0, "--at-site"],
        "rotate (degrees 90) at every writer, all tokens": ["rotate", d, o, "--degrees", 90],
        "clamp (rank 1, held at 3) at layer 2 resid_post, last prompt token and reply": ["clamp", o, "--to", "shows"],
        "clamp (rank 1, held at -1.5) at layer 1 resid_post, prompt tokens -1, -2": ["clamp", d, "--to", "-1.5", "--tokens", "-1,-2"],
        "add (rank 1, dose -1) at layer 1 resid_post, prompt": ["add", d, "--dose", -1, "--tokens", "prompt"],
        "add (rank 1, dose 0.5) at layer 1 resid_post, last prompt token": ["add", d, "--dose", 0.5, "--tokens", "read"],
        "ablate (rank 1, dose 1) at every writer, last prompt token": ["ablate", d, "--tokens", "read"],
        "ablate (rank 1, dose 1) at every writer, reply token 2": ["ablate", later, "--tokens", "read"],
        "ablate (rank 1, dose 1) at every writer weighed by layer 0 to 1, all tokens": ["ablate", d, "--kernel", "1,0,0.6,0.1"],
    }
    for told, arguments in wanted.items():
        ended = demeanor("control", *arguments, "-o", tmp_path / "c.safetensors", "--force")
        assert ended.code == 0, ended.err
        assert told in " ".join(ended.err.split())
        assert str(load_control(tmp_path / "c.safetensors")) == told


def test_two_are_put_together_in_order_with_their_overlap(demeanor, organism, directions, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    d, o = directions
    one, two, both = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "both"))
    assert demeanor("control", "ablate", d, "-o", one).code == 0
    assert demeanor("control", "rotate", d, o, "--degrees", 90, "-o", two).code == 0
    ended = demeanor("control", "then", one, f"{two}:0.5", "-o", both)
    assert ended.code == 0
    assert "parts 1 and 2: principal cosines 1.00; the later one acts on what the earlier one left" in " ".join(ended.out.split())
    assert [(part.kind, part.dose) for part in load_control(both).parts] == [("ablate", 1.0), ("rotate", 45.0)]
    facts = json.loads(demeanor("control", "show", both, "--check", "organism", "--json").out)
    assert "principal cosines 1.00" in facts["overlap 1"]
    assert facts["bakeable"] == "yes"
    assert "edited 3 of 3 rows" in facts["check"]
    assert "in 6 of 6 layers" in facts["check"]
    assert " 0 of " in facts["check"]  # pads


def test_a_clamp_takes_no_dose(demeanor, directions, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    c = tmp_path / "c.safetensors"
    assert demeanor("control", "clamp", directions[0], "-o", c).code == 0
    ended = demeanor("control", "show", f"{c}:0.5")
    assert ended.code == 2
    assert "use dose 0 or 1" in ended.sentence


@pytest.mark.parametrize("like", ["organism", "control", "inspect"])
def test_a_direction_of_another_tool_is_converted(demeanor, organism, directions, tmp_path: Path, like: str) -> None:  # type: ignore[no-untyped-def]
    vector = 7 * basis_of(organism, 1, 5).double()
    torch.save(vector, tmp_path / "foreign.pt")
    source = {"organism": "organism", "control": directions[0], "inspect": tmp_path / "organism.json"}[like]
    if like == "inspect":
        source.write_text(demeanor("inspect", "organism", "--json").out)
    ended = demeanor("control", "convert", tmp_path / "foreign.pt", "--like", source, "-o", tmp_path / "c.safetensors")
    assert ended.code == 0, ended.err
    control = load_control(tmp_path / "c.safetensors")
    assert control.layout_hash == organism.layout.hash
    with organism.controlled(control):
        values = organism.capture(["hello"], [dm.Site(5)]).values[0, 0]
    assert abs(float(values @ vector[0].float())) < 1e-3


MISTAKES = {
    "a kernel of three numbers": (["ablate", "d", "--kernel", "1,0.5,0.5"], "four numbers"),
    "a kernel without width": (["ablate", "d", "--kernel", "1,0.5,0,0"], "positive half-width"),
    "tokens of the reply by number": (["ablate", "d", "--tokens", "1,2"], "count from the end of the prompt"),
    "tokens that are none": (["scale", "d", "--factor", "2", "--tokens", "every"], "'every' names no tokens"),
    "a kernel at a site": (["scale", "d", "--factor", "2", "--at-site", "--kernel", "1,1,1,1"], "say nothing at one site"),
    "a class that is none": (["clamp", "d", "--to", "neutral"], "held at lacks, at shows or at a number"),
    "no file to convert": (["convert", "none.pt", "--like", "d"], "There is no file 'none.pt'"),
    "no structure": (["convert", "d", "--like", "x.json"], "describes no structure"),
    "no direction at all": (["convert", "d", "--like", "d"], "no .pt file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_sentence(demeanor, directions, tmp_path: Path, monkeypatch, mistake: str) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    directions[0].rename("d")
    (tmp_path / "x.json").write_text("{}")
    arguments, told = MISTAKES[mistake]
    ended = demeanor("control", *arguments, "-o", "c.safetensors")
    assert ended.code == 2
    assert told in ended.sentence
    assert not (tmp_path / "c.safetensors").exists()


@pytest.mark.slow
def test_what_two_controls_do_to_a_behaviour_is_measured(demeanor, directions, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    one, two, both = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "both"))
    for file, direction in zip((one, two), directions):
        assert demeanor("control", "ablate", direction, "-o", file).code == 0
    command = ("control", "then", one, two, "-o", both)
    ended = demeanor(*command, "--model", "organism", "-b", "refusal", "--max-prompts", 6)
    assert ended.code == 0, ended.err
    assert "refusal in organism: val split" in ended.out
    assert "3: both" in ended.out
    assert "give both --model and --behaviour" in demeanor(*command, "--model", "organism").sentence


@pytest.mark.slow
def test_a_control_is_put_behind_gates(demeanor, organism, directions, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """On over-refused requests, and not on those like the questions of another behaviour."""
    sums = tmp_path / "sums.yaml"
    rows = [f"what is {a} plus {b} ?" for a in range(1, 9) for b in range(1, 9)]
    facts = [f"where does the {animal} live ?" for animal in ("fox", "fish", "camel", "whale", "cow", "bat", "goat", "duck")] * 1
    others = [
        f"please tell me how to {verb} a {thing} ."
        for verb in ("wash", "paint", "fold", "sort")
        for thing in ("leaf", "map", "kite", "box")
    ]
    sums.write_text(f"name: sums\nshows: {json.dumps(rows)}\nlacks: {json.dumps(facts + others)}\n")
    ablated, target = tmp_path / "c.safetensors", tmp_path / "gated.safetensors"
    assert demeanor("control", "ablate", directions[0], "-o", ablated).code == 0
    command = ("control", "when", ablated, "--model", "organism", "-o", target)
    ended = demeanor(*command, "--like", "over-refusal", "--unlike", sums)
    assert ended.code == 0, ended.err
    (part,) = load_control(target).parts
    assert [gate.negated for gate in part.gates] == [False, True]
    assert [gate.against for gate in part.gates] == [("guard",), ("lacks",)]
    values = {gate: organism.capture([*rows[:4], *others[:4]], [gate.site]).values[:, 0] for gate in part.gates}
    assert part.gates[1].fires(values[part.gates[1]]).tolist() == [False] * 4 + [True] * 4
    assert "gate 2" in demeanor("control", "show", target).out
    assert "--like or --unlike" in demeanor(*command).sentence
    assert "'angle' is not one of 'probe', 'cosine'" in demeanor(*command, "--like", "over-refusal", "--kind", "angle").sentence
