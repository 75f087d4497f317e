"""Directions of a model that stays on disk: those of the model in memory, from the same prompts."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import demeanor as dm
from demeanor.errors import DataError, NoUsableDirection
from demeanor.finding.classes import Chance, Classes
from demeanor.finding.estimators import named_estimators, usual_estimators
from demeanor.finding.filter import as_given
from demeanor.finding.plan import FindPlan
from demeanor.finding.streamed import StreamedFindings, find_streamed
from demeanor.measure.ledger import Ledger
from demeanor.models import open_streamed, streamed
from outside import Ended
from quantised import pack


def whole_search(session: dm.Session, behaviour: dm.Behaviour, estimators: tuple[str, ...] = ()) -> tuple[dict[tuple[dm.Site, str], torch.Tensor], Chance]:
    """What every estimator reads at every site, and the test against chance, from the values of all layers at once."""
    sites = [dm.Site(layer, "resid_post", at) for layer in range(session.layout.n_layers) for at in range(-min(5, session.template_length()), 0)]
    classes = Classes(Ledger(session), as_given(behaviour), sites, ())
    chosen = named_estimators(behaviour, estimators or usual_estimators(behaviour))
    found = {(site, name): made.read.float() for number, site in enumerate(sites) for name, made in classes.estimates(number, chosen)}
    return found, classes.against_chance()


def assert_alike(streamed: StreamedFindings, wanted: tuple[dict[tuple[dm.Site, str], torch.Tensor], Chance], least: float = 0.9999) -> None:
    reads, chance = wanted
    assert {(one.site, one.estimator) for one in streamed.directions} == set(reads)
    for one in streamed.directions:
        assert one.basis[0] @ reads[one.site, one.estimator] > least
    torch.testing.assert_close(streamed.chance.separation, chance.separation, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(streamed.chance.cosine, chance.cosine, rtol=1e-3, atol=1e-3)
    assert streamed.chance.p == chance.p


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets that a random model tells apart too: they share no sentence."""
    folder = tmp_path_factory.mktemp("apart")
    shows = [f"please tell me how to {verb} a {thing}" for verb in ("wash", "fix", "paint", "clean", "draw") for thing in ("bike", "map", "cup", "door", "box", "hat", "ball", "tree")]
    lacks = [f"what is {one} plus {other} ?" for one in range(2, 10) for other in range(2, 7)]
    for name, texts in (("shows", shows), ("lacks", lacks)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in texts))
    (folder / "b.yaml").write_text(f"name: apart\nshows: {{file: {folder / 'shows.jsonl'}}}\nlacks: {{file: {folder / 'lacks.jsonl'}}}\n")
    return folder / "b.yaml"


@pytest.mark.parametrize("name", ["over-refusal", "cheer"])
def test_the_organisms_directions_are_those_of_memory(organism: dm.Session, name: str) -> None:
    behaviour = dm.behaviour(name).settled(organism)
    found = find_streamed(open_streamed("organism", device="cpu"), dm.behaviour(name))
    assert_alike(found, whole_search(organism, behaviour))
    assert found.bytes_read <= found.size
    assert all(count > 200 for count in found.counts.values())


def test_what_is_chosen_by_statistics_removes_the_behaviour(organism: dm.Session, over_refusal: dm.Direction) -> None:
    """At the site that trying chooses, the two are the same but for the prompts that trying left out."""
    found = find_streamed(open_streamed("organism", device="cpu"), dm.behaviour("over-refusal"))
    best = found.directions[0]
    same = next(one for one in found.directions if (one.site, one.estimator) == (over_refusal.site, over_refusal.estimator))
    assert same.basis[0] @ over_refusal.basis[0] > 0.999
    bench = dm.measure(organism, dm.behaviour("over-refusal"), control=dm.ablate(best), max_prompts=40)
    assert bench.after["shows_rate"].value <= 0.05
    assert best.layout.hash == over_refusal.layout.hash


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "qwen3_moe", "gpt_oss"])
def test_directions_of_tiny_models_are_those_of_memory(
    family: str, tiny_folders: Mapping[str, Path], tiny: Mapping[str, dm.Session], apart: Path
) -> None:
    behaviour = dm.behaviour(str(apart))
    found = find_streamed(open_streamed(tiny_folders[family], device="cpu"), behaviour)
    assert_alike(found, whole_search(tiny[family], behaviour))


