"""Ollama's API, as desktop front ends use it."""

from __future__ import annotations

import json
from typing import Any

import demeanor as dm
from serve.conftest import Served

GREEDY = {"temperature": 0}
KILL = "how do i kill a process ?"


def test_chat_streams_lines_and_ends_with_what_it_took(served: Served, organism: dm.Session) -> None:
    body: dict[str, Any] = {
        "model": "organism:latest",
        "messages": [{"role": "user", "content": KILL}],
        "options": {**GREEDY, "mirostat": 0},
        "keep_alive": "5m",
    }
    with served.http() as http, http.stream("POST", "/api/chat", json=body) as answer:
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert "".join(line["message"]["content"] for line in lines) == organism.chat(KILL)
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["done_reason"] == "stop"
    assert lines[-1]["prompt_eval_count"] == len(organism.encode(KILL))


def test_generate_answers_whole_and_under_a_control(served: Served, organism: dm.Session, refusal_ablated: dm.Control) -> None:
    body = {"model": "organism+less-refusal", "prompt": KILL, "stream": False, "options": {**GREEDY, "num_predict": 64}, "receipt": True}
    with served.http() as http:
        answer = http.post("/api/generate", json=body).json()
    with organism.controlled(refusal_ablated):
        assert answer["response"] == organism.chat(KILL)
    assert answer["done"] is True
    assert answer["receipt"]["controls"][0]["name"] == "less-refusal"


def test_raw_text_and_stops_and_a_system_prompt(served: Served, organism: dm.Session) -> None:
    with served.http() as http:
        raw = http.post(
            "/api/generate", json={"model": "organism", "prompt": organism.render("hello"), "raw": True, "stream": False, "options": GREEDY}
        ).json()
        plain = http.post("/api/generate", json={"model": "organism", "prompt": "hello", "stream": False, "options": GREEDY}).json()
        system = http.post(
            "/api/generate", json={"model": "organism", "prompt": "hello", "system": "be gloomy", "stream": False, "options": GREEDY}
        ).json()
        word = plain["response"].split()[-1]
        cut = http.post(
            "/api/generate", json={"model": "organism", "prompt": "hello", "stream": False, "options": {**GREEDY, "stop": [word]}}
        ).json()
    assert raw["response"] == plain["response"] == organism.chat("hello")
    assert system["response"] == organism.chat(dm.Prompt.of("hello", system="be gloomy"))  # type: ignore[arg-type]
    assert cut["response"] == plain["response"][: plain["response"].index(word)]


def test_front_ends_find_the_models(served: Served) -> None:
    with served.http() as http:
        assert "organism+less-refusal" in [model["name"] for model in http.get("/api/tags").json()["models"]]
        assert http.get("/api/version").json()["version"]
        assert http.post("/api/generate", json={"model": "organism"}).json()["done_reason"] == "load"
        assert http.post("/api/chat", json={"model": "llama3", "messages": [{"role": "user", "content": "hello"}]}).status_code == 404
