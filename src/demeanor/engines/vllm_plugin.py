"""The plugin of vLLM (entry point `vllm.general_plugins`), which loads it in each of its processes: requests name a control, and it acts on their tokens alone.

    DEMEANOR_CONTROLS="calm=C.safetensors half=C.safetensors:0.5" vllm serve MODEL --enforce-eager
    ... "vllm_xargs": {"demeanor": "calm"}          # SamplingParams(extra_args={"demeanor": "calm"}) in Python

Without DEMEANOR_CONTROLS nothing is hooked, and a request that names a control is refused. Values that vLLM keeps of a prompt are kept by control (a salt).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

from ..controls import Control
from ..controls.files import digest
from ..errors import ControlError
from .named import CONTROLS, read_named, refuse_other_model, refuse_unknown, say_untried
from .slots import slots_by_name, tokens_of

KEY = "demeanor"
TRIED = "0.32"  # what is exchanged below is internal to vLLM
MARK = "_demeanor"  # what is exchanged once is not exchanged again


def register() -> None:
    """Called by vLLM once a process. Raises ControlError where controls are named and this vLLM is built otherwise; without any, such a vLLM is left alone."""
    named = read_named(os.environ.get(CONTROLS, ""))
    try:
        from vllm.v1.engine.input_processor import InputProcessor
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        process, forward = InputProcessor.process_inputs, GPUModelRunner._model_forward
    except (ImportError, AttributeError) as error:
        if named:
            raise ControlError(f"Controls act in vLLM {TRIED}, and this one is built otherwise ({error}); install that one, or leave {CONTROLS} out.") from error
        return
    if hasattr(InputProcessor, MARK):
        return
    setattr(InputProcessor, MARK, True)
    InputProcessor.process_inputs = _checked(process, named)
    if named:
        for runner in (GPUModelRunner, *_subclasses(GPUModelRunner)):
            if "load_model" in vars(runner):
                runner.load_model = _laid(runner.load_model, named)
        GPUModelRunner._model_forward = _steered(forward)


def _subclasses(runner: type) -> list[type]:
    """Runners of other devices, which load the model themselves."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    return [CPUModelRunner] if issubclass(CPUModelRunner, runner) else []


def _named_in(params: Any) -> Any:
    """What a request asks for; None where it asks for no control."""
    return (getattr(params, "extra_args", None) or {}).get(KEY)


def _checked(process: Callable[..., Any], named: Mapping[str, Control]) -> Callable[..., Any]:
    """Requests are looked at before they are anybody's: one that cannot be done as it asks is refused, by vLLM's own error of a wrong request."""
    salts = {name: digest(control) for name, control in named.items()}

    @functools.wraps(process)
    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **more: Any) -> Any:
        name = _named_in(params)
        if name is not None:
            _refuse(self.vllm_config, name, named)
        request = process(self, request_id, prompt, params, *args, **more)
        if name is not None:  # what is kept of this prompt holds for this control alone
            request.cache_salt = f"{request.cache_salt or ''} {KEY} {salts[name]}".strip()
        return request

    return process_inputs


def _refuse(config: Any, name: object, named: Mapping[str, Control]) -> None:
    from vllm.exceptions import VLLMValidationError

    try:
        refuse_unknown(name, named)
        _refuse_engine(config)
    except ControlError as error:
        raise VLLMValidationError(str(error), parameter=KEY, value=str(name)[:80]) from error


def _refuse_engine(config: Any) -> None:
    """ControlError where the engine computes in a way that hooks do not come by."""
    from vllm.config import CompilationMode

    reasons = {
        "compiles the model; start it with --enforce-eager": config.compilation_config.mode != CompilationMode.NONE,
        "runs its second model runner; set VLLM_USE_V2_MODEL_RUNNER=0": config.use_v2_model_runner,
        "spreads layers over several devices; use tensor parallelism alone": config.parallel_config.pipeline_parallel_size > 1,
        "speculates with another model; start it without": config.speculative_config is not None,
        "takes prompts as embeddings; start it without --enable-prompt-embeds": getattr(config.model_config, "enable_prompt_embeds", False),
        "cuts a pass into pieces; start it without microbatches": getattr(config.parallel_config, "use_ubatching", False),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is not None:
        raise ControlError(f"Controls do not act in an engine that {reason}.")


def _laid(load: Callable[..., None], named: Mapping[str, Control]) -> Callable[..., None]:
    """The model with every control laid into it, once it is loaded."""

    @functools.wraps(load)
    def load_model(self: Any, *args: Any, **more: Any) -> None:
        load(self, *args, **more)
        _refuse_engine(self.vllm_config)
        config = self.model_config.hf_text_config
        refuse_other_model(next(iter(named.values())).layout, config.model_type, config.num_hidden_layers, config.hidden_size)
        say_untried(config.model_type)
        slots, numbers = slots_by_name(named)
        slots.lay(self.model)
        setattr(self, MARK, (slots, numbers))

    return load_model


def _steered(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A pass in which the controls of its requests act."""

    @functools.wraps(forward)
    def model_forward(self: Any, *args: Any, **more: Any) -> Any:
        laid = getattr(self, MARK, None)
        if laid is None:
            return forward(self, *args, **more)
        slots, numbers = laid
        slots.take(tokens_of(_requests(self, numbers), self.device))
        try:
            return forward(self, *args, **more)
        finally:
            slots.take(None)

    return model_forward


def _requests(runner: Any, numbers: Mapping[str, int]) -> list[tuple[int | None, int, int, int]]:
    """The requests of the pass that comes next, as `tokens_of` takes them."""
    batch, starts = runner.input_batch, runner.query_start_loc.np
    told = []
    for row, request_id in enumerate(batch.req_ids):
        request = runner.requests[request_id]
        name = _named_in(request.sampling_params)
        slot = None if name is None else numbers[name]
        told.append((slot, int(batch.num_computed_tokens_cpu[row]), int(starts[row + 1] - starts[row]), request.num_prompt_tokens))
    return told
