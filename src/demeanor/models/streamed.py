"""A model whose weights stay on disk: prompts pass it block by block, each block is read once for all of them, and goes again.

It can be read (`layers`) and nothing else: a reply would take all of its files for every token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..behaviours import Prompt, as_prompt
from ..errors import DataError, ModelError
from ..io.checkpoint import open_checkpoint
from ..io.memory import available
from ..progress import Bar, say
from ..runtime.batches import groups
from ..runtime.capture import one_stream, taken
from ..runtime.positions import LAST, REPLY, Position
from ..structure.account import build_of
from ..structure.block_by_block import BlockByBlock, account_of_json, account_to_json, memory_of
from ..structure.embeddings import embedding_writers
from ..structure.fetched import fetched
from ..structure.layout import Layout
from ..structure.proof import layout_of, tokens, width
from ..structure.replay import Call
from ..structure.stored_values import StoredValues
from .block_major import BUDGET, BlockMajor
from .chain import Chain, candidates_of, outside_read
from .kept_pass import KeptPass
from .loading import device_named, with_words
from .naming import files_of, is_adapter, local_folder, resolve, weights_of
from .options import Loading
from .session import ORGANISM_MARK
from .shell import Shell
from .texts import Texts

PROOF = (9, 256)  # tokens of the batches that blocks are proven on; the second where some of the first may reach no expert that is a module of its own


def open_streamed(name: str | Path, loading: Loading | None = None, **fields: Any) -> StreamedSession:
    """A session for a model folder or a Hub id whose weights stay on disk.

    loading and `fields` are as for `load`; what holds weights in memory in another way (a device map, few bits) is refused with a DataError.
    Raises ModelError where there is no such model, its files are damaged, or they cannot be read block by block (GGUF files, adapters).
    """
    options = Loading.of({**(loading.model_dump(exclude_unset=True) if loading else {}), **fields}, "open_streamed")
    wrong = next((field for field in ("device_map", "load_in_4bit", "load_in_8bit") if getattr(options, field)), None)
    if wrong is not None:
        raise DataError(f"{wrong} holds the whole model in memory, and one that is read block by block is never there; leave it out.")
    name, place = str(name), resolve(str(name))
    if place.is_adapter or place.gguf:
        what = "a GGUF file" if place.gguf else "an adapter"
        raise ModelError(f"{name} is {what}, which cannot be read block by block; bake it into a folder of safetensors first.")
    folder = local_folder(name)
    tokenizer = with_words(name, fetched(name, lambda: _tokenizer(folder, options.trust_remote_code)))
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    shell = Shell(name, open_checkpoint(folder), dtype, device_named(options.device), options.trust_remote_code)
    return StreamedSession(shell, tokenizer, name, weights_of(name), options.chat_template_args)


def larger_than_memory(name: str, loading: Loading) -> str | None:
    """In words, that a model does not fit into free memory as `loading` says; None where it does, or where that is not known.

    Told of files that are here; a model on the Hub is judged once they are in its cache.
    """
    folder = files_of(name)
    if folder is None or loading.quantized is not None or loading.device_map is not None or is_adapter(name):
        return None
    room = free_on(device_named(loading.device))
    needed = StoredValues(open_checkpoint(folder)).size(None if loading.dtype is None else getattr(torch, loading.dtype))
    if room is None or needed <= room:
        return None
    return f"{name} takes {needed / 1e9:.1f} GB in memory, and {room / 1e9:.1f} GB are free"


def free_on(device: torch.device) -> int | None:
    """Bytes of memory that are free on a device; None where that is not told."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available()


def _tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


@dataclass(frozen=True)
class LayerValues:
    """values [prompt, position, d_model], float32, on the CPU: the stream behind a block."""

    layer: int
    values: Tensor


