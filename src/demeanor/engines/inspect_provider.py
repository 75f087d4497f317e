"""The provider of Inspect AI, which `inspect_registry.py` names: evaluations run on a model with controls.

    inspect eval TASK --model demeanor/MODEL -M control=C.safetensors

MODEL is what every command takes (organism, a folder, a GGUF file, a Hub id); `-M` takes `control` (FILE or FILE:DOSE, several with commas between) and the options of loading by name.
Only Inspect's registry imports this module.
"""

from __future__ import annotations

import threading
from functools import partial, reduce
from typing import Any

import torch
from anyio import to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from ..behaviours import Prompt
from ..controls import Control, load_control
from ..errors import DataError
from ..models import Loading, load

HEARD = {"max_tokens", "stop_seqs", "temperature", "top_p", "seed", "num_choices"}  # of a request; what is about sending it concerns no model
SENDING = {"max_retries", "timeout", "attempt_timeout", "max_connections", "adaptive_connections", "system_message", "batch", "cache", "cache_prompt", "parallel_tool_calls", "internal_tools", "max_tool_output", "extra_headers", "fail_on_refusal", "fallback_models", "stream_idle_timeout"}


class Provider(ModelAPI):  # type: ignore[misc, unused-ignore]
    """One model, with one control in force for every reply. Replies come one at a time."""

    def __init__(self, model_name: str, base_url: str | None = None, api_key: str | None = None, config: Any = None, control: str | list[str] = "", **loading: Any) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        files = control.split(",") if isinstance(control, str) else control
        named = [load_control(file) for file in files if file]
        self.control = reduce(Control.then, named) if named else None
        plan = Loading.given(None, loading, "the provider of Inspect")
        self.session = load(model_name, loading=plan, reply_tokens=plan.reply_tokens)
        self._one_at_a_time = threading.Lock()

    def max_connections(self) -> int:
        return 1

    async def generate(self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig) -> ModelOutput:
        _refuse(tools, config)
        output: ModelOutput = await to_thread.run_sync(partial(self._reply, _prompt(input), config))
        return output

    def _reply(self, prompt: Prompt, config: GenerateConfig) -> ModelOutput:
        session, most = self.session, config.max_tokens or self.session.reply_tokens
        start, until = session.encode(prompt), tuple(config.stop_seqs or ())
        temperature, top_p = config.temperature or None, 1.0 if config.top_p is None else config.top_p
        with self._one_at_a_time, torch.random.fork_rng(enabled=config.seed is not None), session.controlled(self.control) if self.control else session.uncontrolled():
            if config.seed is not None:
                torch.manual_seed(config.seed)
            (ids,) = session.continue_from([start], most, until, temperature, top_p)
        text = session.decode(ids)
        text = text[: min((at for at in map(text.find, until) if at >= 0), default=None)]
        room = most if session.longest is None else session.longest - len(start)
        reason: StopReason = "max_tokens" if len(ids) >= most else "model_length" if len(ids) >= room else "stop"
        said = ChatMessageAssistant(content=text, source="generate", model=self.model_name)
        usage = ModelUsage(input_tokens=len(start), output_tokens=len(ids), total_tokens=len(start) + len(ids))
        return ModelOutput(model=self.model_name, choices=[ChatCompletionChoice(message=said, stop_reason=reason)], usage=usage)


def _prompt(said: list[ChatMessage]) -> Prompt:
    """A conversation as a prompt; what the model has begun to say is its prefill. DataError for what is no text, or a system message in the middle."""
    other = next((part.type for message in said if not isinstance(message.content, str) for part in message.content if part.type != "text"), None)
    if other is not None:
        raise DataError(f"The task shows the model {other}, and the provider demeanor hands on text alone; choose a task of texts.")
    if any(message.role == "system" for message in said[next((place for place, message in enumerate(said) if message.role != "system"), 0) :]):
        raise DataError("The task has a system message in the middle of a conversation, which no chat template takes there; choose another task.")
    turns = [(message.role, message.text) for message in said]
    system = "\n\n".join(text for role, text in turns if role == "system") or None
    talk = [(role, text) for role, text in turns if role != "system"]
    prefill = talk.pop()[1] if talk and talk[-1][0] == "assistant" else ""
    return Prompt(messages=tuple(talk), system=system, prefill=prefill)


def _refuse(tools: list[ToolInfo], config: GenerateConfig) -> None:
    """DataError for what a task asks of a model and does not get here."""
    if tools:
        raise DataError(f"The task gives the model tools ({tools[0].name}), which the provider demeanor does not hand on; choose a task without tools.")
    unheard = [name for name in type(config).model_fields if name not in HEARD | SENDING and getattr(config, name) is not None]
    if config.num_choices not in (None, 1):
        unheard.append("num_choices")
    if unheard:
        raise DataError(f"The provider demeanor does not take {', '.join(unheard)}; leave them out of the task's configuration.")
