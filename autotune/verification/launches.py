"""Launches of finalists and the baseline, in turn, with the bytes that are shipped.

    round     1    2    3   | look 1 |   4    5    6   | look 2
    launches  A B  B A  A B |        |  B A  A B  B A  |          A: baseline, B: plan

Each launch is a new interpreter on other rows.  Verdicts are given at two looks that are fixed
beforehand, each at half of the error rate: looking after every launch would multiply the error.  A
launch that other load on the machine disturbed is taken again, once; both are recorded.  Quality is
tested on *test*, once for each finalist in order, with most of the error rate for the first.  The
first launch writes the outputs on *test*, so that a finalist whose quality fails is launched no
further while another one waits.
"""

import math
from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

from autotune.context import RunContext
from autotune.deployment import DeploymentEvaluator, metrics
from autotune.deployment.artifact_jobs import interleaved, measure_job, outputs_of
from autotune.deployment.metrics import QUALITY_ALPHA
from autotune.records import job as jobs
from autotune.records.measurement import LOOKS, Launch, Verdict
from autotune.records.plan import Deployment, Plan
from autotune.records.report import Execution, PlanResult
from autotune.stats import launch_ratio, limit_tests, non_inferiority, quantile
from autotune.verification import verdicts
from autotune.verification.verdicts import LATENCY_ALPHA, Candidate, disturbance

EXPECTED_SLOW = 100
"""Calls over the limit that a plan exactly at the limit would show by the last look, where time
allows: 2,000 calls for p95.  A plan with half as many is then MET almost surely.
"""
LAUNCH_S = 0.7
"""Seconds of timing in each launch, at least."""
_LEFT_SHARE = 0.08
"""Share of a run's time that has to be left for another launch after the first look."""
_MOST_S = (3.0, 6.0)  # seconds, before and after the first look: a slow plan has fewer calls
_MOST_CALLS = 5000


class Beaten(NamedTuple):
    """Another plan, and this one's time over its own."""

    deployment: Deployment
    by: launch_ratio.Comparison


class Verified(NamedTuple):
    """A finalist's launches, the baseline's beside them, and the verdicts.

    ``failure`` says why it could not be verified at all; ``stopped_early`` that its quality failed
    in the first launch, so that it was launched no further; ``beaten`` is the plan it replaces.
    """

    side: Candidate
    reference: Candidate
    verdicts: tuple[Verdict, ...]
    comparison: launch_ratio.Comparison | None
    failure: str | None = None
    stopped_early: bool = False
    beaten: Beaten | None = None

    @property
    def met(self) -> bool:
        return bool(self.verdicts) and limit_tests.exit_code(self.verdicts) == 0


def calls_per_launch(percentile: float) -> int:
    """Least calls of each launch."""
    spread = EXPECTED_SLOW / (1 - percentile / 100) / LOOKS[-1]
    return max(quantile.samples_needed(percentile, LATENCY_ALPHA), math.floor(spread + 1e-6))


def launch_window_s(run: RunContext, launch: Launch) -> float:
    """Seconds of timing in each launch before the last look, by a launch of the search."""
    call_s = launch.window_s / max(1, launch.window_calls)
    return min(_MOST_S[0], max(LAUNCH_S, calls_per_launch(run.budget.percentile) * call_s))


def verify(
    evaluator: DeploymentEvaluator,
    deployment: Deployment,
    alpha: float,
    execution: Execution,
    *,
    others: bool = False,
) -> Verified:
    """Verify one deployment against the dense eager baseline at its threads and batch, its quality
    at the error rate ``alpha``.  Where ``others`` wait, one whose quality fails is left after its
    first launch.
    """
    reference = _side(evaluator, evaluator.dense(deployment.threads, deployment.batch_size))
    side = reference if deployment == reference.deployment else _side(evaluator, deployment)
    if others:
        failure = _take(evaluator, side, reference, 1)
        if failure is not None:
            return Verified(side, reference, (), None, failure)
        judged = verdicts.judge(evaluator.run, side, reference, alpha)
        if any(verdicts.failed(evaluator.run, v) for v in judged):
            trained = verdicts.training_verdicts(evaluator.run.budget, execution, evaluator.run)
            return Verified(side, reference, (*judged, *trained), None, stopped_early=True)
    return finish(evaluator, side, reference, alpha, execution)


def finish(
    evaluator: DeploymentEvaluator,
    side: Candidate,
    reference: Candidate,
    alpha: float,
    execution: Execution,
) -> Verified:
    """Launch both sides up to the looks, beyond what launches they have, and judge."""
    run = evaluator.run
    trained = verdicts.training_verdicts(run.budget, execution, run)
    judged: tuple[Verdict, ...] = ()
    comparison = None
    for launches in LOOKS:
        before = len(side.launches)
        failure = _take(evaluator, side, reference, launches)
        if failure is not None:
            return Verified(side, reference, (), None, failure)
        if len(side.launches) > before:
            judged = verdicts.judge(run, side, reference, alpha)
        if side is not reference:
            comparison = launch_ratio.faster(
                side.latencies, reference.latencies, run.budget.percentile
            )
        open_ = any(v.verdict == "UNDECIDED" and v.name != "quality" for v in judged)
        if not open_ and not _may_be_faster(comparison):
            break
    return Verified(side, reference, (*judged, *trained), comparison)


def _may_be_faster(comparison: launch_ratio.Comparison | None) -> bool:
    """Whether more launches may show that it beats the baseline.  The error rate of each look is
    2.5 %: a plan that does not beat the baseline replaces it in one run of twenty at most.
    """
    return comparison is not None and comparison.ratio < 1 and not comparison.beyond_noise


