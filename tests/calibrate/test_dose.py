"""The smallest dose that does enough."""

from __future__ import annotations

from pathlib import Path

import pytest

import demeanor as dm
from demeanor.calibrate.dose import find_dose
from demeanor.errors import CheckFailed, DataError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def control(over_refusal: dm.Direction) -> dm.Control:
    return dm.ablate(over_refusal)


def test_less_than_the_dose_found_would_not_do(organism: dm.Session, control: dm.Control) -> None:
    b = dm.behaviour("over-refusal").settled(organism)
    found = find_dose(organism, b, control, remove_to=0.1, max_prompts=24)
    by_dose = {trial.dose: trial.rate.value for trial in found.trials}
    assert by_dose[found.dose] <= 0.1
    below = max(dose for dose in by_dose if dose < found.dose)
    assert by_dose[below] > 0.1
    assert found.dose - below <= found.dose / 8  # narrowed, not only doubled
    assert found.measurement.after["shows_rate"].n > 0
    assert found.control.parts[0].dose == pytest.approx(control.parts[0].dose * found.dose)
    assert 0 < found.moved < 1
    assert found.to_json()["trials"][0]["dose"] == 0.125


def test_what_no_dose_does_is_told(organism: dm.Session, control: dm.Control) -> None:
    b = dm.behaviour("over-refusal").settled(organism)
    with pytest.raises(CheckFailed, match="No dose up to 4 reaches lacks_rate"):
        find_dose(organism, b, control, induce_to=0.9, max_prompts=16)
    with pytest.raises(CheckFailed, match="allow more drift"):
        find_dose(organism, b, control, drift_cap=0, max_prompts=16)
    with pytest.raises(DataError, match="find_dose: remove_to should be less than or equal to 1, not 2"):
        find_dose(organism, b, control, remove_to=2)


def test_the_command_writes_the_control_at_its_dose(demeanor, control: dm.Control, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    given, target = tmp_path / "c.safetensors", tmp_path / "dosed.safetensors"
    dm.save_control(control, given)
    command = ("dose", "organism", "-b", "over-refusal", "-c", given, "--max-prompts", 12, "-o", target)
    shown = demeanor(*command)
    assert f"Dose +{dm.load_control(target).parts[0].dose / control.parts[0].dose:.4g}" in shown.out
    assert "Doses tried (val)" in shown.out
    assert "of its norm at" in shown.out
    assert "one of --remove-to and --induce-to" in demeanor(*command, "--remove-to", 0.1, "--induce-to", 0.9).sentence
