"""What a language model says, and how likely it finds what is said: batches of passes, under whatever is in force."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..behaviours import Prompt, as_prompts
from ..runtime.batches import Batch, Reply, each, piece_by_piece, said_one_of, trimmed
from ..runtime.caches import keyword
from ..runtime.runner import Runner
from ..runtime.shared_prefix import InOnePiece, OpenedBatch, Tail, last_logits
from .options import REPLY_TOKENS
from .row_values import AllOfThem, Greedy, OwnTokens, RowValue
from .texts import Texts
from .thinking import open_think_tag, unfinished

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LanguageModel(Texts):
    """A model with its tokenizer: replies, logits and likelihoods.

    reply_tokens: how long replies get unless told. chat_template_args: arguments that every prompt is rendered with.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, reply_tokens: int = REPLY_TOKENS,
        chat_template_args: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(model.eval(), tokenizer, name, chat_template_args)
        self.reply_tokens = reply_tokens
        self.model.requires_grad_(False)
        self.decoder = model.base_model
        self.end_ids = _end_ids(model, tokenizer)
        self.runner = Runner(model, self.pad_id, self.refuse_too_long, lambda: self.longest)
        # The same modules with a configuration of generation of its own: whatever `generate` is not told, transformers takes from there,
        # penalties and samplers included, and the model's own belongs to whoever made it.
        self._greedy = copy.copy(self.model)
        self._greedy.generation_config = type(model.generation_config)(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=sorted(self.end_ids) or None, pad_token_id=self.pad_id
        )

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def dtype_name(self) -> str:
        """What the weights are computed with: "float32", "bfloat16", ..., or "quantised"."""
        quantised = getattr(self.model, "hf_quantizer", None) is not None
        return "quantised" if quantised else str(self.model.dtype).removeprefix("torch.")

    @property
    def vocabulary(self) -> int:
        """How many tokens the output head scores."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    def chat(self, prompt: str | Prompt, max_new_tokens: int = 128) -> str:
        """One reply, greedy."""
        return self.generate([prompt], max_new_tokens)[0].text

    @torch.no_grad()
    def generate(self, prompts: Sequence[str | Prompt], max_new_tokens: int | None = None, temperature: float | None = None) -> list[Reply]:
        """Greedy replies, or sampled from the whole vocabulary at a temperature; one per prompt, in order; of at most
        `reply_tokens` tokens unless told."""
        most = max_new_tokens or self.reply_tokens
        prompts = as_prompts(prompts)
        # A block of thoughts that the template opens is part of what the model says.
        opened = [open_think_tag(self.render(prompt)) for prompt in prompts]
        said = self.continue_from([self.encode(prompt) for prompt in prompts], most, temperature=temperature)
        replies = [Reply(start + self.decode(ids), ids) for start, ids in zip(opened, said)]
        cut = sum(unfinished(reply.text) for reply in replies)
        if cut:
            self._say_once(
                f"{cut} of {len(replies)} replies end while {self.name} still thinks, so they say nothing; raise --reply-tokens."
            )
        return replies

    def speak(
        self,
        prompt: str | Prompt,
        heard: Callable[[str], None],
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float = 1.0,
    ) -> Reply:
        """One reply, told while it is generated: `heard` gets its text piece by piece; together they are the text of the reply."""
        (prompt,) = as_prompts([prompt])
        start = open_think_tag(self.render(prompt))
        if start:
            heard(start)
        (ids,) = self.continue_from([self.encode(prompt)], max_new_tokens or self.reply_tokens, (), temperature, top_p, heard)
        return Reply(start + self.decode(ids), ids)

    @torch.no_grad()
    def continue_from(
        self,
        starts: Sequence[Sequence[int]],
        max_new_tokens: int,
        until: Sequence[str] = (),
        temperature: float | None = None,
        top_p: float = 1.0,
        heard: Callable[[str], None] | None = None,
    ) -> list[tuple[int, ...]]:
        """What follows token ids, greedily or sampled: up to an end token, or soon after one of the texts `until` was said.

        heard: gets the text of what follows a single start, piece by piece.
        """
        how: dict[str, Any] = {"do_sample": False}
        if temperature is not None:
            how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": top_p}

        def run(batch: Batch) -> list[tuple[int, ...]]:
            read, room = batch.input_ids.shape[1], self.runner.room(batch, max_new_tokens)
            if room < max_new_tokens:
                self._say_once(
                    f"{self.name} takes {self.longest} tokens, prompt and reply together; replies to long prompts are cut there, before {max_new_tokens} tokens."
                )
            more: dict[str, Any] = {"stopping_criteria": said_one_of(until, self.tokenizer, read)} if until else {}
            if heard is not None:
                more["streamer"] = piece_by_piece(self.decode, heard)
            if isinstance(batch, OpenedBatch):
                more[keyword()] = batch.begun()
            with InOnePiece(self.model).attached():
                out = self._greedy.generate(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=room, **how, **more
                )
            return [trimmed(row, self.end_ids) for row in out[:, read:].tolist()]

        return self.runner.in_batches(starts, run, "Generating", max_new_tokens, tails=[Tail()] * len(starts), continued=True)

    @torch.no_grad()
    def logits(self, prompts: Sequence[str | Prompt], after: Sequence[int] = ()) -> Tensor:
        """Logits of the next token, after the prompt and the reply tokens `after`: [prompt, vocab], float32, on the CPU."""

        def run(batch: Batch) -> list[Tensor]:
            with self.runner.replying(torch.full((len(batch.rows),), len(after), device=self.device)):
                return list(each(last_logits(self.model, batch, 1)[:, -1]))

        ids = [[*self.encode(prompt), *after] for prompt in as_prompts(prompts)]
        return torch.stack(self.runner.in_batches(ids, run, "Reading logits", tails=[Tail(reply=len(after))] * len(ids)))

    @torch.no_grad()
    def next_logits(self, rows: Sequence[Sequence[int]], tokens: Sequence[int]) -> Tensor:
        """Logits of some next tokens after rows of token ids: [row, token], float32, on the CPU."""

        def run(batch: Batch) -> list[Tensor]:
            return list(each(last_logits(self.model, batch, 1)[:, -1, list(tokens)]))

        for row in rows:
            self.refuse_too_long(list(row), "exchange")
        return torch.stack(self.runner.in_batches(rows, run, "Reading logits", tails=[Tail()] * len(rows)))

    def reply_log_probs(self, prompts: Sequence[str | Prompt], replies: Sequence[Sequence[int]]) -> list[Tensor]:
        """Teacher-forced log-probabilities over each reply's tokens: [reply token, vocab] per prompt, float32, CPU."""
        return self.teacher_forced([self.encode(prompt) for prompt in as_prompts(prompts)], replies, AllOfThem())

    def reply_log_likelihoods(self, prompts: Sequence[str | Prompt], replies: Sequence[Sequence[int]]) -> list[Tensor]:
        """Log-probability of each reply's own tokens, teacher-forced: [reply token] per prompt, float32, CPU."""
        return self.teacher_forced([self.encode(prompt) for prompt in as_prompts(prompts)], replies, OwnTokens(replies))

    def text_log_probs(self, starts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[Tensor]:
        """Teacher-forced log-probabilities over token ids after other token ids: [token, vocab] per text, float32, CPU."""
        return self.teacher_forced(starts, continuations, AllOfThem())

    def continuation_log_likelihoods(
        self, starts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[tuple[float, bool]]:
        """Log-probability of token ids after other token ids, and whether they are what greedy decoding says.

        Both together may be one longer than the model takes: the last token is predicted, not read.
        """

        return [(float(total), bool(greedy)) for total, greedy in self.teacher_forced(starts, continuations, Greedy(continuations))]

    @torch.no_grad()
    def teacher_forced(
        self, starts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], kept: RowValue, numbers: Sequence[int] | None = None
    ) -> list[Tensor]:
        """What `kept` makes of every row's number and its teacher-forced log-probabilities [reply token, vocab], float32; on the CPU.

        numbers: what `kept` is to know each row by, where that is not its place.

        Rows are token ids after other token ids, so nothing of a vocabulary's size need be held for more rows than one batch has.
        """
        # Token ids are joined, never text: a reply tokenised again could shift by one.
        joined = [[*start, *reply[:-1]] for start, reply in zip(starts, replies, strict=True)]

        def run(batch: Batch) -> list[Tensor]:
            lengths = [len(replies[row]) for row in batch.rows]
            with self.runner.replying(torch.tensor([max(length - 1, 0) for length in lengths])):
                logits = last_logits(self.model, batch, max(1, *lengths))
            results = []
            for place, (row, length) in enumerate(zip(batch.rows, lengths)):
                # Each token is predicted by the one before it.
                log_probs = logits[place, logits.shape[1] - length :].float().log_softmax(-1)
                results.append(kept(row if numbers is None else numbers[row], log_probs).cpu())
            return results

        tails = [Tail(max(1, len(reply)), max(len(reply) - 1, 0)) for reply in replies]
        return self.runner.in_batches(joined, run, "Scoring replies", tails=tails)


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end a reply, as the model's configuration and its tokenizer name them."""
    configured = model.generation_config.eos_token_id
    configured = [configured] if isinstance(configured, int) else configured or []
    own = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return frozenset([*configured, *own])
