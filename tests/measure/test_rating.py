"""A rating sheet does not say which reply is which, and its ratings come back as what they are, also from a spreadsheet."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from demeanor.behaviours import SET_NAMES, Behaviour, Prompt, Question
from demeanor.behaviours.schema import Words
from demeanor.errors import DataError
from demeanor.measure.observation import Observation, Outcome
from demeanor.measure.rating import read_ratings, sheet, write_sheet
from demeanor.measure.rating.key import COLUMNS
from demeanor.models import Reply

PLAIN = Behaviour(name="politeness")
Texts = Mapping[str, Sequence[tuple[str, str, str]]]  # set -> (prompt, base reply, controlled reply)


def observed(texts: Texts, half: int) -> Observation:
    def outcome(row: tuple[str, str, str]) -> Outcome:
        return Outcome(Prompt.of(row[0]), Reply(row[1 + half], ()), False, None)

    return Observation({name: tuple(map(outcome, texts.get(name, ()))) for name in SET_NAMES})


def made(folder: Path, texts: Texts, behaviour: Behaviour = PLAIN, swapped: bool = False, **rest: Any) -> Path:
    write_sheet(folder, behaviour, observed(texts, int(swapped)), observed(texts, int(not swapped)), "kinder", **rest)
    return folder


def some(count: int, *names: str) -> Texts:
    return {name: [(f"{name} {i} ?", f"no {name} {i} .", f"yes {name} {i} .") for i in range(count)] for name in names}


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "ratings.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def page(folder: Path) -> dict[str, Any]:
    """The data in the page, taken out as a browser does: up to the first end of the element."""
    found = re.search(r'<script type="application/json" id="sheet">(.*?)</script', (folder / "sheet.html").read_text(), re.S | re.I)
    assert found is not None
    return dict(json.loads(found[1]))


def key(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "key.json").read_text()))


def rated(folder: Path, rate: Callable[[dict[str, str]], str], name: str = "ratings.csv") -> Path:
    """A copy of the folder's ratings, filled in."""
    rows = [{**row, "rating": rate(row)} for row in table(folder)]
    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


FOUR = {
    "shows": [("a ?", "base1", "ctrl1"), ("b ?", "base2", "ctrl2")],
    "lacks": [("c ?", "base3", "ctrl3"), ("d ?", "base4", "ctrl4")],
}
# Differences: shows +3 and 0, lacks -1 and +2.
GIVEN = {"base1": "1", "ctrl1": "4", "base2": "3", "ctrl2": "3", "base3": "5", "ctrl3": "4", "base4": "2", "ctrl4": "4"}


def by_given(row: dict[str, str]) -> str:
    return GIVEN[row["reply"]]


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    told = str(caught.value)
    assert told.endswith(".")
    assert ". " not in told, "an error is one sentence"
    assert "\n" not in told
    return told


# Blindness


def test_nothing_the_rater_sees_names_the_classes(tmp_path: Path) -> None:
    folder = made(tmp_path / "s", some(6, *SET_NAMES))
    for name in ("ratings.csv", "sheet.html"):
        text = (folder / name).read_text(encoding="utf-8-sig").lower()
        for mark in ("base", "control", "kinder", "politeness", "pair", "before", "after"):
            assert mark not in text, f"{name} holds {mark}"
    assert sorted(path.name for path in folder.iterdir()) == ["key.json", "ratings.csv", "sheet.html"]
    assert set(page(folder)) == {"digest", "question", "scale", "file", "header", "items"}
    assert all(set(item) == {"item", "prompt", "reply", "line"} for item in page(folder)["items"])


def test_swapping_base_and_controlled_swaps_replies_and_nothing_else(tmp_path: Path) -> None:
    one, other = (made(tmp_path / str(swapped), some(8, "shows", "guard"), swapped=swapped, secret="s") for swapped in (False, True))
    assert [row["prompt"] for row in table(one)] == [row["prompt"] for row in table(other)]
    assert [row["item"][-2:] for row in table(one)] == [row["item"][-2:] for row in table(other)] == [f"{n:02}" for n in range(1, 33)]
    for mine, yours in zip(table(one), table(other)):
        assert {mine["reply"].split()[0], yours["reply"].split()[0]} == {"yes", "no"}
    left, right = key(one)["pairs"], key(other)["pairs"]
    assert [pair["base"][-2:] for pair in left] == [pair["base"][-2:] for pair in right]


