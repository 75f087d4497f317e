"""Where prompts come from: files, Parquet and data sets read alike, and what is left out is told."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

import demeanor as dm
from demeanor.errors import DataError
from demeanor.io.row_files import read_rows

COLOURS = ["red", "blue", "red", "green", "blue", "red"]
ROWS = [
    {"prompt": f"lamp {number}", "answer": number, "colour": colour, "big": number % 2 == 1, "size": number / 4}
    for number, colour in enumerate(COLOURS)
]
NESTED = [
    {"ask": {"text": f"kite {number}", "score": score}, "talk": [{"role": "user", "content": f"hat {number}"}]}
    for number, score in enumerate((0.1, 0.9, None, 0.5))
]


def write(folder: Path, sets: str) -> Path:
    path = folder / "b.yaml"
    path.write_text(f"name: b\n{sets}\n", encoding="utf-8")
    return path


def read(folder: Path, sets: str) -> dm.Behaviour:
    return dm.behaviour(write(folder, sets))


def texts(b: dm.Behaviour) -> list[str]:
    return [prompt.text for prompt in b.shows]


def as_csv(rows: list[dict[str, object]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def save(path: Path, rows: list[dict[str, object]]) -> Path:
    """Rows in the format that the ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        text = {".csv": as_csv, ".json": json.dumps, ".jsonl": lambda rows: "\n".join(map(json.dumps, rows))}[path.suffix](rows)
        path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data sets, looked at instead of the Hub."""
    monkeypatch.setenv("DEMEANOR_DATASETS", str(tmp_path / "shelf"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "shelf").mkdir()
    return tmp_path / "shelf"


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_every_kind_of_file_reads_alike(tmp_path: Path, kind: str) -> None:
    save(tmp_path / f"p.{kind}", ROWS)
    b = read(tmp_path, f"shows: {{file: p.{kind}, answer: answer, system_column: colour, where: {{big: true}}}}\nlacks: [x]")
    assert [(p.text, p.answer, p.system) for p in b.shows] == [("lamp 1", "1", "blue"), ("lamp 3", "3", "green"), ("lamp 5", "5", "red")]


def test_a_broken_parquet_file_is_named_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_text("no parquet at all")
    with pytest.raises(DataError, match=r"p\.parquet is not a Parquet file that can be read") as caught:
        read_rows(tmp_path / "p.parquet")
    assert "\n" not in str(caught.value)


def test_whole_numbers_stay_whole_where_a_column_has_gaps(tmp_path: Path) -> None:
    save(tmp_path / "p.parquet", [{"prompt": "a", "answer": 7.0}, {"prompt": "b", "answer": None}, {"prompt": "c", "answer": 7.5}])
    b = read(tmp_path, "shows: {file: p.parquet, answer: answer}\nlacks: [x]")
    assert [p.answer for p in b.shows] == ["7", None, "7.5"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_nested_columns(tmp_path: Path, kind: str) -> None:
    save(tmp_path / f"p.{kind}", NESTED)
    assert texts(read(tmp_path, f"shows: {{file: p.{kind}, column: ask.text}}\nlacks: [x]")) == [f"kite {n}" for n in range(4)]
    b = read(tmp_path, f'shows: {{file: p.{kind}, column: talk, answer: ask.text, where: {{ask.score: ">= 0.5"}}}}\nlacks: [x]')
    assert [(p.text, p.answer) for p in b.shows] == [("hat 1", "kite 1"), ("hat 3", "kite 3")]


def test_a_column_whose_own_name_has_a_dot_comes_first(tmp_path: Path) -> None:
    save(tmp_path / "p.json", [{"a.b": "whole", "a": {"b": "inner"}}])
    assert texts(read(tmp_path, "shows: {file: p.json, column: a.b}\nlacks: [x]")) == ["whole"]


@pytest.mark.parametrize("column", ["ask.words", "ask.text.more", "asks"])
def test_a_nested_column_that_is_not_there_is_named(tmp_path: Path, column: str) -> None:
    save(tmp_path / "p.json", NESTED)
    with pytest.raises(DataError, match=rf"row 1 has no column '{column}'; it has 'ask', 'talk'"):
        read(tmp_path, f"shows: {{file: p.json, column: {column}}}\nlacks: [x]")


# -- which rows are used --------------------------------------------------------------------------

WHERE = {
    "colour: red": [0, 2, 5],
    "colour: [red, green]": [0, 2, 3, 5],
    "big: false": [0, 2, 4],
    "big: [true]": [1, 3, 5],
    "answer: 3": [3],
    'answer: "3"': [3],
    "answer: [1, 4]": [1, 4],
    'size: "> 0.5"': [3, 4, 5],
    'size: ">= 0.5"': [2, 3, 4, 5],
    'size: "< .5"': [0, 1],
    'size: " <= 5e-1 "': [0, 1, 2],
    'size: ">-1"': [0, 1, 2, 3, 4, 5],
    'colour: red, size: "> 0.4"': [2, 5],
}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("where", WHERE)
def test_where_keeps_the_rows_on_which_it_holds_and_tells_the_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str, kind: str
) -> None:
    save(tmp_path / f"p.{kind}", ROWS)
    b = read(tmp_path, f"shows: {{file: p.{kind}, where: {{{where}}}}}\nlacks: [x]")
    assert texts(b) == [f"lamp {number}" for number in WHERE[where]]
    told = capsys.readouterr().err
    assert f"{len(WHERE[where])} of 6 rows have " in told
    assert where.split(":")[0] in told


def test_a_comparison_is_false_where_a_cell_is_no_number(tmp_path: Path) -> None:
    save(tmp_path / "p.json", [{"prompt": f"a{n}", "size": size} for n, size in enumerate((None, "large", "", "2", 3))])
    assert texts(read(tmp_path, 'shows: {file: p.json, where: {size: "> 1"}}\nlacks: [x]')) == ["a3", "a4"]
    assert texts(read(tmp_path, 'shows: {file: p.json, where: {size: "< 2.5"}}\nlacks: [x]')) == ["a3"]


def test_truth_values_are_known_however_they_are_written_and_are_no_numbers(tmp_path: Path) -> None:
    save(tmp_path / "p.json", [{"prompt": f"a{n}", "big": big} for n, big in enumerate((True, "true", "TRUE", 1, "1", False, None))])
    assert texts(read(tmp_path, "shows: {file: p.json, where: {big: true}}\nlacks: [x]")) == ["a0", "a1", "a2"]
    assert texts(read(tmp_path, "shows: {file: p.json, where: {big: 1}}\nlacks: [x]")) == ["a3", "a4"]


MISTAKES = {
    "unknown column": ("where: {color: red}", r"row 1 has no column 'color'; it has 'prompt', 'answer', 'colour'"),
    "nothing left": ("where: {colour: pink, big: true}", r"none of 6 rows has colour: pink and big: True; correct `where`"),
    "no number": ('where: {size: "> 1.2.3"}', r"'> 1\.2\.3' in `where` compares with '1\.2\.3', which is not a number"),
    "no mapping": ("where: [colour]", r"shows\.where: input should be a valid dictionary"),
    "a limit of none": ("limit: 0", r"shows\.limit: input should be greater than 0"),
    "a subset of a file": ("subset: a", r"subset, split and revision belong to a dataset"),
    "a split of a file": ("split: train", r"subset, split and revision belong to a dataset"),
    "two origins": ("prompts: [a]", r"exactly one of file, dataset and prompts"),
    "unknown key": ("colum: a", r"'shows\.colum' is not a key; the keys are file, dataset, prompts"),
    "ask without reply": ("ask: hello", r"ask is the message that replies answer; write one, and name their column with reply"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_in_one_sentence(tmp_path: Path, mistake: str) -> None:
    key, told = MISTAKES[mistake]
    save(tmp_path / "p.json", ROWS)
    with pytest.raises(DataError, match=told) as caught:
        read(tmp_path, f"shows: {{file: p.json, {key}}}\nlacks: [x]")
    assert "\n" not in str(caught.value)


def test_where_on_rows_that_are_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match="row 1: a row is str, not an object with columns such as 'colour'"):
        read(tmp_path, "shows: {file: p.txt, where: {colour: red}}\nlacks: [x]")


def test_a_limit_takes_the_first_rows_that_are_left_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "p.json", ROWS)
    assert texts(read(tmp_path, "shows: {file: p.json, where: {colour: red}, limit: 2}\nlacks: [x]")) == ["lamp 0", "lamp 2"]
    assert "the first 2 of 3 rows are used" in capsys.readouterr().err
    read(tmp_path, "shows: {file: p.json, limit: 6}\nlacks: [x]")
    assert capsys.readouterr().err == ""  # nothing is left out


def test_a_faulty_row_is_named_by_its_place_in_the_file(tmp_path: Path) -> None:
    save(tmp_path / "p.json", [*ROWS, {**ROWS[0], "prompt": " ", "colour": "pink"}])
    with pytest.raises(DataError, match="row 7 has an empty prompt"):
        read(tmp_path, "shows: {file: p.json, where: {colour: pink}}\nlacks: [x]")


def test_a_set_may_have_several_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "p.parquet", ROWS)
    (tmp_path / "p.txt").write_text("a kite\nlamp 1\n")
    b = read(
        tmp_path,
        """
