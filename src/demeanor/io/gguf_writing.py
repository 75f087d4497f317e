"""GGUF files written: a copy of one with some tensors exchanged, and LoRA adapters of llama.cpp. What is copied keeps its type, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import DataError, ModelError
from ..progress import track
from .atomic import new_file
from .gguf import ARCHITECTURE, open_gguf
from .kernel_copy import cloned, copy_range

EMBEDDING, HEAD = "token_embd.weight", "output.weight"


def refuse_without_package() -> None:
    if find_spec("gguf") is None:
        raise DataError("GGUF files are written by gguf, which the extra `gguf` brings: pip install 'demeanor[gguf]'.")


class Values:
    """The tensors of a GGUF file, by llama.cpp's names; ModelError for one that is damaged."""

    def __init__(self, path: Path) -> None:
        refuse_without_package()
        from gguf import GGUFReader

        header = open_gguf(path)
        self.path, self.architecture, self.stored = path, header.architecture, header.tensors
        self.reader: Any = GGUFReader(path)
        self.tensors: dict[str, Any] = {tensor.name: tensor for tensor in self.reader.tensors}

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor as float32, its first axis the slowest."""
        from gguf import dequantize

        tensor = self.tensors[name]
        values = np.require(dequantize(tensor.data, tensor.tensor_type), requirements="W")  # a copy of what is only mapped
        return values.reshape(tuple(int(size) for size in reversed(tensor.shape)))

    def in_few_bits(self, name: str) -> bool:
        """Whether a tensor is stored in blocks; those of all types can be cut into blocks of Q8_0."""
        return self.stored[name].dtype not in ("F64", "F32", "F16", "BF16") and self.stored[name].shape[-1] % 32 == 0

    def named(self, parameters: Iterable[str], blocks: int) -> dict[str, str]:
        """llama.cpp's names of parameters that transformers names; those that it has no name for, or no tensor, are left out."""
        from gguf import get_tensor_name_map

        arch = self._arch()
        if arch is None:
            return {}
        names = get_tensor_name_map(arch, blocks)
        found = {parameter: names.get_name(parameter, (".weight", ".bias")) for parameter in parameters}
        return {parameter: name for parameter, name in found.items() if name in self.tensors}

    def may_have_head(self) -> bool:
        """Whether llama.cpp reads an output head of its own for this architecture where there is one."""
        from gguf import MODEL_TENSOR, MODEL_TENSORS

        arch = self._arch()
        return arch is not None and MODEL_TENSOR.OUTPUT in MODEL_TENSORS[arch]

    def _arch(self) -> Any:
        """The architecture as the package gguf numbers it; None where it does not know it."""
        from gguf import MODEL_ARCH_NAMES

        return next((arch for arch, name in MODEL_ARCH_NAMES.items() if name == self.architecture), None)


def write_copy(source: Values, path: Path, exchanged: Mapping[str, np.ndarray[Any, Any]], added: Mapping[str, str]) -> None:
    """The new file `path`: what `source` holds, with the tensors of `exchanged` in place of its own: float32 or float16, or uint8, which are blocks of Q8_0.

    added: tensors that the source lacks, each with the one of the source that it is a copy of.
    """
    with new_file(path) as work:
        _write(source, work, exchanged, added)


@contextmanager
def copy_to_patch(source: Values, path: Path, added: Mapping[str, str]) -> Iterator[tuple[int, dict[str, int]]]:
    """The new file `path`, open, with the first byte of each tensor in it: a copy of the source to the byte, for the caller to change.

    added: as above; with one of these the header is written anew.
    """
    from gguf import GGUFReader

    with new_file(path) as work:
        if added:
            _write(source, work, {}, added)
        else:
            with source.path.open("rb") as old, work.open("xb") as new:
                if not cloned(old.fileno(), new.fileno()):
                    copy_range(old.fileno(), new.fileno(), 0, source.path.stat().st_size)
        places = {tensor.name: int(tensor.data_offset) for tensor in GGUFReader(work).tensors}
        with work.open("r+b", buffering=0) as file:
            yield file.fileno(), places


def _write(source: Values, work: Path, exchanged: Mapping[str, np.ndarray[Any, Any]], added: Mapping[str, str]) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    tensors = [(name, tensor) for name, tensor in source.tensors.items()] + [(name, source.tensors[of]) for name, of in added.items()]
    writer = GGUFWriter(work, source.architecture)
    copy_header(source, writer)
    for name, tensor in tensors:
        if name in exchanged:
            values = exchanged[name]
            writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes, GGMLQuantizationType.Q8_0 if values.dtype == np.uint8 else None)
        else:
            writer.add_tensor_info(name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in track(tensors, "Writing", len(tensors)):
        writer.write_tensor_data(exchanged.get(name, tensor.data))
    writer.close()


def copy_header(source: Values, writer: Any) -> None:
    """All that the header says (tokenizer, chat template, sizes): of the source, but what the writer counts itself."""
    from gguf import GGUFValueType

    for field in source.reader.fields.values():
        if field.name == ARCHITECTURE or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        if kind == GGUFValueType.ARRAY and len(field.types) < 2:
            raise ModelError(f"{source.path} holds an empty list, {field.name}, which the package gguf does not write; remove it from the file first.")
        writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if kind == GGUFValueType.ARRAY else None)
    writer.data_alignment = source.reader.alignment


def write_adapter(path: Path, architecture: str, halves: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """A LoRA adapter as llama.cpp reads it: for each tensor, by its name there, a [rank, in] and b [out, rank], float32; what it gains is b a.

    The adapter's own scale is 1 whatever the rank (an alpha of 0 says so).
    """
    refuse_without_package()
    from gguf import GGUFType, GGUFWriter, Keys

    with new_file(path) as work:
        writer = GGUFWriter(work, architecture)
        writer.add_type(GGUFType.ADAPTER)
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, 0.0)
        for name, (a, b) in sorted(halves.items()):
            first = a.mT if name == EMBEDDING else a  # rows of it are looked up there
            writer.add_tensor(f"{name}.lora_a", first.float().contiguous().numpy())
            writer.add_tensor(f"{name}.lora_b", b.float().contiguous().numpy())
        write_out(writer)


def write_out(writer: Any) -> None:
    """All that a writer of the package gguf was given, into its file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
