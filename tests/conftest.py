"""Shared fixtures: the organism, and tiny random models of every proven family."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

import demeanor as dm
from demeanor import cli, progress
from demeanor.io.cache import CACHE
from demeanor.job.result import Run
from demeanor.models.loading import resolve
from kept import kept, kept_root, loaded

T = TypeVar("T")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
os.environ[CACHE] = str(kept_root() / "cache")  # of the tests alone; a proof is done once for the same sources
torch.set_num_threads(1)  # tiny tensors: several threads only wait for each other
VOCAB = 1200  # of the organism's tokenizer, which the tiny models borrow
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, **TOKENS}
HEADS = {"num_key_value_heads": 2, "head_dim": 12}
EXPERTS = {"num_experts_per_tok": 2}
FALCON = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}

# Two of each where a family has two shapes. Square writers (GPT-2's, and one expert's) would hide a mistaken axis.
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
    "gemma2": Gemma2Config(**SIZES, **HEADS, sliding_window=16),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "gpt_neox_sequential": GPTNeoXConfig(**SIZES, use_parallel_residual=False),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, **HEADS, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, **HEADS, sliding_window=16),
    "gemma": GemmaConfig(**SIZES, **HEADS),
    "gemma3": Gemma3TextConfig(**SIZES, **HEADS, sliding_window=16),
    "gemma3_with_vision": Gemma3Config(text_config={**SIZES, **HEADS, "sliding_window": 16}, vision_config=VISION, mm_tokens_per_image=4),
    "phi3": Phi3Config(**SIZES, num_key_value_heads=2),
    "olmo2": Olmo2Config(**SIZES, num_key_value_heads=2),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=48, n_layer=3, n_head=4, n_inner=48, **TOKENS),
    "falcon": FalconConfig(**FALCON, ffn_hidden_size=80),
    "falcon_new": FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon_sequential": FalconConfig(**FALCON, parallel_attn=False, alibi=True, bias=True, multi_query=False),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **HEADS, **EXPERTS, num_experts=4, moe_intermediate_size=48),
    "gpt_oss": GptOssConfig(**SIZES, **HEADS, **EXPERTS, num_local_experts=4, sliding_window=16),
    "granite": GraniteConfig(**SIZES, num_key_value_heads=2, embedding_multiplier=12.0, residual_multiplier=0.22),
}


SLOW = set(FAMILIES) - {"gemma2"}  # of this one the fast lane makes sure: it has a post-norm with a scale, a window and a tied head


def tiny_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model whose gains, biases and writers are all far from the values at which mistakes would cancel."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.08))
    return model.to(dtype)


def save_tiny(folder: Path, family: str, seed: int = 0, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Path:
    """A tiny model as a folder, with a tokenizer; `shard` is the largest shard's size."""
    tiny_model(family, seed, dtype).save_pretrained(folder, max_shard_size=shard)
    AutoTokenizer.from_pretrained(resolve("organism")[0]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def organism() -> dm.Session:
    return loaded("organism")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks at a whole run is slow, and so is what was tried on one family already."""
    for item in items:
        values = getattr(getattr(item, "callspec", None), "params", {}).values()
        if {"selective", "whole"} & set(getattr(item, "fixturenames", ())) or any(value in SLOW for value in values if isinstance(value, str)):
            item.add_marker(pytest.mark.slow)


class EachFamily(Mapping[str, T]):
    """Something for every family, made when it is first asked for."""

    def __init__(self, make: Callable[[str], T]) -> None:
        self._make, self._made = make, dict[str, T]()

    def __getitem__(self, family: str) -> T:
        if family not in self._made:
            self._made[family] = self._make(family)
        return self._made[family]

    def __iter__(self) -> Iterator[str]:
        return iter(FAMILIES)

    def __len__(self) -> int:
        return len(FAMILIES)


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A tiny model's folder, by family."""
    root = tmp_path_factory.mktemp("tiny")
    return EachFamily(lambda family: save_tiny(root / family, family))


@pytest.fixture(scope="session")
def tiny(tiny_folders: Mapping[str, Path]) -> Mapping[str, dm.Session]:
    """A session with a tiny model, by family."""
    return EachFamily(lambda family: dm.load(tiny_folders[family], device="cpu"))


@pytest.fixture(params=list(FAMILIES))
def session(request: pytest.FixtureRequest, tiny: Mapping[str, dm.Session]) -> dm.Session:
    """A tiny model of each family in turn."""
    return tiny[request.param]


@pytest.fixture(scope="session")
def requests_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A behaviour file for any model: the organism's prompts, without being its preset."""
    data = Path(resolve("organism")[0]).parent / "data"
    path = tmp_path_factory.mktemp("requests") / "requests.yaml"
    sets = {"shows": "over_refused", "lacks": "plain", "guard": "guarded", "neutral": "neutral"}
    lines = [f"{name}: {{file: {data / file}.jsonl, answer: answer}}" for name, file in sets.items()]
    path.write_text("\n".join(["name: requests", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def selective() -> Run:
    """The main job on over-refusal, with a gate."""
    return kept("over-refusal", lambda folder: dm.run(dm.Plan(model="organism", behaviour="over-refusal", device="cpu", selective=False), folder / "run"))


@pytest.fixture(scope="session")
def whole() -> Run:
    """The main job on refusal."""
    return kept("refusal", lambda folder: dm.run(dm.Plan(model="organism", behaviour="refusal", device="cpu"), folder / "run"))


@pytest.fixture(scope="session")
def over_refusal(organism: dm.Session) -> dm.Direction:
    """The organism's direction for the preset `over-refusal`."""
    return kept("direction", lambda _: dm.find(organism, dm.behaviour("over-refusal")))


@pytest.fixture(autouse=True)
def _shown() -> Iterator[None]:
    """What is said is on standard error, as at the command line."""
    with progress.shown():
        yield


@pytest.fixture(scope="session")
def refusal_ablated(organism: dm.Session) -> dm.Control:
    """Refusal taken out of the organism, without a run: the best direction, ablated."""
    return kept("refusal-ablated", lambda _: dm.ablate(dm.find(organism, dm.behaviour("refusal"))))


class Ended(NamedTuple):
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The error message: the one line that a mistake ends in."""
        lines = [line for line in self.err.splitlines() if line.startswith("demeanor: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


@pytest.fixture
def demeanor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Runs the command as the shell would."""

    def run(*arguments: object, stdin: str = "") -> Ended:
        monkeypatch.setattr(sys, "argv", ["demeanor", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return Ended(int(caught.value.code or 0), captured.out, captured.err)

    return run
