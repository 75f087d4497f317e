"""What clients do wrong, or servers must bear, never harms neighbours: clients that go, errors in a pass, a full queue, the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import demeanor as dm
from demeanor.controls import Control, Part, Scope, save_control
from demeanor.serve.batching import Batching
from demeanor.serve.engine import Asked, Busy, Ended, Event, Failed, Piece, Steer
from making import ablation
from serve.conftest import Served, serving


class Heard:
    """Everything that was heard of one request."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.begun, self.over = threading.Event(), threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.begun.set()
        if not isinstance(event, Piece):
            self.over.set()

    def end(self) -> Event:
        assert self.over.wait(60)
        return self.events[-1]


def asked(session: dm.Session, text: str, tokens: int, **more: Any) -> Asked:
    return Asked(ids=tuple(session.encode(text)), max_tokens=tokens, **more)


def endless(session: dm.Session, tokens: int = 400) -> Asked:
    """A reply that never ends by itself: behind the last block the stream is moved so far that one token is always the likeliest."""
    head = session.model.get_output_embeddings().weight
    scores = (head * session.model.model.norm.weight) @ head.T  # [token that is said, token that the stream is moved to]
    token = next(n for n in range(len(head) - 1, 0, -1) if int(scores[:, n].argmax()) == n and n not in session.end_ids)
    part = Part(kind="add", vectors=1e3 * head[token][None], dose=1.0, scope=Scope(site=dm.Site(session.layout.n_layers - 1)))
    control = Control(parts=(part,), layout=session.layout, model_name=session.name)
    return asked(session, "hello", tokens, steer=Steer(control=control, key="endless"))


def test_whoever_goes_frees_the_place_at_once(organism: dm.Session) -> None:
    engine = Batching(organism, most_rows=1)
    try:
        first, second = Heard(), Heard()
        ticket = engine.submit(endless(organism), first)
        assert first.begun.wait(60)
        engine.submit(asked(organism, "hello", 4), second)
        ticket.cancel()
        assert isinstance(second.end(), Ended)
        assert not first.over.is_set()
        assert engine.drain(60)
        assert engine.status().running == 0
    finally:
        engine.close()


def test_a_full_queue_is_refused_with_a_time(organism: dm.Session) -> None:
    engine = Batching(organism, most_rows=1, most_waiting=2)
    try:
        heard = [Heard() for _ in range(4)]
        tickets = [engine.submit(endless(organism), heard[0])]
        assert heard[0].begun.wait(60)
        tickets += [engine.submit(asked(organism, "hello", 2), one) for one in heard[1:3]]
        with pytest.raises(Busy) as refused:
            engine.submit(asked(organism, "hello", 2), heard[3])
        assert refused.value.seconds >= 1
        tickets[0].cancel()
        assert all(isinstance(one.end(), Ended) for one in heard[1:3])
    finally:
        engine.close()


def test_a_request_that_takes_too_long_fails_alone(organism: dm.Session) -> None:
    engine = Batching(organism)
    try:
        slow, other = Heard(), Heard()
        engine.submit(asked(organism, "hello", 400, seconds=0.0), slow)
        engine.submit(asked(organism, "hello", 4), other)
        end = slow.end()
        assert isinstance(end, Failed)
        assert end.kind == "timeout"
        assert isinstance(other.end(), Ended)
    finally:
        engine.close()


def test_numbers_that_are_none_fail_alone(organism: dm.Session) -> None:
    """A control that makes the model compute no numbers ends its own request, and the neighbours get what they get alone."""
    huge = Part(kind="add", vectors=torch.full((1, organism.layout.d_model), 1e38), dose=10.0, scope=Scope(site=dm.Site(1)))
    control = Control(parts=(huge,), layout=organism.layout, model_name=organism.name)
    engine = Batching(organism)
    try:
        heard = [Heard() for _ in range(5)]
        texts = ["hello", "how do i crack an egg ?", "hello", "what is 3 plus 4 ?", "hello"]
        for number, (text, one) in enumerate(zip(texts, heard)):
            steer = Steer(control=control, key="huge") if number in (0, 3) else None
            engine.submit(asked(organism, text, 12, steer=steer), one)
        ends = [one.end() for one in heard]
        assert [isinstance(end, Failed) for end in ends] == [True, False, False, True, False]
        for text, end in zip(texts, ends):
            if isinstance(end, Ended):
                assert end.text == organism.generate([text], 12)[0].text
    finally:
        engine.close()