@pytest.mark.slow
def test_neither_place_nor_name_tells_the_class(tmp_path: Path) -> None:
    first_is_controlled, earlier, places = 0, 0, 0.0
    sheets = 80
    for seed in range(sheets):
        folder = made(tmp_path / str(seed), some(5, "shows", "lacks"), seed=seed)
        replies = [row["reply"].startswith("yes") for row in table(folder)]
        assert [row["item"] for row in table(folder)] == sorted(row["item"] for row in table(folder))
        first_is_controlled += replies[0]
        earlier += sum(pair["controlled"] < pair["base"] for pair in key(folder)["pairs"])
        places += sum(place for place, controlled in enumerate(replies) if controlled) / 10
    assert 22 <= first_is_controlled <= 58  # 40 +- 4 standard deviations
    assert 340 <= earlier <= 460  # 400 +- 4 standard deviations
    assert places / sheets == pytest.approx(9.5, abs=0.6)


def test_who_has_the_sheet_and_the_program_but_no_key_recovers_no_more_than_chance(tmp_path: Path) -> None:
    """The attack: draw the prompts as the program does, compute its order from all that is public, and see whether it is the sheet's."""
    texts = some(8, "shows", "lacks")
    hits, sides = 0, 0
    for number in range(40):
        folder = made(tmp_path / str(number), texts)
        shown = [(row["prompt"], row["reply"]) for row in table(folder)]
        drawn = sheet._draw([pair for pair in sheet._pairs(observed(texts, 0), observed(texts, 1)) if pair.changed], 30, key(folder)["seed"])
        for guess in ("", "0", str(key(folder)["seed"]), key(folder)["digest"]):
            order = sheet._order(drawn, guess)
            assert [(drawn[n].prompt.text, drawn[n].replies[half]) for n, half in order] != shown
            hits += sum((half == 1) == reply.startswith("yes") for (n, half), (_, reply) in zip(order, shown))
            sides += len(shown)
    assert hits / sides == pytest.approx(0.5, abs=0.05)  # 5120 sides: chance within seven standard deviations
    assert len({key(tmp_path / str(number))["secret"] for number in range(40)}) == 40
    for name in ("ratings.csv", "sheet.html"):
        assert key(folder)["secret"] not in (folder / name).read_text(encoding="utf-8-sig")


def test_one_key_does_not_give_away_the_next_sheet(tmp_path: Path) -> None:
    orders = set()
    for number in range(6):
        texts = {"shows": [(f"{i} ?", f"no {number} {i}", f"yes {number} {i}") for i in range(8)]}
        orders.add(tuple(row["reply"].startswith("yes") for row in table(made(tmp_path / str(number), texts))))
    assert len(orders) == 6


# What is on the sheet


def test_page_and_table_hold_both_replies_of_every_pair_once(tmp_path: Path) -> None:
    texts = some(5, "shows", "neutral")
    folder = made(tmp_path / "s", texts)
    wanted = sorted((row[0], reply) for rows in texts.values() for row in rows for reply in row[1:])
    assert sorted((row["prompt"], row["reply"]) for row in table(folder)) == wanted
    assert [(i["item"], i["prompt"], i["reply"]) for i in page(folder)["items"]] == [
        (row["item"], row["prompt"], row["reply"]) for row in table(folder)
    ]
    replies = {row["item"]: row["reply"] for row in table(folder)}
    for pair in key(folder)["pairs"]:
        assert replies[pair["base"]] == replies[pair["controlled"]].replace("yes", "no")
        assert f" {pair['set']} " in replies[pair["base"]]
    assert {row["rating"] for row in table(folder)} == {""}


def test_what_the_page_saves_is_the_table_with_ratings(tmp_path: Path) -> None:
    folder = made(tmp_path / "s", FOUR)
    data = page(folder)
    saved = "\ufeff" + data["header"] + "".join(item["line"] + GIVEN[item["reply"]] + "\r\n" for item in data["items"])
    (tmp_path / "saved.csv").write_text(saved, encoding="utf-8", newline="")
    unrated = "\ufeff" + data["header"] + "".join(item["line"] + "\r\n" for item in data["items"])
    assert (folder / "ratings.csv").read_bytes() == unrated.encode()
    assert read_ratings(folder, tmp_path / "saved.csv").difference.value == 1.0


