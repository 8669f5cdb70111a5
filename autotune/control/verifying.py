"""Verification: finalists against the baseline, as the very bytes that are shipped.

    launch 1   2   3  | look 1 |  4   5   6  | look 2
    base   A   . A A  |        |  . A A   .  |          ABBA: who goes first alternates
    plan   . B B   . B|        |B     . B B  |

Each launch is a new interpreter on fresh samples.  Verdicts are given at two looks that are
fixed beforehand, each at half of the error rate: to look after every launch until a
verdict pleases would multiply it.  A launch that the machine disturbed is taken again, once;
both are recorded.  Quality is tested on *confirm*, once for each finalist in order, with
the error rate split over them; the first launch answers *confirm*, so a finalist that fails
there is launched no further while another waits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from autotune.control import comparing, disturbed, figures, target, verdict
from autotune.control.attempts import outputs_of
from autotune.control.deploying import Lab
from autotune.control.figures import QUALITY_ALPHA
from autotune.control.run import Run
from autotune.records import job as jobs
from autotune.records.budget import Budget
from autotune.records.measurement import EnergyWindow, Launch, Scores, Verdict
from autotune.records.plan import Deployment, Plan
from autotune.records.report import Execution, PlanResult

LOOKS = (3, 6)
"""Launches of each side after which verdicts are given."""
LATENCY_ALPHA = 0.01 / len(LOOKS)
ENERGY_ALPHA = 0.05 / len(LOOKS)
EXPECTED_SLOW = 100
"""Calls over the limit that a plan at the limit would show by the last look, where time
allows: 2,000 calls for p95.  A plan that has half as many is then MET almost surely."""
_LAUNCH_S = 0.7
_MOST_S = (3.0, 6.0)  # a slow plan gets fewer calls, and more time between the looks
_MOST_CALLS = 5000


@dataclass
class Side:
    """One deployment under verification.  ``disturbed`` launches were taken again."""

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


class Verified(NamedTuple):
    """``failure`` says why a finalist could not be verified at all; ``left`` that its quality
    failed after the first launch, and that it was left there.
    """

    side: Side
    reference: Side
    verdicts: tuple[Verdict, ...]
    comparison: verdict.Comparison | None
    failure: str | None = None
    left: bool = False

    @property
    def met(self) -> bool:
        return bool(self.verdicts) and verdict.exit_code(self.verdicts) == 0


def calls_per_launch(percentile: float) -> int:
    """Least calls of each launch."""
    spread = EXPECTED_SLOW / (1 - percentile / 100) / LOOKS[-1]
    return max(verdict.samples_needed(percentile, LATENCY_ALPHA), math.floor(spread + 1e-6))


def verify(
    lab: Lab, deployment: Deployment, finalists: int, execution: Execution, *, others: bool = False
) -> Verified:
    """Verify one deployment against the dense eager baseline at its threads and batch.  Where
    ``others`` wait, one whose quality fails is left after its first launch.
    """
    reference = _side(lab, lab.dense(deployment.threads, deployment.batch_size))
    side = reference if deployment == reference.deployment else _side(lab, deployment)
    if others:
        failure = _take(lab, side, reference, 1)
        if failure is not None:
            return Verified(side, reference, (), None, failure)
        verdicts = judge(lab.run, side, reference, QUALITY_ALPHA / finalists)
        if any(_failed(lab.run, v) for v in verdicts):
            trained = training_verdicts(lab.run.budget, execution, lab.run)
            return Verified(side, reference, (*verdicts, *trained), None, left=True)
    return finish(lab, side, reference, finalists, execution)


def _failed(run: Run, v: Verdict) -> bool:
    """Whether a verdict on quality is against a plan, where another plan may be better."""
    return v.name in ("quality", "min_quality") and v.verdict != "MET" and not too_few(run, v)


def too_few(run: Run, v: Verdict) -> bool:
    """Whether an allowed drop is undecided as these rows could certify it for no plan."""
    least = run.survey.certifiable_drop
    uncertain = v.name == "quality" and v.verdict == "UNDECIDED"
    return uncertain and least is not None and least > v.limit


def finish(lab: Lab, side: Side, reference: Side, finalists: int, execution: Execution) -> Verified:
    """Launch both sides up to the looks, beyond what launches they have, and judge."""
    run = lab.run
    trained = training_verdicts(run.budget, execution, run)
    verdicts: tuple[Verdict, ...] = ()
    for launches in LOOKS:
        before = len(side.launches)
        failure = _take(lab, side, reference, launches)
        if failure is not None:
            return Verified(side, reference, (), None, failure)
        if len(side.launches) > before:
            verdicts = judge(run, side, reference, QUALITY_ALPHA / finalists)
        if not any(v.verdict == "UNDECIDED" and v.name != "quality" for v in verdicts):
            break
    comparison = None
    if side is not reference:
        comparison = verdict.faster(side.latencies, reference.latencies, run.budget.percentile)
    return Verified(side, reference, (*verdicts, *trained), comparison)


def in_turn(lab: Lab, side: Side, other: Side) -> str | None:
    """Launch two sides in turn up to the first look; why it failed, if it did."""
    return _take(lab, side, other, LOOKS[0])


def _take(lab: Lab, side: Side, reference: Side, launches: int) -> str | None:
    """Launch both sides in turn up to this number.  Past the first look the clock may end
    it early: never what was measured.
    """
    while len(side.launches) < launches:
        pair = len(side.launches)
        if pair >= LOOKS[0] and lab.run.left_s < 0.08 * lab.run.effort.time_s:
            return None
        order = (reference, side) if pair % 2 == 0 else (side, reference)
        for one in order[:1] if side is reference else order:
            failure = _launch(lab, one, pair)
            if failure is not None:
                return failure
    return None


def alone(lab: Lab, deployment: Deployment) -> Side | None:
    """Launch one deployment by itself, for the report; None when it fails."""
    side = _side(lab, deployment)
    for pair in range(LOOKS[0]):
        if _launch(lab, side, pair) is not None:
            return None
    return side


def _side(lab: Lab, deployment: Deployment) -> Side:
    built = lab.build(deployment).answer
    assert isinstance(built, jobs.Built), "it was built in the search"
    return Side(deployment, built)


def _launch(lab: Lab, side: Side, pair: int) -> str | None:
    """One launch, and one more if the machine disturbed it.  The first also writes the
    outputs on *confirm*, which are scored.
    """
    part = "confirm" if side.scores is None else None
    result = _measure(lab, side, pair, part)
    if not isinstance(result.answer, jobs.Measured):
        return _message(result)
    launch = result.answer.launch
    if disturbed.cause(launch) and not side.always_disturbed:
        side.disturbed.append(launch)
        again = _measure(lab, side, pair, None)
        if not isinstance(again.answer, jobs.Measured):
            return _message(again)
        launch = again.answer.launch  # whatever it says: to choose would be to peek
        side.always_disturbed = disturbed.cause(launch) is not None
    side.launches.append(launch)
    if part is not None:
        scored = lab.score(side.built, part)
        if not isinstance(scored.answer, jobs.Scored):
            return _message(scored)
        side.scores = scored.answer.scores
    return None


def _message(result: jobs.Result) -> str:
    return result.failure.message if result.failure else "no answer"


def _measure(lab: Lab, side: Side, pair: int, part: str | None) -> jobs.Result:
    run, calls = lab.run, calls_per_launch(lab.run.budget.percentile)
    job = jobs.Measure(
        artifact=side.built.artifact,
        rows="data/select.npz",
        batch_size=side.deployment.batch_size,
        threads=side.deployment.threads,
        seed=1000 * (run.effort.seed + 1) + pair,  # fresh samples: not the search's order
        min_calls=calls,
        max_calls=max(calls, _MOST_CALLS),
        time_s=_LAUNCH_S,
        most_s=_MOST_S[int(pair >= LOOKS[0])],
        score_rows=f"data/{part}.npz" if part else None,
        outputs=outputs_of(side.built, part) if part else None,
        meter=run.meter,
        boards=side.deployment.device == "cuda",
        load_per_s=run.budget.load_per_s,
    )
    return run.bridge.run(job, timeout_s=150.0 + lab.evaluation_limit_s())


def judge(run: Run, side: Side, reference: Side, quality_alpha: float) -> tuple[Verdict, ...]:
    """A verdict for every deployment budget and for quality."""
    out = deployment_verdicts(run, side, reference)
    if side.scores is None or reference.scores is None:
        return out
    floor = min_quality(run, side)
    return (*out, _quality(run, side, reference, quality_alpha), *floor)


def unkept(run: Run, found: "Verified") -> tuple[str, ...]:
    """The limits that the baseline, in its own launches, was not shown to keep."""
    own = judge(run, found.reference, found.reference, QUALITY_ALPHA)
    return tuple(v.name for v in own if v.verdict != "MET")


def min_quality(run: Run, side: Side) -> tuple[Verdict, ...]:
    """``--min-quality`` against the 95 % interval of the quality itself."""
    limit, scores = run.budget.min_quality, side.scores
    if limit is None or scores is None:
        return ()
    return (verdict.floor("min_quality", scores, limit, run.survey.task.higher_is_better),)


def deployment_verdicts(run: Run, side: Side, reference: Side | None) -> tuple[Verdict, ...]:
    """A verdict for every deployment budget; relative limits need the reference."""
    budget = run.budget
    base_s = base_bytes = None
    if reference is not None:
        calls = [x for one in judged(reference.launches) for x in one if x < math.inf]
        base_s = verdict.point_quantile(calls, budget.percentile) if calls else None
        base_bytes = float(max(launch.peak_memory_bytes for launch in reference.launches))
    out = []
    limit = figures.resolve(budget.latency, base_s)
    if budget.latency is not None and limit is None:
        source = "relative to a baseline that answered no request"
        out.append(verdict.scalar("latency", "s", None, budget.latency.value, source))
    elif limit is not None:
        out.append(_latency(budget, side, reference, limit))
    if budget.energy is not None:
        out.append(_energy(run, side, reference))
    limit = figures.resolve(budget.memory, base_bytes)
    if limit is not None:
        own = [launch.peak_memory_bytes for launch in side.launches]
        out.append(verdict.memory(own, limit))
    return tuple(out)


def judged(launches: Sequence[Launch]) -> list[list[float]]:
    """What a latency limit is about: response times under load, else service times.  A
    request that was never answered is infinitely slow.
    """
    return [
        [*(launch.response_s or launch.latency_s), *[math.inf] * launch.timeouts]
        for launch in launches
    ]


def _latency(budget: Budget, side: Side, reference: Side | None, limit: float) -> Verdict:
    what = "single calls"
    if budget.load_per_s is not None:
        what = f"response times at {budget.load_per_s:g} requests per second"
    found = verdict.quantile(
        judged(side.launches),
        limit,
        budget.percentile,
        alpha=LATENCY_ALPHA,
        what=what,
        step=disturbed.clock_step_s(side.launches),
    )
    notes = [found.note] if found.note else []
    notes += disturbed.notes(side.launches, side.disturbed, budget.percentile)
    moved = comparing.drift((reference or side).latencies)
    if moved is not None and moved.found:
        notes.append(
            f"drift: the baseline's last launch took {moved.ratio:.2f}x its first one's time"
        )
    return msgspec.structs.replace(found, note="; ".join(notes) or None)


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
    if figures.energy_per_sample(side.launches, batch) is None:
        modelled = figures.modelled_energy(run, side.launches, side.deployment)
    if reference is not None:
        base = figures.energy_per_sample(reference.launches, batch)
        if base is None and modelled is not None:
            known = figures.modelled_energy(run, reference.launches, reference.deployment)
            base = known.value if known is not None else None
    assert run.budget.energy is not None
    limit = figures.resolve(run.budget.energy, base)
    if limit is None:  # relative to a baseline that was not measured
        limit = run.budget.energy.value
    per_sample = [
        (w.uncertainty_j or 0.0) / (launch.window_calls * batch)
        for launch, w in zip(side.launches, windows, strict=True)
        if w is not None
    ]
    read = [w for w in windows if w is not None]
    domains = tuple(d.name for d in read[0].domains) if read else ()
    return verdict.energy(
        figures.energies(side.launches, batch),
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


def _why_no_energy(run: Run, windows: list[EnergyWindow]) -> str | None:
    reasons = [s.reason for s in run.sources if s.reason]
    remedies = [s.remedy for s in run.sources if s.remedy]
    if any(w.total_j is not None for w in windows):
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
    return (*out, *target.verdicts(run, done))


def result(run: Run, side: Side, plan: Plan) -> PlanResult:
    """Everything measured about one verified deployment."""
    fields = figures.describe(run, side.launches, side.deployment)
    scores, launches, batch = side.scores, side.launches, side.deployment.batch_size
    rates = [_rate(launch, batch) for launch in launches]
    peaks = [float(launch.peak_memory_bytes) for launch in launches]
    response = None
    if any(launch.response_s for launch in launches):
        answered = [launch.response_s for launch in launches]
        response = verdict.quantiles(answered, run.budget.percentile)
    return PlanResult(
        plan=plan,
        size_bytes=side.built.size_bytes,
        load_s=_median([launch.load_s for launch in side.launches]),
        first_call_s=_median([launch.first_call_s for launch in side.launches]),
        quality=scores.quality if scores else None,
        quality_interval=verdict.interval(scores) if scores else None,
        worst_class_recall=scores.worst_class_recall if scores else None,
        balanced_accuracy=scores.balanced_accuracy if scores else None,
        launches=len(side.launches),
        response_s=response,
        throughput_interval=comparing.mean_interval([rate for rate in rates if rate]),
        memory_interval=comparing.next_interval(peaks),
        disturbed=len(side.disturbed),
        **fields,  # type: ignore[arg-type]
    )


def _rate(launch: Launch, batch: int) -> float | None:
    """Samples per second, one call after another."""
    busy = math.fsum(launch.latency_s)
    return batch * len(launch.latency_s) / busy if busy else None


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else math.fsum(ordered[middle - 1 : middle + 1]) / 2
