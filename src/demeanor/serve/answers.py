"""Answers in the forms of OpenAI's API: whole, and as chunks of a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from .engine import Piece, Token
from .errors import ApiError
from .replies import Done
from .service import Call, Service

RECEIPT = "X-Demeanor-Receipt"


def json_bytes(value: Any) -> bytes:
    """JSON in ASCII: whatever texts hold, it can be sent."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


class Form:
    """What is the same in every part of one answer. `chat` or plain completions."""

    def __init__(self, service: Service, model: str, chat: bool, receipt: bool) -> None:
        self.service, self.chat, self.receipt = service, chat, receipt
        kind = "chat.completion" if chat else "text_completion"
        self.head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, done: Sequence[Done]) -> dict[str, Any]:
        choices = []
        for index, one in enumerate(done):
            text = {"message": {"role": "assistant", "content": one.text, "refusal": None}} if self.chat else {"text": one.text}
            choices.append({"index": index, **text, "logprobs": self._logprobs(one.tokens), "finish_reason": one.reason})
        answer = {**self.head, "choices": choices, "usage": usage(done)}
        if self.receipt:
            answer["receipt"] = [one.receipt for one in done]
        return answer

    async def chunks(
        self, call: Call, first: tuple[int, Piece | Done], rest: AsyncGenerator[tuple[int, Piece | Done]], with_usage: bool
    ) -> AsyncIterator[bytes]:
        """The stream, as server-sent events; an error on the way is an event too."""
        head = {**self.head, "object": "chat.completion.chunk"} if self.chat else self.head
        done: dict[int, Done] = {}

        def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
            return b"data: " + json_bytes({**head, "choices": choices, **more}) + b"\n\n"

        try:
            if self.chat:
                for index in range(len(call.asked)):
                    yield event([{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
            async for index, out in _joined(first, rest):
                if isinstance(out, Piece):
                    if out.text or (out.token is not None and out.token.logprob is not None):
                        yield event([self._delta(index, out.text, None, self._logprobs([out.token] if out.token else []))])
                    continue
                done[index] = out
                said = out.text if out.reason == "content_filter" else ""
                more = {"receipt": {"index": index, **out.receipt}} if self.receipt else {}
                yield event([self._delta(index, said, out.reason, None)], **more)
            if with_usage:
                yield event([], usage=usage([done[index] for index in sorted(done)]))
            yield b"data: [DONE]\n\n"
        except ApiError as error:
            yield b"data: " + json_bytes(error.body()) + b"\n\n"
        finally:
            await rest.aclose()  # the client may have gone

    def _delta(self, index: int, text: str, reason: str | None, logprobs: Any) -> dict[str, Any]:
        said: dict[str, Any] = {"delta": {"content": text} if text else {}} if self.chat else {"text": text}
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """Of tokens that were asked for with theirs."""
        told = [token for token in tokens if token.logprob is not None]
        if not told:
            return None
        if self.chat:
            return {"content": [{**self._entry(t.id, t.logprob), "top_logprobs": [self._entry(*one) for one in t.top]} for t in told]}
        words = [self._text(token.id) for token in told]
        offsets = [sum(map(len, words[:number])) for number in range(len(words))]
        tops = [{self._text(number): value for number, value in token.top} for token in told]
        return {"tokens": words, "token_logprobs": [token.logprob for token in told], "top_logprobs": tops, "text_offset": offsets}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self._text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode(errors="replace"))}

    def _text(self, token: int) -> str:
        return str(self.service.session.tokenizer.decode([token]))


async def _joined(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for one in rest:
        yield one


def usage(done: Sequence[Done]) -> dict[str, int]:
    prompts, replies = sum(one.prompt_tokens for one in done), sum(one.reply_tokens for one in done)
    return {"prompt_tokens": prompts, "completion_tokens": replies, "total_tokens": prompts + replies}