def test_prompts_are_spread_over_the_sets_and_drawn_by_seed_and_ordered_by_the_secret(tmp_path: Path) -> None:
    texts = {**some(40, "shows", "neutral"), **some(3, "guard")}
    sheets = {seed: made(tmp_path / str(seed), texts, pairs=15, seed=seed) for seed in (0, 1)}
    for folder in sheets.values():
        sets = [pair["set"] for pair in key(folder)["pairs"]]
        assert {name: sets.count(name) for name in SET_NAMES} == {"shows": 6, "lacks": 0, "guard": 3, "neutral": 6}
    drawn = [{row["prompt"] for row in table(folder)} for folder in sheets.values()]
    assert drawn[0] != drawn[1]
    again = made(tmp_path / "again", texts, pairs=15, seed=1, secret=key(sheets[1])["secret"])
    for name in ("ratings.csv", "sheet.html", "key.json"):
        assert (again / name).read_bytes() == (sheets[1] / name).read_bytes()


def test_unchanged_replies_are_left_out_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"shows": [("a ?", "same .", "same ."), ("b ?", "one", "other"), ("c ?", "seen alike", " seen alike\n")]}
    sheet = write_sheet(tmp_path / "s", PLAIN, observed(texts, 0), observed(texts, 1), "kinder", pairs=3)
    assert {row["prompt"] for row in table(tmp_path / "s")} == {"b ?"}
    told = capsys.readouterr()
    assert "2 of 3 prompts have the same reply" in told.err
    assert "1 of the 3 pairs asked for" in told.err
    assert told.out == ""
    assert (sheet.pairs, sheet.identical) == ({"shows": 1}, 2)
    assert "2 replies to rate" in str(sheet)


def test_the_question_is_the_behaviours_own_or_a_general_one(tmp_path: Path) -> None:
    asked = Behaviour(name="curt", questions=(Question(ask="Is the reply curt?"), Question(ask="Is it long?")))
    own, general = page(made(tmp_path / "own", FOUR, asked)), page(made(tmp_path / "general", FOUR))
    assert own["question"] == "Is the reply curt?"
    assert (own["scale"][0], own["scale"][4]) == ("not at all", "entirely")
    assert "How good" in general["question"]
    assert (general["scale"][0], general["scale"][4]) == ("very bad", "very good")
    for_people = Behaviour(name="curt", questions=asked.questions, words=Words(ask="Is it short and cold?"))
    assert page(made(tmp_path / "people", FOUR, for_people))["question"] == "Is it short and cold?"


def test_a_conversation_is_shown_whole(tmp_path: Path) -> None:
    prompt = Prompt(messages=(("user", "hi"), ("assistant", "hello"), ("user", "and now ?")), system="Be brief.", prefill="Well,")
    base, controlled = (
        Observation({**dict.fromkeys(SET_NAMES, ()), "shows": (Outcome(prompt, Reply(text, ()), False, None),)}) for text in ("a", "b")
    )
    write_sheet(tmp_path / "s", PLAIN, base, controlled, "kinder")
    shown = "system: Be brief.\n\nuser: hi\n\nassistant: hello\n\nuser: and now ?\n\nassistant: Well,"
    assert {row["prompt"] for row in table(tmp_path / "s")} == {shown}


# What a reply may hold

NASTY = [
    '</script><script>alert("x")</script>',
    "<!-- <script> & &lt; 'quoted' \"twice\"",
    'one, "two"; three\nfour\r\nfive\ttab',
    "gr\u00fc\u00dfe \u65e5\u672c \U0001f600 \u2028 \u0000",
    "__SHEET__ \\u003c \\",
]


@pytest.mark.parametrize("reply", NASTY)
def test_replies_survive_page_and_table_and_stay_text(tmp_path: Path, reply: str) -> None:
    folder = made(tmp_path / "s", {"shows": [("a ?", reply, "calm")]})
    assert {item["reply"] for item in page(folder)["items"]} == {reply, "calm"}
    assert {row["reply"] for row in table(folder)} == {reply, "calm"}
    text, calm = (folder / "sheet.html").read_text(), (made(tmp_path / "calm", FOUR) / "sheet.html").read_text()
    assert text.lower().count("<script") == calm.lower().count("<script") == 2
    assert text.count("<!--") == 0
    assert read_ratings(folder, rated(folder, lambda row: "2" if row["reply"] == "calm" else "5")).difference.value == -3


