"""The suffix score: the model's own judgement of an exchange, asked as one more turn. algorithms.md, section 8.

The question follows the reply as the chat template would have it follow, and the answer is read from the logits of the
next token: S = sigmoid((z_yes - z_no) / T). The model judges as it is, whatever control is in force.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ..behaviours import Prompt, Question, as_prompts
from ..errors import DataError, ModelError
from ..models import Session
from .registry import Detector, detector

TEMPERATURE = 10.0
ANSWER = "Answer yes or no."
WORDS = {"yes": ("yes", "Yes", "YES"), "no": ("no", "No", "NO")}


@dataclass(frozen=True)
class Suffix:
    """A question as tokens that follow a reply, and the tokens that begin "yes" and "no" right after it."""

    ids: tuple[int, ...]
    yes: tuple[int, ...]
    no: tuple[int, ...]
    weight: float = 1.0

    def score(self, logits: Tensor, temperature: float = TEMPERATURE) -> Tensor:
        """S [...] in (0, 1) of next-token logits [..., vocab]; several spellings of a word count together."""
        yes, no = (logits[..., list(tokens)].logsumexp(-1) for tokens in (self.yes, self.no))
        return ((yes - no) / temperature).sigmoid()


def suffix(session: Session, question: Question) -> Suffix:
    """The question for this model; an answer the question does not want counts as "no". ModelError where the two answers begin alike."""
    request = question.ask.strip()
    text = session.after_reply(request if "yes or no" in request.lower() else f"{request} {ANSWER}")
    ids = session.encode_reply(text)
    # Some templates leave the space before the reply to it, and plain text always does.
    first = {word: _first_tokens(session, text, ids, [*ways, *(f" {way}" for way in ways)]) for word, ways in WORDS.items()}
    if not first["yes"] or not first["no"] or set(first["yes"]) & set(first["no"]):
        raise ModelError(f"The tokenizer of {session.name} does not tell yes from no by the first token, so the model cannot be asked.")
    expected, other = (first["yes"], first["no"]) if question.want == "yes" else (first["no"], first["yes"])
    return Suffix(tuple(ids), expected, other, question.weight)


def _first_tokens(session: Session, text: str, ids: Sequence[int], words: Sequence[str]) -> tuple[int, ...]:
    """The token that each word begins with in its place; a word that would change the question's last token is left out."""
    joined = [session.encode_reply(text + word) for word in words]
    return tuple(sorted({row[len(ids)] for row in joined if row[: len(ids)] == list(ids)}))


def suffix_scores(
    session: Session,
    prompts: Sequence[str | Prompt],
    replies: Sequence[Sequence[int]],
    suffixes: Sequence[Suffix],
    temperature: float = TEMPERATURE,
) -> Tensor:
    """The weighted mean of S over the questions, per exchange: [prompt], float64. Replies are token ids without an end token."""
    starts = [[*session.encode(prompt), *reply] for prompt, reply in zip(as_prompts(prompts), replies, strict=True)]
    return exchange_scores(session, starts, suffixes, temperature)


def exchange_scores(
    session: Session, starts: Sequence[Sequence[int]], suffixes: Sequence[Suffix], temperature: float = TEMPERATURE
) -> Tensor:
    """The same for exchanges that are token ids already, a prompt's and its reply's: [exchange], float64.

    All exchanges and questions make one list of rows, and only the last position of each is projected to the vocabulary.
    """
    rows = [[*start, *part.ids] for part in suffixes for start in starts]
    tokens = sorted({token for part in suffixes for token in (*part.yes, *part.no)})
    place = {token: number for number, token in enumerate(tokens)}
    with session.uncontrolled():
        logits = session.next_logits(rows, tokens).double().reshape(len(suffixes), len(starts), len(tokens))
    local = [replace(part, yes=tuple(place[t] for t in part.yes), no=tuple(place[t] for t in part.no)) for part in suffixes]
    weights = torch.tensor([part.weight for part in suffixes], dtype=torch.float64)
    scores = torch.stack([part.score(of, temperature) for part, of in zip(local, logits)])
    return (weights @ scores) / weights.sum()


@dataclass(frozen=True)
class SelfJudgement:
    """The probability of a behaviour as the model itself sees it; it must be given the model by `asking`."""

    questions: tuple[Question, ...]
    temperature: float = TEMPERATURE
    session: Session | None = None

    def asking(self, session: Session) -> SelfJudgement:
        return replace(self, session=session)

    def probabilities(self, replies: Sequence[str], prompts: Sequence[Prompt]) -> list[float]:
        """S per reply, each with its prompt."""
        assert self.session is not None  # it is there once `asking` was called
        if not replies:
            return []
        suffixes = [suffix(self.session, question) for question in self.questions]
        ids = [self.session.encode_reply(reply) for reply in replies]
        scores: list[float] = suffix_scores(self.session, prompts, ids, suffixes, self.temperature).tolist()
        return scores


@detector("self", needs_model=True, needs_prompts=True)
def self_judgement(
    question: str | None = None, want: Any = "yes", questions: Sequence[Any] = (), temperature: float = TEMPERATURE
) -> Detector:
    """What the model itself says when asked: one question whose answer `want` means the behaviour, or several with weights."""
    asked = [*([{"ask": question, "want": want}] if question is not None else []), *questions]
    if not asked:
        raise DataError("The detector 'self' needs something to ask, such as {self: {question: \"Was the last reply rude?\"}}.")
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not temperature > 0:
        raise DataError(f"The temperature of the detector 'self' must be above 0, not {temperature!r}.")
    try:
        return SelfJudgement(tuple(Question.model_validate(each) for each in asked), float(temperature))
    except ValidationError as error:
        raise DataError(f"A question of the detector 'self' is not valid: {error.errors()[0]['msg']}.") from error
