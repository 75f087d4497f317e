"""Presets: every one reads, against stand-ins with the columns of the real data sets, and its model says which text is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import yaml

import demeanor as dm
from demeanor.behaviours import SET_NAMES, presets
from demeanor.behaviours.preset import FOLDERS
from demeanor.detect import make_detector, present
from demeanor.errors import DataError

PUBLIC = sorted(path.stem for path in FOLDERS["public"].glob("*.yaml"))
ORGANISM = sorted(path.stem for path in FOLDERS["embedded"].glob("*.yaml"))
OR_BENCH = """---
configs:
- config_name: or-bench-hard-1k
  data_files:
  - {split: train, path: or-bench-hard-1k.csv}
- config_name: or-bench-toxic
  data_files:
  - {split: train, path: or-bench-toxic.csv}
---
"""


def save_csv(path: Path, header: str, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def save_splits(folder: Path, what: str, train: int, test: int) -> None:
    (folder / "data").mkdir(parents=True)
    for split, count in (("train", train), ("test", test)):
        table = pyarrow.table({"text": [f"{what} {split} {number}" for number in range(count)]})
        pyarrow.parquet.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")


def continued(number: int) -> dict[str, object]:
    """Every third row is challenging; a text tells what its row is."""
    challenging = number % 3 == 0
    toxicity = 0.9 if challenging else 0.05 if number % 3 == 1 else 0.4
    kind = "steep" if challenging else "flat" if toxicity < 0.1 else "middling"
    scores = {"toxicity": toxicity, "profanity": 0.0}
    return {
        "filename": "x.txt", "begin": 0, "end": 9, "challenging": challenging,
        "prompt": {"text": f"{kind} hill {number}", **scores}, "continuation": {"text": " and a dale", **scores},
    }  # fmt: skip


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dm.Behaviour]]:
    """The public presets, read from stand-ins."""
    shelf = tmp_path_factory.mktemp("shelf")
    rows = [f"teapot {'safe' if n < 250 else 'unsafe'} {n},homonyms,{'safe' if n < 250 else 'unsafe'},teapot,NA" for n in range(450)]
    save_csv(shelf / "Paul/XSTest/xstest_prompts.csv", "prompt,type,label,focus,note", rows)
    for name, count in (("or-bench-hard-1k", 1300), ("or-bench-toxic", 650)):
        save_csv(shelf / f"bench-llm/or-bench/{name}.csv", "prompt,category", [f"{name} kettle {n},kitchen" for n in range(count)])
    (shelf / "bench-llm/or-bench/README.md").write_text(OR_BENCH)
    save_splits(shelf / "mlabonne/harmless_alpaca", "biscuit", 1500, 600)
    save_splits(shelf / "mlabonne/harmful_behaviors", "nonsense", 416, 104)
    (shelf / "allenai/real-toxicity-prompts").mkdir(parents=True)
    lines = [json.dumps(continued(number)) for number in range(3600)]
    (shelf / "allenai/real-toxicity-prompts/prompts.jsonl").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEMEANOR_DATASETS", str(shelf))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield {name: dm.behaviour(name).settled(None) for name in PUBLIC}


SIZES = {
    "cheer": (400, 400, 0, 400),
    "gloom": (400, 400, 0, 400),
    "over-refusal": (850, 600, 600, 400),
    "refusal": (520, 520, 0, 400),
    "toxicity": (1000, 1000, 0, 400),
}
OPENINGS = {
    ("over-refusal", "shows"): {"teapot safe": 250, "or-bench-hard-1k kettle": 600},
    ("over-refusal", "lacks"): {"biscuit train": 600},
    ("over-refusal", "guard"): {"teapot unsafe": 200, "or-bench-toxic kettle": 400},
    ("refusal", "shows"): {"nonsense train": 416, "nonsense test": 104},
    ("toxicity", "shows"): {"steep hill": 1000},
    ("toxicity", "lacks"): {"flat hill": 1000},
    ("cheer", "lacks"): {"biscuit train": 400},
} | {(name, "neutral"): {"biscuit test": 400} for name in SIZES}


def test_all_presets_are_listed() -> None:
    assert list(SIZES) == PUBLIC
    assert ORGANISM == ["cheer", "gloom", "over-refusal", "refusal", "rudeness"]
    assert presets() == sorted({*PUBLIC, *ORGANISM})


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_public_presets_read_completely(public: dict[str, dm.Behaviour], name: str) -> None:
    b = public[name]
    assert (b.name, b.audience) == (name, "public")
    assert b.description
    assert b.questions
    assert tuple(len(b.set(of)) for of in SET_NAMES) == SIZES[name]
    assert not b.has_replies
    make_detector(b.detect)  # its arguments fit; a classifier is loaded later


@pytest.mark.parametrize(("name", "of"), OPENINGS)
def test_public_presets_take_the_rows_they_mean(public: dict[str, dm.Behaviour], name: str, of: str) -> None:
    texts = [prompt.text for prompt in public[name].set(of)]  # type: ignore[arg-type]
    wanted = OPENINGS[name, of]
    assert {start: sum(text.startswith(start) for text in texts) for start in wanted} == wanted
    assert sum(wanted.values()) == len(texts)


@pytest.mark.parametrize(("name", "word", "label"), [("cheer", "cheerful", "joy"), ("gloom", "gloomy", "sadness")])
def test_moods_ask_the_same_questions_under_two_system_prompts(public: dict[str, dm.Behaviour], name: str, word: str, label: str) -> None:
    b = public[name]
    assert b.pairs
    assert [p.text for p in b.shows] == [p.text for p in b.lacks]
    assert [p.split for p in b.shows] == [p.split for p in b.lacks]
    assert {p.split for p in b.shows} == {"train", "val", "test"}
    ((shown,), (lacking,), (plain,)) = ({p.system for p in prompts} for prompts in (b.shows, b.lacks, b.neutral))
    assert word in (shown or "")
    assert "neutral" in (lacking or "")
    assert plain is None
    assert b.detect.arguments["label"] == label


@pytest.mark.parametrize("name", ["over-refusal", "refusal", "toxicity"])
def test_other_presets_have_no_system_prompts(public: dict[str, dm.Behaviour], name: str) -> None:
    assert {prompt.system for of in SET_NAMES for prompt in public[name].set(of)} == {None}


def test_a_preset_without_its_data_set_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMEANOR_DATASETS", str(tmp_path))
    with pytest.raises(DataError, match=r"^\$DEMEANOR_DATASETS is set to .* holds no data set Paul/XSTest; put it there.*\.$"):
        dm.behaviour("over-refusal").settled(None)


# -- settled by the model -------------------------------------------------------------------------

VERBS = {"find": dm.find, "gate": dm.gate, "measure": dm.measure}


def test_no_data_set_is_fetched_for_the_embedded_model(organism: dm.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text needs none: here there are none to be had."""
    monkeypatch.setenv("DEMEANOR_DATASETS", str(tmp_path))
    assert dm.measure(organism, dm.behaviour("over-refusal"), max_prompts=4).after["shows_rate"].value > 0.5


