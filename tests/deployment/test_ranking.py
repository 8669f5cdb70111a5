"""Choosing: feasibility, order and front."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.deployment import ranking
from autotune.deployment.goal import GOALS
from autotune.records.budget import GoalName
from autotune.records.measurement import Interval
from autotune.records.plan import Step
from autotune.records.report import DeployTrial
from tests.support.trials import FAST, NAMES, trial, trial_lists


def against(trials: list[DeployTrial], limit: float) -> list[DeployTrial]:
    """The same measurements against a latency limit in seconds."""
    return [
        msgspec.structs.replace(
            t, constraints=t.constraints | {"latency": 1 / (t.throughput_per_s or 1) / limit - 1}
        )
        for t in trials
    ]


@FAST
@given(trial_lists(), st.floats(1e-4, 1e-2), st.floats(0.1, 1.0))
def test_tightening_never_adds_a_feasible_plan(
    trials: list[DeployTrial], limit: float, factor: float
) -> None:
    before = {t.number for t in against(trials, limit) if t.feasible}
    after = {t.number for t in against(trials, limit * factor) if t.feasible}
    assert after <= before


@FAST
@given(trial_lists(), st.sampled_from(NAMES), st.booleans())
def test_the_chosen_plan_is_never_infeasible(
    trials: list[DeployTrial], goal: GoalName, higher: bool
) -> None:
    def same(a: DeployTrial, b: DeployTrial) -> bool:
        assert a.quality is not None
        assert b.quality is not None
        return abs(a.quality - b.quality) < 0.2

    ranked = ranking.order(trials, GOALS[goal](higher), indistinguishable=same)
    assert {t.number for t in ranked} == {t.number for t in trials if t.state == "complete"}
    flags = [t.feasible for t in ranked]
    assert flags == sorted(flags, reverse=True)
    violations = [ranking.violation(t) for t in ranked if not t.feasible]
    assert violations == sorted(violations)


@FAST
@given(trial_lists(), st.booleans())
def test_nothing_beats_the_front(trials: list[DeployTrial], higher: bool) -> None:
    sign = 1 if higher else -1
    front = ranking.pareto(trials, higher)
    known = {
        t.number: t
        for t in trials
        if t.state == "complete" and t.latency_s and t.quality is not None
    }
    assert set(front) <= set(known)
    assert bool(front) == bool(known)
    for number in front:
        mine = known[number]
        for other in known.values():
            assert not (
                other.latency_s.p50 < mine.latency_s.p50
                and sign * other.quality > sign * mine.quality
                and (other.energy_j_per_sample or 0) < (mine.energy_j_per_sample or math.inf)
                and (other.energy_j_per_sample is None) == (mine.energy_j_per_sample is None)
            )


def test_violation() -> None:
    assert ranking.violation(trial(0, over={"memory": 0.5})) == 0.5
    assert ranking.violation(trial(0, over={"memory": 0.5, "energy": -3.0})) == 0.5
    failed = msgspec.structs.replace(trial(0), state="failed")
    assert ranking.violation(failed) == math.inf
    assert not failed.feasible


def test_quality_goal_takes_the_fastest_of_the_indistinguishable() -> None:
    trials = [trial(0, 0.004, 0.95), trial(1, 0.002, 0.949), trial(2, 0.001, 0.90)]
    alone = ranking.order(trials, GOALS["quality"](True))
    assert [t.number for t in alone] == [0, 1, 2]
    close = ranking.order(
        trials, GOALS["quality"](), indistinguishable=lambda a, b: abs(a.quality - b.quality) < 0.01
    )
    assert [t.number for t in close] == [1, 0, 2]


@pytest.mark.parametrize("goal", ["quality", "latency", "throughput"])
def test_a_lossless_plan_goes_before_a_compressed_one_that_gains_only_noise(goal: GoalName) -> None:
    int8 = (Step(name="int8_static"),)
    near = [trial(0, 1.02e-3, runtime="onnxruntime"), trial(1, 1e-3, compress=int8)]
    assert [t.number for t in ranking.order(near, GOALS[goal]())] == [0, 1]
    far = [trial(0, 1.05e-3, runtime="onnxruntime"), trial(1, 1e-3, compress=int8)]
    assert [t.number for t in ranking.order(far, GOALS[goal]())] == [1, 0]
    broken = [trial(0, 1e-3, over={"latency": 0.1}), trial(1, 1e-3, compress=int8)]
    assert [t.number for t in ranking.order(broken, GOALS[goal]())] == [1, 0]


def test_ties_in_latency_go_to_energy() -> None:
    trials = [trial(0, 0.002, 0.9, energy=0.2), trial(1, 0.002, 0.9, energy=0.1)]
    assert ranking.order(trials, GOALS["quality"](True))[0].number == 1


@pytest.mark.parametrize(
    ("goal", "best"), [("latency", 2), ("energy", 1), ("throughput", 2), ("memory", 0)]
)
def test_goals(goal: GoalName, best: int) -> None:
    trials = [
        trial(0, 0.004, energy=0.3),
        trial(1, 0.003, energy=0.1),
        msgspec.structs.replace(
            trial(2, 0.002), energy_modelled=Interval(value=0.2, low=0.1, high=0.4)
        ),
    ]
    assert ranking.order(trials, GOALS[goal]())[0].number == best


def test_lower_is_better() -> None:
    trials = [trial(0, 0.001, 3.0), trial(1, 0.002, 2.0)]
    assert ranking.order(trials, GOALS["quality"](False))[0].number == 1
    assert ranking.order(trials, GOALS["quality"](True))[0].number == 0