class StreamedSession(Texts):
    """A model on disk, its tokenizer and, once prompts have passed it, its layout. Made by `open_streamed`.

    What is missing beside a session: replies, logits, controls in force.
    """

    def __init__(self, shell: Shell, tokenizer: Any, name: str, weights: str, chat_template_args: Mapping[str, Any] | None = None) -> None:
        super().__init__(shell.model, tokenizer, name, chat_template_args)
        self.shell, self._weights = shell, weights
        self._layout: Layout | None = None

    @property
    def organism(self) -> bool:
        """Whether this is the embedded model, or was made from it."""
        return hasattr(self.model.config, ORGANISM_MARK)

    @property
    def layout(self) -> Layout:
        """What was proven while prompts passed the model. Raises ModelError before that."""
        if self._layout is None:
            raise ModelError(f"The structure of {self.name} is proven while prompts pass it, and none has yet; capture something first.")
        return self._layout

    def _proven(self, layout: Layout) -> None:
        self._layout = replace(layout, weights=self._weights)

    @property
    def n_layers(self) -> int:
        """How many layers its configuration names."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def told(self) -> tuple[str, ...]:
        """What tells its values from those of another model, or of another way of computing them."""
        libraries = tuple(version(library) for library in ("torch", "transformers"))
        return (self._weights, str(self.shell.dtype), self.shell.device.type, str(self.model.config._attn_implementation), *libraries)

    def __repr__(self) -> str:
        return f"<StreamedSession {self.name}: {self.n_layers} layers, {str(self.shell.dtype).removeprefix('torch.')}, on disk>"

    def layers(self, prompts: Sequence[str | Prompt], positions: Sequence[Position], folder: Path) -> Iterator[LayerValues]:
        """The stream at the end of every prompt (or over the prompts' own replies), layer by layer, in one pass over the files.

        folder: where the pass keeps the stream; one that was left by a pass of the same prompts is gone on in, and then the first layer
        is the one after those that were finished. A layer counts as finished when the next one is asked for.
        """
        replies = [self.own_reply(prompt) if REPLY in positions else [] for prompt in prompts]
        rows = [[*self.encode(prompt), *reply] for prompt, reply in zip(prompts, replies)]
        for row, prompt in zip(rows, prompts):
            self.refuse_too_long(row, as_prompt(prompt).text)
        shortest = min((len(row) - len(reply) for row, reply in zip(rows, replies)), default=0)
        self.refuse_outside(shortest, [*positions, LAST])
        return _Pass(self, rows, [len(reply) for reply in replies], tuple(positions), KeptPass(folder)).layers()


class _Pass(BlockMajor):
    """One pass of rows of token ids, of which the values are read and the structure is proven. replies: how many tokens at the end of each row are its reply."""

    def __init__(self, session: StreamedSession, rows: Sequence[list[int]], replies: Sequence[int], positions: tuple[Position, ...], kept: KeptPass) -> None:
        self.session, self.lengths, self.replies, self.positions = session, len(rows), replies, positions
        # Rows of one length go together: no pads, so no model that reads them is told apart from others.
        self.groups = groups([len(row) for row in rows], BUDGET, alike=-1)
        model = session.shell.model
        lists = any(isinstance(module, nn.ModuleList) for blocks in candidates_of(model) for block in blocks for module in block.modules())
        proof = [tokens(model, count) for count in PROOF[: 1 + lists]]
        self.proofs = len(proof)
        super().__init__(session.shell, session.name, [*proof, *(torch.tensor([rows[row] for row in group]) for group in self.groups)], kept)

    @torch.no_grad()
    def layers(self) -> Iterator[LayerValues]:
        shell = self.shell
        with outside_read(shell):
            chain = Chain(shell, self.inputs(0))
            stream, done = self.begin(chain)
            d_model = width(shell.model, stream)
            writers = embedding_writers(shell.model, chain.modules, d_model, self.inputs(0))
        proof = BlockByBlock(shell.model, self.session.name, d_model)
        for number, name in enumerate(chain.names[:done]):
            kept = self.kept.found(number)
            proof.recall(name, account_of_json(kept), kept["build"])
        if done:
            say(f"{done} of {len(chain.names)} blocks were passed before; the pass goes on from there.")
            shell.drop(chain.names[0])
        with closing(Bar("Passing the blocks", len(chain.names))) as bar:
            for number in range(done, len(chain.names)):
                values = self._values(chain, number, proof, d_model)
                yield LayerValues(number, values)
                self.kept.passed(number + 1)
                bar.to(number + 1)
        copies = stream[0, 0].numel() // d_model
        layout = layout_of(shell.model, d_model, writers, proof.accounts, chain.skipped, copies, shell.tied, shell.one_name_each)
        self.session._proven(layout)

    def _values(self, chain: Chain, number: int, proof: BlockByBlock, d_model: int) -> Tensor:
        """All batches through one block, which is proven meanwhile; the values at the positions that are asked for [prompt, position, d_model]."""
        name, values = chain.names[number], torch.empty(self.lengths, len(self.positions), d_model)
        calls: list[Call] = []
        for block, passed in self.through(chain, number):
            if passed.batch < self.proofs:
                calls.append(Call(name, (passed.before, *passed.given.args), passed.given.kwargs, passed.after.clone()))
            else:
                group = self.groups[passed.batch - self.proofs]
                values[group] = self._read(one_stream(passed.after, len(group), d_model), group)
            if passed.batch == len(self.ids) - 1:
                self._prove(proof, name, block, calls, number)
        return values

    def _read(self, value: Tensor, group: Sequence[int]) -> Tensor:
        """[row, position, d_model] of the stream [row, token, d_model] of some rows of one length."""
        ends = torch.full((len(group),), value.shape[1], device=value.device)
        begins = ends - torch.tensor([self.replies[row] for row in group], device=value.device)
        return torch.stack([taken(value, begins, ends, position) for position in self.positions], 1).cpu()

    def _prove(self, proof: BlockByBlock, name: str, block: nn.Module, calls: Sequence[Call], number: int) -> None:
        needed, room = memory_of(block), free_on(self.shell.device)
        if room is not None and needed > room:
            raise ModelError(
                f"{name} of {self.session.name} is proven in float64, which takes about {needed / 1e9:.1f} GB of memory, and {room / 1e9:.1f} GB are free; use a machine with more."
            )
        proof.add(block, calls)
        self.kept.keep(number, {**account_to_json(proof.accounts[name]), "build": build_of(block)})
