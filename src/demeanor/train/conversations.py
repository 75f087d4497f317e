"""Conversations to learn from, as token ids with the assistant's turns marked.

A reply begins where the rendered prompt before it ends, and the text on either side is tokenised apart: so the ids that
are learned from are the ids that are seen when the model is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..behaviours import Prompt
from ..errors import DataError
from ..models.session import Session
from ..models.template import Messages
from ..progress import warn
from ..runtime.batches import Batch

IGNORED = -100  # the label of a token that is not learned


@dataclass(frozen=True)
class Conversation:
    """Turns (role, content) of user and assistant, opened by the user, and a system prompt."""

    turns: tuple[tuple[str, str], ...]
    system: str | None = None

    def before(self, turn: int) -> Prompt:
        """The prompt that a turn of the assistant answers."""
        return Prompt(messages=self.turns[:turn], system=self.system)

    @property
    def replies(self) -> list[int]:
        return [number for number, (role, _) in enumerate(self.turns) if role == "assistant"]


def learned(session: Session, conversation: Conversation) -> tuple[list[int], list[int]]:
    """Token ids and labels of a conversation; every label but those of the assistant's turns is IGNORED.

    The token that ends a turn is learned with it. Raises DataError where the chat template does not render the
    conversation so that it goes on from each of its prompts.
    """
    text, at = _rendered(session, conversation), 0
    ids: list[int] = []
    labels: list[int] = []
    ends = sorted((token for token in session.tokenizer.all_special_tokens if token), key=len, reverse=True)
    for turn in conversation.replies:
        start = len(session.render(conversation.before(turn)))
        content = conversation.turns[turn][1].strip()
        start_of_content = text.find(content, start)
        if text[:start] != session.render(conversation.before(turn)) or start_of_content < 0:
            raise DataError(
                f"The chat template of {session.name} renders a conversation otherwise than its prompts ({content[:40]!r}); split it into single exchanges."
            )
        stop = start_of_content + len(content)
        stop += next((len(token) for token in ends if text.startswith(token, stop)), 0)
        for piece, kept in ((text[at:start], False), (text[start:stop], True)):
            tokens = session.encode_reply(piece) if ids or session.has_template else session.encode_opened(piece)
            ids += tokens
            labels += tokens if kept else [IGNORED] * len(tokens)
        at = stop
    if not session.has_template and session.tokenizer.eos_token_id is not None:
        ids.append(session.tokenizer.eos_token_id)  # nothing else would teach it where to stop
        labels.append(session.tokenizer.eos_token_id)
    return ids, labels


def learned_text(session: Session, text: str) -> tuple[list[int], list[int]]:
    """Token ids and labels of a plain text, all of it learned, its end included."""
    ids = list(session.tokenizer(text)["input_ids"])
    if session.tokenizer.eos_token_id is not None and ids[-1:] != [session.tokenizer.eos_token_id]:
        ids.append(session.tokenizer.eos_token_id)
    return ids, list(ids)


def as_messages(session: Session, prompt: Prompt) -> str | Messages:
    """The prompt as TRL takes it: messages that the template knows, or plain text where there is no template."""
    if not session.has_template:
        return session.render(prompt)
    return session.messages(prompt)


def _rendered(session: Session, conversation: Conversation) -> str:
    """The whole conversation, up to the end of its last reply."""
    last = conversation.replies[-1]
    turns = conversation.turns[: last + 1]
    if not session.has_template:
        return session.render(conversation.before(last)) + "\n" + turns[-1][1]
    return session.template.rendered(turns, conversation.system)


def mean_loss(session: Session, rows: Sequence[dict[str, list[int]]]) -> float:
    """The negative log-likelihood of the learned tokens of rows, nats per token."""

    @torch.no_grad()
    def run(batch: Batch) -> list[Tensor]:
        log_probs = session.model(**batch.inputs()).logits[:, :-1].float().log_softmax(-1)
        losses = []
        for place, number in enumerate(batch.rows):
            labels = torch.tensor(rows[number]["labels"][1:], device=log_probs.device)
            kept = labels != IGNORED
            own = log_probs[place, len(log_probs[place]) - len(labels) :].gather(1, labels.clamp_min(0)[:, None])[:, 0]
            losses.append(torch.stack([-(own * kept).sum(), kept.sum()]).double().cpu())
        return losses

    sums = torch.stack(session.runner.in_batches([row["input_ids"] for row in rows], run, "Scoring")).sum(0)
    return float(sums[0] / sums[1])


def cut(rows: Sequence[tuple[list[int], list[int]]], longest: int) -> list[dict[str, list[int]]]:
    """Rows as a data set takes them, cut at their ends; those of which nothing would be learned are left out, aloud."""
    shortened = [{"input_ids": ids[:longest], "labels": labels[:longest]} for ids, labels in rows]
    kept = [row for row in shortened if any(label != IGNORED for label in row["labels"][1:])]
    if len(kept) < len(shortened):
        warn(
            f"{len(shortened) - len(kept)} of {len(shortened)} rows hold nothing to learn in their first {longest} tokens and are left out."
        )
    if not kept:
        raise DataError(f"No row holds anything to learn in its first {longest} tokens; raise --max-length.")
    return kept
