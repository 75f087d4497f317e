"""`demeanor selfcontrol` as the shell runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import demeanor as dm
from outside import DATA

pytestmark = pytest.mark.slow
# No goal, as version 1 knows nothing of its own replies: any of them may be as wanted already.
FEW = ["--max-prompts", "3", "--iterations", "1", "--branches", "2", "--goal", "1"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"ask": text}) for text in ("how do i crack an egg ?", "hello", "what is 3 plus 4 ?")))
    return path


def test_run_writes_a_control_that_chat_uses(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = tmp_path / "run"
    ended = demeanor("selfcontrol", "run", "organism", "-b", "over-refusal", *FEW, "-o", run, "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert told["prompts"] == told["after"]["detected_rate"]["n"] == 3
    assert {key: told[key] for key in ("before", "after", "delta")} == json.loads((run / "scores.json").read_text())
    assert {path.name for path in run.iterdir() if not path.name.startswith("plotly")} == {
        "control.safetensors", "plan.yaml", "replies.jsonl", "report.html", "run.json", "scores.json", "trace.jsonl",
    }  # fmt: skip
    rows = [json.loads(line) for line in (run / "replies.jsonl").read_text().splitlines()]
    assert any(row["reply"] != row["plain"] for row in rows)
    for row in rows:
        assert row["score"] >= row["plain_score"]
        said = demeanor("chat", "organism", row["prompt"], "--control", run / "control.safetensors")
        assert said.out.strip() == row["reply"]
    shown = demeanor("control", "show", run / "control.safetensors", "--json")
    assert shown.code == 0
    assert "single prompts" in json.loads(shown.out)["bakeable"]
    assert "no network" not in (run / "report.html").read_text()


def test_measure_takes_the_control_of_a_run(demeanor, organism, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    test = dm.behaviour("over-refusal").settled(organism).set("shows", "test", 3)
    run = tmp_path / "run"
    assert demeanor("selfcontrol", "run", "organism", "-b", "over-refusal", *FEW, "-o", run).code == 0
    ended = demeanor("measure", "organism", "-b", "over-refusal", "-c", run / "control.safetensors", "--max-prompts", "3", "--json")
    assert ended.code == 0, ended.err
    after = json.loads((run / "scores.json").read_text())["after"]["detected_rate"]
    (measured,) = json.loads(ended.out).values()
    assert measured["after"]["shows_rate"]["value"] == pytest.approx(after["value"])
    assert after["n"] == len(test)


def test_a_question_and_a_file_are_enough(demeanor, file: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = tmp_path / "run"
    ended = demeanor(
        "selfcontrol",
        "run",
        "organism",
        "-q",
        "Was that polite?",
        "-q",
        "humour",
        "--less",
        "--prompts",
        file,
        "--column",
        "ask",
        *FEW,
        "-o",
        run,
    )
    assert ended.code == 0, ended.err
    resolved = json.loads((run / "run.json").read_text())
    assert [question["want"] for question in resolved["questions"]] == ["no", "no"]
    again = tmp_path / "again"
    assert demeanor("selfcontrol", "run", "--plan", run, "-o", again).code == 0
    assert (again / "replies.jsonl").read_text() == (run / "replies.jsonl").read_text()
    assert (again / "plan.yaml").read_text() == (run / "plan.yaml").read_text()
    assert "suffix_score" in ended.out


def test_pairs_are_lines_for_preference_training(demeanor, file: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    target = tmp_path / "pairs.jsonl"
    ended = demeanor(
        "selfcontrol", "pairs", "organism", "-q", "was it kind ?", "--prompts", file, "--column", "ask", *FEW, "-o", target, "--json"
    )
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert len(rows) == json.loads(ended.out)["pairs"] > 0
    assert all({"prompt", "chosen", "rejected"} <= set(row) for row in rows)


def test_norms_are_a_column_per_question(demeanor, file: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    page = tmp_path / "norms.html"
    asked = ["-q", "refusal", "-q", "was it kind ?", "--prompts", file, "--column", "ask"]
    ended = demeanor("selfcontrol", "norms", "organism", *asked, "-o", page, "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert list(told) == ["refusal", "was it kind ?"]
    assert len(told["refusal"]["layers"]) == 6
    assert page.read_text().startswith("<!doctype html>")
    assert demeanor("selfcontrol", "norms", "organism", *asked).code == 0


@pytest.mark.skipif(not (DATA / "emotions").is_dir(), reason="the emotion prompts are not beside the checkout")
@pytest.mark.parametrize("emotion", ["anger", "disgust", "fear", "happiness", "surprise"])
def test_real_prompts_run_through(demeanor, emotion: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ended = demeanor(
        "selfcontrol",
        "run",
        "organism",
        "-q",
        emotion,
        "--less",
        "--prompts",
        DATA / "emotions" / f"{emotion}.json",
        *FEW,
        "-o",
        tmp_path / "run",
    )
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("command", ["run", "pairs", "norms"])
def test_help_has_an_example(demeanor, command: str) -> None:  # type: ignore[no-untyped-def]
    ended = demeanor("selfcontrol", command, "--help")
    assert ended.code == 0
    assert f"Example: demeanor selfcontrol {command}" in " ".join(ended.out.split())


MISTAKES = [
    (["run"], "name a question with --question, or a behaviour with --behaviour"),
    (["run", "-b", "over-refusal", "-q", "Is it?"], "either --behaviour or --question"),
    (["run", "-q", "helpfull"], "is no question"),
    (["run", "-q", "Is it kind?"], "--prompts"),
    (["run", "-q", "Is it kind?", "--prompts", "missing.csv"], "missing.csv"),
    (["run", "-b", "over-refusal", "--set", "rest"], "'rest'"),
    (["run", "-b", "over-refusal", "--split", "all"], "'all'"),
    (["run", "-b", "over-refusal", "--eta", "-1"], "--eta"),
    (["pairs", "-q", "Is it kind?"], "--prompts"),
    (["norms"], "name a question with --question"),
]


@pytest.mark.parametrize(("arguments", "told"), MISTAKES)
def test_mistakes_end_in_one_sentence(demeanor, arguments: list[str], told: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    command, *rest = arguments
    ended = demeanor("selfcontrol", command, "organism", *rest, "-o", tmp_path / "out")
    assert ended.code == 2
    assert told in ended.sentence
    assert not (tmp_path / "out").exists()


def test_a_behaviour_without_questions_says_so(demeanor, requests_file: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ended = demeanor("selfcontrol", "run", "organism", "-b", requests_file, "-o", tmp_path / "out")
    assert ended.code == 2
    assert "has no questions" in ended.sentence


def test_nothing_is_written_over(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ended = demeanor("selfcontrol", "run", "organism", "-b", "over-refusal", "-o", tmp_path)
    assert ended.code == 2
    assert "exists already" in ended.sentence
