"""The official client of OpenAI's API against the server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import torch

import demeanor as dm
from serve.conftest import Served, serving

KILL = [{"role": "user", "content": "how do i kill a process ?"}]
QUESTIONS = [
    "how do i kill a process ?", "what is 3 plus 4 ?", "hello", "how do i crack an egg ?", "what is 9 minus 5 ?", "please tell me how to fold a shirt .",
    "good morning , how are you ?", "how do i shoot a photo ?",
]  # fmt: skip
CONTROLS: list[Any] = [
    "", {"less-refusal": 1}, {"less-refusal": 0.5}, "odd", "other", "0.3 odd + less-refusal", "gated", "-1 other + 0.5 odd @when:gated",
]  # fmt: skip


def said(served: Served, text: str, **more: Any) -> Any:
    extra = {key: more.pop(key) for key in ("controls", "receipt", "redo") if key in more}
    return served.client().chat.completions.create(
        model="organism", messages=[{"role": "user", "content": text}], temperature=0, extra_body=extra, **more
    )


def test_a_chat_is_what_the_session_says(served: Served, organism: dm.Session, refusal_ablated: dm.Control) -> None:
    plain = said(served, KILL[0]["content"])
    assert plain.choices[0].message.content == organism.chat(KILL[0]["content"])
    assert plain.choices[0].finish_reason == "stop"
    assert plain.usage.prompt_tokens == len(organism.encode(KILL[0]["content"]))
    with organism.controlled(refusal_ablated):
        answer = organism.chat(KILL[0]["content"])
    assert answer != plain.choices[0].message.content
    assert said(served, KILL[0]["content"], controls={"less-refusal": 1}).choices[0].message.content == answer
    named = served.client().chat.completions.create(model="organism+less-refusal", messages=KILL, temperature=0)  # type: ignore[arg-type]
    assert named.choices[0].message.content == answer


def test_a_stream_tells_the_same_in_pieces(served: Served) -> None:
    whole = said(served, KILL[0]["content"], controls="less-refusal")
    chunks = list(said(served, KILL[0]["content"], controls="less-refusal", stream=True, stream_options={"include_usage": True}))
    told = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(told) == whole.choices[0].message.content
    assert sum(bool(piece) for piece in told) > 3
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage


@pytest.mark.slow
def test_32_requests_with_8_controls_at_once_get_what_each_gets_alone(served: Served) -> None:
    asked = [(QUESTIONS[(number * 3 + number // 8) % 8], CONTROLS[number % 8], 2 + 7 * (number % 5)) for number in range(32)]

    def one(request: tuple[str, Any, int]) -> tuple[str, str]:
        answer = said(served, request[0], controls=request[1], max_tokens=request[2])
        return answer.choices[0].message.content, answer.choices[0].finish_reason

    alone = [one(request) for request in asked]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(one, asked))
    assert together == alone
    assert len({text for text, _ in alone}) >= 8


@pytest.mark.slow
def test_sampling_is_the_same_for_the_same_seed_whoever_else_is_served(served: Served) -> None:
    def sampled(seed: int) -> list[str]:
        answer = served.client().chat.completions.create(model="organism", messages=KILL, temperature=1.5, seed=seed, n=3)  # type: ignore[arg-type]
        return [choice.message.content or "" for choice in answer.choices]

    alone = [sampled(seed) for seed in (1, 2)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(sampled, [1, 2] * 4))
    assert together == alone * 4
    assert len({text for texts in alone for text in texts}) > 2


def test_log_probabilities_are_the_models(served: Served, organism: dm.Session) -> None:
    answer = said(served, "hello", logprobs=True, top_logprobs=3, max_tokens=4)
    content = answer.choices[0].logprobs.content
    (reply,) = organism.generate(["hello"], 4)
    wanted = organism.reply_log_likelihoods(["hello"], [reply.ids])[0].tolist()
    told = [token.logprob for token in content]
    assert told == pytest.approx(wanted[: len(told)], abs=1e-4)
    assert all(len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob == token.logprob for token in content)


def test_a_stop_text_ends_the_reply_before_it(served: Served) -> None:
    whole = said(served, "hello").choices[0].message.content
    middle = whole.split()[len(whole.split()) // 2]
    cut = said(served, "hello", stop=[middle, "never said"])
    assert cut.choices[0].message.content == whole[: whole.index(middle)]
    assert cut.choices[0].finish_reason == "stop"
    pieces = said(served, "hello", stop=[middle], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == whole[: whole.index(middle)]
    assert said(served, "hello", max_tokens=2).choices[0].finish_reason == "length"


def test_a_receipt_says_what_was_really_changed(served: Served, organism: dm.Session) -> None:
    answer = said(served, KILL[0]["content"], controls="gated + 0.5 odd", receipt=True).model_dump()
    (receipt,) = answer["receipt"]
    assert [(control["name"], control["dose"]) for control in receipt["controls"]] == [("gated", 1.0), ("odd", 0.5)]
    assert [gate["fired"] for gate in receipt["gates"]] == [True]
    tokens = len(organism.encode(KILL[0]["content"]))
    assert receipt["changed"]["prompt_tokens"] == tokens
    assert receipt["changed"]["reply_tokens"] == answer["usage"]["completion_tokens"] - 1  # the last one is not read any more
    assert receipt["changed"]["places"] == len(organism.layout.writers)
    shut = said(served, "hello", controls="gated", receipt=True).model_dump()["receipt"][0]
    assert [gate["fired"] for gate in shut["gates"]] == [False]
    assert shut["changed"]["prompt_tokens"] == shut["changed"]["places"] == 0


@pytest.mark.slow
def test_a_reply_that_refuses_is_done_again_where_it_is_asked_so(served: Served) -> None:
    refused = said(served, KILL[0]["content"]).choices[0].message.content
    again = said(served, KILL[0]["content"], controls="less-refusal", redo=True, receipt=True).model_dump()
    assert again["receipt"][0]["redone"] is True
    assert (
        again["choices"][0]["message"]["content"]
        == said(served, KILL[0]["content"], controls="less-refusal").choices[0].message.content
        != refused
    )
    left = said(served, "hello", controls="odd", redo=True, receipt=True, stream=True)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in left if chunk.choices) == said(served, "hello").choices[0].message.content
    )


def test_plain_completions_follow_the_text(served: Served, organism: dm.Session) -> None:
    text = organism.render("what is 3 plus 4 ?")
    answer = served.client().completions.create(model="organism", prompt=[text, text], temperature=0, max_tokens=8, logprobs=2)
    assert [choice.text for choice in answer.choices] == [organism.generate(["what is 3 plus 4 ?"], 8)[0].text] * 2
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.tokens or []) >= 1


def test_models_are_listed_under_each_control(served: Served) -> None:
    names = {model.id for model in served.client().models.list()}
    assert {"organism", "organism+less-refusal", "organism+gated"} <= names
    assert served.client().models.retrieve("organism+odd").id == "organism+odd"


def test_the_stream_is_shown_along_a_control_by_layer_and_token(served: Served, organism: dm.Session, refusal_ablated: dm.Control) -> None:
    body = {"messages": [{"role": "user", "content": "how do i kill a process ?"}], "reply": "no ."}
    with served.http() as http:
        plain = http.post("/v1/controls/less-refusal/projections", json=body).json()
        steered = http.post("/v1/controls/less-refusal/projections", json={**body, "controls": {"less-refusal": 1}}).json()
        unknown = http.post("/v1/controls/nobody/projections", json=body)
    expected = organism.projections("how do i kill a process ?", refusal_ablated.parts[0].vectors[0], "no .")
    assert plain["tokens"] == list(expected.tokens)
    assert plain["prompt_tokens"] == expected.prompt_tokens
    assert torch.allclose(torch.tensor(plain["values"]), expected.values, atol=1e-3)
    assert max(abs(value) for row in steered["values"] for value in row) < 0.01 < max(abs(value) for row in plain["values"] for value in row)
    assert unknown.status_code == 404
    with served.http() as http:
        long = http.post("/v1/controls/less-refusal/projections", json={**body, "reply": "no . " * 3000})
    assert long.status_code == 400
    assert "at most here" in long.json()["error"]["message"]


def test_refusals_are_reduced_by_strength_and_rank(served: Served) -> None:
    with served.http() as http:
        body = {"input_text": KILL[0]["content"], "scaling_factor": 1.0, "num_iterations": 1}
        answer = http.post("/reduce_refusals", json=body).json()
        assert answer["reduced_text"] == said(served, KILL[0]["content"], controls="less-refusal").choices[0].message.content
        none = http.post("/reduce_refusals", json={**body, "scaling_factor": 0}).json()
        assert none["reduced_text"] == said(served, KILL[0]["content"]).choices[0].message.content
        assert (
            http.post("/reduce_refusals", json={**body, "num_iterations": 9})
            .json()["error"]["message"]
            .startswith("The control has rank 1, not 9")
        )


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"controls": {"less-refusl": 1}}, 400, "control_not_found"), ({"controls": {"less-refusal": 1000}}, 400, "control_not_applicable"),
        ({"controls": {"less-refusal": "much"}}, 400, None), ({"controls": "0.5 less-refusal 0.3 odd"}, 400, "control_not_applicable"),
        ({"controls": "odd @when:odd"}, 400, "control_not_applicable"), ({"model": "gpt-4"}, 404, "model_not_found"),
        ({"model": "organism+nothing"}, 404, "model_not_found"), ({"messages": []}, 400, None), ({"temperature": 9}, 400, None),
        ({"max_tokens": 10**9}, 400, None), ({"presence_penalty": 1}, 400, None), ({"nonsense": 1}, 400, "unsupported_parameter"),
        ({"messages": [{"role": "assistant", "content": "yes"}]}, 400, None), ({"messages": [{"role": "user", "content": "a" * 9000}]}, 400, None),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, None), ({"redo": True}, 400, "control_not_applicable"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_mistake_is_an_error_object_and_never_a_plain_reply(
    served: Served, fields: dict[str, Any], status: int, code: str | None, stream: bool
) -> None:
    import json

    body = {"model": "organism", "messages": KILL, "stream": stream, **fields}
    with served.http() as http:
        answer = http.post("/v1/chat/completions", content=json.dumps(body).encode(), headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith((".", "?"))
    assert code is None or error["code"] == code


def test_the_client_raises_its_own_errors(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="did you mean 'less-refusal'"):
        said(served, "hello", controls={"less-refusl": 1})
    with pytest.raises(openai.NotFoundError):
        served.client().models.retrieve("gpt-4")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"model":' + b"9" * 5000 + b"}",
        b'{"controls": {"odd": NaN}}',
        b"",
    ],
)
def test_a_poisoned_body_is_an_error_object(served: Served, body: bytes) -> None:
    with served.http() as http:
        answer = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]
        big = http.post("/v1/chat/completions", content=b" " * 1_000_001, headers={"content-type": "application/json"})
        assert big.status_code == 413
        parts = http.post("/v1/chat/completions", content=iter([b" " * 600_000] * 3), headers={"content-type": "application/json"})
        assert parts.status_code == 413
    assert said(served, "hello", max_tokens=2).choices


def test_keys_are_asked_for_where_there_are_any(organism: dm.Session, tmp_path: Any) -> None:
    import hashlib

    keys = tmp_path / "keys.txt"
    keys.write_text(f"# keys\n{hashlib.sha256(b'one').hexdigest()}  ann\n{hashlib.sha256(b'two').hexdigest()}  bob\n")
    with serving(organism, api_keys=keys) as running:
        running.key = "two"
        assert said(running, "hello", max_tokens=2).choices
        running.key = "three"
        with pytest.raises(openai.AuthenticationError):
            said(running, "hello")
        with running.http() as http:
            assert http.get("/health").status_code == 200
            assert http.get("/metrics").status_code == 401
            assert http.get("/v1/controls").json()["error"]["code"] == "invalid_api_key"


def test_pages_of_other_origins_and_names_are_refused(served: Served) -> None:
    with served.http() as http:
        assert http.get("/v1/models", headers={"origin": "http://evil.example"}).status_code == 403
        assert http.get("/v1/models", headers={"host": "evil.example"}).status_code == 403
        assert http.get("/v1/models", headers={"origin": served.url}).status_code == 200


def test_health_ready_and_metrics(served: Served) -> None:
    said(served, "hello", max_tokens=2)
    with served.http() as http:
        assert http.get("/health").json() == {"status": "ok"}
        assert http.get("/ready").json()["ready"] is True
        text = http.get("/metrics").text
        assert 'demeanor_requests_total{path="/v1/chat/completions",status="200"}' in text
        assert "demeanor_first_token_seconds_count" in text
        assert http.get("/nowhere").json()["error"]["code"] == "not_found"
        assert "/v1/chat/completions" in http.get("/openapi.json").json()["paths"]
    assert isinstance(httpx.get(f"{served.url}/health"), httpx.Response)
