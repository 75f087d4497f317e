"""What an estimator may say of itself, what it must return, and that nobody asks for one by its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import demeanor
from demeanor.errors import DataError
from demeanor.finding.estimators import ESTIMATORS, Estimate, Traits, estimate, estimator
from demeanor.io.registry import Record

PACKAGE = Path(demeanor.__file__).parent
UNIT = torch.eye(4, dtype=torch.float64)[0]
VALUES = {"shows": torch.ones(3, 4, dtype=torch.float64), "lacks": torch.zeros(3, 4, dtype=torch.float64)}


def texts(path: Path) -> Iterator[str]:
    """The string literals of a module, without its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    yield from (
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    )


@pytest.mark.slow
def test_nothing_outside_the_registry_names_an_estimator() -> None:
    own = set(ESTIMATORS.own_names())
    named = [
        (path.relative_to(PACKAGE), text)
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE) != Path("finding/estimators.py")
        for text in texts(path)
        if text in own or any(name in text for name in own if "_" in name)
    ]
    assert named == []


@pytest.mark.parametrize(
    ("function", "reads", "told"),
    [
        (lambda: Estimate(UNIT), False, "must take the values"),
        (lambda shows, lacks: Estimate(UNIT), False, "must take the values"),
        (lambda values: UNIT, False, "returns a Tensor; it must return Estimate"),
        (lambda values: None, False, "returns a NoneType"),
        (lambda values: Estimate(UNIT[:3]), False, r"gives \[3\] as read; it must be a vector of length 4"),
        (lambda values: Estimate(UNIT[None]), False, r"gives \[1, 4\] as read"),
        (lambda values: Estimate([1.0, 0, 0, 0]), False, "gives list as read"),
        (lambda values: Estimate(2 * UNIT), False, "length 2"),
        (lambda values: Estimate(UNIT, UNIT), False, "says reads=False and gives a write"),
        (lambda values: Estimate(UNIT), True, "says reads=True and gives no write"),
        (lambda values: Estimate(UNIT, UNIT[:2]), True, r"gives \[2\] as write"),
    ],
)
def test_what_is_no_estimate_is_told_in_one_sentence(function: Any, reads: bool, told: str) -> None:
    with pytest.raises(DataError, match=f"The estimator 'odd' .*{told}"):
        estimate(Record("odd", function, Traits(reads=reads), "a test"), VALUES)


def test_a_mistake_inside_an_estimator_is_loud() -> None:
    def faulty(values: object) -> Estimate:
        raise TypeError("inside")

    with pytest.raises(TypeError, match="inside"):
        estimate(Record("faulty", faulty, Traits(), "a test"), VALUES)


def test_single_precision_and_nothing_left_are_fine() -> None:
    single = estimate(Record("single", lambda values: Estimate(UNIT.float()), Traits(), "a test"), VALUES)
    assert single.read.dtype == torch.float64
    assert not estimate(Record("nothing", lambda values: Estimate(0 * UNIT), Traits(), "a test"), VALUES).read.any()


def test_an_estimator_of_ones_own_is_registered_and_may_be_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ESTIMATORS, "_records", dict(ESTIMATORS._records))
    for sign in (1, -1):
        estimator("of one's own", merges=True)(lambda values, sign=sign: Estimate(sign * UNIT))
        assert torch.equal(estimate(ESTIMATORS.named("of one's own"), VALUES).read, sign * UNIT)
    assert "of one's own" not in ESTIMATORS.own_names()


@pytest.mark.parametrize(
    ("traits", "told"),
    [
        ({"needs": ("shows", "neutral")}, "needs 'neutral', which is no class"),
        ({"needs": ("guard",), "merges": True}, "merges and needs guard"),
    ],
)
def test_traits_that_cannot_be_are_refused(traits: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        estimator("odd", **traits)


def test_names_that_come_with_the_package_are_not_taken() -> None:
    before = ESTIMATORS.named("projected")
    with pytest.raises(DataError, match="one of demeanor's own"):
        estimator("projected")(lambda values: Estimate(UNIT))
    assert ESTIMATORS.named("projected") == before
