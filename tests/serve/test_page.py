"""The page in a real browser: headless Chromium, told what to do over its debugging protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

import demeanor as dm
from serve.conftest import Served

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = os.environ.get("DEMEANOR_SCREENSHOTS")  # a folder that they are written to
needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here; install Debian's package chromium")


def test_the_page_loads_nothing_from_elsewhere(served: Served) -> None:
    with served.http() as http:
        page = http.get("/")
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        assert "http" not in page.text.replace("http-equiv", "")
        assert http.get("/page.js").headers["content-type"].startswith("text/javascript")
        assert http.get("/page.css").headers["content-type"].startswith("text/css")


class Browser:
    """One tab. Commands go through a websocket, answers come by their number."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._numbers = socket, count(1)

    def do(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, script: str) -> Any:
        result = self.do("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script: str) -> None:
        """The page tells itself when a condition holds."""
        watch = f"new Promise((yes, no) => {{ const look = () => ({script}) ? yes(true) : setTimeout(look, 20); look(); setTimeout(() => no(new Error(document.body.innerText)), 60000); }})"
        assert self.value(watch) is True

    def type(self, text: str) -> None:
        self.do("Input.insertText", text=text)

    def key(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self.do("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, nativeVirtualKeyCode=code)

    def resize(self, width: int, height: int) -> None:
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def shoot(self, name: str) -> None:
        if SHOTS:
            shot = self.do("Page.captureScreenshot", format="png", captureBeyondViewport=True)
            (Path(SHOTS) / name).write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browsing(url: str, profile: Path) -> Iterator[Browser]:
    from websockets.sync.client import connect

    command = [
        str(BROWSER),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "about:blank",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        address = next(line.split()[-1] for line in process.stderr if "DevTools listening on" in line)
        host = address.split("/")[2]
        tab = next(tab for tab in httpx.get(f"http://{host}/json", timeout=60).json() if tab["type"] == "page")
        with connect(tab["webSocketDebuggerUrl"], max_size=None, open_timeout=60) as socket:
            browser = Browser(socket)
            browser.do("Page.enable")
            browser.do("Page.navigate", url=url)
            yield browser
    finally:
        process.terminate()
        process.wait(30)


@needs_browser
@pytest.mark.slow
def test_a_person_moves_a_slider_and_sees_both_replies_the_gate_and_the_receipt(
    served: Served, organism: dm.Session, refusal_ablated: dm.Control, tmp_path: Path
) -> None:
    pytest.importorskip("websockets", reason="websockets comes with the extra dev")
    question = "how do i kill a process ?"
    with organism.controlled(refusal_ablated):
        answer = organism.chat(question)
    with browsing(served.url, tmp_path) as browser:
        browser.resize(1400, 900)
        browser.until("document.readyState === 'complete' && document.getElementById('state').textContent === 'Ready.'")
        for name in ("less-refusal", "odd", "other"):
            browser.value(
                f"(() => {{ const range = document.getElementById('dose-{name}'); range.value = 0; range.dispatchEvent(new Event('input')); }})()"
            )
        browser.value("document.getElementById('dose-gated').focus()")
        browser.key("Home", 36)  # a slider moves by keyboard
        assert browser.value("document.getElementById('dose-gated').value") == "-2"
        for _ in range(60):
            browser.key("ArrowRight", 39)
        assert browser.value("document.querySelector('#dose-gated + output').textContent") == "1.00"
        browser.value("document.getElementById('message').focus()")
        browser.type(question)
        browser.value("document.getElementById('send').click()")
        browser.until("document.getElementById('state').textContent === 'Done.'")
        assert browser.value("document.getElementById('plain').textContent") == organism.chat(question)
        assert browser.value("document.getElementById('steered').textContent") == answer
        facts = browser.value("document.getElementById('steered-facts').textContent")
        assert "Gate open" in facts
        assert "gated \u00d7 1" in facts
        assert f"{len(organism.encode(question))} prompt tokens" in facts
        browser.value("document.getElementById('along').value = 'less-refusal'")
        browser.value("document.getElementById('project-send').click()")
        browser.until("document.getElementById('state').textContent === 'Shown along less-refusal.'")
        cells = "document.querySelectorAll('#{}-projections td').length"
        layers, read = organism.layout.n_layers, len(organism.encode(question))
        assert browser.value(cells.format("steered")) == layers * (read + len(organism.encode_reply(answer)))
        assert "at layer" in browser.value("document.querySelector('#plain-projections caption').textContent")
        browser.shoot("serve-1400.png")
        browser.resize(400, 900)
        assert browser.value("document.documentElement.scrollWidth") <= 400
        assert browser.value("[...document.querySelectorAll('input, textarea, select')].every((one) => one.labels.length > 0)") is True
        browser.shoot("serve-400.png")