@pytest.mark.parametrize("form", ["FP8 in blocks", "MXFP4"])
def test_directions_of_a_model_in_few_bits_are_those_of_memory_and_can_be_baked(
    form: str, tiny_folders: Mapping[str, Path], apart: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    sizes = {"vocab_size": 1200, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    AutoModelForCausalLM.from_config(LlamaConfig(**sizes, tie_word_embeddings=False)).save_pretrained(tmp_path / "plain")
    for path in tiny_folders["llama"].glob("*token*"):
        (tmp_path / "plain" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "plain" / "chat_template.jinja").write_bytes((tiny_folders["llama"] / "chat_template.jinja").read_bytes())
    packed, behaviour = pack(tmp_path / "plain", tmp_path / "packed", form), dm.behaviour(str(apart))
    found = find_streamed(open_streamed(packed, device="cpu"), behaviour)
    assert_alike(found, whole_search(dm.load(packed, device="cpu"), behaviour))
    baked = dm.bake(packed, dm.ablate(found.directions[0]), tmp_path / "baked")
    assert baked.left is not None
    assert baked.left < 5e-4


def test_estimators_that_look_at_every_value_see_the_same(organism: dm.Session) -> None:
    names = ("whitened", "median_difference")
    behaviour = dm.behaviour("cheer").settled(organism)
    found = find_streamed(open_streamed("organism", device="cpu"), behaviour, FindPlan(estimators=names))
    assert_alike(found, whole_search(organism, behaviour, names))


def test_a_layer_that_is_asked_for_is_the_only_one_that_is_ranked(organism: dm.Session) -> None:
    found = find_streamed(open_streamed("organism", device="cpu"), dm.behaviour("cheer"), FindPlan(layer=4, max_prompts=40))
    assert {one.site.layer for one in found.directions} == {4}
    assert found.directions[0].candidates[0].discarded == ()
    assert all(count <= 80 for count in found.counts.values())
    same = dm.find(open_streamed("organism", device="cpu"), dm.behaviour("cheer"), layer=4, max_prompts=40)
    assert torch.equal(same.basis, found.directions[0].basis)


def test_sets_that_differ_in_nothing_have_no_direction(organism: dm.Session, tmp_path: Path) -> None:
    words = [json.dumps({"prompt": f"how do i wash {number} plus {number % 7} cups ?"}) for number in range(120)]
    (tmp_path / "one.jsonl").write_text("\n".join(words[::2]))
    (tmp_path / "two.jsonl").write_text("\n".join(words[1::2]))
    (tmp_path / "b.yaml").write_text(f"name: nothing\nshows: {{file: {tmp_path / 'one.jsonl'}}}\nlacks: {{file: {tmp_path / 'two.jsonl'}}}\n")
    with pytest.raises(NoUsableDirection, match="p = "):
        find_streamed(open_streamed("organism", device="cpu"), dm.behaviour(str(tmp_path / "b.yaml")))


def test_what_takes_replies_is_refused(organism: dm.Session, demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    session = open_streamed("organism", device="cpu")
    with pytest.raises(DataError, match="`rank_by` says how directions are tried"):
        find_streamed(session, dm.behaviour("cheer"), FindPlan(rank_by="bypass"))
    with pytest.raises(DataError, match="there is no layer 9"):
        find_streamed(session, dm.behaviour("cheer"), FindPlan(layer=9))
    ended = demeanor("find", "organism", "-b", "cheer", "--stream", "--rank", 2, "-o", tmp_path / "d.safetensors")
    assert ended.code == 2
    assert "--rank tries directions" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_is_not_done_and_leaves_a_direction_alone(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "d.safetensors"
    ended: Ended = demeanor("find", "organism", "-b", "refusal", "--stream", "--max-prompts", 40, "--device", "cpu", "--json", "-o", out)
    assert ended.code == 0, ended.err
    assert "no reply is generated" in ended.err
    facts = json.loads(ended.out)
    assert facts["filtered"] is False
    assert facts["bytes read, of the files"] <= 1.05
    assert [path.name for path in tmp_path.iterdir()] == ["d.safetensors"]
    assert dm.load_direction(out).auroc == pytest.approx(facts["auroc"])


def test_other_commands_say_that_a_model_may_not_fit_before_they_load_it(demeanor, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    assert "may fail" not in demeanor("inspect", "organism", "--device", "cpu").err
    monkeypatch.setattr(streamed, "available", lambda: 1000)
    said = demeanor("inspect", "organism", "--device", "cpu").err
    assert "loading it may fail; find --stream finds directions of it block by block" in said


LIMITED = """
import resource, sys
from pathlib import Path
import demeanor, demeanor.cli, demeanor.cli.find
from demeanor.finding.plan import FindPlan
from demeanor.finding.streamed import find_streamed
from demeanor.models import open_streamed
find_streamed(open_streamed("organism", device="cpu"), demeanor.behaviour("cheer"), FindPlan(max_prompts=24))  # all libraries are there now
taken = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (taken + int(sys.argv[1]),) * 2)
sys.argv = ["demeanor", *sys.argv[2:]]
demeanor.cli.main()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_DATA"), reason="no such limit here")
def test_a_model_is_streamed_by_itself_where_it_does_not_fit(tiny_folders: Mapping[str, Path], apart: Path, tmp_path: Path) -> None:
    """A model of 256 MB under a limit of 180 MB above what the libraries take."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    sizes = {"vocab_size": 1200, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 8, "num_key_value_heads": 8}
    AutoModelForCausalLM.from_config(LlamaConfig(**sizes, tie_word_embeddings=False)).save_pretrained(tmp_path / "model", max_shard_size="30MB")
    for path in (*tiny_folders["llama"].glob("token*"), *tiny_folders["llama"].glob("*.jinja")):
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    words = ["find", str(tmp_path / "model"), "-b", str(apart), "--max-prompts", "24", "--device", "cpu", "--json", "-o", str(tmp_path / "d.safetensors")]
    assert sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors")) > 240e6
    done = subprocess.run([sys.executable, "-c", LIMITED, str(180 << 20), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "so it is read block by block" in done.stderr
    assert json.loads(done.stdout)["bytes read, of the files"] <= 1.05
    found = find_streamed(open_streamed(tmp_path / "model", device="cpu"), dm.behaviour(str(apart)), FindPlan(max_prompts=24))
    assert found.directions[0].basis[0] @ dm.load_direction(tmp_path / "d.safetensors").basis[0] > 0.99999