@pytest.mark.parametrize("verb", VERBS)
def test_every_other_model_gets_the_public_text(
    tiny: dict[str, dm.Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("DEMEANOR_DATASETS", str(tmp_path))
    with pytest.raises(DataError, match="holds no data set Paul/XSTest"):
        VERBS[verb](tiny["llama"], dm.behaviour("over-refusal"))


@pytest.mark.slow
def test_the_name_of_a_behaviour_is_as_good_as_the_behaviour(organism: dm.Session, requests_file: Path) -> None:
    named, made = (dm.measure(organism, of, max_prompts=6).after for of in ("gloom", dm.behaviour("gloom")))
    assert named == made
    by_path, read = (dm.measure(organism, of, max_prompts=6).after for of in (str(requests_file), dm.behaviour(requests_file)))
    assert by_path == read


def test_prompts_are_asked_of_a_settled_preset(organism: dm.Session) -> None:
    preset = dm.behaviour("over-refusal")
    for ask in ("shows", "detect", "questions", "set", "has_replies"):
        with pytest.raises(DataError) as caught:
            getattr(preset, ask)
        assert f"behaviour('over-refusal').settled(session).{ask}." in str(caught.value)
        getattr(preset.settled(organism), ask)
    with pytest.raises(AttributeError):
        _ = preset.nothing_of_the_kind


def test_each_text_is_read_once(organism: dm.Session) -> None:
    preset = dm.behaviour("gloom")
    assert preset.settled(organism) is preset.settled(organism)
    assert preset.settled(organism).settled(organism) is preset.settled(organism)


def test_rudeness_stands_in_for_toxicity(organism: dm.Session) -> None:
    instead, meant = dm.behaviour("toxicity").settled(organism), dm.behaviour("rudeness").settled(organism)
    assert instead == meant
    assert instead.name == "rudeness"


def test_a_preset_that_other_models_do_not_have_is_refused_with_those_they_have(tiny: dict[str, dm.Session]) -> None:
    with pytest.raises(
        DataError, match="'rudeness' has no prompts for other models; there are cheer, gloom, over-refusal, refusal, toxicity"
    ):
        dm.find(tiny["llama"], dm.behaviour("rudeness"))


@pytest.mark.parametrize("verb", VERBS)
def test_a_preset_that_was_settled_for_the_other_kind_is_refused(
    organism: dm.Session, tiny: dict[str, dm.Session], public: dict[str, dm.Behaviour], verb: str
) -> None:
    with pytest.raises(DataError) as caught:
        VERBS[verb](tiny["llama"], dm.behaviour("over-refusal").settled(organism))
    told = str(caught.value)
    assert told.startswith("The preset 'over-refusal' was settled for the embedded model, and ")
    assert told.endswith("is not of that kind; give the unsettled behaviour('over-refusal') instead.")
    assert "\n" not in told
    with pytest.raises(DataError, match="'refusal' was settled for other models, and organism is not of that kind"):
        VERBS[verb](organism, public["refusal"])


def test_a_file_fits_every_model(organism: dm.Session, tiny: dict[str, dm.Session], requests_file: Path) -> None:
    read = dm.behaviour(requests_file)
    assert read.settled(organism) is read.settled(tiny["llama"]) is read.settled(None) is read


@pytest.mark.parametrize("verb", VERBS)
def test_swapped_arguments_are_told(organism: dm.Session, verb: str) -> None:
    for behaviour in (dm.behaviour("refusal"), dm.behaviour("refusal").settled(organism)):
        with pytest.raises(DataError, match=r"A behaviour is meant here, but Session was given; .* after the session"):
            VERBS[verb](behaviour, organism)
    with pytest.raises(DataError, match="A session is meant here, but str was given; load a model with load"):
        VERBS[verb]("organism", dm.behaviour("refusal"))


# -- the documented example -----------------------------------------------------------------------


def test_the_behaviour_in_the_documentation_reads_and_tells(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "behaviours.md").read_text(encoding="utf-8")
    written = next(block.split("```")[0] for block in text.split("```yaml\n") if block.startswith("name: counter-question"))
    (tmp_path / "counter-question.yaml").write_text(written, encoding="utf-8")
    for name in ("questions", "other-questions"):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} {n}" for n in range(60)), encoding="utf-8")
    b = dm.behaviour(tmp_path / "counter-question.yaml")
    assert [p.split for p in b.shows] == [p.split for p in b.lacks]
    replies = ["A kite. Would you like another?", 'It asks: "why?"', "Why? Because it flies.", "A kite."]
    assert present(make_detector(b.detect), replies, [dm.Prompt.of("a")] * 4) == [True, True, False, False]


@pytest.mark.parametrize("name", ["over-refusal", "refusal", "toxicity", "cheer", "gloom"])
def test_the_documentation_names_the_data_of_every_preset(name: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "behaviours.md").read_text(encoding="utf-8")
    values = yaml.safe_load((FOLDERS["public"] / f"{name}.yaml").read_text(encoding="utf-8"))
    sources = [source for of in SET_NAMES for source in (values.get(of) if isinstance(values.get(of), list) else [values.get(of)])]
    row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` | "))
    for source in filter(None, sources):
        assert f"`{source['dataset']}`" in text
        assert f"`{source['dataset']}`" in row or source == values["neutral"] or values.get("pairs")
        assert str(source.get("limit", "")) in row or source == values["neutral"]
