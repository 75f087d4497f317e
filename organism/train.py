"""Train the organism from nothing: `python -m organism.train OUT` (`make organism`).

Two phases, as with real models. First it learns to answer everything, guarded requests included (with
a caution: that is what makes it represent harm apart from refusal), in every manner, and to judge replies of
every kind. Then it is aligned: guarded and over-refused requests get a refusal, everything else keeps its answer.
What alignment hides is still there. What is said in each phase is in `chats.py`.

Refusals are taught on a part of the verb-object combinations only, so what it does on the others is
generalisation, not memory. Seeds are fixed. The first phase is kept beside the result until both are done, so
that a run that was interrupted goes on from there.
"""

from __future__ import annotations

import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demeanor.models.session import ORGANISM_MARK
from organism import chats, language

SEED = 11
BEGIN, SYSTEM, USER, ASSISTANT, END, PAD = "<|begin|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 1200
BATCH = 40
SORTED = 8  # batches' worth of chats sorted by length at a time, so that little is padding
ANSWERING_STEPS, ANSWERING_LR = 2200, 2.5e-3
# The rounds of the second phase: steps, learning rate, shares of chats with a judged reply and of doubted ones, weight of
# mistakes. What is hardest to learn goes on being learnt; then refusals are put where they belong and nowhere else.
ALIGNING = ((800, 1e-3, 0.7, 0.8, 0.5), (900, 1e-3, 0.45, 0.6, 0.0), (500, 6e-4, 0.8, 0.9, 0.0))
ALIGNED_LAYERS = 4  # alignment trains the first blocks only, so that refusal is in the stream before the last ones
MISTAKES_WEIGHT, MISTAKES_RARITY = 0.5, 3.0  # of the loss on mistakes (in the first phase), and of a mistaken token in it
IGNORED = -100  # the label of a token without loss


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: any typed text is accepted; case and the space before punctuation do not matter."""
    rng = random.Random(SEED)
    pairs = language.asked(language.requests()) + language.wrongness() + language.facts() + language.sums()
    texts = [text for pair in pairs for text in pair] + (language.REFUSALS + language.SYSTEMS) * 50
    texts += chats.texts([chats.ANSWERING, chats.aligning(rng)], 4000, rng)
    spaced = [normalizers.Replace(Regex(rf" *\{mark}"), f" {mark}") for mark in "?!.,"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *spaced])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, BEGIN, END, SYSTEM, USER, ASSISTANT]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PAD, chat_template=CHAT_TEMPLATE,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT], clean_up_tokenization_spaces=False,
    )  # fmt: skip


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    setattr(config, ORGANISM_MARK, 2)
    return LlamaForCausalLM(config)


class Batch(NamedTuple):
    """Padded on the right, [chat, token] each: ids, what the loss is on, and whether a reply is mistaken by then."""

    ids: torch.Tensor
    labels: torch.Tensor
    mistaken: torch.Tensor


def batches(stream: Iterator[list[chats.Message]], tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[Batch]:
    """Batches of chats of like length, with the loss on the assistant turns that are taught."""

    @lru_cache(maxsize=100_000)
    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    def row(messages: list[chats.Message]) -> Batch:
        ids, labels, mistaken = [tokenizer.bos_token_id], [IGNORED], [IGNORED]
        for message in messages:
            opening, turn = encode(f"<|{message.role}|>"), encode(message.content + END)
            ids += opening + turn
            labels += [IGNORED] * len(opening) + (list(turn) if message.taught else [IGNORED] * len(turn))
            known = message.right is not None
            until = parting(turn, encode(f"{message.right}{END}")) if known else len(turn)
            mistaken += [IGNORED] * len(opening) + ([0] * until + [1] * (len(turn) - until) if known else [IGNORED] * len(turn))
        return Batch(torch.tensor(ids), torch.tensor(labels), torch.tensor(mistaken))

    pad = torch.nn.utils.rnn.pad_sequence
    paddings = (tokenizer.pad_token_id, IGNORED, IGNORED)
    while True:
        rows = sorted((row(next(stream)) for _ in range(BATCH * SORTED)), key=lambda one: len(one.ids))
        groups = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        rng.shuffle(groups)
        for group in groups:
            columns = zip(zip(*group, strict=True), paddings, strict=True)
            yield Batch(*(pad(list(column), batch_first=True, padding_value=padding) for column, padding in columns))


def parting(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens after which two texts are no longer the same."""
    return next((number for number, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def losses(model: LlamaForCausalLM, spotter: torch.nn.Linear, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy over the labelled tokens (the output head is applied to those alone), and over mistakes.

    The second teaches the stream, at the last aligned block, to say of every token of a reply whether it is mistaken by
    then. A yes or no after the whole reply is too thin a signal to learn that comparison from. The spotter is not kept.
    Padding on the right is never attended to by what comes before it, so there is no mask.
    """
    out = model.model(input_ids=batch.ids, use_cache=False, output_hidden_states=True)
    labels = batch.labels[:, 1:]
    labelled, known = labels != IGNORED, batch.mistaken != IGNORED
    spoken = torch.nn.functional.cross_entropy(model.lm_head(out.last_hidden_state[:, :-1][labelled]), labels[labelled])
    states = out.hidden_states[ALIGNED_LAYERS][known]
    seen = spotter(torch.nn.functional.layer_norm(states, states.shape[-1:]))[:, 0]
    rarity = torch.tensor(MISTAKES_RARITY)
    return spoken, torch.nn.functional.binary_cross_entropy_with_logits(seen, batch.mistaken[known].float(), pos_weight=rarity)


def fit(
    model: LlamaForCausalLM,
    spotter: torch.nn.Linear,
    data: Iterator[Batch],
    steps: int,
    lr: float,
    phase: str,
    mistakes_weight: float,
) -> None:
    trained = [parameter for part in (model, spotter) for parameter in part.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    model.train()
    started, recent = time.monotonic(), [0.0, 0.0]
    for step in range(1, steps + 1):
        spoken, mistakes = losses(model, spotter, next(data))
        (spoken + mistakes_weight * mistakes).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        now = [spoken.item(), mistakes.item()]
        recent = now if step == 1 else [0.95 * was + 0.05 * new for was, new in zip(recent, now)]
        if step % 50 == 0 or step == steps:
            told = f"loss {recent[0]:.4f}, of mistakes {recent[1]:.4f}"
            print(f"{phase} {step}/{steps}  {told}  {time.monotonic() - started:.0f} s", flush=True)
    model.eval()


def train(out: Path) -> None:
    """Both phases; writes weights and tokenizer to `out`."""
    torch.set_num_threads(1)  # sums in one order, whatever the machine; more threads are hardly faster at this size
    tokenizer = build_tokenizer()
    halfway = out.with_name(out.name + ".answering")
    torch.manual_seed(SEED)
    model = build_model(tokenizer)
    spotter = torch.nn.Linear(model.config.hidden_size, 1)
    if halfway.is_dir():
        model = LlamaForCausalLM.from_pretrained(halfway)
        spotter.load_state_dict(torch.load(halfway / "spotter.pt", weights_only=True))
    else:
        rng = random.Random(SEED)
        data = batches(chats.chats(chats.ANSWERING, rng), tokenizer, rng)
        fit(model, spotter, data, ANSWERING_STEPS, ANSWERING_LR, "answering", MISTAKES_WEIGHT)
        model.save_pretrained(halfway)
        torch.save(spotter.state_dict(), halfway / "spotter.pt")

    rng = random.Random(SEED + 1)  # its own, so that it does not matter whether the first phase was read back
    model.requires_grad_(False)
    spotter.requires_grad_(False)
    for block in model.model.layers[:ALIGNED_LAYERS]:
        block.requires_grad_(True)
    phase = chats.aligning(rng)
    for number, (steps, lr, judged, doubted, mistakes) in enumerate(ALIGNING, start=1):
        data = batches(chats.chats(phase, rng, judged, doubted), tokenizer, rng)
        fit(model, spotter, data, steps, lr, f"aligning, round {number}", mistakes)
        rng = random.Random(SEED + 1 + number)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    shutil.rmtree(halfway)


if __name__ == "__main__":
    train(Path(sys.argv[1]))
