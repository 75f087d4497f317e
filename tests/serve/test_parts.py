"""The pieces that need no server: expressions, sampling, text as it comes, what a body may be, policies."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import demeanor as dm
from demeanor.errors import ControlError, DataError
from demeanor.serve.engine import Sampling
from demeanor.serve.gatekeeper import DEEPEST, Gate, Gatekeeper, read_keys
from demeanor.serve.moderation import Moderator, Policy, blocked
from demeanor.serve.plan import ServePlan
from demeanor.serve.reply_text import ReplyText
from demeanor.serve.sampling import Sampler
from demeanor.serve.shelf import Shelf, Term, Unknown, terms_of
from making import ablation, gate_on_length


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []), ("warm", [Term("warm")]), ("0.5 warm - 0.25*less-refusal", [Term("warm", 0.5), Term("less-refusal", -0.25)]),
        ("1e-1 a.b @when:gate + c_d@when:!gate", [Term("a.b", 0.1, "gate"), Term("c_d", None, "gate", True)]), ("-warm", [Term("warm", -1.0)]),
    ],
)  # fmt: skip
def test_an_expression_is_a_sum_of_terms(text: str, terms: list[Term]) -> None:
    assert terms_of(text) == terms


@given(st.text(max_size=60))
def test_any_text_is_an_expression_or_is_refused(text: str) -> None:
    try:
        said: object = terms_of(text)
    except ControlError as error:
        said = str(error)
    assert said.endswith(".") if isinstance(said, str) else bool(said) == bool(text.strip())


def test_a_shelf_names_what_it_lacks_and_composes_what_it_has(organism: dm.Session) -> None:
    shelf = Shelf(organism)
    one, two = ablation(organism, seed=1), ablation(organism, seed=2)
    shelf.put("one", one, 0.5)
    shelf.put("two", two.when(gate_on_length(organism, ["hello", "what is 2 plus 2 ?"], [True, False])))
    steer = shelf.steer([Term("one"), Term("one", 2.0, "two", True)])
    assert steer is not None
    assert [part.dose for part in steer.control.parts] == [0.5, 2.0]
    assert [len(part.gates) for part in steer.control.parts] == [0, 1]
    assert steer.control.parts[1].gates[0].negated
    assert shelf.steer([Term("one", 0.0)]) is None
    with pytest.raises(Unknown, match="did you mean 'one'"):
        shelf.steer([Term("onee")])
    for name in ("../one", "a/b", "", ".", "a" * 65, "a b", "a\n"):
        with pytest.raises(DataError, match="no name of a control"):
            shelf.put(name, one)


def reference(logits: torch.Tensor, temperature: float, top_p: float) -> set[int]:
    """The tokens that may be sampled: the fewest likeliest ones whose probabilities reach top_p."""
    probabilities = (logits.double() / temperature).softmax(-1).tolist()
    order, total, kept = sorted(range(len(probabilities)), key=lambda token: -probabilities[token]), 0.0, set()
    for token in order:
        if total >= top_p:
            break
        kept.add(token)
        total += probabilities[token]
    return kept


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 2), st.floats(0.05, 1))
def test_only_tokens_within_top_p_are_sampled(seed: int, temperature: float, top_p: float) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(seed)) * 2
    sampler = Sampler(Sampling(temperature=temperature, top_p=top_p, seed=seed))
    said = {sampler.choose(logits).id for _ in range(60)}
    assert said <= reference(logits, temperature, top_p)
    again = Sampler(Sampling(temperature=temperature, top_p=top_p, seed=seed))
    assert again.choose(logits).id in said


def test_temperature_0_is_the_likeliest_token_with_the_models_own_probabilities() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0])
    token = Sampler(Sampling(top=2)).choose(logits)
    assert token.id == 1
    assert token.logprob == pytest.approx(float(logits.log_softmax(-1)[1]))
    assert [number for number, _ in token.top] == [1, 2]


BYTES = "hällo wörld, 你好 stop here".encode()


def by_bytes(ids: Any) -> str:
    return bytes(ids).decode(errors="replace")


@given(st.lists(st.text(alphabet="stop ehr", min_size=1, max_size=4), max_size=3))
def test_pieces_together_are_the_text_up_to_the_first_stop(stop: list[str]) -> None:
    text = ReplyText(by_bytes, stop)
    told = ""
    for byte in BYTES:
        told += text.add(byte)
        assert "\ufffd" not in told
        if text.stopped:
            break
    told += text.rest()
    whole = BYTES.decode()
    # The reply ends as soon as a text to stop at is whole.
    ends = [(whole.index(one) + len(one), whole.index(one)) for one in stop if one in whole]
    first = min((end for end, _ in ends), default=None)
    wanted = whole if first is None else whole[: min(start for end, start in ends if end == first)]
    assert told == wanted


def ask(gate: Gate, body: bytes, headers: list[tuple[bytes, bytes]] | None = None, path: str = "/v1/chat/completions") -> tuple[int, bytes]:
    """What the gatekeeper answers, or 200 with the body that it lets through."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        read = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": read})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"host", b"localhost:80"), *(headers or [])]}
    asyncio.run(Gatekeeper(app, gate)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


def depth(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return (1 if isinstance(value, dict | list) else 0) + max(map(depth, children), default=0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None)
@given(JSON, st.integers(0, 70))
def test_json_passes_unless_it_is_too_deep(value: Any, levels: int) -> None:
    for _ in range(levels):
        value = [value]
    body = json.dumps(value).encode()
    status, read = ask(Gate(), body)
    assert status == (200 if depth(value) <= DEEPEST else 400)
    assert status == 400 or read == body


def test_a_body_of_other_bytes_or_too_many_is_refused() -> None:
    assert ask(Gate(), b'"\xff"')[0] == 400
    assert ask(Gate(body=10), b'"12345678"')[0] == 200
    assert ask(Gate(body=10), b'"123456789"')[0] == 413
    assert ask(Gate(), b"{}", [(b"content-length", b"-1")])[0] == 400


def test_keys_are_hashes_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    for text in ("", "secret\n", "g" * 64):
        file.write_text(text)
        with pytest.raises(DataError, match="SHA-256"):
            read_keys(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_keys(tmp_path / "none")


def test_an_open_address_needs_keys() -> None:
    with pytest.raises(DataError, match="api_keys"):
        ServePlan(model="organism", host="0.0.0.0")
    named = ServePlan(model="organism", controls=("a=x.safetensors:0.5", "b=c:/y.safetensors")).named_controls()
    assert named == [("a", "x.safetensors", 0.5), ("b", "c:/y.safetensors", 1.0)]
    for wrong in (("x.safetensors",), ("a=x", "a=y")):
        with pytest.raises(DataError):
            ServePlan(model="organism", controls=wrong).named_controls()


def test_the_default_policy_blocks_insults_and_notes_refusals(organism: dm.Session) -> None:
    moderator = Moderator(Policy.named("default"), organism)
    (harmless,), (insult,) = (moderator.look("input", [text], [dm.Prompt.of(text)]) for text in ("you are kind", "Shut up, you idiot"))
    assert harmless == []
    finding = blocked(insult)
    assert finding is not None
    assert "insults" in finding.sentence
    ((flagged,),) = moderator.look("output", ["i am sorry , but i cannot help with that ."], [dm.Prompt.of("hello")])
    assert flagged.rule.action == "flag"


def test_a_policy_is_read_from_a_file_and_its_mistakes_are_named(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("purple\n")
    file = tmp_path / "policy.yaml"
    file.write_text("rules:\n  - {name: colours, detect: {lexicon: {file: words.txt}}, side: output, reason: it names a colour}\n")
    (rule,) = Policy.named(str(file)).rules
    assert rule.detect.arguments["file"] == str(tmp_path / "words.txt")
    assert Policy.named("none").rules == ()
    assert Policy.named("refusal").rules[0].action == "block"
    file.write_text("rules:\n  - {name: colours, detect: refusal, action: shout, reason: x}\n")
    with pytest.raises(DataError, match=r"is no policy .*action"):
        Policy.named(str(file))


def test_a_run_s_own_control_is_shown_with_its_guard(organism: dm.Session, refusal_ablated: dm.Control, tmp_path: Path) -> None:
    dm.save_control(refusal_ablated, tmp_path / "control.safetensors")
    dm.save_control(refusal_ablated, tmp_path / "other.safetensors")
    rates = [{"shows_rate": {"value": shows, "n": 90}, "guard_rate": {"value": guard, "n": 79}} for shows, guard in ((1.0, 1.0), (0.0, 0.987))]
    scores = {"behaviour": "over-refusal", "before": rates[0], "after": rates[1]}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    shelf = Shelf(organism)
    said = ["over-refusal: 100.0 % before, 0.0 % after (n 90, test)", "guard: 100.0 % before, 98.7 % after (n 79, test)"]
    assert shelf.add_file("one", tmp_path / "control.safetensors").told()["measured"] == said
    assert shelf.turn("one", 0.5).told()["measured"] == said
    assert shelf.add_file("folder", tmp_path).told()["measured"] == said
    assert shelf.add_file("half", f"{tmp_path / 'control.safetensors'}:0.5").told()["measured"] == []
    assert shelf.add_file("other", tmp_path / "other.safetensors").told()["measured"] == []
    rates[1]["guard_rate"] = {"value": None, "n": 0}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    assert shelf.add_file("bare", tmp_path).told()["measured"][1] == "guard: none, so nothing says what else was lost"
    (tmp_path / "scores.json").write_text("{}")
    assert shelf.add_file("damaged", tmp_path).told()["measured"] == []
