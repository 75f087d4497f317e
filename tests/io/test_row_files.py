"""Files of rows as people have them: whatever they are called and packed in, they hold the same rows or are refused in one sentence."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import demeanor as dm
from demeanor.errors import DataError
from demeanor.io.row_files import read_rows
from demeanor.measure.meter.table import read_table
from demeanor.train.dialogues import read_dialogues
from demeanor.train.pairs import read_pairs
from demeanor.train.texts import read_texts

Rows = list[dict[str, str]]
ROWS: Rows = [{"prompt": "one, \"two\"", "answer": "1"}, {"prompt": "thr\u00e9e\nfour", "answer": ""}, {"prompt": " five\t", "answer": "'6"}]


def table(rows: Rows, delimiter: str) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def lines(rows: Rows) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def parquet(rows: Rows) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


FORMS: dict[str, Callable[[Rows], str | bytes]] = {
    "r.csv": lambda rows: table(rows, ","), "r.tsv": lambda rows: table(rows, "\t"), "R.CSV": lambda rows: "\ufeff" + table(rows, ","),
    "semicolons.csv": lambda rows: table(rows, ";"), "tabs.csv": lambda rows: table(rows, "\t"), "r.json": json.dumps, "r.jsonl": lines, "r.ndjson": lines, "lines.json": lines, "indented.json": lambda rows: json.dumps(rows, indent=2),
    "data.json": lambda rows: json.dumps({"version": "1", "data": rows}), "wrapped.json": lambda rows: json.dumps({"rows": rows, "total": len(rows)}),
    "noending": lines, "r.dat": lines, "r.parquet": parquet,
}  # fmt: skip
PACKED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def put(path: Path, content: str | bytes, packed: str = "") -> Path:
    raw = content if isinstance(content, bytes) else content.encode()
    path = path.with_name(path.name + packed)
    path.write_bytes(PACKED[packed](raw))
    return path


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("form", FORMS)
def test_the_same_rows_whatever_the_file(tmp_path: Path, form: str, packed: str) -> None:
    assert read_rows(put(tmp_path / form, FORMS[form](ROWS), packed)) == ROWS


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.fixed_dictionaries({"prompt": cells.filter(bool), "a": cells}), min_size=2, max_size=4), st.sampled_from(sorted(FORMS)))
def test_any_cells_come_back(tmp_path_factory: pytest.TempPathFactory, rows: Rows, form: str) -> None:
    assert read_rows(put(tmp_path_factory.mktemp("rows") / form, FORMS[form](rows))) == rows


@pytest.mark.parametrize("name", ["prompts", "p.txt", "p.md", "p.prompts", "p.text.gz", "p.2024", ".hidden"])
def test_a_prompt_a_line_whatever_the_ending(tmp_path: Path, name: str) -> None:
    path = put(tmp_path / name.removesuffix(".gz"), "one\r\n\r\n{two}\nthree", ".gz" if name.endswith(".gz") else "")
    assert read_rows(path) == ["one", "{two}", "three"]


@pytest.mark.parametrize("kind", ["one split", "of several splits"])
def test_a_folder_that_datasets_saved(tmp_path: Path, kind: str) -> None:
    held = datasets.Dataset.from_list(ROWS)
    if kind == "one split":
        held.save_to_disk(tmp_path / "saved")
        assert read_rows(tmp_path / "saved") == ROWS
        return
    datasets.DatasetDict({"a": held, "b": held.select([0])}).save_to_disk(tmp_path / "saved")
    assert read_rows(tmp_path / "saved" / "b") == ROWS[:1]
    with pytest.raises(DataError, match=r"holds the splits a, b; name one, as .*saved/a"):
        read_rows(tmp_path / "saved")


def test_a_saved_data_set_stands_for_one_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMEANOR_DATASETS", str(tmp_path))
    held = datasets.Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}])
    datasets.DatasetDict({"train": held, "test": held.select([1])}).save_to_disk(tmp_path / "owner" / "name")
    b = dm.Behaviour.of("b", shows={"dataset": "owner/name"}, lacks={"dataset": "owner/name", "split": "test", "system": "be kind"}, detect="refusal")
    assert [prompt.text for prompt in b.shows] == ["a", "b"]
    assert [prompt.text for prompt in b.lacks] == ["b"]


def test_every_reader_takes_them(tmp_path: Path) -> None:
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    (read,) = read_pairs([str(put(tmp_path / "pairs.jsonl", lines([pair]), ".gz"))], 0)
    assert (read.chosen, read.rejected) == ("a", "b")
    turns = [{"dialogue_id": "1", "turn_id": str(n), "type": kind, "text": kind} for n, kind in enumerate(("HS", "CN"))]
    assert len(read_dialogues([str(put(tmp_path / "d.tsv", table(turns, "\t")))], 0)) == 1
    assert read_table(put(tmp_path / "s.csv", "row,score\n1,0.5\n", ".gz")).columns == ["row", "score"]
    datasets.Dataset.from_list([{"text": "hello"}]).save_to_disk(tmp_path / "texts")
    assert read_texts([str(tmp_path / "texts")], 0) == ["hello"]
    assert read_texts([str(put(tmp_path / "plain", "hello\n"))], 0) == ["hello"]


BROKEN = {
    "m.csv": ('prompt,answer\nfirst,1\n"second,2\nthird,3\n', "line 3: a quote is opened here and never closed"),
    "n.csv": ('prompt,answer\n"first,1', "line 2: a quote is opened here and never closed"),
    "h.csv": ('"prompt,answer\nfirst,1\n', "line 1: a quote is opened here and never closed"),
    "last.csv": ('prompt,answer\nfirst,"1\n', "line 2: a quote is opened here and never closed"),
    "long.csv": ('prompt,answer\nx,1\n"' + "many,words\n" * 20_000, "line 3 .*never closed"),
    "between.csv": ('prompt,answer\n"first,1\nsecond,"2"\n', "row 1 has more or fewer fields than the header line; close its quotes"),
    "m.tsv": ('prompt\tanswer\n"first\t1\n', "line 2: a quote is opened here and never closed"),
    "w.tsv": ("prompt\tanswer\na\tb\tc\n", "row 1 has more or fewer fields than the header line; quote tabs"),
    "s.csv": ("prompt;answer\na;b;c\n", "row 1 has more or fewer fields than the header line; quote semicolons"),
    "two.json": ('{"data": [], "rows": []}', "must hold a JSON list"),
    "cut.json": ('{"a": 1}\n{"a":', "is not valid JSON"),
    "sheet.xlsx": ("PK", "is not a kind of file that can be read"),
    "bytes": (b"\x00\x01\x02", "is not a kind of file that can be read"),
    "latin.csv": ("prompt\ncaf\u00e9".encode("latin-1"), "is not UTF-8 text"),
    "wide.txt": ("hello".encode("utf-16"), "is not UTF-8 text"),
    "no.jsonl.gz": ("{}", "cannot be read"),
    "no.csv.xz": ("{}", "cannot be read"),
    "cut.txt.gz": (gzip.compress(b"hello" * 99)[:-9], "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_told_in_one_sentence(tmp_path: Path, name: str) -> None:
    content, told = BROKEN[name]
    with pytest.raises(DataError, match=told) as caught:
        read_rows(put(tmp_path / name, content))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_a_folder_that_nobody_saved_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder, and not one that datasets saved"):
        read_rows(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path)
