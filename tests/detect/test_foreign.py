"""A detector and an estimator added as docs/extending.md says, word for word: in files, and in an installed package."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file

import demeanor as dm
from demeanor.behaviours import Detect
from demeanor.detect import DETECTORS, make_detector, present
from demeanor.errors import DataError
from demeanor.finding.estimators import ESTIMATORS
from demeanor.finding.find import search_directions
from demeanor.models.loading import resolve

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`([\w.]+)`[^`]*:\n\n```\w+\n(.*?)```", DOCUMENT, re.DOTALL))
COMMANDS = [shlex.split(line) for line in re.search(r"```console\n(.*?)```", DOCUMENT, re.DOTALL)[1].splitlines()]  # type: ignore[index]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the prompts that the document's behaviour names; what is registered in it is forgotten afterwards."""
    for name in ("over_refused", "plain", "neutral"):
        shutil.copy(Path(resolve("organism")[0]).parent / "data" / f"{name}.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    for registry in (DETECTORS, ESTIMATORS):
        for state in ("_records", "_installed"):
            monkeypatch.setattr(registry, state, dict(getattr(registry, state)))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("apologies", "medians")):
            del sys.modules[name]


@pytest.fixture
def in_files(folder: Path) -> Path:
    """The document's files as they stand there."""
    for name in ("apologies.py", "medians.py", "apologies.yaml", "plan.yaml"):
        (folder / name).write_text(FILES[name])
    return folder


@pytest.fixture
def in_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as an installed package, with the entry points of the document, named as the document says."""
    site = folder / "site"
    project = tomllib.loads(FILES["pyproject.toml"])
    named = project["project"]
    metadata = site / f"{named['name']}-{named['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {named['name']}\nVersion: {named['version']}\n")
    groups = (
        f"[{group}]\n" + "\n".join(f"{key} = {value}" for key, value in points.items()) for group, points in named["entry-points"].items()
    )
    (metadata / "entry_points.txt").write_text("\n".join(groups))
    for module in project["tool"]["setuptools"]["py-modules"]:
        (site / f"{module}.py").write_text(FILES[f"{module}.py"])
    monkeypatch.syspath_prepend(str(site))
    for name in ("apologies.yaml", "plan.yaml"):
        (folder / name).write_text(installed(FILES[name]))
    return folder


def installed(text: str) -> str:
    return text.replace("apologies.py:apologies", "apologies").replace("medians.py:channel_median", "channel_median")


@pytest.mark.long
@pytest.mark.parametrize("way", ["in_files", "in_package"])
def test_the_document_is_followed_to_the_end(way: str, request: pytest.FixtureRequest, demeanor, organism: dm.Session) -> None:  # type: ignore[no-untyped-def]
    folder = request.getfixturevalue(way)
    name = "medians.py:channel_median" if way == "in_files" else "channel_median"
    for words in COMMANDS:
        ended = demeanor(*(words[1:] if way == "in_files" else map(installed, words[1:])))
        assert ended.code == 0, ended.err
    direction = dm.load_direction(folder / "direction.safetensors")
    assert {direction.estimator} == {name} == {candidate.estimator for candidate in direction.candidates}
    # The median of every channel, slowly.
    b = dm.behaviour("apologies.yaml")
    found = search_directions(organism, b, layer=3, max_prompts=24, estimators=[name])
    values = {
        each: organism.capture(found.sets.train[each], [direction.site], direction.after).values[:, 0].tolist()
        for each in ("shows", "lacks")
    }
    middle = {each: [sorted(channel)[(len(channel) - 1) // 2] for channel in zip(*rows)] for each, rows in values.items()}
    gap = [one - other for one, other in zip(middle["shows"], middle["lacks"])]
    length = sum(part**2 for part in gap) ** 0.5
    assert direction.basis[0].tolist() == pytest.approx([part / length for part in gap], abs=1e-4)
    # The run tried it beside the usual ones, on the same behaviour.
    tried = {candidate.estimator for candidate in dm.load_direction(folder / "run" / "direction.safetensors").candidates}
    assert tried == {name, "mean_difference", "projected"}
    assert any(name in option["option"] for option in json.loads((folder / "run" / "run.json").read_text())["options"])
    with (folder / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {float(row["apologies"]) for row in rows if row["set"] == "shows"} == {1.0}
    assert {float(row["apologies"]) for row in rows if row["set"] == "lacks"} == {0.0}


@pytest.mark.slow
def test_what_the_detector_says_is_what_is_measured(in_files: Path, demeanor) -> None:  # type: ignore[no-untyped-def]
    rates = {}
    for words in (["sorry", "unable", "decline"], ["first"]):
        behaviour = yaml.safe_load(FILES["apologies.yaml"]) | {"detect": {"apologies.py:apologies": {"words": words}}}
        (in_files / "b.yaml").write_text(yaml.safe_dump(behaviour))
        before = json.loads(demeanor("measure", "organism", "-b", "b.yaml", "--max-prompts", 6, "--json").out)["none"]["before"]
        rates[words[0]] = [before[name]["value"] for name in ("shows_rate", "lacks_rate")]
    assert rates == {"sorry": [1.0, 0.0], "first": [0.0, 1.0]}


def test_a_detector_is_found_beside_the_behaviour_file_or_in_the_current_folder(
    in_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert present(make_detector(dm.behaviour("../apologies.yaml").detect), ["sorry .", "fine ."], []) == [True, False]
    (elsewhere / "here.yaml").write_text("name: n\ndetect: apologies.py:apologies\nshows: [a]\nlacks: [b]\n")
    with pytest.raises(DataError, match="a file that is not there"):
        make_detector(dm.behaviour("here.yaml").detect)
    monkeypatch.chdir(in_files)
    assert present(make_detector(dm.behaviour("elsewhere/here.yaml").detect), ["sorry ."], []) == [True]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def odd(words): ...", "does not take these arguments: missing a required argument: 'words'; its arguments are words"),
        ("def odd(): ...", "returns nothing, which has no method probabilities"),
        ("class odd: pass", "returns a value of type odd, which has no method probabilities"),
        ("class odd:\n def probabilities(self, replies): return []", r"must have the method probabilities\(replies, prompts\): too many"),
        ("class odd:\n probabilities = 3", "must have the method probabilities"),
        ("odd = 3", "is of type int and cannot be called"),
        (
            "from demeanor.detect import detector\n@detector('odd', needs_model=True)\nclass odd:\n def probabilities(self, replies, prompts): ...",
            "says that it needs a model, and a value of type odd has no method asking",
        ),
    ],
)
def test_what_is_no_detector_is_told_before_anything_is_asked_of_it(folder: Path, code: str, told: str) -> None:
    (folder / "odd.py").write_text(code)
    with pytest.raises(DataError, match=f"odd.py:odd'.*{told}"):
        make_detector(Detect(name=f"{folder}/odd.py:odd"))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("[0.5]", "returns 1 values for 2 replies"),
        ("[0.5] * 3", "returns 3 values for 2 replies"),
        ("0.5", "returns a value of type float; it must return a probability per reply"),
        ("None", "returns nothing; it must"),
        ("[True, 'yes']", "returns a value of type str for a reply"),
        ("[0.1, None]", "returns nothing for a reply"),
        ("[0.1, [0.1, 0.9]]", "returns a value of type list for a reply"),
        ("__import__('torch').zeros(2, 2)", "returns a value of type Tensor for a reply"),
        ("[0.1, 7]", "returns 7 for a reply"),
        ("[0.1, float('nan')]", "returns nan for a reply"),
    ],
)
def test_what_are_no_probabilities_is_told_in_one_sentence(folder: Path, body: str, told: str) -> None:
    (folder / "odd.py").write_text(f"class odd:\n def probabilities(self, replies, prompts): return {body}")
    with pytest.raises(DataError, match=f"odd.py:odd'.*{told}"):
        present(make_detector(Detect(name=f"{folder}/odd.py:odd")), ["a", "b"], [])


def test_numbers_of_other_libraries_are_numbers(folder: Path) -> None:
    code = "import numpy, torch\nclass odd:\n def probabilities(self, replies, prompts): return [numpy.float32(1), torch.tensor(1 + 1e-7), 0, True]"
    (folder / "odd.py").write_text(code)
    probabilities = make_detector(Detect(name=f"{folder}/odd.py:odd")).probabilities(["a", "b", "c", "d"], [])
    assert probabilities == [1, 1, 0, 1]
    assert all(type(value) is float for value in probabilities)


@pytest.mark.parametrize("body", ["raise TypeError('inside')", "return len(3)"])
def test_a_mistake_inside_a_detector_is_loud(folder: Path, body: str) -> None:
    (folder / "odd.py").write_text(f"class odd:\n def probabilities(self, replies, prompts): {body}\ndef wrong(): {body}")
    with pytest.raises(TypeError, match=r"inside|int"):
        present(make_detector(Detect(name=f"{folder}/odd.py:odd")), ["a"], [])
    with pytest.raises(TypeError, match=r"inside|int"):
        make_detector(Detect(name=f"{folder}/odd.py:wrong"))


ASKING = """
from demeanor.detect import detector

