"""Figures of a deployment from its launches, and its constraints under the limits.

launches --describe--> latency, energy, memory, throughput
figures, baseline's --constraints--> measured / limit - 1: the search's constraints
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from autotune.context import RunContext
from autotune.meters import modelled
from autotune.records import job as jobs
from autotune.records.budget import Limit
from autotune.records.measurement import Interval, Launch, Scores
from autotune.records.plan import Deployment, Value
from autotune.records.report import DeployTrial
from autotune.stats import non_inferiority, paired, quantile
from autotune.units import metric

QUALITY_ALPHA = 0.05
"""One-sided error rate of the test of quality, shared by the finalists that may be tested."""
FINALISTS = 3
_SHARES = ((0.6, 0.25, 0.15), (1 / 3,) * 3, (0.7, 0.3), (0.5, 0.5), (1.0,))
"""Shares of `QUALITY_ALPHA` by finalist: most for the first, as the others are rarely tested."""


class Tried(NamedTuple):
    """A trial with what does not go into the report."""

    trial: DeployTrial
    built: jobs.Built | None = None
    launch: Launch | None = None
    scores: Scores | None = None
    values: Mapping[str, Value] | None = None
    smoothed: float | None = None
    """The goal's objective as all trials together have it (`surrogate.smoothed`)."""
    again: tuple[Launch, ...] = ()
    """Launches in turn with other leading plans, once the search was over (`racing`)."""


def describe(
    run: RunContext, launches: Sequence[Launch], deployment: Deployment
) -> dict[str, object]:
    """Figures of a deployment from its launches."""
    latencies = [launch.latency_s for launch in launches]
    batch = deployment.batch_size
    busy = sum(sum(latency) for latency in latencies)
    energy = energy_per_sample(launches, batch)
    held = [n for launch in launches if (n := launch.device_memory_bytes) is not None]
    return {
        "latency_s": quantile.quantiles(latencies, run.budget.percentile),
        "energy_j_per_sample": energy,
        "energy_modelled": modelled_energy(run, launches, deployment) if energy is None else None,
        "memory_bytes": max(launch.peak_memory_bytes for launch in launches),
        "device_memory_bytes": max(held, default=None),
        "throughput_per_s": batch * sum(map(len, latencies)) / busy if busy else None,
    }


def energies(launches: Sequence[Launch], batch: int) -> list[float | None]:
    """Joules per sample of each launch; None where a launch was not measured."""
    out: list[float | None] = []
    for launch in launches:
        total = launch.energy.total_j if launch.energy else None
        out.append(total / (launch.window_calls * batch) if total is not None else None)
    return out


def energy_per_sample(launches: Sequence[Launch], batch: int) -> float | None:
    """Mean over launches; None unless every one was measured."""
    known = [e for e in energies(launches, batch) if e is not None]
    return sum(known) / len(known) if launches and len(known) == len(launches) else None


def modelled_energy(
    run: RunContext, launches: Sequence[Launch], deployment: Deployment
) -> Interval | None:
    """The power model's joules per sample; never a measurement.  None on a GPU: the model is of
    processors.
    """
    if run.survey.device(deployment.runtime) == "cuda":
        return None
    batch = deployment.batch_size
    cpu = sum(launch.cpu_s for launch in launches)
    window = sum(launch.window_s for launch in launches)
    samples = batch * sum(launch.window_calls for launch in launches)
    idle_w, max_w = run.effort.cpu_idle_w, run.effort.cpu_max_w
    if idle_w is None or max_w is None:
        idle_w, max_w = modelled.measured_w(run.profile) or (None, None)
    found, _ = modelled.energy(run.profile, cpu, window, idle_w=idle_w, max_w=max_w)
    return Interval(value=found.value / samples, low=found.low / samples, high=found.high / samples)


# -- limits --------------------------------------------------------------------------------


def resolve(limit: Limit | None, baseline: float | None) -> float | None:
    """A limit in SI units; None where it is relative to something that was not measured."""
    if limit is None:
        return None
    if not limit.relative:
        return limit.value
    return limit.value * baseline if baseline is not None else None


def at_percentile(run: RunContext, tried: Tried) -> float | None:
    """The latency at the budget's percentile, in seconds (under load that of the responses)."""
    if tried.launch is None:
        return None
    launches = tried.again or (tried.launch,)
    found = [s for launch in launches for s in (launch.response_s or launch.latency_s)]
    return quantile.point_quantile(found, run.budget.percentile)


def max_drop(run: RunContext, baseline_quality: float) -> float:
    """Allowed fall of quality, in the metric's unit."""
    given = run.max_drop
    return given if given is not None else 0.01 * abs(baseline_quality)