def unkept(run: RunContext, found: Verified) -> tuple[str, ...]:
    """The limits that the baseline is not shown to keep by its own launches."""
    own = verdicts.judge(run, found.reference, found.reference, QUALITY_ALPHA)
    return tuple(v.name for v in own if v.verdict != "MET")


def head_to_head(
    evaluator: DeploymentEvaluator, mine: Deployment, theirs: Deployment
) -> launch_ratio.Comparison | None:
    """Both launched anew in turn, up to the last look while that may show mine to be faster; None
    where one fails.
    """
    side, other = _side(evaluator, mine), _side(evaluator, theirs)
    found = None
    for launches in LOOKS:
        if _take(evaluator, side, other, launches) is not None:
            return None
        found = launch_ratio.faster(
            side.latencies, other.latencies, evaluator.run.budget.percentile
        )
        if not _may_be_faster(found):
            break
    return found


def in_turn(evaluator: DeploymentEvaluator, side: Candidate, other: Candidate) -> str | None:
    """Launch two sides in turn up to the first look; why it failed, if it did."""
    return _take(evaluator, side, other, LOOKS[0])


def _take(
    evaluator: DeploymentEvaluator, side: Candidate, reference: Candidate, launches: int
) -> str | None:
    """Launch both sides in turn up to this number.  Past the first look the clock may end
    it early: never what was measured.
    """

    def rounds() -> Iterator[int]:
        for number in range(len(side.launches), launches):
            if (
                number >= LOOKS[0]
                and evaluator.run.left_s < _LEFT_SHARE * evaluator.run.effort.time_s
            ):
                return
            yield number

    sides = (side,) if side is reference else (reference, side)
    return interleaved(sides, rounds(), lambda one, number: _launch(evaluator, one, number))


def alone(evaluator: DeploymentEvaluator, deployment: Deployment) -> Candidate | None:
    """Launch one deployment alone, for the report; None where a launch fails."""
    side = _side(evaluator, deployment)
    failure = interleaved(
        [side], range(LOOKS[0]), lambda one, number: _launch(evaluator, one, number)
    )
    return side if failure is None else None


def _side(evaluator: DeploymentEvaluator, deployment: Deployment) -> Candidate:
    built = evaluator.build(deployment).answer
    assert built is not None, "it was built in the search"
    return Candidate(deployment, built)


def _launch(evaluator: DeploymentEvaluator, side: Candidate, pair: int) -> str | None:
    """One launch, and another if it was disturbed.  The first also writes the outputs on *test*,
    which are scored.
    """
    part = "test" if side.scores is None else None
    result = _measure(evaluator, side, pair, part)
    if result.answer is None:
        return _message(result)
    launch = result.answer.launch
    if disturbance(launch) and not side.always_disturbed:
        side.disturbed.append(launch)
        again = _measure(evaluator, side, pair, None)
        if again.answer is None:
            return _message(again)
        launch = again.answer.launch  # even if disturbed: to choose among launches would bias
        side.always_disturbed = disturbance(launch) is not None
    side.launches.append(launch)
    if part is not None:
        scored = evaluator.score(side.built, part)
        if scored.answer is None:
            return _message(scored)
        side.scores = scored.answer.scores
    return None


def _message(result: jobs.Result[jobs.Answer]) -> str:
    return result.failure.message if result.failure else "no answer"


def _measure(
    evaluator: DeploymentEvaluator, side: Candidate, pair: int, part: str | None
) -> jobs.Result[jobs.Measured]:
    run, calls = evaluator.run, calls_per_launch(evaluator.run.budget.percentile)
    job = measure_job(
        run,
        side.built,
        side.deployment,
        seed=1000 * (run.effort.seed + 1) + pair,  # another order of rows than in the search
        min_calls=calls,
        max_calls=max(calls, _MOST_CALLS),
        time_s=LAUNCH_S,
        most_s=_MOST_S[int(pair >= LOOKS[0])],
        score_rows=f"data/{part}.npz" if part else None,
        outputs=outputs_of(side.built, part) if part else None,
    )
    return run.bridge.run(job, timeout_s=150.0 + evaluator.evaluation_limit_s())


def result(run: RunContext, side: Candidate, plan: Plan) -> PlanResult:
    """All figures of one verified deployment, for the report."""
    fields = metrics.describe(run, side.launches, side.deployment)
    scores, launches, batch = side.scores, side.launches, side.deployment.batch_size
    rates = [_rate(launch, batch) for launch in launches]
    peaks = [float(launch.peak_memory_bytes) for launch in launches]
    response = None
    if any(launch.response_s for launch in launches):
        answered = [launch.response_s for launch in launches]
        response = quantile.quantiles(answered, run.budget.percentile)
    return PlanResult(
        plan=plan,
        size_bytes=side.built.size_bytes,
        load_s=median([launch.load_s for launch in side.launches]),
        first_call_s=median([launch.first_call_s for launch in side.launches]),
        quality=scores.quality if scores else None,
        quality_interval=non_inferiority.quality_interval(scores) if scores else None,
        worst_class_recall=scores.worst_class_recall if scores else None,
        balanced_accuracy=scores.balanced_accuracy if scores else None,
        launches=len(side.launches),
        response_s=response,
        throughput_interval=launch_ratio.mean_interval([rate for rate in rates if rate]),
        memory_interval=launch_ratio.next_interval(peaks),
        disturbed=len(side.disturbed),
        **fields,  # type: ignore[arg-type]
    )


def _rate(launch: Launch, batch: int) -> float | None:
    """Samples per second, one call after another."""
    busy = math.fsum(launch.latency_s)
    return batch * len(launch.latency_s) / busy if busy else None
