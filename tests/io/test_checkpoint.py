"""A model's files are read as strictly as the safetensors library reads them, and nothing outside of their folder is."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from demeanor.errors import ModelError
from demeanor.io.checkpoint import INDEX, SINGLE, open_checkpoint, read_header
from demeanor.io.dtypes import DTYPES

SIZES = {"a": (3, 4), "b": (5,), "c": (2, 2)}


def shard(path: Path, header: Any, data: bytes) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def whole() -> tuple[dict[str, Any], bytes]:
    """A correct header and its data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in SIZES.items():
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    return header, bytes(range(at))


def model(folder: Path, tensors: dict[str, dict[str, torch.Tensor]], index: Any = None) -> Path:
    """A folder with a config and these files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for file, content in tensors.items():
        save_file(content, folder / file)
    if index is not None:
        (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    return folder


@st.composite
def mutated(draw: st.DrawFn) -> tuple[Any, bytes]:
    header, data = whole()
    for _ in range(draw(st.integers(1, 3))):
        entry = header[draw(st.sampled_from(list(SIZES)))]
        field = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        number = st.one_of(st.integers(-64, 128), st.integers(), st.floats(), st.none(), st.text(max_size=3))
        values: dict[str, Any] = {
            "dtype": st.one_of(st.sampled_from([*DTYPES, "F8_E4M3", "F4"]), st.text(max_size=4), st.none()),
            "shape": st.lists(number, max_size=3),
            "data_offsets": st.lists(number, max_size=3),
        }
        entry[field] = draw(values[field])
    cut = draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))
    return header, data[:cut] + draw(st.binary(max_size=4))


RAW = st.one_of(
    st.binary(max_size=40), st.just(b"[" * 100_000), st.just(b'{"a":' * 100_000), st.just(b"null"), st.just(b'{"a": 5}'), st.just(b"")
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.one_of(mutated(), st.tuples(RAW, st.binary(max_size=16))))
def test_a_header_is_read_as_the_library_reads_it_or_refused_in_a_sentence(tmp_path: Path, damage: tuple[Any, bytes]) -> None:
    path = shard(tmp_path / "x.safetensors", *damage)
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
    except SafetensorError:
        with pytest.raises(ModelError, match="not a complete safetensors file"):
            read_header(path)
    else:
        assert set(read_header(path)) == names


@pytest.mark.parametrize("size", [0, 3, 8, 20])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, size: int) -> None:
    path = shard(tmp_path / "x.safetensors", *whole())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        read_header(path)


def test_every_tensor_lies_where_the_library_finds_it(tmp_path: Path) -> None:
    tensors = {name: torch.randn(shape, generator=torch.Generator().manual_seed(0)) for name, shape in SIZES.items()}
    folder = model(tmp_path / "m", {SINGLE: {**tensors, "empty": torch.zeros(0, 3), "single": torch.tensor(2.5, dtype=torch.bfloat16)}})
    checkpoint = open_checkpoint(folder)
    for name, tensor in load_file(folder / SINGLE).items():
        assert checkpoint.read(name) == tensor.flatten().view(torch.uint8).numpy().tobytes()
        assert checkpoint.tensors[name].shape == tensor.shape


OUTSIDE = ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", ".", "", "sub\\a.safetensors", "a.bin", "a\n.safetensors", 5, None, ["a.safetensors"]]


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_names_safetensors_files_of_its_own_folder_alone(tmp_path: Path, name: Any) -> None:
    model(tmp_path / "sub", {"a.safetensors": {"w": torch.ones(2)}})
    shutil.copy(tmp_path / "sub" / "a.safetensors", tmp_path / "a.safetensors")
    folder = model(tmp_path / "m", {"a.safetensors": {"w": torch.ones(2)}}, {"w": "a.safetensors", "v": name})
    shutil.copytree(tmp_path / "sub", folder / "sub")
    with pytest.raises(ModelError, match="no safetensors file of the same folder"):
        open_checkpoint(folder)


def test_a_file_that_the_index_names_and_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", {"a.safetensors": {"w": torch.ones(2)}}, {"w": "a.safetensors", "v": "b.safetensors"})
    with pytest.raises(ModelError, match=r"lacks b\.safetensors, which its index names"):
        open_checkpoint(folder)


def test_shards_without_their_index_are_told_from_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds 1 safetensors files \(model-1-of-2\.safetensors first\) but no model\.safetensors\.index"):
        open_checkpoint(model(tmp_path / "m", {"model-1-of-2.safetensors": {"w": torch.ones(2)}}))
    with pytest.raises(ModelError, match="save the model as safetensors first"):
        open_checkpoint(model(tmp_path / "n", {}))


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    shards = {"a.safetensors": {"w": torch.ones(2)}, "b.safetensors": {"w": torch.zeros(2), "v": torch.ones(1)}}
    with pytest.raises(ModelError, match=r"holds the tensor w in a\.safetensors and in b\.safetensors"):
        open_checkpoint(model(tmp_path / "m", shards, {"w": "a.safetensors", "v": "b.safetensors"}))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{", "[]", "5", "", '{"a": 1' + "0" * 5000 + "}", "\ufeff{}"])
@pytest.mark.parametrize("file", ["config.json", INDEX])
def test_json_that_is_none_is_told_in_a_sentence(tmp_path: Path, file: str, text: str) -> None:
    folder = model(tmp_path / "m", {"a.safetensors": {"w": torch.ones(2)}}, {"w": "a.safetensors"})
    (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"not valid JSON|JSON object"):
        open_checkpoint(folder)
    (folder / file).write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ModelError, match="not valid JSON"):
        open_checkpoint(folder)


@pytest.mark.parametrize("index", [{}, [], None, 5, "a.safetensors"])
def test_an_index_without_a_map_is_refused(tmp_path: Path, index: Any) -> None:
    folder = model(tmp_path / "m", {"a.safetensors": {"w": torch.ones(2)}})
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    with pytest.raises(ModelError, match="no weight_map"):
        open_checkpoint(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 40), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_fingerprint_is_of_the_weights_and_not_of_their_place(tmp_path: Path, seed: int, rows: int, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(seed)
    tensors = {"w": torch.randn(rows, 8, generator=rng).to(dtype), "v": torch.randn(rows, generator=rng).to(dtype)}
    for folder in ("one", "other", "trained"):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
    one = open_checkpoint(model(tmp_path / "one", {SINGLE: tensors})).fingerprint
    shards = {"a.safetensors": {"w": tensors["w"]}, "b.safetensors": {"v": tensors["v"]}}
    other = open_checkpoint(model(tmp_path / "other", shards, {"w": "a.safetensors", "v": "b.safetensors"})).fingerprint
    trained = model(tmp_path / "trained", {SINGLE: {**tensors, "w": (tensors["w"].float() * 1.1).to(dtype)}})
    assert one == other != open_checkpoint(trained).fingerprint