FORMULAS = ["=1+1", "+1", "-1 is cold", "@SUM(A1)", "  =1+1", "\t=1", "\rx", "\n=1", "\uff1d1+1"]


@pytest.mark.parametrize("reply", FORMULAS)
def test_no_cell_can_be_run_as_a_formula(tmp_path: Path, reply: str) -> None:
    folder = made(tmp_path / "s", {"shows": [("=HYPERLINK(A1)", reply, "3 - 2 = 1")]})
    assert {row["reply"] for row in table(folder)} == {f"'{reply}", "3 - 2 = 1"}
    assert {row["prompt"] for row in table(folder)} == {"'=HYPERLINK(A1)"}
    assert {item["reply"] for item in page(folder)["items"]} == {reply, "3 - 2 = 1"}  # the page runs nothing and shows what was said
    # A spreadsheet may take the apostrophe away again: the item says what the row is.
    text = rated(folder, lambda row: "1" if row["reply"] == f"'{reply}" else "5").read_bytes().decode()
    (folder / "ratings.csv").write_text(text.replace("'", ""), encoding="utf-8", newline="")
    assert read_ratings(folder).difference.value == 4


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    text = (made(tmp_path / "s", FOUR) / "sheet.html").read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|src=|@import|url\(", text)


# What the ratings say


def test_known_ratings_give_the_known_means(tmp_path: Path) -> None:
    folder = made(tmp_path / "s", FOUR)
    rated(folder, by_given)
    result = read_ratings(folder)
    assert (result.base.value, result.controlled.value, result.difference.value) == (2.75, 3.75, 1.0)
    assert (result.base.n, result.difference.n, result.unrated, result.incomplete, result.identical) == (4, 4, 0, 0, 0)
    assert {name: (score.value, score.n) for name, score in result.by_set.items()} == {"shows": (1.5, 2), "lacks": (0.5, 2)}
    assert result.share_better.value == 2.5 / 4
    assert result.share_better.low < 2.5 / 4 < result.share_better.high < 1
    # Of the means of four draws from (3, 0, -1, 2), 2.5 % and 97.5 % lie beyond these.
    assert (result.difference.low, result.difference.high) == (-0.5, 2.5)
    assert (result.behaviour, result.control, result.difference.better) == ("politeness", "kinder", "higher")


def test_guard_prompts_stand_apart_because_there_the_behaviour_is_wanted(tmp_path: Path) -> None:
    asked = Behaviour(name="curt", questions=(Question(ask="Is the reply curt?", want="no"),))
    folder = made(tmp_path / "s", {"shows": FOUR["shows"], "guard": FOUR["lacks"]}, asked)
    rated(folder, by_given)
    result = read_ratings(folder)
    assert (result.difference.value, result.difference.n) == (1.5, 2)  # shows alone
    assert (result.by_set["guard"].value, result.by_set["guard"].n) == (0.5, 2)
    assert (result.by_set["shows"].better, result.by_set["guard"].better) == ("lower", "higher")


def test_the_difference_is_paired(tmp_path: Path) -> None:
    """Replies that each get one point more give an interval of no width, however far the prompts lie apart."""
    texts = some(8, "shows")
    folder = made(tmp_path / "s", texts)
    rated(folder, lambda row: str(1 + int(row["prompt"].split()[1]) % 4 + row["reply"].startswith("yes")))
    result = read_ratings(folder)
    assert (result.difference.low, result.difference.value, result.difference.high) == (1, 1, 1)
    assert result.base.low < result.base.value < result.base.high
    assert (result.share_better.value, result.share_better.high) == (1, 1)
    assert 0.6 < result.share_better.low < 0.7  # eight of eight do not prove always


def test_lower_is_better_where_the_wanted_answer_is_no(tmp_path: Path) -> None:
    asked = Behaviour(name="curt", questions=(Question(ask="Is the reply curt?", want="no"),))
    folder = made(tmp_path / "s", FOUR, asked)
    rated(folder, by_given)
    result = read_ratings(folder)
    assert result.difference.value == 1.0
    assert (result.difference.better, result.share_better.better) == ("lower", "higher")
    assert result.share_better.value == 1.5 / 4


def test_missing_halves_are_counted_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path / "s", FOUR)
    rated(folder, lambda row: "" if row["reply"] in ("base1", "ctrl3", "base3") else by_given(row))
    capsys.readouterr()
    result = read_ratings(folder)
    assert (result.unrated, result.incomplete, result.difference.n) == (3, 2, 2)
    assert (result.base.value, result.difference.value) == (2.5, 1.0)  # of b and d only
    told = capsys.readouterr().err
    assert "3 of 8 items are not rated" in told
    assert "2 of 4 pairs" in told


