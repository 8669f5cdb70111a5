"""Everything that makes a latency look better than it is, by name.

On simulated clocks, scripted machines and simulated processes with a known quantile: no
case needs hardware, and no case depends on how fast this machine is.
"""

import gc
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.api import Task, tune
from autotune.deployment.metrics import QUALITY_ALPHA
from autotune.records import job as jobs
from autotune.records.budget import Budget, Effort, Limit
from autotune.records.hardware import Profile
from autotune.records.measurement import LOOKS, Launch
from autotune.records.report import Execution, Failure
from autotune.stats import launch_ratio, limit_tests, quantile
from autotune.verification import launches as verification_launches
from autotune.verification import verdicts
from autotune.worker.data import rows
from autotune.worker.host import interference
from autotune.worker.host.interference import Counters
from autotune.worker.measure import measure
from tests.support.bridges import FunctionBridge
from tests.support.latency_sim import PLAN, Script, Ticking, lab, normal
from tests.support.simulated import Simulation

pytestmark = pytest.mark.usefixtures("_environment")
RUNS = 10_000
SIGMA = 0.4
Z99 = 2.3263478740408408
BUDGET = Budget(latency=Limit(value=0.6e-3), max_drop=0.05)

HEAD = """
from autotune.worker.measure.measure import simulated as t
calls = 0
def load():
    def predict(x):
        global calls
        calls += 1
        n = calls
"""

Timing = Callable[..., Launch]


@pytest.fixture
def timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Timing:
    """Measure an artifact whose n-th call executes ``body`` on a simulated clock ``t``."""

    def run(body: str, clock: Ticking | None = None, **changes: Any) -> Launch:
        clock = clock or Ticking()
        monkeypatch.setattr(measure, "simulated", clock, raising=False)
        folder = tmp_path / "artifact"
        folder.mkdir(exist_ok=True)
        lines = "".join(f"        {line}\n" for line in body.splitlines())
        (folder / "load.py").write_text(f"{HEAD}{lines}        return x\n    return predict\n")
        (folder / "artifact.json").write_text(json.dumps({"dynamic_batch": True}))
        samples = [(np.full(3, i, np.float32),) for i in range(20)]
        rows.save(tmp_path / "rows.npz", rows.from_samples("tensor", ("",), samples))
        fields: dict[str, Any] = {"min_calls": 200, "time_s": 0.0}
        job = jobs.Measure(
            artifact="artifact", rows="rows.npz", batch_size=1, threads=1, **fields | changes
        )
        return measure.run(job, tmp_path, clock.clock())

    return run


@pytest.fixture
def verified(tmp_path: Path, profile: Profile) -> Callable[..., verification_launches.Verified]:
    def run(script: Script, budget: Budget = BUDGET) -> verification_launches.Verified:
        laboratory, _ = lab(tmp_path, profile, script, budget)
        return verification_launches.verify(laboratory, PLAN, QUALITY_ALPHA, Execution())

    return run


def latency(found: verification_launches.Verified) -> Any:
    return next(v for v in found.verdicts if v.name == "latency")


# -- the exact test ------------------------------------------------------------------------


def test_bimodal_98_9_and_1_1_fails_p99() -> None:
    """The mean, the median and p95 are all splendid; 1.1 % of calls take 50 times as long."""
    rng = np.random.default_rng(0)
    launches = [np.where(rng.random(20_000) < 0.011, 50e-3, 1e-3) for _ in range(6)]
    assert limit_tests.latency(launches, 5e-3, 95).verdict == "MET"
    found = limit_tests.latency(launches, 5e-3, 99)
    assert found.verdict == "NOT_MET"
    assert found.estimate == 50e-3
    few = [launch[:500] for launch in launches[:3]]  # where it is not yet clear: not MET
    assert limit_tests.latency(few, 5e-3, 99).verdict != "MET"


@pytest.mark.parametrize(("calls", "expected"), [(458, "UNDECIDED"), (459, "MET")])
def test_a_single_look_at_458_is_undecided_and_at_459_met(calls: int, expected: str) -> None:
    launches = np.array_split(np.full(calls, 1e-3), 3)
    assert limit_tests.latency(launches, 2e-3, 99, alpha=0.01).verdict == expected


