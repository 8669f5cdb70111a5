"""The schedule of launches: two looks, interleaved, disturbed launches taken again."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.deployment.metrics import QUALITY_ALPHA
from autotune.records import job as jobs
from autotune.records.budget import Budget, Limit
from autotune.records.hardware import Profile
from autotune.records.measurement import LOOKS
from autotune.records.plan import Plan
from autotune.records.report import Execution, Failure
from autotune.verification import launches, verdicts
from tests.support.latency_sim import PLAN, Script, Scripted, lab

BUDGET = Budget(latency=Limit(value=0.6e-3), max_drop=0.05)


def verified(
    root: Path, profile: Profile, script: Script, budget: Budget = BUDGET, time_s: float = 600.0
) -> tuple[launches.Verified, Scripted]:
    laboratory, machine = lab(root, profile, script, budget, time_s)
    return launches.verify(laboratory, PLAN, QUALITY_ALPHA, Execution()), machine


def plain(job: jobs.Measure, number: int, baseline: bool) -> dict[str, Any]:
    return {}


def edge(job: jobs.Measure, number: int, baseline: bool) -> dict[str, Any]:
    """A plan whose p95 is the limit: 1 of 20 calls over it."""
    order = np.random.default_rng(job.seed).permutation(job.min_calls)
    return {} if baseline else {"latency_s": np.where(order % 20 == 0, 1e-3, 0.4e-3)}


def latency(found: launches.Verified) -> Any:
    return next(v for v in found.verdicts if v.name == "latency")


def test_the_error_is_split_over_two_looks() -> None:
    assert LOOKS == (3, 6)
    assert len(LOOKS) * verdicts.LATENCY_ALPHA == pytest.approx(0.01)
    assert len(LOOKS) * verdicts.ENERGY_ALPHA == pytest.approx(0.05)


@pytest.mark.parametrize(("percentile", "calls"), [(50, 33), (95, 333), (99, 1666)])
def test_calls_of_a_launch(percentile: float, calls: int) -> None:
    assert launches.calls_per_launch(percentile) == calls


def test_a_clear_plan_is_met_at_the_first_look(tmp_path: Path, profile: Profile) -> None:
    found, machine = verified(tmp_path, profile, plain)
    assert found.met
    assert [latency(found).samples, len(found.side.launches)] == [3 * 333, 3]
    assert latency(found).note is None
    kinds = [machine.built[job.artifact].runtime for job in machine.measured]
    assert kinds == ["eager", "onnxruntime", "onnxruntime", "eager", "eager", "onnxruntime"]
    assert len({job.seed for job in machine.measured}) == 3


def test_an_undecided_plan_is_looked_at_once_more_and_no_more(
    tmp_path: Path, profile: Profile
) -> None:
    found, machine = verified(tmp_path, profile, edge)
    assert latency(found).verdict == "UNDECIDED"
    assert len(found.side.launches) == len(found.reference.launches) == 6
    assert {job.most_s for job in machine.measured} == {3.0, 6.0}


def test_no_second_look_without_time(tmp_path: Path, profile: Profile) -> None:
    found, _ = verified(tmp_path, profile, edge, time_s=9.0)
    assert len(found.side.launches) < 6
    assert latency(found).verdict == "UNDECIDED"


def test_the_baseline_verifies_against_itself(tmp_path: Path, profile: Profile) -> None:
    laboratory, machine = lab(
        tmp_path, profile, plain, Budget(latency=Limit(value=1.5, relative=True))
    )
    found = launches.verify(laboratory, laboratory.dense(1, 1), QUALITY_ALPHA, Execution())
    assert found.side is found.reference
    assert found.comparison is None
    assert len(machine.measured) == 3
    assert found.met


def test_a_disturbed_launch_is_taken_again_and_both_are_recorded(
    tmp_path: Path, profile: Profile
) -> None:
    def script(job: jobs.Measure, number: int, baseline: bool) -> dict[str, Any]:
        if baseline or number != 1:
            return {"environment": {"foreign_load": 0.02, "nr_throttled": 0.0}}
        slow = np.full(job.min_calls, 5e-3)
        return {"environment": {"foreign_load": 0.45}, "latency_s": slow}

    found, machine = verified(tmp_path, profile, script)
    assert found.met
    assert len(found.side.launches) == 3
    assert [len(x.disturbed) for x in (found.side, found.reference)] == [1, 0]
    assert found.side.disturbed[0].latency_s[0] == 5e-3
    assert len(machine.measured) == 7
    again = [job for job in machine.measured if job.seed == machine.measured[2].seed]
    assert len({job.artifact for job in again}) == 2
    assert "45 % foreign load" in latency(found).note
    assert "taken again" in latency(found).note


def test_a_machine_that_stays_disturbed_is_not_tried_for_ever(
    tmp_path: Path, profile: Profile
) -> None:
    def script(job: jobs.Measure, number: int, baseline: bool) -> dict[str, Any]:
        return {"environment": {"steal_share": 0.3}}

    found, machine = verified(tmp_path, profile, script)
    assert len(machine.measured) == 6 + 2  # one more for each side
    assert "3 of 3 launches that count were disturbed (30 % stolen" in latency(found).note
    # the second is taken whatever it says: no choosing between the two
    assert found.side.launches[0] is not found.side.disturbed[0]


@pytest.mark.parametrize("at", [0, 1, 4])
@pytest.mark.parametrize("kind", ["hang", "crash"])
def test_a_launch_that_fails_ends_in_no_verdict(
    tmp_path: Path, profile: Profile, at: int, kind: str
) -> None:
    def script(job: jobs.Measure, number: int, baseline: bool) -> dict[str, Any]:
        broken = not baseline and number == at
        return {"failure": Failure(kind=kind, message="gone")} if broken else edge(job, 0, baseline)

    found, _ = verified(tmp_path, profile, script)
    assert found.failure == "gone"
    assert not found.met
    assert found.verdicts == ()


def test_a_failure_while_taking_again(tmp_path: Path, profile: Profile) -> None:
    def script(job: jobs.Measure, number: int, baseline: bool) -> dict[str, Any]:
        if number:
            return {"failure": Failure(kind="hang", message="gone")}
        return {"environment": {"foreign_load": 0.9}}

    assert verified(tmp_path, profile, script)[0].failure == "gone"
    laboratory, _ = lab(tmp_path, profile, script, BUDGET)
    assert launches.alone(laboratory, PLAN) is None


def test_the_load_reaches_the_job_and_the_response_is_judged(
    tmp_path: Path, profile: Profile
) -> None:
    def script(job: jobs.Measure, number: int, baseline: bool) -> dict[str, Any]:
        assert job.load_per_s == 200
        return {"response_s": (0.5e-3,) * job.min_calls, "latency_s": (0.4e-3,) * job.min_calls}

    budget = Budget(latency=Limit(value=0.45e-3), load_per_s=200, max_drop=0.05)
    found, _ = verified(tmp_path, profile, script, budget)
    assert latency(found).verdict == "NOT_MET"
    assert latency(found).estimate == 0.5e-3
    assert "response times at 200 requests per second" in latency(found).source
    assert "service time p95 400 us" in latency(found).note.replace("µ", "u")


def test_a_baseline_that_answers_nothing_leaves_a_relative_limit_unmeasured(
    tmp_path: Path, profile: Profile
) -> None:
    def script(job: jobs.Measure, number: int, baseline: bool) -> dict[str, Any]:
        return {"latency_s": (), "timeouts": 50} if baseline else {}

    budget = Budget(latency=Limit(value=0.6, relative=True), load_per_s=200, max_drop=0.05)
    laboratory, _ = lab(tmp_path, profile, script, budget)
    side, base = (
        launches.alone(laboratory, deployment) for deployment in (PLAN, laboratory.dense(1, 1))
    )
    assert side is not None
    (found,) = verdicts.deployment_verdicts(laboratory.run, side, base)
    assert found.verdict == "NOT_MEASURED"


def test_throughput_and_memory_have_intervals(tmp_path: Path, profile: Profile) -> None:
    def script(job: jobs.Measure, number: int, baseline: bool) -> dict[str, Any]:
        return {
            "latency_s": (1e-3 * (1 + 0.01 * number),) * job.min_calls,
            "peak_memory_bytes": 100 + number,
            "response_s": (2e-3,) * job.min_calls,
        }

    laboratory, _ = lab(tmp_path, profile, script, Budget())
    side = launches.alone(laboratory, PLAN)
    assert side is not None
    plan = Plan(task="x", source_sha256=None, seed=0, recipe=None, epochs=0, deployment=PLAN)
    found = launches.result(laboratory.run, side, plan)
    assert found.throughput_interval is not None
    assert found.throughput_per_s is not None
    assert found.throughput_interval.low < found.throughput_per_s < found.throughput_interval.high
    assert found.memory_interval is not None
    assert found.memory_interval.low < 100 < 102 < found.memory_interval.high
    assert found.memory_interval.value == 102
    assert found.response_s is not None
    assert (found.response_s.p95, found.launches, found.disturbed) == (2e-3, 3, 0)


def test_a_cause_needs_a_number(tmp_path: Path, profile: Profile) -> None:
    laboratory, _ = lab(tmp_path, profile, plain, Budget())
    side = launches.alone(laboratory, PLAN)
    assert side is not None
    assert verdicts.disturbance(side.launches[0]) is None
    assert verdicts.clock_step_s(side.launches) == 0.0
    assert math.isfinite(sum(verdicts.judged(side.launches)[0]))
