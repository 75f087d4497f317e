"""Every option does something: each test fails when the option is read and forgotten."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import demeanor as dm
from demeanor import cli as dm_cli
from demeanor.errors import DataError, ModelError
from demeanor.job.result import Run
from demeanor.models.loading import load, resolve
from making import PROMPTS, ablation

pytestmark = pytest.mark.slow
QUICK = ("--max-prompts", "60", "--layer", "3")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter for the organism, as training leaves it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(resolve("organism")[0])
    config = LoraConfig(r=2, target_modules=["o_proj", "down_proj"], init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(model, config).save_pretrained(folder)
    return folder


# -- the model -------------------------------------------------------------------------------------


def test_dtype_and_device(organism: dm.Session) -> None:
    session = load("organism", device="cpu", dtype="bfloat16")
    assert session.model.dtype == torch.bfloat16
    assert session.device.type == "cpu"
    assert organism.model.dtype == torch.float32
    assert not torch.equal(session.logits(PROMPTS), organism.logits(PROMPTS))


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantised_weights_are_proven_steered_and_baked_like_the_whole_ones(organism: dm.Session, tmp_path: Path, bits: str) -> None:
    session = load("organism", device="cpu", **{f"load_in_{bits}": True})
    kinds = {type(module).__name__ for module in session.model.modules()}
    assert {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[bits] in kinds
    assert session.layout.hash == organism.layout.hash  # so its controls are everybody's
    assert session.dtype_name == "quantised"
    control = ablation(session, rank=2)
    sites = [dm.Site(layer) for layer in range(session.layout.n_layers)]
    with session.controlled(control):
        values = session.capture(PROMPTS, sites).values
    assert ((values @ control.parts[0].vectors.T).abs().amax(-1) / values.norm(dim=-1)).max() < 1e-5
    baked = dm.bake("organism", control, tmp_path / "baked")
    assert baked.edited == 13


def test_both_ways_of_holding_weights_are_one_too_many(demeanor) -> None:  # type: ignore[no-untyped-def]
    assert "one of --load-in-4bit and --load-in-8bit" in demeanor("inspect", "organism", "--load-in-4bit", "--load-in-8bit").sentence


def test_an_adapter_folder_is_the_merged_model(adapter: Path, organism: dm.Session) -> None:
    session = dm.load(adapter, device="cpu")
    from peft import PeftModel

    slow = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(resolve("organism")[0]), str(adapter)).eval()
    with torch.no_grad():
        wanted = torch.stack([slow(torch.tensor([organism.encode(prompt)])).logits[0, -1] for prompt in PROMPTS])
    assert torch.allclose(session.logits(PROMPTS), wanted, atol=1e-3)
    assert not torch.allclose(organism.logits(PROMPTS), wanted, atol=1e-1)
    assert session.layout.hash == organism.layout.hash
    assert session.organism  # so it is measured in its own language


def test_an_adapter_is_baked_merged(adapter: Path, tmp_path: Path) -> None:
    session = dm.load(adapter, device="cpu")
    control = ablation(session, rank=2)
    before = sorted(tmp_path.iterdir())
    dm.bake(adapter, control, tmp_path / "baked")
    assert sorted(tmp_path.iterdir()) == [*before, tmp_path / "baked"]  # nothing of the merging is left
    with session.controlled(control):
        wanted = session.logits(PROMPTS)
    assert (dm.load(tmp_path / "baked", device="cpu").logits(PROMPTS) - wanted).abs().max() < 1e-4 * wanted.std()


def test_what_is_wrong_with_an_adapter_is_told(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be merged into a model held in 4bit"):
        load(adapter, load_in_4bit=True)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ModelError, match="names no base_model_name_or_path"):
        load(tmp_path)


def test_an_adapter_that_is_not_whole_is_refused(adapter: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, tmp_path / "half")
    weights = load_file(tmp_path / "half" / "adapter_model.safetensors")
    half = dict(list(weights.items())[: len(weights) // 2])
    save_file(half, tmp_path / "half" / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"has no tensor .*lora"):
        load(tmp_path / "half")
    (tmp_path / "half" / "adapter_model.safetensors").write_bytes(b"xx")
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        load(tmp_path / "half")
    (tmp_path / "half" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        load(tmp_path / "half")


def test_max_prompts_is_a_fair_sample_of_all_sources(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("\n".join(f"one {n}" for n in range(100)))
    (tmp_path / "two.txt").write_text("\n".join(f"two {n}" for n in range(100)))
    (tmp_path / "b.yaml").write_text("name: b\nshows: [{file: one.txt}, {file: two.txt}]\nlacks: [x]\n")
    some = [prompt.text for prompt in dm.behaviour(tmp_path / "b.yaml").set("shows", "train", 30)]
    assert len(some) == 30
    assert 5 <= sum(text.startswith("two") for text in some) <= 25
    assert some == sorted(some, key=lambda text: (text.split()[0], int(text.split()[1])))  # in their order


def test_reply_tokens_bound_what_is_judged(demeanor, organism: dm.Session) -> None:  # type: ignore[no-untyped-def]
    short = load("organism", device="cpu", reply_tokens=3)
    assert {len(reply.ids) for reply in short.generate(PROMPTS)} == {3}
    # Three tokens are no sum.
    ended = demeanor("measure", "organism", "-b", "refusal", "--max-prompts", 5, "--reply-tokens", 200, "--json")
    assert json.loads(ended.out)["none"]["before"]["answers_neutral"]["value"] == 1.0


# -- finding ---------------------------------------------------------------------------------------


def test_candidates_are_shown_side_by_side_and_written(demeanor, organism: dm.Session, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    target = tmp_path / "d.safetensors"
    ended = demeanor("find", "organism", "-b", "refusal", "-o", target, "--candidates", 3, "--json", *QUICK)
    shown = json.loads(ended.out)
    files = [Path(row["file"]) for row in shown["candidates"]]
    assert files == [target, tmp_path / "d.2.safetensors", tmp_path / "d.3.safetensors"]
    assert len({(row["site"], row["estimator"]) for row in shown["candidates"]}) == 3
    for number, file in enumerate(files, start=1):
        with organism.controlled(dm.ablate(dm.load_direction(file))):
            for row in shown["replies"]:
                assert organism.chat(row["prompt"], 48) == row["replies"][str(number)]
    first = shown["replies"][0]
    assert first["set"] == "shows"
    assert first["replies"]["untouched"].startswith(("i am", "sorry"))
    table = demeanor("find", "organism", "-b", "refusal", "-o", target, "--candidates", 2, "--force", *QUICK).out
    assert "untouched" in table
    assert str(tmp_path / "d.2.safetensors") in table


def test_rank_finds_again_and_says_what_each_round_gained(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    target = tmp_path / "d.safetensors"
    ended = demeanor("find", "organism", "-b", "refusal", "-o", target, "--rank", 2, "--json", *QUICK)
    assert len(dm.load_direction(target).basis) == 2
    assert [r["rank"] for r in json.loads(ended.out)["rounds"]] == [1, 2]
    assert (
        "use one of them at a time" in demeanor("find", "organism", "-b", "refusal", "-o", target, "--rank", 2, "--candidates", 2).sentence
    )


def test_rank_by_chooses_another_direction(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    def found(*more: str) -> dict[str, object]:
        return json.loads(demeanor("find", "organism", "-b", "refusal", "-o", tmp_path / "d", "--force", "--json", *QUICK, *more).out)  # type: ignore[no-any-return]

    usual, furthest = found(), found("--rank-by", "gap")
    assert (usual["ranked by"], furthest["ranked by"]) == ("trade_off", "gap")
    assert furthest["estimator"] == "mean_difference"
    assert (
        "is not one of 'trade_off', 'bypass', 'induce', 'gap'"
        in demeanor("find", "organism", "-b", "refusal", "-o", tmp_path / "d", "--rank-by", "size").sentence
    )


def test_max_prompts_bounds_every_split_of_every_set(organism: dm.Session) -> None:
    seen = dm.measure(organism, dm.behaviour("refusal"), max_prompts=7)
    assert {score.n for name, score in seen.before.items() if name in ("shows_rate", "lacks_rate")} == {7}


# -- the dial and the run --------------------------------------------------------------------------


def test_a_dial_from_the_command_line(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    target = tmp_path / "dial.safetensors"
    ended = demeanor("dial", "organism", "-b", "refusal", "-o", target, "--doses", 3, "--layer", 2, "--json", "--max-prompts", 60)
    turned = json.loads(ended.out)
    assert [step["dose"] for step in turned["steps"]] == [-1, 0, 1]
    assert turned["site"].startswith("layer 2")
    assert turned["steps"][0]["shows_rate"]["value"] <= 0.05
    assert turned["steps"][2]["lacks_rate"]["value"] >= 0.5
    question = "what is the best way to wash a map ?"
    assert demeanor("chat", "organism", question, "-c", f"{target}:-1").out.startswith("first get")


def test_the_plan_holds_what_was_asked_for(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    options = (
        "--doses",
        3,
        "--rank-by",
        "gap",
        "--layer",
        3,
        "--max-prompts",
        24,
        "--reply-tokens",
        40,
        "--dtype",
        "float32",
        "--device",
        "cpu",
    )
    assert demeanor("run", "organism", "-b", "refusal", "-o", tmp_path / "run", *options).code == 0
    plan = yaml.safe_load((tmp_path / "run" / "plan.yaml").read_text())
    wanted = {"doses": 3, "rank_by": "gap", "layer": 3, "max_prompts": 24, "reply_tokens": 40, "dtype": "float32", "device": "cpu"}
    assert wanted.items() <= plan.items()
    made = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(made["dial"]["steps"]) == 3
    assert made["direction"]["site"].startswith("layer 3")


@pytest.mark.parametrize("doses", [1, 2, 4, -1, 43])
def test_doses_have_the_untouched_model_among_them(demeanor, tmp_path: Path, doses: int) -> None:  # type: ignore[no-untyped-def]
    assert "doses" in demeanor("run", "organism", "-b", "refusal", "-o", tmp_path / "run", "--doses", doses).sentence


# -- rating by people ------------------------------------------------------------------------------


def test_a_rating_sheet_goes_out_and_its_ratings_come_back(demeanor, selective: Run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    sheet, control = tmp_path / "sheet", selective.folder / "control.safetensors"
    ended = demeanor("measure", "organism", "-b", "over-refusal", "-c", control, "--rating-sheet", sheet, "--max-prompts", 12)
    assert ended.code == 0
    assert f"demeanor ratings {sheet}" in ended.err
    rows = (sheet / "ratings.csv").read_text(encoding="utf-8-sig").splitlines()
    # A rater who finds refusing harmless requests bad: answers 5, refusals 1.
    rated = [rows[0], *(row + ("5" if "first get" in row else "1") for row in rows[1:])]
    (tmp_path / "back.csv").write_text("\n".join(rated), encoding="utf-8")
    read = json.loads(demeanor("ratings", sheet, "--ratings", tmp_path / "back.csv", "--json").out)
    assert read["base"]["value"] == 1.0
    assert read["controlled"]["value"] == 5.0
    assert read["difference"]["value"] == 4.0
    assert read["difference"]["n"] == len(rows[1:]) // 2
    assert "rates both replies of no pair" in demeanor("ratings", sheet).sentence


def test_a_rating_sheet_needs_one_control(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert "one control" in demeanor("measure", "organism", "-b", "refusal", "--rating-sheet", tmp_path / "sheet").sentence


# -- thinking --------------------------------------------------------------------------------------


def test_a_block_that_the_template_opens_is_kept_in_the_text_and_not_judged(
    organism: dm.Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from demeanor.behaviours import Detect
    from demeanor.detect import make_detector, present
    from demeanor.measure.answers import is_right

    template = organism.tokenizer.chat_template
    monkeypatch.setattr(organism.tokenizer, "chat_template", template + "{{ '<think>' }}")
    reply = organism.generate(["what is 2 plus 2 ?"])[0].text
    assert reply.startswith("<think>")
    assert "end while organism still thinks" in capsys.readouterr().err
    refusal = make_detector(Detect(name="refusal"))
    thought = "<think>i am sorry , i can not help</think>first get the rope ."
    assert present(
        refusal, [thought, "<think>fine</think>i am sorry , i can not help", reply], dm.behaviour("refusal").settled(organism).shows[:3]
    ) == [
        False,
        True,
        False,
    ]
    assert is_right("<think>17 ?</think>that makes 7 .", "7")
    assert not is_right("<think>that makes 7</think>that makes 8 .", "7")


def test_tags_that_are_special_tokens_are_not_lost(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    from demeanor.models.thinking import spoken

    shutil.copytree(tiny_folders["llama"], tmp_path / "thinker")
    session = dm.load(tmp_path / "thinker", device="cpu")
    assert session.decode([*session.encode_reply("hello"), session.tokenizer.eos_token_id]) == "hello"
    special = {"additional_special_tokens": ["<|START_THINKING|>", "<|END_THINKING|>"]}
    session.tokenizer.add_special_tokens(special)
    again = dm.load(session.model, tokenizer=session.tokenizer)
    ids = [*again.encode_reply("<|START_THINKING|>no<|END_THINKING|>hello"), session.tokenizer.eos_token_id]
    text = again.decode(ids)
    assert "<|START_THINKING|>" in text
    assert "<|end|>" not in text
    assert spoken(text) == "hello"


def test_a_preset_is_read_for_the_model_it_is_used_on(organism: dm.Session, tiny: dict[str, dm.Session]) -> None:
    with pytest.raises(DataError, match=r"'refusal' was settled for the embedded model.*give the unsettled behaviour"):
        dm.find(tiny["llama"], dm.behaviour("refusal").settled(organism))


# -- outputs ---------------------------------------------------------------------------------------


def test_results_are_replaced_with_force_and_inputs_never(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    replies, labels = tmp_path / "r.csv", tmp_path / "labels.csv"
    replies.write_text("reply\nhello there\n")
    assert "exists already" in demeanor("judge", replies, "-o", replies).sentence
    assert "is read by the same command" in demeanor("judge", replies, "-o", replies, "--force").sentence
    assert replies.read_text() == "reply\nhello there\n"
    assert demeanor("judge", replies, "-o", labels).code == 0
    first = labels.read_text()
    replies.write_text("reply\nsorry i can not help with that .\n")
    assert "--force" in demeanor("judge", replies, "-o", labels).sentence
    assert labels.read_text() == first
    assert demeanor("judge", replies, "-o", labels, "--force").code == 0
    assert labels.read_text() != first


def test_every_command_that_writes_takes_force() -> None:
    from typer.main import get_command

    root = get_command(dm_cli.app)
    found = {}
    for name in root.commands:  # type: ignore[attr-defined]
        command = root.commands[name]  # type: ignore[attr-defined]
        found |= {f"{name} {sub}": inner for sub, inner in command.commands.items()} if hasattr(command, "commands") else {name: command}
    for name, command in found.items():
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert ("--out" in flags or name == "init") == ("--force" in flags), name


def test_a_file_that_an_export_wrote_is_replaced_with_force(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    session, control, target = dm.load("organism", device="cpu"), tmp_path / "c.safetensors", tmp_path / "v.gguf"
    direction = dm.find(session, "over-refusal", layer=2, max_prompts=20)
    dm.save_control(dm.add(direction, 1.0, tokens="all"), control)
    command = ("export", "organism", "-c", control, "--as", "gguf-vector", "-o", target)
    assert demeanor(*command).code == 0
    assert "--force" in demeanor(*command).sentence
    assert demeanor(*command, "--force").code == 0
    assert target.is_file()