@pytest.mark.parametrize(("percentile", "calls"), [(95, 104), (99, 528)])
def test_the_sequential_schedule_at_its_own_thresholds(
    verified: Callable[..., verification_launches.Verified], percentile: float, calls: int
) -> None:
    """No slow call at all: MET at the first look with 104 (528) calls; with one less, not
    before the second.
    """
    for total, launches in ((calls, 3), (calls - 1, 6)):
        sizes = [len(part) for part in np.array_split(np.zeros(total), 3)]

        def script(
            job: jobs.Measure, number: int, baseline: bool, sizes: list[int] = sizes
        ) -> dict[str, Any]:
            return {"latency_s": (0.4e-3,) * sizes[number % 3]}

        budget = Budget(latency=Limit(value=0.6e-3), percentile=percentile, max_drop=0.05)
        found = verified(script, budget)
        assert latency(found).verdict == "MET"
        assert latency(found).confidence == 0.995
        assert len(found.side.launches) == launches


def _misses(correlation: float, calls: int, seed: int) -> tuple[float, float]:
    """Of 10,000 runs of three launches, the share in which the true p99 lies above the
    upper, and below the lower bound, each at alpha = 0.005.
    """
    rng = np.random.default_rng(seed)
    above = below = 0
    for _ in range(10):
        for run in normal(rng, (RUNS // 10, 3, calls), correlation):
            pooled = quantile.Tail(list(np.exp(SIGMA * run)), 99)
            above += pooled.supported(math.exp(SIGMA * Z99), 0.005)
            below += pooled.refuted(math.exp(SIGMA * Z99), 0.005)
    return above / RUNS, below / RUNS


def test_coverage_at_a_true_p99_over_10_000_runs() -> None:
    above, below = _misses(0.0, 528, seed=1)
    assert 0.001 < above <= 0.0071  # three standard errors; exact, but not absurdly wide
    assert 0.001 < below <= 0.0071


def test_coverage_at_a_true_p99_over_10_000_runs_under_ar1() -> None:
    above, below = _misses(0.9, 528, seed=2)
    assert above <= 0.0071
    assert below <= 0.0071


def test_independent_calls_keep_the_exact_test() -> None:
    """n_eff must not cost what it is not there for: of independent runs nearly all are
    worth their every call, and equal calls always are.
    """
    rng = np.random.default_rng(3)
    worth = [
        quantile.Tail(list(rng.lognormal(0, SIGMA, (3, 333))), 95).rank_inflation
        for _ in range(500)
    ]
    assert np.mean(np.equal(worth, 1.0)) > 0.97
    assert max(worth) < 2
    assert quantile.Tail([[1e-3] * 104] * 3, 95).rank_inflation == 1.0


@pytest.mark.parametrize("correlation", [0.5, 0.9])
def test_correlated_calls_are_worth_fewer(correlation: float) -> None:
    """At least what the theory of a Gaussian AR(1) says, and not many times that."""
    lags = correlation ** np.arange(1, 400)
    theory = 1 + 2 * float(quantile._exceedances(lags, 0.05).sum())
    rng = np.random.default_rng(4)
    found = [
        quantile.Tail(list(normal(rng, (3, 1000), correlation)), 95).rank_inflation
        for _ in range(50)
    ]
    assert 0.85 * theory < np.mean(found) < 1.5 * theory


def test_peeking() -> None:
    """To look after every 20 calls at 1 % until it pleases is wrong many times as often as
    the schedule, which never is more than promised.
    """
    rng = np.random.default_rng(5)
    slow = rng.random((RUNS, 1998)) < 0.05  # a plan at the limit: every MET is false
    sizes = np.arange(90, 1999, 20)
    counts = slow.cumsum(axis=1)[:, sizes - 1]
    most = [_most_slow(int(n), 0.01) for n in sizes]
    peeked = (counts <= np.asarray(most)).any(axis=1).mean()
    at = np.asarray(LOOKS) * verification_launches.calls_per_launch(95)
    most = [_most_slow(int(n), verdicts.LATENCY_ALPHA) for n in at]
    scheduled = (slow.cumsum(axis=1)[:, at - 1] <= np.asarray(most)).any(axis=1).mean()
    assert peeked > 0.03
    assert scheduled <= 0.0125


def _most_slow(calls: int, alpha: float) -> int:
    """The most slow calls of so many with which p95 is MET (-1: none)."""
    most = -1
    while quantile._supports(most + 1, calls, 0.05, alpha):
        most += 1
    return most


def test_peeking_is_not_done(
    verified: Callable[..., verification_launches.Verified], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    judge = verdicts.judge

    def counting(run: Any, side: verdicts.Candidate, *rest: Any) -> Any:
        looked.append(len(side.launches))
        return judge(run, side, *rest)

    def at_the_edge(job: jobs.Measure, number: int, baseline: bool) -> dict[str, Any]:
        order = np.random.default_rng(job.seed).permutation(job.min_calls)
        return {"latency_s": np.where(order % 20 == 0, 1e-3, 0.4e-3)}

    monkeypatch.setattr(verdicts, "judge", counting)
    assert latency(verified(at_the_edge)).verdict == "UNDECIDED"
    assert tuple(looked) == LOOKS


# -- comparing -----------------------------------------------------------------------------


def test_drift_in_an_ab_is_no_difference_and_is_said(
    verified: Callable[..., verification_launches.Verified],
) -> None:
    """The machine slows down by 5 % from launch to launch; the two plans are equal."""
    launched = 0

    def script(job: jobs.Measure, number: int, baseline: bool) -> dict[str, Any]:
        nonlocal launched
        launched += 1
        rng = np.random.default_rng(launched)
        center = 0.4e-3 * 1.05**launched
        return {"latency_s": center * np.exp(0.02 * rng.standard_normal(job.min_calls))}

    found = verified(script)
    assert found.comparison is not None
    assert found.comparison.low < 1 < found.comparison.high
    assert not found.comparison.beyond_noise
    assert "drift: the baseline's last launch took 1.2" in latency(found).note


def test_no_drift_is_not_said() -> None:
    rng = np.random.default_rng(6)
    launches = [0.01 * np.exp(0.1 * rng.standard_normal(300)) for _ in range(3)]
    found = launch_ratio.drift(launches)
    assert found is not None
    assert not found.found
    assert launch_ratio.drift(launches[:1]) is None
    assert launch_ratio.drift([[0.0] * 9, [0.0] * 9]) is None
    few = launch_ratio.drift([[1.0], [2.0]])  # one call each: a ratio, but no proof
    assert few is not None
    assert not few.found


def test_a_noise_only_comparison_shows_no_improvement() -> None:
    """Equal plans, launches that differ by 3 %: "faster" at most as often as its level."""
    rng = np.random.default_rng(7)
    claimed = 0
    for _ in range(2000):
        sides = 1e-3 * np.exp(0.03 * rng.standard_normal((2, 3, 1)))
        calls = sides * np.exp(0.1 * rng.standard_normal((2, 3, 60)))
        claimed += launch_ratio.faster(list(calls[0]), list(calls[1]), 95).beyond_noise
    assert claimed / 2000 <= 0.025 + 3 * math.sqrt(0.025 / 2000)


class Flat(Simulation):
    """All plans are equal: whatever the search finds is noise."""

    def latency_s(self, build: jobs.Build) -> float:
        return 1e-3

    def wrong(self, build: jobs.Build) -> int:
        return 10


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_noise_only_search_ends_with_no_improvement(
    tmp_path: Path, profile: Profile, seed: int
) -> None:
    model = tmp_path / "model.py"
    model.write_text("raise SystemExit('never loaded here')\n")
    report, _ = tune(
        Task.from_file(model),
        Budget(goal="latency", max_drop=0.05),
        Effort(time_s=120, trials=20, seed=seed),
        out=tmp_path / "out",
        bridge=lambda work: FunctionBridge(Flat(work, profile, spread=0.1).answer),
    )
    assert report.why.kept_baseline
    assert report.chosen is not None
    assert report.chosen.plan.deployment.runtime == "eager"
    assert report.chosen.plan.deployment.lossless


# -- warm-up -------------------------------------------------------------------------------


def test_a_compile_spike_stands_apart_and_does_not_use_up_the_warm_up(timed: Timing) -> None:
    found = timed("t.spend(6.0 if n == 1 else 4.0 if n == 2 else 0.001)", warmup_s=1.5)
    assert found.first_call_s == pytest.approx(6.0, rel=1e-3)
    assert found.settled
    assert found.warmup_calls >= 20
    assert max(found.latency_s) < 2e-3


def test_a_compile_spike_among_timed_calls_is_kept(timed: Timing) -> None:
    """A shape that comes late compiles late: its user waits for it, so it counts."""
    found = timed("t.spend(4.0 if n == 150 else 0.001)")
    assert max(found.latency_s) == pytest.approx(4.0, rel=1e-3)
    assert found.tags["slow"] == 1


def test_a_warm_up_that_never_settles_is_capped_and_said(
    timed: Timing, verified: Callable[..., verification_launches.Verified]
) -> None:
    found = timed("t.spend(0.001 * 1.05 ** (n / 10))", warmup_s=1.5)
    assert not found.settled
    assert found.warmup_calls < 1500

    def script(job: jobs.Measure, number: int, baseline: bool) -> dict[str, Any]:
        return {"settled": False}

    assert "3 of 3 launches did not reach a steady state" in latency(verified(script)).note


# -- the machine ---------------------------------------------------------------------------


def test_cgroup_throttling_is_seen_tagged_and_measured_again(
    timed: Timing,
    verified: Callable[..., verification_launches.Verified],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A quota of half a CPU: every 50th call waits 50 ms for the next period."""
    throttled = Ticking()

    def counters() -> Counters:
        periods = int(throttled.wall * 1e-9 / 0.1)
        return Counters(0.0, 0.0, 1.0, periods, periods * 0.05)

    monkeypatch.setattr(interference, "counters", counters)
    found = timed("t.spend(0.05 if n % 50 == 0 else 0.001)", throttled)
    assert found.environment["nr_throttled"] > 0  # type: ignore[operator]
    assert found.tags["slow_throttled"] >= 1
    assert max(found.latency_s) >= 0.05  # kept
    cause = verdicts.disturbance(found)
    assert cause is not None
    assert "CPU quota" in cause

    def script(job: jobs.Measure, number: int, baseline: bool) -> dict[str, Any]:
        first = not baseline and number == 0
        return {"environment": dict(found.environment) if first else {}}

    again = verified(script)
    assert len(again.side.disturbed) == 1
    assert len(again.side.launches) == 3
    assert "quota" in latency(again).note


def test_an_unsynchronised_device_is_waited_for(timed: Timing) -> None:
    """The call returns a promise in 10 us; the outputs are there after 5 ms."""
    body = (
        "class Promise:\n"
        "    def cpu(self):\n"
        "        t.spend(0.005)\n"
        "        return x\n"
        "t.spend(0.00001)\n"
        "return {'y': Promise(), 'z': [x, None]}"
    )
    found = timed(body)
    assert found.tags["unsynchronised"] == 1
    assert min(found.latency_s) >= 0.005
    assert found.first_call_s >= 0.005
    plain = timed("t.spend(0.00001)")
    assert plain.tags["unsynchronised"] == 0
    assert max(plain.latency_s) < 1e-4


def test_garbage_collections_are_kept(timed: Timing) -> None:
    found = timed(
        "if n % 40 == 0:\n    import gc\n    gc.collect()\n    t.spend(0.02)\nt.spend(0.001)"
    )
    assert gc.isenabled()
    assert len(found.latency_s) == 200
    slow = sum(s > 0.02 for s in found.latency_s)
    assert slow == 5
    assert found.tags["slow_gc"] == found.tags["slow"] == slow
    assert found.tags["gc"] >= slow


def test_a_coarse_timer_is_detected_and_its_step_counts_against_met(timed: Timing) -> None:
    """Calls of 0.3 ms on a clock of 1 ms read as 0 or 1 ms, and may be anything below 2 ms."""
    found = timed("t.spend(0.0003)", Ticking(read_ns=50, step_ns=1_000_000))
    assert set(np.round(found.latency_s, 9)) <= {0.0, 0.001}
    assert found.tags["coarse_timer"] == 1
    assert found.environment["timer_resolution_s"] == pytest.approx(1e-3)
    step = verdicts.clock_step_s([found])
    assert step == pytest.approx(1e-3)
    launches = [found.latency_s] * 3
    undecided = limit_tests.latency(launches, 1.5e-3, 95, step=step)
    assert undecided.verdict == "UNDECIDED"
    assert undecided.note == "the clock is too coarse: a finer one would decide"
    assert limit_tests.latency(launches, 2.1e-3, 95, step=step).verdict == "MET"
    assert limit_tests.latency(launches, 0.5e-3, 95, step=step).verdict == "UNDECIDED"
    fine = timed("t.spend(0.0003)")
    assert fine.tags["coarse_timer"] == 0
    assert verdicts.clock_step_s([fine]) == 0.0


# -- load ----------------------------------------------------------------------------------


def test_coordinated_omission_is_avoided(timed: Timing) -> None:
    """1 ms a request at 200 per second, and one stall of 1 s.  The closed loop sees one slow
    call; of the requests that come meanwhile each waits.
    """
    body = "t.spend(1.0 if n == 500 else 0.001)"
    closed = timed(body, min_calls=800)
    opened = timed(body, min_calls=800, load_per_s=200.0, arrivals="fixed")
    assert quantile.point_quantile(closed.latency_s, 99) < 2e-3
    assert quantile.point_quantile(opened.latency_s, 99) < 2e-3  # service time
    assert quantile.point_quantile(opened.response_s, 99) > 0.9
    waited = sum(response > 0.01 for response in opened.response_s)
    assert 200 <= waited <= 300
    assert closed.response_s == ()


def test_a_saturated_server_shows_in_the_response_time_only(timed: Timing) -> None:
    service = []
    response = []
    for rate in (20.0, 90.0, 150.0):  # of a server that can answer 100
        found = timed("t.spend(0.01)", load_per_s=rate, min_calls=300)
        service.append(quantile.point_quantile(found.latency_s, 99))
        response.append(quantile.point_quantile(found.response_s, 99))
    assert service == pytest.approx([0.01] * 3, rel=0.01)
    assert response[0] < response[1] < response[2]
    assert response[2] > 0.5


def test_timeouts_count_as_misses(
    timed: Timing, verified: Callable[..., verification_launches.Verified]
) -> None:
    """Those who were answered were answered quickly: that is no success for the others."""
    found = timed("t.spend(0.02)", load_per_s=200.0, arrivals="fixed", min_calls=800, most_s=2.0)
    assert found.timeouts > 100

    def script(job: jobs.Measure, number: int, baseline: bool) -> dict[str, Any]:
        fast = (0.4e-3,) * 313
        return {"latency_s": fast, "response_s": fast, "timeouts": 0 if baseline else 200}

    budget = Budget(latency=Limit(value=0.6e-3), load_per_s=200.0, max_drop=0.05)
    ended = verified(script, budget)
    assert latency(ended).verdict == "NOT_MET"
    assert latency(ended).estimate is None  # the quantile lies among the unanswered
    assert latency(ended).samples == 3 * 513
    assert "600 requests were not answered in time and count as misses" in latency(ended).note
    answered = np.full(1000, 0.4e-3)
    few = [[*answered, *[math.inf] * 60] for _ in range(3)]  # 5.7 % missed, all at the end
    assert limit_tests.latency([answered] * 3, 0.6e-3, 95).verdict == "MET"
    assert limit_tests.latency(few, 0.6e-3, 95).verdict != "MET"
    assert limit_tests.latency(few, 0.6e-3, 95).estimate is None


def test_a_call_that_never_returns_is_never_met(
    verified: Callable[..., verification_launches.Verified],
) -> None:
    def script(job: jobs.Measure, number: int, baseline: bool) -> dict[str, Any]:
        hangs = not baseline and number == 2
        return {"failure": Failure(kind="hang", message="no answer")} if hangs else {}

    found = verified(script)
    assert not found.met
    assert found.failure == "no answer"