def known_energy(trial: DeployTrial) -> float | None:
    """Measured joules per sample, else the model's value (which orders and never decides)."""
    if trial.energy_j_per_sample is not None:
        return trial.energy_j_per_sample
    return trial.energy_modelled.value if trial.energy_modelled else None


def quality_alphas(run: RunContext, most: int = FINALISTS) -> tuple[float, ...]:
    """The error rates of the finalists' tests of quality on *test*, in their order: a weighted
    Bonferroni correction, so that any of them passes wrongly with probability `QUALITY_ALPHA` at
    most.

    For no more finalists than ``most``, and than the rows can certify the allowed drop for, where
    they can for one plan; in equal shares where the last share would be too small.
    """
    rows, allowed = run.survey.task.test_rows, run.max_drop
    alphas = [tuple(QUALITY_ALPHA * x for x in shares) for shares in _SHARES if len(shares) <= most]
    if not run.survey.task.binary or allowed is None:
        return alphas[0]
    for some in alphas:
        least = non_inferiority.smallest_certifiable_drop(rows, some[-1])
        if least is not None and least < allowed:
            return some
    return alphas[0]


def constraints(run: RunContext, tried: Tried, reference: Tried) -> dict[str, object]:
    """``constraints``, ``drop`` and ``drop_upper`` of a trial against the baseline."""
    trial, base = tried.trial, reference.trial
    limits = run.budget
    out: dict[str, float] = {}
    latency = at_percentile(run, tried)
    limit = resolve(limits.latency, at_percentile(run, reference))
    if limit and latency is not None:
        out["latency"] = latency / limit - 1
    limit = resolve(limits.memory, base.memory_bytes)
    if limit and trial.memory_bytes is not None:
        out["memory"] = trial.memory_bytes / limit - 1
    measured = trial.energy_j_per_sample
    if measured is None and limits.accept_modelled_energy:
        measured = known_energy(trial)
    limit = resolve(limits.energy, known_energy(base))
    if limit and measured is not None:
        out["energy"] = measured / limit - 1
    drop = upper = None
    if tried.scores is not None and reference.scores is not None:
        allowed = max_drop(run, reference.scores.quality)
        alpha = quality_alphas(run)[0]
        higher = run.survey.task.higher_is_better
        found = non_inferiority.quality_drop(
            tried.scores,
            reference.scores,
            allowed,
            higher_is_better=higher,
            alpha=alpha,
        )
        drop, upper, judged = found.estimate, found.upper, found.estimate
        if certifiable(run, allowed, alpha) and drop is not None and upper is not None:
            upper = judged = _on_test(run, drop, upper, tried.scores.rows)
        if judged is not None and allowed > 0:
            out["quality"] = judged / allowed - 1
        elif judged is not None:
            out["quality"] = judged - allowed
    return {"constraints": out, "drop": drop, "drop_upper": upper}


def certifiable(run: RunContext, allowed: float, alpha: float) -> bool:
    """Whether *test* has rows enough to certify the allowed drop at all; of real scores, as far
    as `say_certifiable` knows how they spread.
    """
    rows, known = run.survey.task.test_rows, run.survey.certifiable_drop
    least = non_inferiority.smallest_certifiable_drop(rows, alpha)
    if not run.survey.task.binary:
        of_one = non_inferiority.smallest_certifiable_drop(rows, spread=1.0)
        if known is None or not of_one:
            return False
        least = non_inferiority.smallest_certifiable_drop(rows, alpha, spread=known / of_one)
    return least is not None and least < allowed


def say_certifiable(run: RunContext, scores: Scores) -> RunContext:
    """The run with the smallest drop that *test* can certify of real scores, known once those of
    the baseline show how far they spread; a drop too small for its rows is said.
    """
    task, values = run.survey.task, scores.per_sample
    if run.survey.certifiable_drop is not None or not values or paired.binary(values):
        return run
    spread, rows = paired.differ_by(values), task.test_rows
    least = non_inferiority.smallest_certifiable_drop(rows, spread=spread)
    run = run.with_survey(certifiable_drop=least)
    allowed = max_drop(run, scores.quality)
    if least is None or least <= allowed:
        return run
    needed = non_inferiority.rows_needed(allowed, spread=spread)
    remedy = f"would need {needed} rows" if needed else "can be certified by no number of rows"
    run.listener.note(
        f"{rows} test rows: the smallest drop of {task.metric} they can certify is "
        f"{metric(least)}. One of {metric(allowed)} {remedy}: quality will be UNDECIDED; "
        f"--max-drop {1.5 * least:.2g} is wide enough."
    )
    return run


def _on_test(run: RunContext, drop: float, upper: float, rows: int) -> float:
    """The upper bound that *test* would give for the drop seen on ``rows`` of *validation*: its
    distance from the drop shrinks, or grows, with the root of their number.
    """
    return drop + (upper - drop) * math.sqrt(rows / run.survey.task.test_rows)
