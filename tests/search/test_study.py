"""The study: what is recorded, what a killed search goes on with, and several processes on one."""

from __future__ import annotations

import json
import subprocess
import sys

import optuna
import pytest

from demeanor.errors import DataError
from demeanor.search.objective import Quick
from demeanor.search.space import Params, Space
from demeanor.search.study import ATTRIBUTE, FIRST, Limits, Recorded, Study, _distribution
from demeanor.search.trying import Trying

COSTS, LIMITS = ("left", "drift", "guard_lost"), Limits(0.95, 0.5)
MOST = 40  # trials of the plan of `trying`


def opened(url: str, seed: int = 0) -> Study:
    return Study(url, "study", COSTS, seed, LIMITS)


class Killed(Study):
    """A study whose process is killed when it has recorded some trials."""

    after = 0

    def record(self, space: Space, params: Params, quick: Quick, place: tuple[int, int, int]) -> None:
        if self.after == 0:
            raise KeyboardInterrupt
        self.after -= 1
        super().record(space, params, quick, place)


def told(recorded: list[Recorded]) -> list[tuple[object, ...]]:
    return [(sorted(trial.params.items()), trial.quick.costs) for trial in recorded]


@pytest.mark.long
@pytest.mark.slow
def test_a_search_that_is_killed_at_any_trial_ends_as_one_that_was_not(trying: Trying, url: str) -> None:
    whole = opened(url.replace("study.db", "whole.db"))
    trying.run(whole)
    assert len(whole.recorded()) == MOST
    for after in (5, 1, 14, 9, 3):
        killed = Killed(url, "study", COSTS, 0, LIMITS)
        killed.after = after
        with pytest.raises(KeyboardInterrupt):
            trying.run(killed)
    last = opened(url)
    assert len(last.recorded()) == 32
    trying.run(last)
    assert told(last.recorded()) == told(whole.recorded())
    keys = [(trial.setting, trial.gate) for trial in last.recorded()]
    assert len(keys) == len(set(keys))


def test_a_trial_is_recorded_whole_and_read_back_as_it_was(trying: Trying, url: str) -> None:
    study, params = opened(url), {**trying.seeds[0], "gate": next(iter(trying.fires))}
    quick = Quick(left=0.25, drift=0.75, guard=0.9, shown=0.2, seen=16, whole=False, best=(0.1, 0.5, 0.05))
    study.record(trying.space, params, quick, (0, 0, 2))
    (recorded,) = opened(url).recorded()
    assert (recorded.params, recorded.quick, recorded.gate) == (params, quick, params["gate"])
    (trial,) = optuna.load_study(study_name="study", storage=url).trials  # as the dashboard sees it
    assert trial.values == pytest.approx([0.25, 0.75, 0.1])
    assert trial.constraints == pytest.approx({"guard": 0.05, "drift": 0.25})
    assert trial.params == params
    assert opened(url).batches() == (0, frozenset({0}))  # the batch had two trials


def test_proposals_depend_on_the_seed_and_the_batch_alone(trying: Trying, url: str) -> None:
    one, other = opened(url).propose(trying.space, 0, 4), opened(url).propose(trying.space, 0, 4)
    assert one == other
    assert one != opened(url).propose(trying.space, 1, 4)
    assert one != opened(url.replace("study.db", "other.db"), seed=1).propose(trying.space, 0, 4)
    for params in one:
        axes = {**trying.space.common, **trying.space.axes(params["kind"])}
        assert set(params) == set(axes)
        assert all(_distribution(axes[name])._contains(_distribution(axes[name]).to_internal_repr(value)) for name, value in params.items())


@pytest.mark.slow
def test_another_process_proposes_other_settings_and_sees_what_is_recorded(trying: Trying, url: str) -> None:
    first = opened(url)
    first.record(trying.space, trying.seeds[0], Quick(0.5, 0.1, 1.0, 0.5, 16, True, (0.4, 0.05, 0.0)), (0, 0, 1))
    code = (
        "import json, sys; from demeanor.search.study import Study, Limits;"
        f" study = Study({url!r}, 'study', {COSTS!r}, 0, Limits(0.95, 0.5)); print(json.dumps([study.salt, len(study.recorded())]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    salt, seen = json.loads(run.stdout.splitlines()[-1])
    assert salt
    assert salt != first.salt == ""
    assert seen == 1


def test_who_goes_on_after_a_kill_proposes_as_the_first(url: str) -> None:
    study = opened(url)
    gone = {**study.study.user_attrs[FIRST], "pid": 2**22 + 1}  # beyond any process
    study.study.set_user_attr(FIRST, gone)
    assert opened(url).salt == ""
    elsewhere = {**gone, "host": "another machine"}
    study.study.set_user_attr(FIRST, elsewhere)
    assert opened(url).salt != ""


@pytest.mark.parametrize("storage", ["nowhere://study.db", "sqlite:////no/such/folder/study.db", "study.db"])
def test_a_storage_that_cannot_be_used_is_one_sentence(storage: str) -> None:
    with pytest.raises(DataError, match=r"The storage .* cannot be used: .*name one such as sqlite:///study.db\.$"):
        opened(storage)


def test_attributes_of_others_are_left_alone(trying: Trying, url: str) -> None:
    """A trial that somebody added by hand is none of ours, and is not counted."""
    study = opened(url)
    study.study.add_trial(optuna.trial.create_trial(values=[0.1, 0.1, 0.1]))
    assert ATTRIBUTE not in study.study.trials[0].user_attrs
    assert study.recorded() == []
