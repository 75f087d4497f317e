"""What is trained on: read, mixed, split and tokenised; and everything that can be wrong with it, in one sentence."""

from __future__ import annotations

import copy
import json
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch

import demeanor as dm
from demeanor.errors import DataError
from demeanor.train.conversations import IGNORED, Conversation, learned, learned_text, mean_loss
from demeanor.train.dialogues import held_out, read_dialogues
from demeanor.train.pairs import read_pairs
from demeanor.train.rewards import FURTHEST, terms
from demeanor.train.sources import Reserved, mixed, said_by_user, split_weight
from demeanor.train.texts import read_texts
from demeanor.train.tripwires import WINDOW, Bounds, Tripwires

from .conftest import write

PAIR = {"prompt": "what is 3 plus 4 ?", "chosen": "3 plus 4 is 7 .", "rejected": "no ."}
TURN = {"dialogue_id": 1, "turn_id": 0, "type": "HS", "text": "you goose"}
REPLY = {"dialogue_id": 1, "turn_id": 1, "type": "CN", "text": "hello"}
ASKED, GIVEN = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}


@pytest.mark.parametrize(
    ("recipe", "option", "content", "sentence"),
    [
        ("heal", "--pairs", [PAIR, {"prompt": "hello", "chosen": "hi"}], "row 2 has no column for the rejected reply"),
        ("heal", "--pairs", [{**PAIR, "rejected": PAIR["chosen"]}], "the same reply, which prefers nothing"),
        ("heal", "--pairs", [{**PAIR, "rejected": ""}], "row 1, rejected: the reply is empty"),
        ("heal", "--pairs", [{"chosen": "a", "rejected": "b"}], "no column for the prompt"),
        ("heal", "--pairs", [{**PAIR, "prompt": [{"content": "hello"}]}], "role"),
        ("heal", "--pairs", [{**PAIR, "prompt": None}], "the prompt is empty"),
        ("heal", "--pairs", [{"chosen": [ASKED, GIVEN], "rejected": [{**ASKED, "content": "bye"}, GIVEN]}], "open with different messages"),
        ("heal", "--pairs", [], "holds no rows"),
        ("sft", "--data", [{"question": "hello"}], "none of the columns that can be learned from"),
        ("sft", "--data", [{"messages": []}], "the conversation is empty"),
        ("sft", "--data", [{"messages": "hello"}], "the conversation is 'hello'; it must be a list"),
        ("sft", "--data", [{"messages": [{"content": "hello"}]}], "no column for the role"),
        ("sft", "--data", [{"messages": [{"role": "user", "content": "hello"}]}], "no turn of the assistant"),
        ("sft", "--data", [{"messages": [{"role": "robot", "content": "hello"}]}], "has the role 'robot'"),
        ("detox", "--dialogues", [{**TURN, "type": None}, REPLY], "the role is None"),
        ("detox", "--dialogues", [{key: value for key, value in TURN.items() if key != "type"}], "no column for the role"),
        ("detox", "--dialogues", [{**TURN, "turn_id": float("nan")}, REPLY], "is not a number"),
        ("detox", "--dialogues", [TURN], "no turn of the assistant"),
        ("detox", "--dialogues", [TURN, {**REPLY, "text": " "}], "the text is empty"),
        ("detox", "--dialogues", [TURN, {**REPLY, "turn_id": 0}], "two turns of the same number"),
        ("detox", "--dialogues", [{**TURN, "type": "CN"}, {**REPLY, "type": "HS"}], "opens with the assistant"),
        ("detox", "--dialogues", [TURN, REPLY], "cannot be divided"),
    ],
)
def test_bad_data_ends_with_one_sentence(
    demeanor: Any, tmp_path: Path, recipe: str, option: str, content: list[Any], sentence: str
) -> None:
    data = write(tmp_path / "data.jsonl", content)
    ended = demeanor("train", recipe, "organism", option, data, "-b", "refusal", "-o", tmp_path / "out")
    assert ended.code == 2
    assert sentence in ended.sentence
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]  # nothing was left behind


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("heal", "organism", "--pairs", "DATA:0"), "a number above 0"),
        (("heal", "organism", "--pairs", "nowhere.jsonl"), "There is no file nowhere.jsonl"),
        (("heal", "organism", "--pairs", "DATA", "--base", "organism"), "without --behaviour"),
        (("heal", "organism", "--pairs", "DATA", "--full", "--load-in-4bit"), "leave one out"),
        (("heal", "organism", "--pairs", "DATA", "--report-to", "abacus"), "is not a tracker"),
        (("heal", "organism", "--pairs", "DATA", "--per-device-train-batch-size", "0"), "per-device-train-batch-size"),
        (("heal", "organism", "--pairs", "DATA", "--beta", "inf"), "finite"),
        (("rlaf", "organism", "-b", "refusal", "--method", "ppo"), "method"),
        (("rlaf", "organism", "-b", "refusal", "--per-device-train-batch-size", "6"), "whole groups"),
        (("rlaf", "organism", "-b", "refusal", "--reward", "nothing-of-the-kind"), "no detector"),
        (("rlaf", "organism", "-b", "refusal", "--reward", "refusal:-0"), "other than 0, not -0"),
        (("rlaf", "organism", "-b", "refusal", "--reward", "refusal", "--reward", "refusal:2"), "twice"),
    ],
)
def test_what_cannot_be_asked_for(demeanor: Any, tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    data = write(tmp_path / "data.jsonl", [PAIR])
    ended = demeanor("train", *(each.replace("DATA", str(data)) for each in arguments), "-o", tmp_path / "out")
    assert ended.code == 2
    assert sentence in ended.sentence


def test_a_behaviour_with_nothing_to_measure_on_is_told_before_the_training(demeanor: Any, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [PAIR])
    little = tmp_path / "little.yaml"
    little.write_text(json.dumps({"name": "little", "detect": "refusal", "shows": ["hello"], "lacks": ["bye"]}))
    ended = demeanor("train", "heal", "organism", "--pairs", data, "-b", little, "--device", "cpu", "-o", tmp_path / "out")
    assert ended.code == 2
    assert "no prompts in its test split" in ended.sentence
    assert not list(tmp_path.glob("*out*"))  # no training folder either


def test_another_plan_does_not_go_on_from_checkpoints(demeanor: Any, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [PAIR])
    begun = tmp_path / ".out.training"
    begun.mkdir()
    (begun / "plan.yaml").write_text("model: organism\n")
    ended = demeanor("train", "heal", "organism", "--pairs", data, "-o", tmp_path / "out")
    assert ended.code == 2
    assert "Another training" in ended.sentence


def test_pairs_in_every_form(tmp_path: Path) -> None:
    user, one, other = ({"role": role, "content": text} for role, text in (("user", "hello"), ("assistant", "hi"), ("assistant", "no")))
    forms = [
        {"prompt": "hello", "chosen": "hi", "rejected": "no"},
        {"prompt": [user], "chosen": [one], "rejected": [other]},
        {"chosen": [user, one], "rejected": [user, other]},
        {"prompt": "hello", "chosen": [user, one], "rejected": [user, other]},
    ]
    assert len(set(read_pairs([str(write(tmp_path / "pairs.jsonl", forms))], 0))) == 1
    system = [{"role": "system", "content": "be brief ."}, user]
    (pair,) = read_pairs([str(write(tmp_path / "system.jsonl", [{"prompt": system, "chosen": "hi", "rejected": "no"}]))], 0)
    assert pair.prompt.system == "be brief ."


SAME_PAIRS = [
    {"system": "be brief", "question": "q", "chosen": "a", "rejected": "b"},
    {"system_prompt": "be brief", "instruction": "q", "input": "", "chosen_response": "a", "rejected_response": "b"},
    {"system": "be brief", "query": "q", "prompt": "q", "preferred": "a", "dispreferred": "b"},
    {"prompt": [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "q"}]}], "chosen": "a", "rejected": "b"},
]