def test_an_error_in_a_pass_fails_the_one_that_it_is_the_fault_of(organism: dm.Session) -> None:
    engine = Batching(organism)

    def fail(module: Any, args: Any, kwargs: Any) -> None:
        if poison in kwargs["input_ids"].flatten().tolist():
            raise RuntimeError("this token breaks the model")

    others = {token for text in ("hello", "what is 3 plus 4 ?") for token in organism.encode(text)}
    poison = next(token for token in organism.encode("how do i crack an egg ?") if token not in others)
    hook = organism.model.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        heard = [Heard() for _ in range(3)]
        for text, one in zip(["hello", "how do i crack an egg ?", "what is 3 plus 4 ?"], heard):
            engine.submit(asked(organism, text, 4), one)
        assert [isinstance(one.end(), Failed) for one in heard] == [False, True, False]
    finally:
        hook.remove()
        engine.close()


def test_a_control_that_is_removed_stays_with_whoever_has_it(organism: dm.Session, served: Served) -> None:
    file = ablation(organism, rank=3, seed=8)
    served.service.shelf.put("short-lived", file)
    with served.http() as http:
        assert http.patch("/v1/controls/short-lived", json={"dose": 0.25}).json()["dose"] == 0.25
        body = {"model": "organism+short-lived", "messages": [{"role": "user", "content": "hello"}], "temperature": 0, "receipt": True}
        answer = http.post("/v1/chat/completions", json=body).json()
        assert answer["receipt"][0]["controls"][0]["dose"] == 0.25
        assert http.delete("/v1/controls/short-lived").json()["deleted"] is True
        assert http.post("/v1/chat/completions", json=body).status_code == 404
        assert http.delete("/v1/controls/short-lived").status_code == 404


def uploads(organism: dm.Session, folder: Path) -> dict[str, bytes]:
    """What must not become a control."""
    import gzip
    import io
    import pickle
    import zipfile

    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data.pkl", b"\0" * 10_000_000)
    other = dm.Control(
        parts=ablation(organism).parts, layout=replace(organism.layout, model_type="gpt2"), model_name="x"
    )
    save_control(other, folder / "other.safetensors")
    save_control(ablation(organism), folder / "good.safetensors")
    torch.save({"a": torch.ones(2)}, folder / "torch.pt")
    good = (folder / "good.safetensors").read_bytes()
    return {
        "pickle": pickle.dumps({"a": 1}), "torch": (folder / "torch.pt").read_bytes(), "zip": bomb.getvalue(), "gzip": gzip.compress(b"\0" * 10_000_000),
        "another structure": (folder / "other.safetensors").read_bytes(), "cut short": good[: len(good) // 2], "huge header": (10**15).to_bytes(8, "little") + good[8:],
        "nothing": b"", "text": b"{}" * 100,
    }  # fmt: skip


def test_only_control_files_of_this_structure_are_taken(organism: dm.Session, served: Served, tmp_path: Path) -> None:
    before = {named.name for named in served.service.shelf}
    with served.http() as http:
        for kind, content in uploads(organism, tmp_path).items():
            answer = http.put("/v1/controls/sent", content=content)
            assert answer.status_code == 400, kind
            assert "Traceback" not in answer.text
            assert str(tmp_path.parent) not in answer.text
        good = (tmp_path / "good.safetensors").read_bytes()
        for name in ("..%2F..%2Fetc%2Fpasswd", "%2e%2e", "a%20b", "a" * 65, "a%00"):
            assert http.put(f"/v1/controls/{name}", content=good).status_code in (400, 404), name
        assert http.put("/v1/controls/big", content=b"\0" * 64_000_001).status_code == 413
        assert http.put("/v1/controls/sent?dose=nan", content=good).status_code == 400
        assert {named.name for named in served.service.shelf} == before
        answer = http.put("/v1/controls/sent?dose=0.5", content=good)
        assert (answer.status_code, answer.json()["dose"]) == (201, 0.5)
        assert http.delete("/v1/controls/sent").status_code == 200


@pytest.mark.slow
def test_clients_that_go_in_the_middle_leave_nothing_behind(organism: dm.Session) -> None:
    with serving(organism, moderate="none") as running:
        running.service.shelf.put("noise", endless(organism).steer.control)  # type: ignore[union-attr]
        body = {
            "model": "organism+noise",
            "messages": [{"role": "user", "content": "hello"}],
            "temperature": 0,
            "max_tokens": 400,
            "stream": True,
        }

        def leave(number: int) -> None:
            with running.http() as http:
                if number % 2:
                    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                        next(answer.iter_lines())
                else:
                    with pytest.raises(httpx.ReadTimeout):
                        http.post("/v1/chat/completions", json={**body, "stream": False}, timeout=0.3)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(leave, range(8)))
        with running.http() as http:
            answer = http.post("/v1/chat/completions", json={**body, "model": "organism", "max_tokens": 8, "stream": False}).json()
        assert answer["choices"][0]["message"]["content"] == organism.generate(["hello"], 8)[0].text
        assert running.service.engine.drain(60)


