"""Behaviours from their names, files and questions.

`behaviour("over-refusal")` is a preset, `behaviour("my.yaml")` a file, `behaviour(question=...)` a one-liner.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import DataError, did_you_mean, mistaken
from ..io.claims import refuse_output
from ..io.yaml_files import read_yaml
from .audience import Audience, LoadedModel, audience_of
from .definition import Behaviour, behaviour_of, beside, file_of
from .preset import Preset, preset_file, presets
from .questions import question_presets, questions_for
from .schema import Detect

BehaviourLike = Behaviour | Preset | str | Path


def behaviour(source: str | Path | None = None, *, question: str | None = None) -> Behaviour | Preset:
    """A preset by name, a YAML file by path, or a behaviour that is only a question about the reply (or a preset of
    questions by name), whose detector is the model's own judgement.

    Presets are written twice: in the embedded model's own language, and for every other model, on public data sets that are
    fetched by name. The session that a preset is used with settles which; nothing is read before. Raises DataError for
    anything that is wrong with a file or a question, at once.
    """
    if (source is None) == (question is None):
        raise DataError("A behaviour is a preset name, a path to a YAML file, or question=...; give exactly one.")
    if question is not None:
        return _of_question(question)
    name = str(source)
    if name in presets():

        def read(audience: Audience) -> Behaviour:
            return replace(read_file(preset_file(name, audience)), audience=audience)

        return Preset(name, f"behaviour({name!r})", read)
    return read_file(_existing(name))


def detect_of(source: str | Path, model: LoadedModel | None) -> tuple[str, Detect]:
    """The name of a behaviour (a preset, or a file) and its detector, without reading its prompts: what only judges replies needs none."""
    name = str(source)
    path = preset_file(name, audience_of(model)) if name in presets() else _existing(name)
    file = file_of(_values(path), str(path))
    return file.name, beside(file.detect, path.parent)


def _existing(name: str) -> Path:
    if not Path(name).is_file():
        known = presets()
        raise DataError(f"There is no behaviour {name!r}{did_you_mean(name, known)}: not a file, and the presets are {', '.join(known)}.")
    return Path(name)


def as_behaviour(wanted: BehaviourLike, model: LoadedModel | None) -> Behaviour:
    """What a verb is given, a behaviour, a preset or the name of one, settled by the model. DataError for anything else."""
    if isinstance(wanted, (str, Path)):
        return behaviour(wanted).settled(model)
    if not isinstance(wanted, (Behaviour, Preset)):
        raise DataError(mistaken("A behaviour", wanted, "make one with behaviour(...), and give it after the session"))
    return wanted.settled(model)


def _of_question(question: str) -> Behaviour | Preset:
    def read(audience: Audience) -> Behaviour:
        questions = questions_for(question, audience)
        detect = Detect.model_validate({"name": "self", "questions": [each.model_dump() for each in questions]})
        return Behaviour(name=question, detect=detect, questions=questions)

    return Preset(question, f"behaviour(question={question!r})", read) if question.strip() in question_presets() else read("public")


def read_file(path: Path) -> Behaviour:
    """The behaviour that a YAML file describes. Raises DataError for the first thing that is wrong with it or with its data."""
    return behaviour_of(_values(path), path.parent, str(path))


def _values(path: Path) -> dict[str, Any]:
    """What stands in a behaviour file, by key."""
    try:
        refuse_output(path)
        values = read_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid YAML: {error} (texts with signs such as ? : # , are written in quotes).") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold a mapping with name, shows and lacks.")
    return values