shows:
  - {file: p.parquet, where: {colour: blue}, system: Be brief.}
  - {file: p.txt}
  - {prompts: [a hat, {q: a map, said: over there}], column: q}
lacks: [x]""",
    )
    assert [(p.text, p.system) for p in b.shows] == [
        ("lamp 1", "Be brief."), ("lamp 4", "Be brief."), ("a kite", None), ("lamp 1", None), ("a hat", None), ("a map", None),
    ]  # fmt: skip
    assert "repeat" not in capsys.readouterr().err  # another system prompt makes it another prompt


def test_sources_and_prompts_do_not_mix_in_one_list(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'file' is not a key of a prompt"):
        read(tmp_path, "shows: [{file: p.json}, a hat]\nlacks: [x]")


# -- system prompts -------------------------------------------------------------------------------


def test_system_is_a_text_and_system_column_a_column(tmp_path: Path) -> None:
    save(tmp_path / "p.csv", [{"prompt": "a", "tone": "Be kind."}, {"prompt": "b", "tone": ""}])
    assert [p.system for p in read(tmp_path, "shows: {file: p.csv, system: Be brief.}\nlacks: [x]").shows] == ["Be brief."] * 2
    assert [p.system for p in read(tmp_path, "shows: {file: p.csv, system_column: tone}\nlacks: [x]").shows] == ["Be kind.", None]
    both = read(tmp_path, "shows: {file: p.csv, system_column: tone, system: Be brief.}\nlacks: [x]")
    assert [p.system for p in both.shows] == ["Be kind.", "Be brief."]


def test_a_column_given_as_the_text_of_a_system_prompt_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "p.csv", [{"prompt": "a", "tone": "Be kind."}])
    with pytest.raises(DataError, match="system is the text of a system prompt, and 'tone' is a column; name it as system_column"):
        read(tmp_path, "shows: {file: p.csv, system: tone}\nlacks: [x]")


def test_the_system_message_of_a_conversation_goes_before_that_of_its_set(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "a"}]
    save(tmp_path / "p.json", [{"prompt": turns}, {"prompt": turns[1:]}])
    b = read(tmp_path, "shows: {file: p.json, system: Be brief.}\nlacks: [x]")
    assert [p.system for p in b.shows] == ["Be kind.", "Be brief."]


# -- replies as data ------------------------------------------------------------------------------


def test_replies_are_read_with_their_prompts_or_with_what_they_answer(tmp_path: Path) -> None:
    save(tmp_path / "p.jsonl", [{"prompt": "a hat ?", "said": "a fine hat ."}, {"prompt": "a map ?", "said": "a fine map ."}])
    (tmp_path / "p.txt").write_text("dull .\nvery dull .\n")
    b = read(tmp_path, "shows: {file: p.jsonl, reply: said}\nlacks: {file: p.txt, ask: And then., reply: reply, system: Be brief.}")
    assert [(p.text, p.reply) for p in b.shows] == [("a hat ?", "a fine hat ."), ("a map ?", "a fine map .")]
    assert [(p.text, p.reply, p.system) for p in b.lacks] == [("And then.", r, "Be brief.") for r in ("dull .", "very dull .")]
    assert b.has_replies
    assert not read(tmp_path, "shows: [a]\nlacks: [b]").has_replies


def test_a_missing_reply_is_named(tmp_path: Path) -> None:
    save(tmp_path / "p.csv", [{"prompt": "a", "said": "b"}, {"prompt": "c", "said": " "}])
    for key in ("reply: said", "reply: said, ask: hello"):
        with pytest.raises(DataError, match=r"p\.csv, row 2 has no reply in column 'said'"):
            read(tmp_path, f"shows: {{file: p.csv, {key}}}\nlacks: [x]")


def test_replies_to_one_message_fall_into_all_splits(tmp_path: Path) -> None:
    """They share everything but the reply, so the reply decides; in one split alone nothing could be found."""
    rows = [f"a fine kite {number} ." for number in range(200)]
    save(tmp_path / "p.json", [{"said": row} for row in rows])
    b = read(tmp_path, "shows: {file: p.json, ask: And then., reply: said}\nlacks: {prompts: [dull .], ask: And then., reply: said}")
    counts = {split: len(b.set("shows", split)) for split in ("train", "val", "test")}  # type: ignore[arg-type]
    assert counts["train"] == pytest.approx(100, abs=25)
    assert counts["val"] == pytest.approx(50, abs=20)
    assert sum(counts.values()) == 200


def test_replies_on_one_side_only_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = read(tmp_path, "shows: [{prompt: a, reply: b}, {prompt: c, reply: d}]\nlacks: [e]")
    assert not b.has_replies
    assert "1 of 3 rows in shows and lacks have no reply ('e', for one)" in capsys.readouterr().err


# -- pairs ----------------------------------------------------------------------------------------


def test_the_rows_of_a_pair_fall_into_the_same_split(tmp_path: Path) -> None:
    save(tmp_path / "s.json", [{"prompt": f"hat {n}"} for n in range(60)])
    save(tmp_path / "l.json", [{"prompt": f"map {n}"} for n in range(60)])
    sets = "shows: {file: s.json}\nlacks: {file: l.json}"
    alone, paired = read(tmp_path, sets), read(tmp_path, f"{sets}\npairs: true")
    assert [p.split for p in alone.shows] != [p.split for p in alone.lacks]
    assert [p.split for p in paired.shows] == [p.split for p in paired.lacks] == [p.split for p in alone.shows]


def test_pairs_of_replies_to_one_message_fall_into_all_splits_together(tmp_path: Path) -> None:
    save(tmp_path / "s.json", [{"said": f"hat {n}"} for n in range(60)])
    save(tmp_path / "l.json", [{"said": f"map {n}"} for n in range(60)])
    b = read(
        tmp_path,
        "pairs: true\nshows: {file: s.json, ask: And then., reply: said}\nlacks: {file: l.json, ask: And then., reply: said}",
    )
    assert [p.split for p in b.shows] == [p.split for p in b.lacks]
    assert {p.split for p in b.shows} == {"train", "val", "test"}


def test_pairs_of_unequal_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pairs needs as many rows in lacks as in shows; there are 1 and 2"):
        read(tmp_path, "pairs: true\nshows: [a, b]\nlacks: [c]")


def test_a_prompt_may_stand_in_two_pairs_and_a_pair_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = read(tmp_path, "pairs: true\nshows: [a, a, b, a]\nlacks: [c, d, c, c]")
    assert [(one.text, other.text) for one, other in zip(b.shows, b.lacks, strict=True)] == [("a", "c"), ("a", "d"), ("b", "c")]
    told = capsys.readouterr().err
    assert "1 of 4 pairs repeat another and are counted once" in told
    assert "prompts repeat" not in told


# -- data sets ------------------------------------------------------------------------------------

CONFIGS = """---
configs:
- config_name: hats
  data_files:
  - {split: train, path: hats.csv}
