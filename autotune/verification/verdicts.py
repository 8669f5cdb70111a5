"""Verdicts on a deployment that was launched: latency, energy, memory, quality, and the training's.

They are given at looks that are fixed beforehand, each at half of the error rate.  Relative limits
hold against the baseline's own launches.  How the launches are taken is `launches`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from autotune import units
from autotune.context import RunContext
from autotune.deployment import metrics
from autotune.records import job as jobs
from autotune.records.budget import Budget
from autotune.records.measurement import LOOKS, EnergyWindow, Launch, Scores, Verdict
from autotune.records.plan import Deployment
from autotune.records.report import Execution
from autotune.stats import launch_ratio, limit_tests, non_inferiority, quantile
from autotune.training import target_quality

LATENCY_ALPHA = 0.01 / len(LOOKS)
ENERGY_ALPHA = 0.05 / len(LOOKS)


FOREIGN_LOAD, STEAL = 0.2, 0.05
"""Shares of the cores, and of the time, from which on a launch is taken again."""


@dataclass
class Candidate:
    """One deployment under verification, with its launches; ``disturbed`` ones were taken again."""

    deployment: Deployment
    built: jobs.Built
    launches: list[Launch] = field(default_factory=list)
    scores: Scores | None = None
    disturbed: list[Launch] = field(default_factory=list)
    always_disturbed: bool = False

    @property
    def latencies(self) -> list[tuple[float, ...]]:
        """Service times of every launch."""
        return [launch.latency_s for launch in self.launches]


def judge(
    run: RunContext, side: Candidate, reference: Candidate, quality_alpha: float
) -> tuple[Verdict, ...]:
    """A verdict for every deployment budget and for quality."""
    out = deployment_verdicts(run, side, reference)
    if side.scores is None or reference.scores is None:
        return out
    floor = min_quality(run, side)
    return (*out, _quality(run, side, reference, quality_alpha), *floor)


def min_quality(run: RunContext, side: Candidate) -> tuple[Verdict, ...]:
    """``--min-quality`` against the 95 % interval of the quality itself."""
    limit, scores = run.budget.min_quality, side.scores
    if limit is None or scores is None:
        return ()
    return (limit_tests.min_quality(scores, limit, run.survey.task.higher_is_better),)


def deployment_verdicts(
    run: RunContext, side: Candidate, reference: Candidate | None
) -> tuple[Verdict, ...]:
    """A verdict for every deployment budget; relative limits need the reference."""
    budget = run.budget
    base_s = base_bytes = None
    if reference is not None:
        calls = [x for one in judged(reference.launches) for x in one if x < math.inf]
        base_s = quantile.point_quantile(calls, budget.percentile) if calls else None
        base_bytes = float(max(launch.peak_memory_bytes for launch in reference.launches))
    out = []
    limit = metrics.resolve(budget.latency, base_s)
    if budget.latency is not None and limit is None:
        source = "relative to a baseline that answered no request"
        out.append(limit_tests.scalar("latency", "s", None, budget.latency.value, source))
    elif limit is not None:
        out.append(_latency(budget, side, reference, limit))
    if budget.energy is not None:
        out.append(_energy(run, side, reference))
    limit = metrics.resolve(budget.memory, base_bytes)
    if limit is not None:
        own = [launch.peak_memory_bytes for launch in side.launches]
        out.append(limit_tests.memory(own, limit))
    return tuple(out)


def judged(launches: Sequence[Launch]) -> list[list[float]]:
    """What a latency limit is about: response times under load, else service times.  A
    request that was never answered is infinitely slow.
    """
    return [
        [*(launch.response_s or launch.latency_s), *[math.inf] * launch.timeouts]
        for launch in launches
    ]


def _latency(budget: Budget, side: Candidate, reference: Candidate | None, limit: float) -> Verdict:
    what = "single calls"
    if budget.load_per_s is not None:
        what = f"response times at {budget.load_per_s:g} requests per second"
    found = limit_tests.latency(
        judged(side.launches),
        limit,
        budget.percentile,
        alpha=LATENCY_ALPHA,
        what=what,
        step=clock_step_s(side.launches),
    )
    notes = [found.note] if found.note else []
    notes += _notes(side.launches, side.disturbed, budget.percentile)
    moved = launch_ratio.drift((reference or side).latencies)
    if moved is not None and moved.found:
        notes.append(
            f"drift: the baseline's last launch took {moved.ratio:.2f}x its first one's time"
        )
    return msgspec.structs.replace(found, note="; ".join(notes) or None)


def _quality(run: RunContext, side: Candidate, reference: Candidate, alpha: float) -> Verdict:
    assert side.scores is not None
    assert reference.scores is not None
    allowed = metrics.max_drop(run, reference.scores.quality)
    higher = run.survey.task.higher_is_better
    found = non_inferiority.quality_drop(
        side.scores, reference.scores, allowed, higher_is_better=higher, alpha=alpha
    )
    if side is reference:
        return msgspec.structs.replace(
            found, verdict="MET", lower=0.0, upper=0.0, note="the plan is the baseline itself"
        )
    return found


def _energy(run: RunContext, side: Candidate, reference: Candidate | None) -> Verdict:
    batch = side.deployment.batch_size
    windows = [launch.energy for launch in side.launches]
    base = modelled = None
    if metrics.energy_per_sample(side.launches, batch) is None:
        modelled = metrics.modelled_energy(run, side.launches, side.deployment)
    if reference is not None:
        base = metrics.energy_per_sample(reference.launches, batch)
        if base is None and modelled is not None:
            known = metrics.modelled_energy(run, reference.launches, reference.deployment)
            base = known.value if known is not None else None
    assert run.budget.energy is not None
    limit = metrics.resolve(run.budget.energy, base)
    if limit is None:  # relative to a baseline that was not measured
        limit = run.budget.energy.value
    per_sample = [
        (w.uncertainty_j or 0.0) / (launch.window_calls * batch)
        for launch, w in zip(side.launches, windows, strict=True)
        if w is not None
    ]
    read = [w for w in windows if w is not None]
    domains = tuple(d.name for d in read[0].domains) if read else ()
    return limit_tests.energy(
        metrics.energies(side.launches, batch),
        limit,
        label=read[0].label if read else "unavailable",
        uncertainty=max(per_sample, default=0.0),
        modelled=modelled,
        accept_modelled=run.budget.accept_modelled_energy,
        origin=read[0].domains[0].origin if read and read[0].domains else "local",
        domains=domains,
        alpha=ENERGY_ALPHA,
        reason=_why_no_energy(run, read),
    )


def _why_no_energy(run: RunContext, windows: list[EnergyWindow]) -> str | None:
    reasons = [s.reason for s in run.sources if s.reason]
    remedies = [s.remedy for s in run.sources if s.remedy]
    if any(w.total_j is not None for w in windows):
        return None
    return "; ".join(dict.fromkeys(reasons + remedies)) or "no energy source"


def training_verdicts(budget: Budget, done: Execution, run: RunContext) -> tuple[Verdict, ...]:
    """Verdicts on the final training, measured once."""
    source = "the final training"
    out = []
    if budget.train_time_s is not None:
        out.append(limit_tests.scalar("train_time", "s", done.train_s, budget.train_time_s, source))
    if budget.train_energy_j is not None:
        origin = next((s.origin for s in run.sources if s.label.startswith("measured")), None)
        label = done.train_energy_label or "unavailable"
        named = f"{source}, {label}" + (f", {origin}" if origin and origin != "local" else "")
        out.append(
            limit_tests.scalar(
                "train_energy", "J", done.train_energy_j, budget.train_energy_j, named
            )
        )
    if budget.train_memory_bytes is not None:
        found = done.train_memory_bytes
        out.append(
            limit_tests.scalar("train_memory", "B", found, budget.train_memory_bytes, source)
        )
    return (*out, *target_quality.verdicts(run, done))


def failed(run: RunContext, v: Verdict) -> bool:
    """Whether a verdict on quality speaks against a plan, where another plan may do better."""
    return v.name in ("quality", "min_quality") and v.verdict != "MET" and not too_few(run, v)


def too_few(run: RunContext, v: Verdict) -> bool:
    """Whether the allowed drop is undecided because so few rows cannot certify it for any plan."""
    least = run.survey.certifiable_drop
    uncertain = v.name == "quality" and v.verdict == "UNDECIDED"
    return uncertain and least is not None and least > v.limit


# -- the machine under a launch --------------------------------------------------------------


def disturbance(launch: Launch) -> str | None:
    """Why a launch should be taken again, or None; what could not be read does not count."""
    found = []
    throttled = _number(launch, "nr_throttled")
    if throttled is not None and throttled > 0:
        found.append(f"throttled {throttled:.0f} times by a CPU quota")
    steal = _number(launch, "steal_share")
    if steal is not None and steal > STEAL:
        found.append(f"{units.percent(steal)} stolen by the hypervisor")
    foreign = _number(launch, "foreign_load")
    if foreign is not None and foreign > FOREIGN_LOAD:
        found.append(f"{units.percent(foreign)} foreign load")
    return ", ".join(found) or None


def clock_step_s(launches: Sequence[Launch]) -> float:
    """Resolution of the clock in seconds where it was too coarse for the calls, else 0."""
    coarse = (one for one in launches if one.tags.get("coarse_timer"))
    return max((_number(one, "timer_resolution_s") or 0.0 for one in coarse), default=0.0)


def _notes(launches: Sequence[Launch], disturbed: Sequence[Launch], percentile: float) -> list[str]:
    """What a reader of the latency verdict should know of its launches."""
    out = []
    if any(launch.response_s for launch in launches):
        calls = [x for launch in launches for x in launch.latency_s]
        service = quantile.point_quantile(calls, percentile)
        out.append(f"service time p{percentile:g} {units.show(service, 's')}")
    timeouts = sum(launch.timeouts for launch in launches)
    if timeouts:
        out.append(f"{timeouts} requests were not answered in time and count as misses")
    unsettled = sum(not launch.settled for launch in launches)
    if unsettled:
        out.append(
            f"{unsettled} of {len(launches)} launches did not reach a steady state in the warm-up"
        )
    if disturbed:
        were = "launch was" if len(disturbed) == 1 else "launches were"
        out.append(
            f"{len(disturbed)} {were} disturbed ({disturbance(disturbed[0])}) and taken again"
        )
    still = [found for launch in launches if (found := disturbance(launch))]
    if still:
        out.append(
            f"{len(still)} of {len(launches)} launches that count were disturbed ({still[0]})"
        )
    step = clock_step_s(launches)
    if step:
        out.append(f"the clock has a resolution of {units.show(step, 's')}")
    return out


def _number(launch: Launch, name: str) -> float | None:
    value = launch.environment.get(name)
    return value if isinstance(value, float) else None