def test_a_blocked_request_and_a_blocked_reply_say_why(organism: dm.Session, tmp_path: Path) -> None:
    said = organism.chat("hello")
    word = max(said.split(), key=len)
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        f"rules:\n  - {{name: word, detect: {{lexicon: {{phrases: [{word!r}]}}}}, reason: it says that word}}\n"
        "  - {name: refused, detect: refusal, side: output, action: flag, reason: the reply refuses}\n"
    )
    with serving(organism, moderate=str(policy)) as running, running.http() as http:
        body: dict[str, Any] = {
            "model": "organism",
            "messages": [{"role": "user", "content": f"say {word} twice"}],
            "temperature": 0,
            "receipt": True,
        }
        answer = http.post("/v1/chat/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "content_filter")
        assert "it says that word" in answer.json()["error"]["message"]
        body["messages"] = [{"role": "user", "content": "hello"}]
        choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]
        assert choice["finish_reason"] == "content_filter"
        assert word not in choice["message"]["content"]
        assert "it says that word" in choice["message"]["content"]
        with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as stream:
            text = "".join(stream.iter_lines())
        assert "content_filter" in text
        assert word not in text.replace("it says that word", "")
        body["messages"] = [{"role": "user", "content": "how do i kill a process ?"}]
        noted = http.post("/v1/chat/completions", json=body).json()
        assert noted["choices"][0]["finish_reason"] == "stop"
        assert [one["rule"] for one in noted["receipt"][0]["moderation"]] == ["refused"]
        assert 'demeanor_blocked_total{rule="word",side="output"} 2.0' in http.get("/metrics").text


@pytest.mark.slow
def test_a_server_that_is_told_to_end_finishes_what_runs(organism: dm.Session, tmp_path: Path) -> None:
    save_control(endless(organism).steer.control, tmp_path / "noise.safetensors")  # type: ignore[union-attr]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "demeanor",
        "serve",
        "organism",
        "--device",
        "cpu",
        "--port",
        str(port),
        "--drain-seconds",
        "300",
        "-c",
        f"noise={tmp_path / 'noise.safetensors'}",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        while f":{port}" not in (line := process.stderr.readline()):
            assert line, "the server ended before it listened"
        body = {
            "model": "organism+noise",
            "messages": [{"role": "user", "content": "hello"}],
            "temperature": 0,
            "max_tokens": 200,
            "stream": True,
        }
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as http:
            while True:
                try:
                    http.get("/ready")
                    break
                except httpx.TransportError:
                    assert process.poll() is None
            with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                lines = answer.iter_lines()
                next(lines)
                os.kill(process.pid, signal.SIGTERM)
                rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert any('"finish_reason":"length"' in line for line in rest)
        assert process.wait(60) == 143
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
