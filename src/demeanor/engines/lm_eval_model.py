"""lm-eval's own command on a model with a control, under the name `demeanor`.

    python -m demeanor.engines.lm_eval_model run --model demeanor --model_args model=MODEL,control=C.safetensors --tasks TASK

lm-eval looks nowhere for models of other packages, so its command is started here. `model` is what every command takes; `control` is FILE or FILE:DOSE; `chat=True` goes with
`--apply_chat_template`; the other arguments are the options of loading by name, but the device, which is `--device` (cuda:0 unless told). `demeanor measure --suite` compares before and after instead.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model

from ..controls import load_control
from ..measure.suites.adapter import SessionLM
from ..models import Loading, Session, load


@register_model("demeanor")
class ControlledLM(SessionLM):
    """A model with one control in force for all that a task asks. Batches are as large as they may be here, whatever lm-eval says."""

    def __init__(self, model: str, control: str = "", chat: bool = False, batch_size: Any = None, max_batch_size: Any = None, **loading: Any) -> None:
        plan = Loading.given(None, loading, "lm-eval's model demeanor")
        super().__init__(load(model, loading=plan, reply_tokens=plan.reply_tokens), chat)
        self.control = load_control(control) if control else None

    def _under(self) -> AbstractContextManager[Session]:
        return self.session.uncontrolled() if self.control is None else self.session.controlled(self.control)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        with self._under():
            return super().loglikelihood(requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        with self._under():
            return super().loglikelihood_rolling(requests, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        with self._under():
            return super().generate_until(requests, disable_tqdm)


if __name__ == "__main__":
    cli_evaluate()