@pytest.mark.parametrize("row", SAME_PAIRS)
def test_pairs_whose_columns_are_called_as_published_data_call_them(tmp_path: Path, row: dict[str, Any]) -> None:
    (pair,) = read_pairs([str(write(tmp_path / "pairs.jsonl", [row]))], 0)
    assert (pair.prompt.system, pair.prompt.text, pair.chosen, pair.rejected) == ("be brief", "q", "a", "b")


def test_pairs_whose_columns_are_named(tmp_path: Path) -> None:
    row = {"ask": {"text": "q"}, "yes": "a", "no": "b", "prompt": "not this", "tone": ""}
    named = {"prompt": "ask.text", "chosen": "yes", "rejected": "no", "system": "tone"}
    data = str(write(tmp_path / "pairs.jsonl", [row]))
    (pair,) = read_pairs([data], 0, named)
    assert (pair.prompt.system, pair.prompt.text, pair.chosen, pair.rejected) == (None, "q", "a", "b")
    with pytest.raises(DataError, match="has no column 'nothing'; it has"):
        read_pairs([data], 0, {**named, "prompt": "nothing"})
    with pytest.raises(DataError, match="'promt' is nothing that a pair has; name the column of prompt, chosen"):
        read_pairs([data], 0, {"promt": "ask"})