@pytest.mark.parametrize("cells", [0, 1, 3])
def test_a_row_that_is_gone_or_cut_short_is_unrated(tmp_path: Path, cells: int) -> None:
    """Some programs leave out the empty cells at a row's end."""
    folder = made(tmp_path / "s", FOUR)
    lines = rated(folder, by_given).read_text().splitlines()
    (folder / "ratings.csv").write_text("\n".join([*lines[:-1], ",".join(lines[-1].split(",")[:cells])]))
    assert (read_ratings(folder).unrated, read_ratings(folder).incomplete) == (1, 1)


def test_a_set_without_complete_pairs_is_null_not_left_out(tmp_path: Path) -> None:
    folder = made(tmp_path / "s", FOUR)
    rated(folder, lambda row: by_given(row) if row["prompt"] in ("a ?", "b ?") else "")
    result = read_ratings(folder)
    values = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert values["by_set"]["lacks"] == {"value": None, "low": None, "high": None, "n": 0}
    assert values["difference"]["value"] == 1.5
    assert (values["unrated"], values["incomplete"], values["better"]) == (4, 2, "higher")
    text = str(result)
    assert re.search(r"difference +1\.500 \[.*\] n=2", text)
    assert re.search(r"lacks +none", text)
    assert "4 unrated replies, 2 incomplete pairs" in text


# Files that have been through a spreadsheet program


def semicolons(rows: list[dict[str, str]]) -> bytes:
    lines = [f'"{row["item"]}";"{row["prompt"]}";"{row["reply"]}";{by_given(row)},0' for row in rows]
    return "\ufeff".encode() + "\r\n".join(["item;prompt;reply;rating", *lines, ";;;", ""]).encode()


SPREADSHEETS: dict[str, Callable[[list[dict[str, str]]], bytes]] = {
    "semicolons, commas in numbers, blank rows": semicolons,
    "tabs": lambda rows: "\n".join(["item\trating", *(f"{r['item']}\t{by_given(r)}" for r in rows)]).encode(),
    "other order, more columns": lambda rows: "\r\n".join(
        ["Rating,note, Item ", *(f"{by_given(r)}.0,\u201cwell\u201d, {r['item']} " for r in rows)]
    ).encode("utf-8-sig"),
    "other rows first": lambda rows: "\n".join(["item,rating", *(f"{r['item']},{by_given(r)}" for r in reversed(rows))]).encode(),
    "another encoding": lambda rows: "\n".join(["item,reply,rating", *(f"{r['item']},gr\u00fc\u00df,{by_given(r)}" for r in rows)]).encode(
        "latin-1"
    ),
    "old line ends": lambda rows: "\r".join(["item,rating", *(f"{r['item']},{by_given(r)}" for r in rows)]).encode(),
}


@pytest.mark.parametrize("program", SPREADSHEETS)
def test_what_spreadsheet_programs_save_is_read(tmp_path: Path, program: str) -> None:
    folder = made(tmp_path / "s", FOUR)
    expected = read_ratings(folder, rated(folder, by_given, "plain.csv"))
    (tmp_path / "back.csv").write_bytes(SPREADSHEETS[program](table(folder)))
    assert read_ratings(folder, tmp_path / "back.csv") == expected


# Mistakes


def edited(folder: Path, change: Callable[[list[str]], list[str]]) -> Path:
    lines = rated(folder, by_given).read_text().splitlines()
    (folder / "ratings.csv").write_text("\n".join(change(lines)) + "\n")
    return folder


