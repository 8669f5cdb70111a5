"""Verification: finalists against the baseline, as the very bytes that are shipped.

Launches alternate in ABBA order, each a new interpreter on fresh samples, until every
verdict is decided or the cap is reached.  Quality is tested on *confirm*, once for each
finalist in order, with the error rate split over them.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from autotune.control import figures, verdict
from autotune.control.deploying import Lab
from autotune.control.run import Run
from autotune.records import job as jobs
from autotune.records.budget import Budget
from autotune.records.measurement import EnergyWindow, Launch, Scores, Verdict
from autotune.records.plan import Deployment, Plan
from autotune.records.report import Execution, PlanResult

LATENCY_ALPHA = 0.005  # per look: at most two looks keep the whole at 1 %
QUALITY_ALPHA = 0.05
_PAIRS = 3
_MOST_PAIRS = 6
_LAUNCH_S = 0.7


@dataclass
class Side:
    """One deployment under verification."""

    deployment: Deployment
    built: jobs.Built
    launches: list[Launch] = field(default_factory=list)
    scores: Scores | None = None

    @property
    def latencies(self) -> list[tuple[float, ...]]:
        return [launch.latency_s for launch in self.launches]


class Verified(NamedTuple):
    """``failure`` says why a finalist could not be verified at all."""

    side: Side
    reference: Side
    verdicts: tuple[Verdict, ...]
    comparison: verdict.Comparison | None
    failure: str | None = None

    @property
    def met(self) -> bool:
        return bool(self.verdicts) and verdict.exit_code(self.verdicts) == 0


def verify(lab: Lab, deployment: Deployment, finalists: int, execution: Execution) -> Verified:
    """Verify one deployment against the dense eager baseline at its threads and batch."""
    run = lab.run
    reference = _side(lab, lab.dense(deployment.threads, deployment.batch_size))
    side = reference if deployment == reference.deployment else _side(lab, deployment)
    trained = training_verdicts(run.budget, execution, run)
    for pair in range(_MOST_PAIRS):
        order = (reference, side) if pair % 2 == 0 else (side, reference)
        for one in dict.fromkeys(map(id, order)):
            target = reference if one == id(reference) else side
            failure = _launch(lab, target, pair)
            if failure is not None:
                return Verified(side, reference, (), None, failure)
        if pair + 1 < _PAIRS:
            continue
        verdicts = judge(run, side, reference, QUALITY_ALPHA / finalists)
        undecided = any(v.verdict == "UNDECIDED" and v.name != "quality" for v in verdicts)
        if not undecided or run.left_s < 0.08 * run.effort.time_s:
            break
    comparison = None
    if side is not reference:
        comparison = verdict.faster(side.latencies, reference.latencies, run.budget.percentile)
    return Verified(side, reference, (*verdicts, *trained), comparison)


def alone(lab: Lab, deployment: Deployment) -> Side | None:
    """Launch one deployment by itself, for the report; None when it fails."""
    side = _side(lab, deployment)
    for pair in range(_PAIRS):
        if _launch(lab, side, pair) is not None:
            return None
    return side


def _side(lab: Lab, deployment: Deployment) -> Side:
    built = lab.build(deployment).answer
    assert isinstance(built, jobs.Built), "it was built in the search"
    return Side(deployment, built)


def _launch(lab: Lab, side: Side, pair: int) -> str | None:
    """One new interpreter; the first also writes the outputs on *confirm*, which are scored."""
    part = "confirm" if side.scores is None else None
    seed = 1000 * (lab.run.effort.seed + 1) + pair  # fresh samples: not the search's order
    result = lab.measure(side.built, side.deployment, seed, part=part, time_s=_LAUNCH_S)
    if not isinstance(result.answer, jobs.Measured):
        return result.failure.message if result.failure else "no answer"
    side.launches.append(result.answer.launch)
    if part is not None:
        scored = lab.score(side.built, part)
        if not isinstance(scored.answer, jobs.Scored):
            return scored.failure.message if scored.failure else "no answer"
        side.scores = scored.answer.scores
    return None


def judge(run: Run, side: Side, reference: Side, quality_alpha: float) -> tuple[Verdict, ...]:
    """A verdict for every deployment budget and for quality."""
    out = deployment_verdicts(run, side, reference)
    if side.scores is None or reference.scores is None:
        return out
    return (*out, _quality(run, side, reference, quality_alpha))


def deployment_verdicts(run: Run, side: Side, reference: Side | None) -> tuple[Verdict, ...]:
    """A verdict for every deployment budget; relative limits need the reference."""
    budget = run.budget
    base_s = base_bytes = None
    if reference is not None:
        calls = [x for launch in reference.latencies for x in launch]
        base_s = verdict.point_quantile(calls, budget.percentile)
        base_bytes = float(max(launch.peak_memory_bytes for launch in reference.launches))
    out = []
    limit = figures.resolve(budget.latency, base_s)
    if limit is not None:
        out.append(verdict.quantile(side.latencies, limit, budget.percentile, alpha=LATENCY_ALPHA))
    if budget.energy is not None:
        out.append(_energy(run, side, reference))
    limit = figures.resolve(budget.memory, base_bytes)
    if limit is not None:
        own = [launch.peak_memory_bytes for launch in side.launches]
        out.append(verdict.memory(own, limit))
    return tuple(out)


def _quality(run: Run, side: Side, reference: Side, alpha: float) -> Verdict:
    assert side.scores is not None
    assert reference.scores is not None
    allowed = figures.max_drop(run, reference.scores.quality)
    higher = run.survey.task.higher_is_better
    found = verdict.quality(
        side.scores, reference.scores, allowed, higher_is_better=higher, alpha=alpha
    )
    if side is reference:
        return msgspec.structs.replace(
            found, verdict="MET", lower=0.0, upper=0.0, note="the plan is the baseline itself"
        )
    return found


def _energy(run: Run, side: Side, reference: Side | None) -> Verdict:
    batch = side.deployment.batch_size
    windows = [launch.energy for launch in side.launches]
    base = modelled = None
    if run.meter is None:
        modelled = figures.modelled_energy(run, side.launches, batch)
    if reference is not None:
        base = figures.energy_per_sample(reference.launches, batch)
        if base is None and modelled is not None:
            base = figures.modelled_energy(run, reference.launches, batch).value
    assert run.budget.energy is not None
    limit = figures.resolve(run.budget.energy, base)
    if limit is None:  # relative to a baseline that was not measured
        limit = run.budget.energy.value
    per_sample = [
        (w.uncertainty_j or 0.0) / (launch.window_calls * batch)
        for launch, w in zip(side.launches, windows, strict=True)
        if w is not None
    ]
    known = [w for w in windows if w is not None]
    domains = tuple(d.name for d in known[0].domains) if known else ()
    return verdict.energy(
        figures.energies(side.launches, batch),
        limit,
        label=known[0].label if known else "unavailable",
        uncertainty=max(per_sample, default=0.0),
        modelled=modelled,
        accept_modelled=run.budget.accept_modelled_energy,
        origin=known[0].domains[0].origin if known and known[0].domains else "local",
        domains=domains,
        reason=_why_no_energy(run, known),
    )


def _why_no_energy(run: Run, windows: list[EnergyWindow]) -> str | None:
    reasons = [s.reason for s in run.sources if s.reason]
    remedies = [s.remedy for s in run.sources if s.remedy]
    if windows and run.meter is not None:
        return None
    return "; ".join(dict.fromkeys(reasons + remedies)) or "no energy source"


def training_verdicts(budget: Budget, done: Execution, run: Run) -> tuple[Verdict, ...]:
    """Verdicts on the final training, measured once."""
    source = "the final training"
    out = []
    if budget.train_time_s is not None:
        out.append(verdict.scalar("train_time", "s", done.train_s, budget.train_time_s, source))
    if budget.train_energy_j is not None:
        origin = next((s.origin for s in run.sources if s.label.startswith("measured")), None)
        label = done.train_energy_label or "unavailable"
        named = f"{source}, {label}" + (f", {origin}" if origin and origin != "local" else "")
        out.append(
            verdict.scalar("train_energy", "J", done.train_energy_j, budget.train_energy_j, named)
        )
    if budget.train_memory_bytes is not None:
        found = done.train_memory_bytes
        out.append(verdict.scalar("train_memory", "B", found, budget.train_memory_bytes, source))
    return tuple(out)


def result(run: Run, side: Side, plan: Plan) -> PlanResult:
    """Everything measured about one verified deployment."""
    fields = figures.describe(run, side.launches, side.deployment)
    scores = side.scores
    return PlanResult(
        plan=plan,
        size_bytes=side.built.size_bytes,
        load_s=_median([launch.load_s for launch in side.launches]),
        first_call_s=_median([launch.first_call_s for launch in side.launches]),
        quality=scores.quality if scores else None,
        quality_interval=verdict.interval(scores) if scores else None,
        worst_class_recall=scores.worst_class_recall if scores else None,
        launches=len(side.launches),
        **fields,  # type: ignore[arg-type]
    )


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else math.fsum(ordered[middle - 1 : middle + 1]) / 2