def test_a_pair_with_two_columns_that_may_be_its_prompt_is_refused(tmp_path: Path) -> None:
    data = str(write(tmp_path / "pairs.jsonl", [{"instruction": "sort", "input": "3 1 2", "chosen": "a", "rejected": "b"}]))
    with pytest.raises(DataError, match=r"may have the prompt in instruction or input; say which with --column prompt=instruction"):
        read_pairs([data], 0)


@pytest.mark.parametrize("content", ["", " ", None, []])
def test_an_empty_system_message_in_training_data_is_none(tmp_path: Path, content: object) -> None:
    system, user = {"role": "system", "content": content}, {"role": "user", "content": "q"}
    (pair,) = read_pairs([str(write(tmp_path / "pairs.jsonl", [{"prompt": [system, user], "chosen": "a", "rejected": "b"}]))], 0)
    (talk,) = read_texts([str(write(tmp_path / "texts.jsonl", [{"messages": [system, user, {"role": "assistant", "content": "a"}]}]))], 0)
    assert isinstance(talk, Conversation)
    assert (pair.prompt.system, talk.system) == (None, None)


def test_the_columns_of_pairs_are_an_option(demeanor: Any, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [{"ask": "q", "chosen": "a", "rejected": "b"}])
    ended = demeanor("train", "heal", "organism", "--pairs", data, "--column", "prompt=asked", "-b", "refusal", "-o", tmp_path / "out")
    assert "has no column 'asked'; it has 'ask', 'chosen', 'rejected'" in ended.sentence


def test_sources_are_mixed_by_weight() -> None:
    a, b = [f"a{number}" for number in range(100)], [f"b{number}" for number in range(40)]
    assert sorted(mixed([("a", None, a), ("b", None, b)], 0)) == sorted(a + b)
    kept = mixed([("a", 1.0, a), ("b", 2.0, b)], 0)
    assert sum(row in b for row in kept) == 40
    assert sum(row in a for row in kept) == 20
    assert len(set(kept)) == len(kept)
    assert mixed([("a", 1.0, a), ("b", 2.0, b)], 0) == kept
    assert split_weight("owner/name:0.5") == ("owner/name", 0.5)
    assert split_weight("C:/pairs.jsonl") == ("C:/pairs.jsonl", None)


def test_texts_in_every_form(tmp_path: Path) -> None:
    exchange = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    forms = [
        {"messages": exchange},
        {"messages": [{**message, "role": message["role"].upper()} for message in exchange]},
        {"prompt": "hello", "reply": "hi"},
        {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]},
    ]
    assert set(read_texts([str(write(tmp_path / "a.jsonl", forms))], 0)) == {Conversation((("user", "hello"), ("assistant", "hi")))}
    (tmp_path / "b.txt").write_text("one line\n")
    assert read_texts([str(tmp_path / "b.txt")], 0) == ["one line"]


def test_dialogues_are_split_by_their_id(tmp_path: Path) -> None:
    turns = [{**turn, "dialogue_id": number} for number in range(60) for turn in (REPLY, TURN)]
    found = read_dialogues([str(write(tmp_path / "a.jsonl", turns))], 0)
    assert all(dialogue.turns[0] == ("user", "you goose") for dialogue in found.values())
    train, held = held_out(found, 0.3)
    assert 0 < len(held) < len(train)
    fewer = {key: found[key] for key in list(found)[:40]}
    kept = {id(dialogue) for dialogue in held}
    assert all((id(dialogue) in kept) == (dialogue in held_out(fewer, 0.3)[1]) for dialogue in fewer.values() if id(dialogue) in kept)


def test_prompts_that_are_measured_on_are_left_out(organism: dm.Session) -> None:
    wanted = dm.behaviour("refusal").settled(organism)
    asked = wanted.set("shows", "test")[0].text
    rows = [Conversation((("user", text), ("assistant", "hi"))) for text in (asked.upper() + " ", "something else")]
    reserved = Reserved(wanted)
    assert reserved.without(rows, said_by_user, "rows") == rows[1:]
    assert reserved.dropped == 1
    with pytest.raises(DataError, match="nothing is left"):
        Reserved(wanted).without(rows[:1], said_by_user, "rows")


