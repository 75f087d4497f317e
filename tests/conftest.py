"""Shared fixtures: the organism, and tiny random models of every proven family."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, GPTNeoXConfig, LlamaConfig, PretrainedConfig, PreTrainedModel

import demeanor as dm
from demeanor import cli
from demeanor.models.loading import resolve

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
torch.set_num_threads(1)  # tiny tensors: several threads only wait for each other
VOCAB = 759  # of the organism's tokenizer, which the tiny models borrow
SIZES = {"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}

FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
    "gemma2": Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=12, sliding_window=16),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "gpt_neox_sequential": GPTNeoXConfig(**SIZES, use_parallel_residual=False),
}


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
    return dm.load("organism", device="cpu")


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {family: save_tiny(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="session")
def tiny(tiny_folders: dict[str, Path]) -> dict[str, dm.Session]:
    return {family: dm.load(folder, device="cpu") for family, folder in tiny_folders.items()}


@pytest.fixture(params=list(FAMILIES))
def session(request: pytest.FixtureRequest, tiny: dict[str, dm.Session]) -> dm.Session:
    """A tiny model of each family in turn."""
    return tiny[request.param]


@pytest.fixture(scope="session")
def over_refusal(organism: dm.Session) -> dm.Direction:
    """The organism's direction for the preset `over-refusal`."""
    return dm.find(organism, dm.behaviour("over-refusal"))


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