class Asks:
    def __init__(self, session=None): self.session = session
    def asking(self, session): return Asks(session)
    def probabilities(self, replies, prompts):
        return [float(self.session.name == "organism" and prompt.text == "hello") for prompt in prompts]

@detector("asks", needs_model=True, needs_prompts=True)
def asks(): return Asks()
"""


def test_a_detector_gets_the_model_and_the_prompts_that_it_needs(folder: Path, organism: dm.Session) -> None:
    (folder / "asks.py").write_text(ASKING)
    detect = Detect(name="asks.py:asks")
    prompts = [dm.Prompt.of("hello"), dm.Prompt.of("what is 3 plus 4 ?")]
    assert make_detector(detect, organism).probabilities(["a", "b"], prompts) == [1, 0]
    with pytest.raises(DataError, match=r"asks.py:asks' asks the model, and there is none"):
        make_detector(detect).probabilities(["a", "b"], prompts)
    with pytest.raises(DataError, match="needs the prompt of every reply"):
        make_detector(detect, organism).probabilities(["a", "b"], [])


def test_mistakes_in_names_do_not_wait_for_the_model(in_files: Path, demeanor) -> None:  # type: ignore[no-untyped-def]
    (in_files / "empty").mkdir()  # a model that ends every loading
    (in_files / "empty" / "config.json").write_text('{"model_type": "llama"}')
    save_file({}, in_files / "empty" / "model.safetensors")
    assert "empty" in demeanor("inspect", "empty").sentence
    find = ("find", "empty", "-b", "apologies.yaml", "-o", "d", "--estimator")
    assert "did you mean 'channel_median'" in demeanor(*find, "medians.py:channel_medians").sentence
    assert "did you mean 'mean_difference'" in demeanor(*find, "mean_diference").sentence
    (in_files / "plan.yaml").write_text(FILES["plan.yaml"].replace("medians.py", "nowhere.py").replace("organism", "empty"))
    assert "nowhere.py" in demeanor("run", "--plan", "plan.yaml", "-o", "run").sentence
    assert not (in_files / "run").exists()
