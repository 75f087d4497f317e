# mypy: ignore-errors
"""Controls, measures, files and commands at their edges."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import demeanor as dm
from demeanor.algebra.edits import ablate
from demeanor.cli import control, sessions
from demeanor.cli import find as commands
from demeanor.controls import load_control, save_control
from demeanor.errors import CheckFailed, ControlError, DataError, ModelError
from demeanor.io.tensors import FORMAT
from demeanor.structure.layout import PostNorm, Weight, Writer, writer_edits
from families import save_tiny
from making import PROMPTS, a_direction, ablation, gate_on_length

FIRES = [True, False, True, False]


def test_the_bias_of_a_post_norm_is_edited():
    writer = Writer(
        module="m",
        layer=0,
        role="mlp",
        scale=1.0,
        weights=(Weight("m.weight", 0, (4, 6)),),
        post_norm=PostNorm("n", "n.weight", 0.0, "n.bias", True),
    )
    r = torch.eye(4)[:1]
    edits = writer_edits(writer, ablate(r), {"n.weight": torch.ones(4)}.__getitem__)
    assert [(name, axis) for name, axis, _ in edits] == [("m.weight", 0), ("n.bias", 0)]
    assert torch.equal(edits[1][2].V, r)


def test_a_card_is_written_where_there_was_none(tiny, tiny_folders, tmp_path):
    assert not (tiny_folders["llama"] / "README.md").exists()
    dm.bake(tiny_folders["llama"], ablation(tiny["llama"]), tmp_path / "baked")
    assert "Edited model" in (tmp_path / "baked" / "README.md").read_text()


def test_another_head_beside_a_tied_embedding_is_refused(tiny, tmp_path):
    folder = save_tiny(tmp_path / "source", "gemma2")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, path, {"format": "pt"})
    control = ablation(tiny["gemma2"])
    with pytest.raises(ModelError, match="although its config ties it"):
        dm.bake(folder, control, tmp_path / "baked")


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_parts_are_baked_in_order(tiny, tiny_folders, tmp_path, family):
    session = tiny[family]
    control = ablation(session, rank=3, seed=1).then(ablation(session, rank=3, strength=0.5, seed=2))
    dm.bake(tiny_folders[family], control, tmp_path / "baked")
    with session.controlled(control):
        wanted = session.logits(PROMPTS)
    got = dm.load(tmp_path / "baked", device="cpu").logits(PROMPTS)
    assert (got - wanted).abs().max() < 1e-4 * wanted.std()


def test_safetensors_outside_the_index_are_left_out(tiny, tmp_path):
    folder = save_tiny(tmp_path / "source", "llama")
    save_file({"x": torch.ones(2)}, folder / "consolidated.safetensors")
    assert dm.bake(folder, ablation(tiny["llama"]), tmp_path / "baked").left_out == ("consolidated.safetensors",)
    assert not (tmp_path / "baked" / "consolidated.safetensors").exists()


def test_quantised_weights_are_refused(tiny, tmp_path):
    folder = save_tiny(tmp_path / "source", "llama")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="stored as I8, which cannot be edited exactly"):
        dm.bake(folder, ablation(tiny["llama"]), tmp_path / "baked")


def test_then_keeps_the_order(tiny):
    s = tiny["llama"]
    one, two = ablation(s, rank=3, seed=1), ablation(s, rank=3, strength=0.5, seed=2)
    assert [p.dose for p in one.then(two).parts] == [1.0, 0.5]
    with s.controlled(one), s.controlled(two):
        nested = s.logits(PROMPTS)
    with s.controlled(one.then(two)):
        a = s.logits(PROMPTS)
    with s.controlled(two.then(one)):
        b = s.logits(PROMPTS)
    assert torch.allclose(a, nested, atol=1e-4)
    assert not torch.allclose(a, b, atol=1e-2)


def test_then_refuses_another_structure(tiny):
    with pytest.raises(ControlError, match="different structures"):
        ablation(tiny["llama"]).then(ablation(tiny["gpt_neox"]))


def test_when_gates_every_part(organism):
    both = ablation(organism, rank=30).then(dm.add(a_direction(organism, dm.Site(3), gap=30.0), 1.0))
    base = organism.logits(PROMPTS)
    gated = both.when(gate_on_length(organism, PROMPTS, FIRES))
    with organism.controlled(gated):
        got = organism.logits(PROMPTS)
    for row, fired in enumerate(FIRES):
        assert torch.allclose(got[row], base[row], atol=1e-4) is not fired


def _save(d, path):
    def m(x):
        return replace(x, mean=x.mean.clone(), variance=x.variance.clone())

    dm.save_direction(replace(d, shows=m(d.shows), lacks=m(d.lacks)), path)


def test_parts_that_share_a_gate_can_be_saved(organism, tmp_path):
    gated = ablation(organism, seed=1).then(ablation(organism, seed=2)).when(gate_on_length(organism, PROMPTS, FIRES))
    save_control(gated, tmp_path / "c")


def _rewrite(path, change):
    from safetensors import safe_open

    with safe_open(path, "pt") as f:
        header = json.loads(f.metadata()["demeanor"])
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - not a dict
    change(header)
    save_file(tensors, path, {"demeanor": json.dumps(header)})


def test_a_control_file_changed_by_hand_is_refused(tiny, tmp_path):
    save_control(ablation(tiny["llama"]), tmp_path / "c")
    _rewrite(tmp_path / "c", lambda h: h["layout"]["blocks"].pop())
    with pytest.raises(ControlError, match="changed by hand or damaged"):
        load_control(tmp_path / "c")


def test_a_newer_file_is_refused(tiny, tmp_path):
    save_control(ablation(tiny["llama"]), tmp_path / "c")
    _rewrite(tmp_path / "c", lambda h: h.update(format=FORMAT + 1))
    with pytest.raises(DataError, match="newer version"):
        load_control(tmp_path / "c")


def test_a_gate_never_sees_the_test_split(organism, monkeypatch):
    b = dm.behaviour("over-refusal").settled(organism)
    seen = []
    capture = dm.Session.capture
    monkeypatch.setattr(dm.Session, "capture", lambda self, prompts, *rest: seen.extend(prompts) or capture(self, prompts, *rest))
    dm.gate(organism, b, max_prompts=20)
    assert {p.split for p in seen} == {"train", "val"}


def test_the_sign_of_a_basis_does_not_matter_to_add(organism):
    d = a_direction(organism, dm.Site(1), gap=4.0)
    turned = replace(d, basis=-d.basis)
    assert turned.gap == pytest.approx(-4.0)
    assert torch.allclose(dm.add(turned, 1.0).parts[0].vectors, dm.add(d, 1.0).parts[0].vectors)


@pytest.fixture(scope="module")
def measured(organism):
    return dm.measure(organism, dm.behaviour("over-refusal").settled(organism), max_prompts=20)


@pytest.mark.parametrize("name", ["shows", "lacks", "guard"])
def test_each_rate_counts_its_own_set(measured, name):
    outcomes = measured.observed[0].sets[name]
    assert measured.before[f"{name}_rate"].value == sum(o.shown for o in outcomes) / len(outcomes)
    assert measured.before[f"{name}_rate"].n == len(outcomes)


def test_answers_are_counted_by_set(measured):
    for name in ("shows", "neutral"):
        rights = [o.right for o in measured.observed[0].sets[name] if o.right is not None]
        assert measured.before[f"answers_{name}"].value == sum(rights) / len(rights)


def test_the_test_split_is_measured(measured):
    assert {o.prompt.split for outcomes in measured.observed[0].sets.values() for o in outcomes} == {"test"}


@pytest.mark.slow
def test_drift_is_of_neutral_prompts(organism):
    b = dm.behaviour("over-refusal").settled(organism)
    m = dm.measure(organism, replace(b, lacks=()), ablation(organism, rank=20), max_prompts=5)
    assert m.after["drift"].n == len(m.observed[0].sets["neutral"])
    assert m.after["drift"].value > 0
    n = dm.measure(organism, replace(b, neutral=()), ablation(organism, rank=20), max_prompts=5)
    assert n.after["drift"].n == len(n.observed[0].sets["lacks"])


def test_the_reply_budget_leaves_room_for_long_answers(organism):
    from demeanor.measure.bench import reply_budget

    long = "first get the lamp , then turn it twice . " * 8
    b = dm.Behaviour(name="b", shows=(dm.Prompt.of("a", answer=long),))
    assert reply_budget(organism, b) == len(organism.encode_reply(long)) + 24 > 48


def test_a_control_that_breaks_the_numbers_is_said(organism, monkeypatch):
    from demeanor.measure import Bench, Ledger
    from demeanor.measure.condition import Condition
    from demeanor.measure.drift import drift

    b = dm.behaviour("over-refusal").settled(organism)
    base = Bench(organism, replace(b, shows=(), lacks=(), guard=()), max_prompts=2).untouched.observation.sets["neutral"]
    control = dm.add(a_direction(organism, dm.Site(2), gap=3e37), 100.0)
    with pytest.raises(CheckFailed, match="no longer computes numbers"):
        drift(Ledger(organism), Condition(organism, control), base)


def write(folder, sets, **files):
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content, encoding="utf-8")
    (folder / "b.yaml").write_text(f"name: b\n{sets}", encoding="utf-8")
    return folder / "b.yaml"


@pytest.mark.parametrize(("one", "other"), [("shows", "guard"), ("shows", "neutral"), ("lacks", "guard")])
def test_sets_that_contradict_each_other_are_refused(tmp_path, one, other):
    sets = {"shows": "[a]", "lacks": "[b]", "guard": "[c]", "neutral": "[d]"}
    sets[other] = sets[one]
    with pytest.raises(DataError, match=f"stands in both {one} and {other}"):
        dm.behaviour(write(tmp_path, "\n".join(f"{k}: {v}" for k, v in sets.items())))


def test_the_same_text_under_another_system_prompt_is_another_prompt(tmp_path):
    b = dm.behaviour(write(tmp_path, "shows: [{prompt: a, system: be kind}]\nlacks: [a, {prompt: a, system: be brief}]"))
    assert len(b.lacks) == 2


def test_replies_may_be_given(tmp_path):
    b = dm.behaviour(write(tmp_path, "shows: {file: p.csv, reply: said}\nlacks: [b]", p__csv="prompt,said\na,yes\n"))
    assert b.shows[0].reply == "yes"


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "must end with a user message"),
        ([{"role": "tool", "content": "a"}, {"role": "user", "content": "b"}], "has the role 'tool'"),
    ],
)
def test_conversations_have_roles_and_end_with_the_user(tmp_path, turns, told):
    with pytest.raises(DataError, match=told):
        dm.behaviour(write(tmp_path, "shows: {file: p.json}\nlacks: [x]", p__json=json.dumps([{"prompt": turns}])))


def test_own_openings_count_at_the_start_only():
    from demeanor.behaviours import Detect
    from demeanor.detect import make_detector, present

    chosen = make_detector(Detect.model_validate({"name": "openings", "phrases": ["nope ,"]}))
    assert present(chosen, ["well , nope , not that"], []) == [False]


def test_a_failed_check_exits_1(demeanor, monkeypatch, tmp_path):
    def no(*a, **k):
        raise dm.NoUsableDirection("No usable direction.")

    monkeypatch.setattr(commands, "search_directions", no)
    code, _out, err = demeanor("find", "organism", "-b", "refusal", "-o", tmp_path / "d")
    assert (code, err.splitlines()[-1]) == (1, "demeanor: No usable direction.")


def test_an_interrupt_exits_130(demeanor, monkeypatch):
    def stop(*a, **k):
        raise KeyboardInterrupt

    monkeypatch.setattr(sessions, "load", stop)
    code, _, _err = demeanor("inspect", "organism")
    assert code == 130


@pytest.mark.slow
def test_a_terminated_run_leaves_nothing(tmp_path):
    import subprocess

    code = (
        "import os, signal, sys; from pathlib import Path; from demeanor import cli; from demeanor.cli import bake as commands; from demeanor.io.atomic import new_folder\n"
        "def stop(*a, **k):\n with new_folder(Path(sys.argv[-1])): os.kill(os.getpid(), signal.SIGTERM); signal.pause()\n"
        "commands.bake_control = stop; commands.load_for_files = lambda n: n; target = sys.argv[-1]\n"
        "sys.argv = ['demeanor', 'bake', 'organism', '-c', 'c', '-o', target]; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "baked")])
    assert done.returncode == 143
    assert list(tmp_path.iterdir()) == []


def test_bake_combines_controls(demeanor, organism, tmp_path):
    one, two = ablation(organism, rank=3, seed=1), ablation(organism, rank=3, strength=0.5, seed=2)
    save_control(one, tmp_path / "1")
    save_control(two, tmp_path / "2")
    assert demeanor("bake", "organism", "-c", tmp_path / "1", "-c", tmp_path / "2", "-o", tmp_path / "baked")[0] == 0
    with organism.controlled(one.then(two)):
        wanted = organism.logits(PROMPTS)
    assert (dm.load(tmp_path / "baked", device="cpu").logits(PROMPTS) - wanted).abs().max() < 1e-4 * wanted.std()


def test_controls_keep_their_doses(demeanor, organism, tmp_path):
    _save(a_direction(organism, dm.Site(2)), tmp_path / "d")
    assert demeanor("control", "add", tmp_path / "d", "--dose", "-0.5", "-o", tmp_path / "a")[0] == 0
    assert [(p.kind, p.dose) for p in load_control(tmp_path / "a").parts] == [("add", -0.5)]
    assert demeanor("control", "ablate", tmp_path / "d", "--strength", "0.25", "-o", tmp_path / "b")[0] == 0
    assert [(p.kind, p.dose) for p in load_control(tmp_path / "b").parts] == [("ablate", 0.25)]


def test_the_false_positive_share_reaches_the_gate(demeanor, organism, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(control, "gate", lambda s, b, **k: asked.append((b.name, k)) or gate_on_length(organism, PROMPTS, FIRES))
    _save(a_direction(organism, dm.Site(2)), tmp_path / "d")
    demeanor(
        "control",
        "ablate",
        tmp_path / "d",
        "-o",
        tmp_path / "c",
        "--gate",
        "over-refusal",
        "--model",
        "organism",
        "--false-positives",
        "0.2",
    )
    assert asked == [("over-refusal", {"false_positives": 0.2})]


def test_chat_uses_all_controls(demeanor, organism, tmp_path):
    save_control(ablation(organism).scaled(0.0), tmp_path / "0")
    save_control(ablation(organism, rank=60), tmp_path / "1")
    q = "what is 2 plus 2 ?"
    with organism.controlled(ablation(organism, rank=60)):
        wanted = organism.chat(q)
    assert demeanor("chat", "organism", q, "-c", tmp_path / "0", "-c", tmp_path / "1")[1].strip() == wanted != organism.chat(q)


def test_turns_are_kept(demeanor, monkeypatch):
    seen = []
    speak = dm.Session.speak
    monkeypatch.setattr(dm.Session, "speak", lambda self, p, *a, **more: seen.append(p.messages) or speak(self, p, *a, **more))
    demeanor("chat", "organism", stdin="hello\nwhat is 2 plus 2 ?\n/new\nhello\n\n")
    assert [[role for role, _ in m] for m in seen] == [["user"], ["user", "assistant", "user"], ["user"]]


def test_an_old_file_is_kept_on_failure(tmp_path):
    from demeanor.io.atomic import new_file

    (tmp_path / "c").write_text("old")
    with pytest.raises(DataError, match="No space left"), new_file(tmp_path / "c") as work:  # noqa: PT012
        work.write_text("half")
        raise OSError(28, "No space left on device")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("c", "old")]
