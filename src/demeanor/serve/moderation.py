"""Moderation: what is asked and what is replied pass detectors, as a policy says. What is blocked is said with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..behaviours import Detect, Prompt
from ..detect import NamedDetector, likely, make_detector
from ..errors import DataError
from ..io.plan import read_values
from ..models import Session

DEFAULT = Path(__file__).with_name("policy.yaml")
Side = Literal["input", "output"]


class Rule(BaseModel):
    """One detector, where it looks, from which probability on it counts, and what follows: block, or only say so (flag)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    detect: Detect
    side: Literal["input", "output", "both"] = "both"
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    action: Literal["block", "flag"] = "block"
    reason: Annotated[str, Field(min_length=1, max_length=200)]

    @model_validator(mode="before")
    @classmethod
    def _short_detect(cls, values: Any) -> Any:
        detect = values.get("detect") if isinstance(values, dict) else None
        if isinstance(detect, str):
            return {**values, "detect": {"name": detect}}
        if isinstance(detect, dict) and "name" not in detect and len(detect) == 1:
            ((name, arguments),) = detect.items()
            return {**values, "detect": {"name": name, **(arguments or {})}}
        return values


class Policy(BaseModel):
    """The rules, in order."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rules: tuple[Rule, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Policy:
        """From a YAML file; the files of lexicons are relative to it. Raises DataError for what is no policy."""
        try:
            policy = cls.model_validate(read_values(path))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise DataError(f"{path} is no policy ({place}: {first['msg']}); see the moderation section of docs/serving.md.") from error
        return cls(rules=tuple(rule.model_copy(update={"detect": _placed(rule.detect, path.parent)}) for rule in policy.rules))

    @classmethod
    def named(cls, name: str) -> Policy:
        """That of a file, of one detector by its name, of nothing for "none", or the default one for "default"."""
        if name == "none":
            return cls()
        if name == "default":
            return cls.read(DEFAULT)
        if Path(name).suffix in (".yaml", ".yml"):
            return cls.read(Path(name))
        return cls(rules=(Rule(name="detector", detect=Detect(name=name), reason=f"the detector {name} finds it"),))


def _placed(detect: Detect, folder: Path) -> Detect:
    file = detect.arguments.get("file")
    return Detect(**{**detect.model_dump(), "file": str(folder / file)}) if isinstance(file, str) else detect


@dataclass(frozen=True)
class Finding:
    """A rule that a text meets."""

    rule: Rule
    side: Side
    probability: float

    def told(self) -> dict[str, Any]:
        return {
            "rule": self.rule.name,
            "side": self.side,
            "action": self.rule.action,
            "reason": self.rule.reason,
            "probability": round(self.probability, 4),
        }

    @property
    def sentence(self) -> str:
        what = "request" if self.side == "input" else "reply"
        return f"The {what} is blocked by the rule {self.rule.name}: {self.rule.reason}."


class Moderator:
    """A policy in force. Calls may take as long as its detectors do, so they are not made in an event loop."""

    def __init__(self, policy: Policy, session: Session) -> None:
        self.policy = policy
        self._detectors: list[tuple[Rule, NamedDetector]] = [(rule, make_detector(rule.detect, session)) for rule in policy.rules]

    def looks_at(self, side: Side) -> bool:
        return any(rule.side in (side, "both") for rule, _ in self._detectors)

    @property
    def blocks_replies(self) -> bool:
        return any(rule.side in ("output", "both") and rule.action == "block" for rule, _ in self._detectors)

    def look(self, side: Side, texts: Sequence[str], prompts: Sequence[Prompt]) -> list[list[Finding]]:
        """What the rules find in every text, blocking rules first."""
        found: list[list[Finding]] = [[] for _ in texts]
        for rule, detector in self._detectors:
            if rule.side not in (side, "both"):
                continue
            for own, probability in zip(found, likely(detector, texts, prompts), strict=True):
                if probability >= rule.threshold:
                    own.append(Finding(rule, side, probability))
        return [sorted(own, key=lambda finding: finding.rule.action != "block") for own in found]


def blocked(findings: Sequence[Finding]) -> Finding | None:
    """The finding that blocks a text, if one does."""
    return next((finding for finding in findings if finding.rule.action == "block"), None)
