"""Behaviour files: every format reads alike, and every mistake is one sentence that names the place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import demeanor as dm
from demeanor.behaviours import presets
from demeanor.errors import DataError


def write(folder: Path, sets: str, **files: str) -> Path:
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content, encoding="utf-8")
    path = folder / "b.yaml"
    path.write_text(f"name: b\n{sets}", encoding="utf-8")
    return path


ROWS = [{"prompt": "one", "answer": "1", "system": "be brief"}, {"prompt": "two, or more", "answer": None, "system": None}]
FORMATS = {
    "json": json.dumps(ROWS),
    "jsonl": "\n".join(json.dumps(row) for row in ROWS) + "\n\n",
    "csv": '\ufeffprompt,answer,system\none,1,be brief\n"two, or more",,\n',
}


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_read_alike(tmp_path: Path, kind: str) -> None:
    source = f"{{file: p.{kind}, answer: answer, system_column: system}}"
    b = dm.behaviour(write(tmp_path, f"shows: {source}\nlacks: [three]", **{f"p__{kind}": FORMATS[kind]}))
    assert [(p.text, p.answer, p.system) for p in b.shows] == [("one", "1", "be brief"), ("two, or more", None, None)]


def test_text_and_inline_prompts(tmp_path: Path) -> None:
    path = write(tmp_path, "shows: {file: p.txt}\nlacks: [three, {prompt: four, answer: 4}]", p__txt="one\n\ntwo\n")
    b = dm.behaviour(path)
    assert [p.text for p in b.shows] == ["one", "two"]
    assert [(p.text, p.answer) for p in b.lacks] == [("three", None), ("four", "4")]


def test_another_prompt_column_and_conversations(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    path = write(tmp_path, "shows: {file: p.json, column: q}\nlacks: [x]", p__json=json.dumps([{"q": turns}, {"q": "plain"}]))
    first, second = dm.behaviour(path).shows
    assert (first.system, first.text, len(first.messages)) == ("s", "c", 3)
    assert second.text == "plain"


@pytest.mark.parametrize("detect", ["openings", "{openings: {phrases: [nope]}}", "{name: openings, phrases: [nope]}"])
def test_detectors_may_be_written_short(tmp_path: Path, detect: str) -> None:
    b = dm.behaviour(write(tmp_path, f"detect: {detect}\nshows: [a]\nlacks: [b]"))
    assert b.detect.name == "openings"
    assert b.detect.arguments == ({} if detect == "openings" else {"phrases": ["nope"]})


def test_a_bare_yes_is_the_word_yes(tmp_path: Path) -> None:
    b = dm.behaviour(
        write(tmp_path, 'questions: [{ask: "Is it?", want: yes}, {ask: "Or not?", want: no, weight: 2}]\nshows: [a]\nlacks: [b]')
    )
    assert [(q.want, q.weight) for q in b.questions] == [("yes", 1.0), ("no", 2.0)]


def test_a_question_alone_is_a_behaviour_without_prompts() -> None:
    b = dm.behaviour(question="Is the reply polite?")
    assert b.questions[0].ask == "Is the reply polite?"
    with pytest.raises(DataError, match="no 'shows' prompts"):
        b.needs_prompts()


def test_presets_of_the_organism(organism: dm.Session) -> None:
    assert {"over-refusal", "refusal"} <= set(presets())
    b = dm.behaviour("over-refusal").settled(organism)
    assert min(len(b.shows), len(b.lacks), len(b.guard), len(b.neutral)) >= 300
    assert dm.behaviour("refusal").settled(organism).guard == ()


MISTAKES = {
    "missing column": (
        "shows: {file: p.csv, column: question}\nlacks: [b]",
        "a,b\n1,2\n",
        r"row 1 has no column 'question'; it has 'a', 'b'",
    ),
    "missing answer column": ("shows: {file: p.csv, column: a, answer: right}\nlacks: [b]", "a,b\n1,2\n", "no column 'right'"),
    "empty set": ("shows: {file: p.csv}\nlacks: [b]", "prompt\n", "holds no prompts"),
    "empty inline set": ("shows: []\nlacks: [b]", "", "holds no prompts"),
    "empty prompt": ("shows: {file: p.csv}\nlacks: [b]", 'prompt,x\na,1\n" ",2\n', "row 2 has an empty prompt"),
    "ragged row": ("shows: {file: p.csv}\nlacks: [b]", "prompt,x\na,1,2\n", "row 1 has more or fewer fields"),
    "missing file": ("shows: {file: nothing.csv}\nlacks: [b]", "", "nothing.csv does not exist"),
    "unknown ending": ("shows: {file: p.docx}\nlacks: [b]", "", "does not exist|not a kind of prompt file"),
    "unknown key": ("shows: [a]\nlacks: [b]\nguards: [c]", "", "'guards' is not a key; the keys are name"),
    "unknown key of a prompt": ("shows: [{prompt: a, anwser: b}]\nlacks: [b]", "", "'anwser' is not a key of a prompt"),
    "a key twice": ("shows: [a]\nlacks: [b]\nshows: [c]", "", "the key 'shows' is given twice"),
    "a file as a word": ("shows: p.csv\nlacks: [b]", "", "a set is a list of prompts, or a file as"),
    "a column twice": ("shows: {file: p.csv}\nlacks: [b]", "prompt,prompt\na,b\n", "two columns named 'prompt'"),
    "a truth value as a prompt": ("shows: [{prompt: true}]\nlacks: [b]", "", "holds True, which is not text"),
    "arguments that are no mapping": ("detect: {refusal: abc}\nshows: [a]\nlacks: [b]", "", "must be a mapping"),
    "in two sets": ("shows: [a, b]\nlacks: [b]", "", "'b' stands in both shows and lacks"),
    "not YAML": ("shows: [a\nlacks: [b]", "", "not valid YAML"),
    "a list as a prompt": ("shows: [[a]]\nlacks: [b]", "", "is list, not a text"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_in_one_sentence(tmp_path: Path, mistake: str) -> None:
    sets, content, told = MISTAKES[mistake]
    with pytest.raises(DataError, match=told) as caught:
        dm.behaviour(write(tmp_path, sets, **({"p__csv": content} if content else {})))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "content", "told"), [
    ("p.json", "{}", "must hold a JSON list"), ("p.json", "[", "not valid JSON"), ("p.jsonl", '"a"\n{', "line 2 is not valid JSON"),
])  # fmt: skip
def test_broken_json_is_named(tmp_path: Path, name: str, content: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        dm.behaviour(write(tmp_path, f"shows: {{file: {name}}}\nlacks: [b]", **{name.replace(".", "__"): content}))


def test_repeated_prompts_count_once_and_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = dm.behaviour(write(tmp_path, "shows: {file: p.txt}\nlacks: [b]", p__txt="one\ntwo\none\n"))
    assert [p.text for p in b.shows] == ["one", "two"]
    assert "1 of 3 prompts repeat another" in capsys.readouterr().err


def test_only_line_ends_end_a_line(tmp_path: Path) -> None:
    b = dm.behaviour(write(tmp_path, "shows: {file: p.txt}\nlacks: [b]", p__txt="\ufeffone\u2028half\r\ntwo\x0cpage\n"))
    assert [p.text for p in b.shows] == ["one\u2028half", "two\x0cpage"]


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "shows: {file: p.txt}\nlacks: [b]")
    (tmp_path / "p.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        dm.behaviour(path)


def test_an_unknown_behaviour_lists_the_presets() -> None:
    with pytest.raises(DataError, match="presets are cheer, gloom, over-refusal, refusal, rudeness, toxicity"):
        dm.behaviour("nothing-of-the-kind")