- config_name: maps
  data_files:
  - {split: train, path: maps.csv}
  - {split: test, path: more_maps.csv}
---
"""


def test_a_data_set_reads_as_the_file_in_it(shelf: Path, tmp_path: Path) -> None:
    for kind in ("csv", "jsonl", "parquet"):
        save(shelf / f"me/{kind}/data.{kind}", ROWS)
        b = read(tmp_path, f"shows: {{dataset: me/{kind}, answer: answer, where: {{colour: red}}, limit: 2}}\nlacks: [x]")
        assert [(p.text, p.answer) for p in b.shows] == [("lamp 0", "0"), ("lamp 2", "2")]


def test_nested_columns_of_a_data_set(shelf: Path, tmp_path: Path) -> None:
    save(shelf / "me/nested/data.jsonl", NESTED)
    b = read(
        tmp_path, 'shows: {dataset: me/nested, column: ask.text, where: {ask.score: "< 0.6"}}\nlacks: {dataset: me/nested, column: talk}'
    )
    assert texts(b) == ["kite 0", "kite 3"]
    assert [p.text for p in b.lacks] == [f"hat {n}" for n in range(4)]


def test_subsets_and_splits_of_a_data_set(shelf: Path, tmp_path: Path) -> None:
    for name in ("hats", "maps", "more_maps"):
        save(shelf / f"me/both/{name}.csv", [{"prompt": f"{name} {n}"} for n in range(3)])
    (shelf / "me/both/README.md").write_text(CONFIGS)
    for key, name in (("subset: hats", "hats"), ("subset: maps", "maps"), ("subset: maps, split: test", "more_maps")):
        assert texts(read(tmp_path, f"shows: {{dataset: me/both, {key}}}\nlacks: [x]")) == [f"{name} {n}" for n in range(3)]
    assert texts(read(tmp_path, 'shows: {dataset: me/both, subset: maps, split: "test[1:]"}\nlacks: [x]')) == ["more_maps 1", "more_maps 2"]


BROKEN = {
    "missing": ("dataset: me/nothing", r"holds no data set me/nothing; put it there, or unset the variable to use the Hub"),
    "unknown subset": (
        "dataset: me/both, subset: shoes",
        r"The data set me/both, shoes \(split 'train'\) could not be read: .*shoes.*maps",
    ),
    "no subset": ("dataset: me/both", r"The data set me/both \(split 'train'\) could not be read: Config name is missing"),
    "unknown split": ("dataset: me/both, subset: hats, split: val", r"\(split 'val'\) could not be read: Unknown split"),
    "unknown column": ("dataset: me/both, subset: hats, column: q", r"me/both, hats, row 1 has no column 'q'; it has 'prompt'"),
    "an empty folder": ("dataset: me/empty", r"me/empty \(split 'train'\) could not be read: .*doesn't contain any data files"),
    "a broken card": ("dataset: me/card", r"me/card \(split 'train'\) could not be read: while parsing"),
    "a script": ("dataset: me/script", r"me/script \(split 'train'\) could not be read: Dataset scripts are no longer supported"),
    "broken rows": ("dataset: me/rows", r"me/rows \(split 'train'\) could not be read: .*JSON"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_data_set_that_cannot_be_read_is_named_in_one_sentence(shelf: Path, tmp_path: Path, what: str) -> None:
    for name in ("hats", "maps", "more_maps"):
        save(shelf / f"me/both/{name}.csv", [{"prompt": f"{name} {n}"} for n in range(3)])
    files = {"both/README.md": CONFIGS, "card/README.md": "---\nconfigs: [a: b: c\n---\n", "card/data.csv": "prompt\na\n"}
    files |= {"script/script.py": "", "rows/data.jsonl": '{"prompt":\n{', "empty/.keep": ""}
    for name, text in files.items():
        (shelf / "me" / name).parent.mkdir(exist_ok=True)
        (shelf / "me" / name).write_text(text)
    key, told = BROKEN[what]
    with pytest.raises(DataError, match=told) as caught:
        read(tmp_path, f"shows: {{{key}}}\nlacks: [x]")
    assert "\n" not in str(caught.value)


def test_a_revision_is_asked_of_the_hub_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEMEANOR_DATASETS", raising=False)
    asked = []

    def load(name: str, subset: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((name, subset, split, revision))
        return datasets.Dataset.from_list([{"prompt": "a"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert texts(read(tmp_path, "shows: {dataset: me/hats, subset: tall, split: test, revision: v2}\nlacks: [x]")) == ["a"]
    assert asked == [("me/hats", "tall", "test", "v2")]


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEMEANOR_DATASETS", raising=False)

    def load(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(
        DataError,
        match=r"The data set me/hats \(split 'train'\) could not be read: Couldn't reach the Hub; without the network, put it under \$DEMEANOR_DATASETS\.$",
    ):
        read(tmp_path, "shows: {dataset: me/hats}\nlacks: [x]")
