"""The session as a model of lm-eval: what its tasks ask of a model, answered with whatever controls are in force.

Imported only where a suite is run, since lm-eval is an extra.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ...behaviours import Prompt
from ...errors import DataError
from ...models import Session
from ...progress import warn

UNNAMED_LENGTH = 2048  # tokens, where a model's configuration names no end: what lm-eval takes then
REPLY_TOKENS = 256  # where a task names no number: what lm-eval takes then


class SessionLM(TemplateLM):  # type: ignore[misc]  # an extra, without types where it is not installed
    """Texts to tokens as lm-eval's own adapter makes them, tokens to numbers as the session does.

    With `chat`, contexts come through the model's chat template, which writes its own special tokens, and none are
    added to them. `shortened` counts the inputs whose beginning was left out, by task; `told` holds what was said already.
    """

    def __init__(self, session: Session, chat: bool = False, told: set[str] | None = None) -> None:
        super().__init__()
        if chat and not session.has_template:
            raise DataError(f"{session.name} has no chat template; measure its capability without one.")
        self.session, self.chat = session, chat
        self.max_length = session.longest or UNNAMED_LENGTH
        self.shortened: Counter[str] = Counter()
        self._told = set() if told is None else told

    # -- text to tokens ---------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        ends = sorted(self.session.end_ids)
        own = self.session.tokenizer.eos_token_id
        if own is None and not ends:
            raise DataError(f"The tokenizer of {self.session.name} has no end token; lm-eval's tasks need one.")
        return int(ends[0] if own is None else own)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a continuation that has no context."""
        first = self.session.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        return self.session.name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.session.template.complete if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the model sees it; without a generation prompt, its last message opens the reply."""
        said = [(message["role"], message["content"]) for message in chat_history]
        prefill = "" if add_generation_prompt else said.pop()[1]
        system = said.pop(0)[1] if said and said[0][0] == "system" else None
        return self.session.render(Prompt(messages=tuple(said), system=system, prefill=prefill))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        tokenizer = self.session.tokenizer
        if add_special_tokens is None:
            add_special_tokens = not self.chat and not string.startswith(str(tokenizer.decode([self.prefix_token_id])))
        return self.session.encode_opened(string) if add_special_tokens else self.session.encode_reply(string)

    # -- what tasks ask ---------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        pairs = [self._pair(*request.args) for request in requests]
        return self._scored(pairs, [request.task_name for request in requests])

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Both tokenised as one text. Without a context the prefix token stands there, once."""
        if context:
            both: tuple[list[int], list[int]] = self._encode_pair(context, continuation)
            return both
        ids = self.tok_encode(continuation, add_special_tokens=False)
        return (ids[:1], ids[1:]) if ids[:1] == [self.prefix_token_id] else ([self.prefix_token_id], ids)

    def _loglikelihood_tokens(self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any) -> list[tuple[float, bool]]:
        return self._scored([(context, continuation) for _, context, continuation in requests], [""] * len(requests))

    def _scored(self, pairs: Sequence[tuple[list[int], list[int]]], tasks: Sequence[str | None]) -> list[tuple[float, bool]]:
        """Per pair of context and continuation, in order; the beginning of what is too long is left out."""
        starts, replies = [], []
        for (context, continuation), task in zip(pairs, tasks, strict=True):
            room = self.max_length + 1 - len(continuation)  # the last token is predicted, not read
            if room < 1:
                raise DataError(
                    f"{task} has an answer of {len(continuation)} tokens, and {self.session.name} takes {self.max_length}; leave this task out."
                )
            self.shortened[task or ""] += len(context) > room
            starts.append(context[-room:])
            replies.append(continuation)
        places = [place for place, reply in enumerate(replies) if reply]
        scores = [(0.0, True)] * len(replies)  # nothing is certain to be said after anything
        if places:
            scored = self.session.continuation_log_likelihoods([starts[i] for i in places], [replies[i] for i in places])
            for place, score in zip(places, scored, strict=True):
                scores[place] = score
        return scores

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Of whole texts, in windows as long as the model takes; every token is predicted once."""
        pairs: list[tuple[list[int], list[int]]] = []
        whose: list[int] = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            disjoint = [make_disjoint_window(window) for window in windows]
            pairs += disjoint
            whose += [number] * len(disjoint)
        totals = [0.0] * len(requests)
        for number, (score, _) in zip(whose, self._scored(pairs, [requests[i].task_name for i in whose])):
            totals[number] += score
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy replies, each cut before the first of its task's stop texts."""
        alike: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(self._asked(request.args[1], request.task_name or ""), []).append(number)
        said = [""] * len(requests)
        for (until, most), numbers in alike.items():
            starts = []
            for number in numbers:
                context, _ = requests[number].args
                ids = self.tok_encode(context) or [self.prefix_token_id]
                self.shortened[requests[number].task_name or ""] += len(ids) > self.max_length - most
                starts.append(ids[-(self.max_length - most) :])
            for number, reply in zip(numbers, self.session.continue_from(starts, most, until), strict=True):
                text = str(self.session.tokenizer.decode(list(reply), skip_special_tokens=True))
                said[number] = text[: min((at for at in map(text.find, until) if at >= 0), default=None)]
        return said

    def _asked(self, arguments: Mapping[str, Any], task: str) -> tuple[tuple[str, ...], int]:
        """The stop texts and the longest reply; what else a task asks for and does not get is told, once per task."""
        kwargs = normalize_gen_kwargs(dict(arguments), REPLY_TOKENS)
        if kwargs["do_sample"]:
            self._tell(f"{task} asks for sampling; its replies are greedy here, so that they are the same every time.")
        until = kwargs.get("until") or []
        most, room = int(kwargs["max_gen_toks"]), self.max_length // 2
        if most > room:
            self._tell(
                f"{task} asks for replies of {most} tokens, and {self.session.name} takes {self.max_length} in all; they get {room}."
            )
        return tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop), min(most, room)

    def _tell(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            warn(sentence)
