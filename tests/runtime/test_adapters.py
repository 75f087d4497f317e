"""Adapters in force: what PEFT computes, what weights compute that took them in, and nothing once they are gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import demeanor as dm
from demeanor.controls import Control, convert, load_control, save_control
from demeanor.errors import ControlError
from demeanor.runtime.adapter import ADAPTER, ADAPTER_WEIGHTS, Adapter
from demeanor.runtime.adapters import VIRTUAL_TOKENS, read_peft
from making import PROMPTS, ablation, gate_on_length

FEW = ["llama", "gemma2", "gpt_neox", "gpt2", "falcon_new", "gpt_oss"]  # Conv1D, fused and tied ones among them
PROMPTED = ["llama", "mistral", "gpt2"]  # PEFT knows adaption prompts for these


def trained(folder: Path, out: Path, config: Any) -> Any:
    """A model with an adapter of PEFT's whose every tensor is random, also saved in the folder `out`."""
    torch.manual_seed(0)
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5 if parameter.numel() == 1 else 0.2)
    adapted.save_pretrained(str(out))
    return adapted.eval()


def lora(folder: Path, out: Path, **more: Any) -> Any:
    return trained(folder, out, peft.LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", task_type="CAUSAL_LM", **more))


def prompted(folder: Path, out: Path) -> Any:
    return trained(folder, out, peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM"))


def control_of(session: dm.Session, folder: Path) -> Control:
    return convert(folder, session.layout, session.name)


@torch.no_grad()
def logits_of(model: Any, session: dm.Session) -> Tensor:
    return torch.stack([model(input_ids=torch.tensor([session.encode(prompt)])).logits[0, -1].float() for prompt in PROMPTS])


def near(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() < 2e-5 * other.std())


@pytest.mark.slow
@pytest.mark.parametrize(("family", "make"), [*((name, lora) for name in FEW), *((name, prompted) for name in PROMPTED)])
def test_what_is_in_force_is_what_peft_computes(
    tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path, family: str, make: Callable[[Path, Path], Any]
) -> None:
    session = tiny[family]
    adapted = make(tiny_folders[family], tmp_path / "adapter")
    plain, wanted = session.logits(PROMPTS), logits_of(adapted, session)
    with session.controlled(control_of(session, tmp_path / "adapter")):
        assert near(session.logits(PROMPTS), wanted)
        with session.uncontrolled():
            assert torch.equal(session.logits(PROMPTS), plain)
        said = session.generate(PROMPTS, 6)  # with a cache, and pads
    assert not near(plain, wanted)
    assert torch.equal(session.logits(PROMPTS), plain)
    for prompt, reply in zip(PROMPTS, said):
        ids = torch.tensor([session.encode(prompt)])
        one = adapted.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert list(reply.ids) == one[0, ids.shape[1] :].tolist()[: len(reply.ids)]


@pytest.mark.parametrize("family", FEW)
def test_baked_equals_run_time_with_an_edit_on_top(
    tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    session = tiny[family]
    lora(tiny_folders[family], tmp_path / "adapter")
    adapter = control_of(session, tmp_path / "adapter").scaled(0.5)
    for number, control in enumerate([adapter, adapter.then(ablation(session)), ablation(session).then(adapter)]):
        with session.controlled(control):
            wanted = session.logits(PROMPTS)
        dm.bake(tiny_folders[family], control, tmp_path / f"baked{number}")
        got = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / f"baked{number}", dtype=torch.float32).eval(), session)
        assert (got - wanted).abs().max() < 1e-4 * wanted.std()


def test_only_what_the_adapter_is_for_changes_in_the_files(
    tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    session = tiny["llama"]
    trained(tiny_folders["llama"], tmp_path / "adapter", peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    baked = dm.bake(tiny_folders["llama"], control_of(session, tmp_path / "adapter"), tmp_path / "baked")
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_folders["llama"], tmp_path / "baked"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(3)}
    assert baked.edited == len(changed)


def test_it_scales_between_nothing_and_all(tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    session = tiny["llama"]
    for make in (lora, prompted):
        make(tiny_folders["llama"], tmp_path / make.__name__)
        control = control_of(session, tmp_path / make.__name__)
        plain = session.logits(PROMPTS)
        with session.controlled(control.scaled(0.0)):
            assert near(session.logits(PROMPTS), plain)
        with session.controlled(control.scaled(0.5)):
            half = session.logits(PROMPTS)
        with session.controlled(control):
            assert (half - plain).norm() < (session.logits(PROMPTS) - plain).norm()
        assert not near(half, plain)


@torch.no_grad()
def opened_by_hand(session: dm.Session, prompt: str, virtual_tokens: Tensor, most: int) -> list[int]:
    """The greedy reply to a prompt whose embeddings stand after those of the opening, read anew for every token."""
    said: list[int] = []
    words = session.model.get_input_embeddings()
    while len(said) < most and (not said or said[-1] not in session.end_ids):
        read = torch.cat([virtual_tokens, words(torch.tensor(session.encode(prompt) + said))])
        said.append(int(session.model(inputs_embeds=read[None]).logits[0, -1].argmax()))
    return said


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_embeddings_open_every_prompt(tiny: dict[str, dm.Session], family: str) -> None:
    session = tiny[family]
    opening = torch.randn(3, session.layout.d_model, generator=torch.Generator().manual_seed(1))
    control = Control(parts=(), layout=session.layout, model_name=session.name, adapters=(Adapter(virtual_tokens=opening),))
    plain = [reply.ids for reply in session.generate(PROMPTS, 6)]
    with session.controlled(control):
        said = [list(reply.ids) for reply in session.generate(PROMPTS, 6)]
        alone = list(session.generate(PROMPTS[:1], 6)[0].ids)
        likely = session.reply_log_likelihoods(PROMPTS, said)
    assert said == [opened_by_hand(session, prompt, opening, 6) for prompt in PROMPTS]
    assert alone == said[0]
    assert [list(ids) for ids in plain] != said
    assert all(len(each) == len(ids) for each, ids in zip(likely, said))
    assert [reply.ids for reply in session.generate(PROMPTS, 6)] == plain


def test_a_file_keeps_all_of_it(tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    session = tiny["llama"]
    lora(tiny_folders["llama"], tmp_path / "one")
    prompted(tiny_folders["llama"], tmp_path / "two")
    both = control_of(session, tmp_path / "one").scaled(0.5).then(control_of(session, tmp_path / "two"))
    opened = Control(
        parts=(), layout=session.layout, model_name=session.name, adapters=(Adapter(virtual_tokens=torch.randn(2, session.layout.d_model)),)
    )
    for control in (both.then(ablation(session)), opened):
        save_control(control, tmp_path / "control.safetensors")
        read = load_control(tmp_path)  # a folder that holds one
        assert str(read) == str(control)
        with session.controlled(control):
            wanted = session.logits(PROMPTS)
        with session.controlled(read):
            assert near(session.logits(PROMPTS), wanted)  # tensors read from a file lie elsewhere in memory, which some kernels show


def test_adapters_come_before_edits_in_whatever_order(tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    session = tiny["llama"]
    lora(tiny_folders["llama"], tmp_path / "adapter")
    adapter, edit = control_of(session, tmp_path / "adapter"), ablation(session)
    with session.controlled(adapter.then(edit)):
        one = session.logits(PROMPTS)
        stream = session.capture(PROMPTS, [dm.Site(2)]).values[:, 0]
    with session.controlled(edit.then(adapter)):
        assert torch.equal(session.logits(PROMPTS), one)
    assert ((stream @ edit.parts[0].vectors.T).abs()[:, 0] / stream.norm(dim=-1)).max() < 1e-5  # nothing of it comes back


def test_what_it_cannot_do_is_said(tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    session = tiny["llama"]
    lora(tiny_folders["llama"], tmp_path / "adapter")
    prompted(tiny_folders["llama"], tmp_path / "prompts")
    adapter = control_of(session, tmp_path / "adapter")
    gate = gate_on_length(session, PROMPTS, [True, True, False, False])
    opened = Control(
        parts=(), layout=session.layout, model_name=session.name, adapters=(Adapter(virtual_tokens=torch.zeros(2, session.layout.d_model)),)
    )
    with pytest.raises(ControlError, match="takes no gate"):
        adapter.when(gate)
    with pytest.raises(ControlError, match="every row alike"), session.controlled_rows([adapter, None]):
        pass
    with pytest.raises(ControlError, match="cannot be scaled"):
        opened.scaled(0.5)
    with pytest.raises(ControlError, match="cannot act together"):
        opened.then(ablation(session).when(gate))
    with pytest.raises(ControlError, match="run time"):
        dm.bake(tiny_folders["llama"], control_of(session, tmp_path / "prompts"), tmp_path / "baked")
    assert not (tmp_path / "baked").exists()
    other = tiny["qwen2"]
    renamed = Adapter(low_rank={"model.layers.0.self_attn.nothing": (torch.zeros(1, 48), torch.zeros(48, 1))})
    with (
        pytest.raises(ControlError, match="does not have"),
        other.controlled(Control(parts=(), layout=other.layout, model_name=other.name, adapters=(renamed,))),
    ):
        pass
    with pytest.raises(ControlError, match="structure"), other.controlled(adapter):
        pass


def test_adapters_that_are_more_than_low_rank_maps_are_refused(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    lora(tiny_folders["llama"], tmp_path / "dora", use_dora=True)
    with pytest.raises(ControlError, match="use_dora"):
        read_peft(tmp_path / "dora")
    lora(tiny_folders["llama"], tmp_path / "head", modules_to_save=["lm_head"])
    with pytest.raises(ControlError, match="lm_head"):
        read_peft(tmp_path / "head")
    lora(tiny_folders["qwen3_moe"], tmp_path / "experts")  # which PEFT reaches as parameters
    with pytest.raises(ControlError, match="target_parameters"):
        read_peft(tmp_path / "experts")
    lora(tiny_folders["llama"], tmp_path / "half")
    tensors = load_file(tmp_path / "half" / ADAPTER_WEIGHTS)
    lost = next(name for name in tensors if name.endswith("lora_B.weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, tmp_path / "half" / ADAPTER_WEIGHTS)
    with pytest.raises(ControlError, match="lacks"):
        read_peft(tmp_path / "half")
    (tmp_path / "half" / ADAPTER_WEIGHTS).write_bytes(b"short")
    with pytest.raises(ControlError, match="not a complete"):
        read_peft(tmp_path / "half")


def test_layers_may_have_ranks_and_gains_of_their_own(tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    own = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 11}}
    adapted = lora(tiny_folders["llama"], tmp_path / "adapter", **own)
    session = tiny["llama"]
    with session.controlled(control_of(session, tmp_path / "adapter")):
        assert near(session.logits(PROMPTS), logits_of(adapted, session))


def test_stabilised_ranks_count(tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    adapted = lora(tiny_folders["llama"], tmp_path / "adapter", use_rslora=True)
    assert json.loads((tmp_path / "adapter" / ADAPTER).read_text())["use_rslora"]
    session = tiny["llama"]
    with session.controlled(control_of(session, tmp_path / "adapter")):
        assert near(session.logits(PROMPTS), logits_of(adapted, session))


@pytest.mark.slow
def test_the_command_line_takes_a_folder_of_peft(demeanor: Any, organism: dm.Session, tmp_path: Path) -> None:
    from demeanor.models.loading import resolve

    lora(Path(resolve("organism")[0]), tmp_path / "adapter")
    asked = demeanor("chat", "organism", "hello", "--control", tmp_path / "adapter")
    assert asked.code == 2
    assert "control convert" in asked.sentence
    assert demeanor("control", "convert", tmp_path / "adapter", "--like", "organism", "-o", tmp_path / "c.safetensors").code == 0
    shown = demeanor("control", "show", tmp_path / "c.safetensors", "--check", "organism", "--json")
    facts = json.loads(shown.out)
    assert "LoRA (rank 3) on 42 linear layers" in facts["adapter 1"]
    assert "0 of" in facts["check"]
    assert demeanor("chat", "organism", "hello", "--control", f"{tmp_path / 'c.safetensors'}:0.0").code == 0


def test_an_opening_is_read_from_a_folder_that_holds_one(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    lora(tiny_folders["llama"], tmp_path / "adapter")
    path = tmp_path / "adapter" / ADAPTER_WEIGHTS
    save_file({**load_file(path), f"base_model.model.{VIRTUAL_TOKENS}.weight": torch.ones(2, 48)}, path)
    read = read_peft(tmp_path / "adapter")
    assert read.virtual_tokens is not None
    assert read.virtual_tokens.shape == (2, 48)
    assert read.low_rank
