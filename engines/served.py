"""vLLM's own HTTP server with the plugin beside it: completions that name a control, as any client asks for them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from typing import Any

from .compare import Answers
from .prepare import NEW_TOKENS, Prepared, end_ids

ASKED, PATIENCE = 4, 300  # prompts a control; seconds until the server answers
SERVER = ("-m", "vllm.entrypoints.openai.api_server", "--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--host", "127.0.0.1", "--served-model-name", "m")
PLAIN = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}


def ask_server(prepared: Prepared, python: str, own: dict[str, Answers]) -> dict[str, Any]:
    """same: of the prompts asked under each name, how many replies are the control's at run time, token for token. refused: status and text for a name that is not there."""
    file = prepared / "controls" / "ablate.safetensors"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    named = {"DEMEANOR_CONTROLS": f"calm='{file}' half='{file}:0.5'", "VLLM_PLUGINS": "demeanor"}
    server = subprocess.Popen([python, *SERVER, "--port", str(port), "--model", str(prepared / "plain")], env={**os.environ, **PLAIN, **named})
    try:
        _wait(server, port)
        same = {name: _same(prepared, port, control, own[key]) for name, (control, key) in {"none": (None, "untouched"), "calm": ("calm", "ablate"), "half": ("half", "half")}.items()}
        return {"same": same, "asked": ASKED, "refused": _complete(port, prepared.prompts[0], "loud")}
    finally:
        server.terminate()
        server.wait(60)


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(PATIENCE):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            return
        except OSError as error:
            if server.poll() is not None:
                raise SystemExit("vLLM's server ended before it answered; what it said stands above.") from error
            time.sleep(1)
    raise SystemExit(f"vLLM's server did not answer within {PATIENCE} seconds.")


def _complete(port: int, prompt: list[int], control: str | None) -> tuple[int, Any]:
    """Status, and the reply's tokens, or what was said instead."""
    asked = {"model": "m", "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "return_token_ids": True}
    more = {} if control is None else {"vllm_xargs": {"demeanor": control}}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", json.dumps({**asked, **more}).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.loads(answer.read())["choices"][0]["token_ids"]
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]["message"]


def _same(prepared: Prepared, port: int, control: str | None, own: Answers) -> int:
    end, same = end_ids(prepared.session), 0
    for prompt, wanted in list(zip(prepared.prompts, own["tokens"]))[:ASKED]:
        status, tokens = _complete(port, prompt, control)
        said = [token for token in tokens if token not in end] if status == 200 else None
        same += said == [token for token in wanted.tolist() if token != -1]
    return same
