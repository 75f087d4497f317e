"""Loading: what can be told about it, models with code of their own, and models that are loaded already."""

from __future__ import annotations

import ast
import builtins
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import demeanor as dm
from demeanor.controls import Control
from demeanor.errors import DataError, ModelError
from demeanor.models import Loading
from demeanor.models.loading import read_for_training, resolve
from families import save_tiny, tiny_model
from making import ablation

PROMPTS = ["what is 2 plus 2 ?", "how do i wash a map ?"]
OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder whose code comes with it; asking on standard input fails the test."""
    folder = save_tiny(tmp_path / "own", "llama")
    (folder / "own.py").write_text(OWN_CODE)
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "own_llama", "architectures": ["OwnModel"], "auto_map": auto_map})
    )
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))

    def asked(*_: object) -> str:
        raise AssertionError("something was asked on standard input")

    monkeypatch.setattr(builtins, "input", asked)
    return folder


# -- what can be told ------------------------------------------------------------------------------


def test_every_option_has_a_help_text() -> None:
    assert all(field.description for field in Loading.model_fields.values())
    assert "device" in Loading.model_json_schema()["properties"]


def test_a_loading_and_its_fields_are_the_same_thing(organism: dm.Session) -> None:
    by_value = dm.load("organism", loading=Loading(device="cpu", dtype="bfloat16", reply_tokens=7))
    by_field = dm.load("organism", device=torch.device("cpu"), dtype=torch.bfloat16, reply_tokens=7)
    assert by_value.model.dtype == by_field.model.dtype == torch.bfloat16
    assert by_value.reply_tokens == by_field.reply_tokens == 7
    assert organism.reply_tokens == 48
    assert dm.load("organism", loading=Loading(device="cpu", reply_tokens=7), reply_tokens=9).reply_tokens == 9


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"load_in_4bit": True, "load_in_8bit": True}, "one of load_in_4bit and load_in_8bit"),
        ({"device": "cpu", "device_map": "auto"}, "one of device and device_map"),
        ({"dtype": "float17"}, "dtype should be 'float32'"),
        ({"reply_tokens": 0}, "reply_tokens should be greater"),
        ({"quantized": "4bit"}, "there is no option 'quantized'; the options are device, device_map"),
        ({"chat_template_args": {"tokenize": True}}, "tokenize says in what form"),
    ],
)
def test_options_that_make_no_sense_are_told_in_one_sentence(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        dm.load("organism", **fields)
    with pytest.raises(DataError, match=sentence):
        Loading(**fields)  # type: ignore[arg-type]


def test_a_device_map_places_the_parts(organism: dm.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    session = dm.load("organism", device_map={"": "cpu"})
    assert session.device.type == "cpu"
    assert torch.equal(session.logits(PROMPTS), organism.logits(PROMPTS))
    with pytest.raises(ModelError, match=r"leaves .* of organism off the devices"):
        dm.load("organism", device_map={"": "meta"})
    monkeypatch.setattr("demeanor.models.loading.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="accelerate, which the extra"):
        dm.load("organism", device_map="auto")


def test_arguments_of_the_chat_template_are_in_every_rendered_prompt(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "thinker", "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if enable_thinking is defined and not enable_thinking %} quietly{% endif %}"
    tokenizer.save_pretrained(folder)
    plain, quiet = dm.load(folder, device="cpu"), dm.load(folder, device="cpu", chat_template_args={"enable_thinking": False})
    assert plain.render("hello") == "hello"
    assert quiet.render("hello") == "hello quietly"
    assert quiet.render(dm.Prompt.of("hello", system="be kind")) == "be kindhello quietly"


# -- code that comes with a model ------------------------------------------------------------------


def test_code_that_comes_with_a_model_runs_only_where_it_is_trusted(own_code: Path) -> None:
    for refused in (lambda: dm.load(own_code, device="cpu"), lambda: read_for_training(str(own_code), Loading(device="cpu"))):
        with pytest.raises(ModelError, match=r"brings code of its own.*--trust-remote-code"):
            refused()
    session = dm.load(own_code, device="cpu", trust_remote_code=True)
    assert type(session.model).__name__ == "OwnModel"
    assert len(session.layout.blocks) == 3


# -- models that are loaded already ----------------------------------------------------------------


def test_a_loaded_model_is_taken_with_its_tokenizer(organism: dm.Session) -> None:
    folder = resolve("organism")[0]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    session = dm.load(model, tokenizer=tokenizer, reply_tokens=5)
    assert session.model is model
    assert session.name == folder
    assert torch.equal(session.logits(PROMPTS), organism.logits(PROMPTS))
    assert len(session.generate(PROMPTS)[0].ids) == 5
    assert dm.load(tiny_model("llama"), tokenizer=tokenizer).name == "LlamaForCausalLM"


def test_a_loaded_models_own_configuration_stays_and_does_not_count(organism: dm.Session) -> None:
    folder = resolve("organism")[0]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.generation_config.update(repetition_penalty=5.0, no_repeat_ngram_size=1, suppress_tokens=[78], do_sample=True, top_k=3)
    tokenizer.pad_token = None
    before = model.generation_config.to_dict()
    session = dm.load(model, tokenizer=tokenizer)
    assert [reply.ids for reply in session.generate(PROMPTS)] == [reply.ids for reply in organism.generate(PROMPTS)]
    assert model.generation_config.to_dict() == before
    assert tokenizer.pad_token is None


def test_a_loaded_model_without_what_it_takes_is_told_in_one_sentence(organism: dm.Session) -> None:
    model, tokenizer = organism.model, organism.tokenizer
    with pytest.raises(DataError, match=r"comes with its tokenizer; give both"):
        dm.load(model)
    with pytest.raises(DataError, match="not a value of type Linear"):
        dm.load(torch.nn.Linear(2, 2), tokenizer=tokenizer)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="tokenizer is a tokenizer of transformers"):
        dm.load(model, tokenizer="organism")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="brings its own tokenizer"):
        dm.load("organism", tokenizer=tokenizer)
    with pytest.raises(DataError, match="device says how files are loaded"):
        dm.load(model, tokenizer=tokenizer, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("spelling", ["{0}/", "./{1}", "link", "copy", "sharded", "{0}"])
def test_the_same_weights_under_another_name_are_the_same(
    tiny_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, spelling: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folders["llama"], "source")
    shutil.copytree("source", "copy")
    Path("link").symlink_to("source")
    AutoModelForCausalLM.from_pretrained("source").save_pretrained("sharded", max_shard_size="60KB")
    AutoTokenizer.from_pretrained("source").save_pretrained("sharded")
    dm.save_control(ablation(dm.load("source", device="cpu")), "c.safetensors")
    other = dm.load(spelling.format(tmp_path / "source", "source"), device="cpu", dtype="bfloat16")
    with caplog.at_level("WARNING", "demeanor"), other.controlled(dm.load_control("c.safetensors")):
        pass
    assert "same structure" not in caplog.text


def test_other_weights_under_the_same_name_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    control = ablation(dm.load(save_tiny(tmp_path / "source", "llama", seed=1), device="cpu"))
    shutil.rmtree(tmp_path / "source")
    trained = dm.load(save_tiny(tmp_path / "source", "llama", seed=2), device="cpu")
    with caplog.at_level("WARNING", "demeanor"), trained.controlled(control):
        pass
    assert "same structure, other weights" in caplog.text


def test_of_weights_in_memory_and_in_files_it_is_said_that_they_cannot_be_compared(
    tiny: dict[str, dm.Session], caplog: pytest.LogCaptureFixture
) -> None:
    session = tiny["llama"]
    taken = dm.load(session.model, tokenizer=session.tokenizer)
    assert dm.load(session.model, tokenizer=session.tokenizer).layout.weights == taken.layout.weights != session.layout.weights
    unknown = Control(parts=(), layout=taken.layout, model_name="gone")
    with caplog.at_level("WARNING", "demeanor"), session.controlled(unknown):
        pass
    assert "whether the weights are the same cannot be told" in caplog.text


@pytest.mark.slow
def test_every_reader_of_transformers_is_told_whether_to_run_foreign_code() -> None:
    package = Path(dm.__file__).parent
    asked = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("from_pretrained", "from_config"):
                reader = ast.unparse(node.func.value)
                given = [keyword.arg or ast.unparse(keyword.value) for keyword in node.keywords]
                if reader.startswith("Auto") and not {"trust_remote_code", "source", "how"} & set(given):
                    asked.append(f"{path.name}: {ast.unparse(node)}")
    assert not asked, "transformers asks on standard input where it is not told"