def with_rating(text: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [*lines[:3], lines[3][: lines[3].rindex(",") + 1] + text, *lines[4:]]


MISTAKES: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "no rating column": (lambda lines: ["item,prompt,reply,score", *lines[1:]], "no column 'rating'"),
    "no item column": (lambda lines: [",".join(line.split(",")[1:]) for line in lines], "no column 'item'"),
    "two rating columns": (lambda lines: ["item,rating,reply,rating", *lines[1:]], "more than one column 'rating'"),
    "an empty file": (lambda lines: [], "no column 'item'"),
    "an unknown item": (lambda lines: [*lines, "mine,a ?,x,3"], "row 10: the item 'mine' is not on the sheet"),
    "a repeated item": (lambda lines: [*lines, lines[2]], "stands in row 3 too"),
    "six": (with_rating("6"), "row 4: the item"),
    "nought": (with_rating("0"), "is rated '0'"),
    "more than five": (with_rating("5.5"), "is rated '5.5'"),
    "a word": (with_rating("good"), "is rated 'good'; a rating is a number from 1 to 5"),
    "not a number": (with_rating("nan"), "is rated 'nan'"),
    "an unended quote": (lambda lines: [*lines[:3], lines[3] + '\n"', *lines[4:]], "is not a CSV file"),
    "nothing rated": (
        lambda lines: [line if i == 0 else line[: line.rindex(",") + 1] for i, line in enumerate(lines)],
        "of no pair (0 of 8",
    ),
    "one rated": (lambda lines: lines[:2], "of no pair (1 of 8"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_ratings(tmp_path: Path, mistake: str) -> None:
    change, told = MISTAKES[mistake]
    folder = edited(made(tmp_path / "s", FOUR), change)
    sentence = refused(lambda: read_ratings(folder))
    assert told in sentence
    assert "ratings.csv" in sentence


def test_ratings_of_another_sheet_are_recognised(tmp_path: Path) -> None:
    """Also of the sheet with base and controlled swapped, whose replies and order of prompts are the same."""
    mine = made(tmp_path / "mine", FOUR)
    asked = Behaviour(name="curt", questions=(Question(ask="Is the reply curt?"),))
    others = [made(tmp_path / "swapped", FOUR, swapped=True), made(tmp_path / "seed", FOUR, seed=5), made(tmp_path / "asked", FOUR, asked)]
    for other in others:
        assert "is of another sheet" in refused(lambda other=other: read_ratings(mine, rated(other, by_given)))  # type: ignore[misc]


def test_a_folder_that_is_no_sheet(tmp_path: Path) -> None:
    assert "no key.json" in refused(lambda: read_ratings(tmp_path))
    folder = made(tmp_path / "s", FOUR)
    assert "no file of ratings" in refused(lambda: read_ratings(folder, tmp_path / "lost.csv"))
    (folder / "key.json").write_text('{"pairs": 3')
    assert "is not the key of a rating sheet" in refused(lambda: read_ratings(folder))
    (folder / "key.json").write_text("{}")
    assert "key.json" in refused(lambda: read_ratings(folder))


def test_sheets_that_cannot_be_made_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = {"shows": [("a ?", "x", "x")], "neutral": [("b ?", "y", "y")]}
    assert "all 2 replies are the same with kinder as without it" in refused(lambda: made(tmp_path / "s", same))
    assert "there are no prompts" in refused(lambda: made(tmp_path / "s", {}))
    assert "0 pairs" in refused(lambda: made(tmp_path / "s", FOUR, pairs=0))
    one, other = observed(FOUR, 0), observed(some(2, "shows"), 1)
    assert "different 'shows' prompts" in refused(lambda: write_sheet(tmp_path / "s", PLAIN, one, other, "kinder"))

    def full(path: Path, text: str) -> None:
        if path.name == "key.json":
            raise OSError(28, "No space left on device")
        path.write_text(text)

    monkeypatch.setattr(sheet, "_write", full)
    assert "No space left" in refused(lambda: made(tmp_path / "s", FOUR))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_and_kept(tmp_path: Path) -> None:
    folder = made(tmp_path / "s", FOUR)
    rated(folder, by_given)
    before = (folder / "ratings.csv").read_bytes()
    assert "exists already" in refused(lambda: made(folder, FOUR, seed=3))
    assert (folder / "ratings.csv").read_bytes() == before