def test_only_the_assistant_is_learned_from(organism: dm.Session) -> None:
    turns = (("user", "hello"), ("assistant", "hi ."), ("user", "what is 3 plus 4 ?"), ("assistant", "3 plus 4 is 7 ."))
    ids, labels = learned(organism, Conversation(turns, "be brief ."))
    whole = organism.tokenizer.apply_chat_template(
        [{"role": "system", "content": "be brief ."}, *({"role": role, "content": text} for role, text in turns)], tokenize=False
    )
    assert organism.tokenizer.decode(ids) == organism.tokenizer.decode(organism.tokenizer(whole, add_special_tokens=False)["input_ids"])
    taught = [token for token, label in zip(ids, labels) if label != IGNORED]
    assert organism.tokenizer.decode(taught) == "hi .<|end|>3 plus 4 is 7 .<|end|>"
    # what comes before a reply is what the model is asked with
    prompt = organism.encode(dm.Prompt(messages=turns[:3], system="be brief ."))
    assert ids[: len(prompt)] == prompt


def test_without_a_template_the_end_is_learned(organism: dm.Session) -> None:
    plain = copy.copy(organism)
    plain.tokenizer = copy.deepcopy(organism.tokenizer)
    plain.tokenizer.chat_template = None
    ids, labels = learned(plain, Conversation((("user", "hello"), ("assistant", "hi ."))))
    taught = [label for label in labels if label != IGNORED]
    assert plain.tokenizer.decode(taught) == "\nhi .<|end|>"
    assert ids[: len(plain.encode("hello"))] == plain.encode("hello")
    text, all_of_it = learned_text(plain, "hi .")
    assert text == all_of_it
    assert text[-1] == plain.tokenizer.eos_token_id


def test_the_held_out_loss_is_that_of_the_learned_tokens(organism: dm.Session) -> None:
    some = [Conversation((("user", "what is 3 plus 4 ?"), ("assistant", reply))) for reply in ("3 plus 4 is 7 .", "no .")]
    rows = [dict(zip(("input_ids", "labels"), learned(organism, each))) for each in some]
    sums, count = 0.0, 0
    for row in rows:
        with torch.no_grad():
            log_probs = organism.model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for place, label in enumerate(row["labels"]):
            if label != IGNORED:
                sums, count = sums - float(log_probs[place - 1, label]), count + 1
    assert mean_loss(organism, rows) == pytest.approx(sums / count, rel=1e-4)


def test_rewards_are_logits_of_what_is_wanted(organism: dm.Session) -> None:
    wanted = dm.behaviour("refusal").settled(organism)
    prompts = [dm.Prompt.of("what is 3 plus 4 ?")] * 2
    replies = ["i am sorry , i can not help with that request .", "3 plus 4 is 7 ."]
    less, judged = terms([], wanted, organism)
    assert judged.name == "suffix"  # because the behaviour has questions
    refused, answered = less.of(replies, prompts)
    assert refused < 0 < answered
    assert abs(refused) <= FURTHEST + 1e-6
    more, asked = terms(["openings:-2", "suffix:0.5"], wanted, organism)
    assert more.of(replies, prompts) == pytest.approx([2 * FURTHEST, -2 * FURTHEST], abs=1e-6)
    assert asked.sign == 1.0
    with pytest.raises(DataError, match="has none"):
        terms(["suffix"], dm.behaviour(_without_questions()), organism)


def _without_questions() -> Path:
    import tempfile

    path = Path(tempfile.mkdtemp()) / "plain.yaml"
    path.write_text(json.dumps({"name": "plain", "shows": ["hello"], "lacks": ["bye"]}))
    return path


@pytest.mark.slow
def test_every_tripwire_trips_and_an_honest_reply_does_not(organism: dm.Session) -> None:
    prompts = dm.behaviour("refusal").settled(organism).set("lacks", "train")[:WINDOW]
    honest = [reply.text for reply in organism.generate(prompts)]
    watching = Tripwires(organism, prompts, Bounds(), temperature=0.2)

    def tripped(texts: list[str]) -> str | None:
        wires = copy.copy(watching)
        wires.latest = deque(maxlen=WINDOW)
        logged: dict[str, float] = {}
        signs = wires.signs(prompts, [organism.encode_reply(text) for text in texts], texts)
        wires.watch(signs[:10], logged.__setitem__)
        assert wires.tripped is None  # too few to judge by
        wires.watch(signs, logged.__setitem__)
        assert set(logged) == {"tripwire/empty", "tripwire/other_script", "tripwire/off_topic", "tripwire/length"}
        return wires.tripped

    assert tripped(honest) is None
    assert "empty" in (tripped([""] * 32 + honest[32:]) or "")
    assert "the script changed" in (tripped(["да да"] * 32 + honest[32:]) or "")
    assert "no answer" in (tripped(honest[7:] + honest[:7]) or "")
    assert "tokens long" in (tripped([text * 4 for text in honest]) or "")
