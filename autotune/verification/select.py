"""The end of the story: finalists are verified, one is chosen, and its bytes are shipped.

The winner replaces the baseline only if it beats it beyond noise; where nothing keeps every
limit, the least violating plan is named and the verdicts say by how much.  The best plan without
compression is launched too, and takes the winner's place where it turns out to be faster.
"""

import math
from pathlib import Path

import msgspec

from autotune.context import RunContext
from autotune.deployment import finalists as deployment_finalists
from autotune.deployment import metrics, ranking
from autotune.deployment.evaluator import DeploymentEvaluator
from autotune.deployment.goal import goal_of
from autotune.pipeline import report_builder
from autotune.pipeline.report_builder import RunState
from autotune.records.measurement import LOOKS, Verdict
from autotune.records.plan import Deployment
from autotune.records.report import PlanResult
from autotune.report import describe, run_folder
from autotune.stats import launch_ratio, limit_tests
from autotune.verification import launches, previous_plan, recorded_io
from autotune.verification import verdicts as verification_verdicts
from autotune.verification.launches import Beaten, Verified
from autotune.verification.verdicts import Candidate

_OVER = 0.05  # of a run's time, that a further finalist may end after it


def finalists(lab: DeploymentEvaluator) -> list[Deployment]:
    """The few that are verified, in their order; the baseline stands ready after them."""
    return [t.trial.deployment for t in deployment_finalists.chosen(lab)]


def conclude(
    known: RunState,
    candidates: list[Deployment],
    folder: run_folder.RunFolder,
    *,
    replace: bool = True,
) -> None:
    """Verify finalists in order until one keeps every limit and beats the baseline."""
    run, lab = known.run, known.lab
    assert lab is not None
    began = run.bridge.now()
    run.listener.phase("verification", run.left_s)
    tested = _tested(known, lab, candidates)
    chosen = _pick(known.run, tested)
    if chosen is not None and chosen.left:
        place = candidates.index(chosen.side.deployment)
        alpha, done = metrics.quality_alphas(run, len(candidates))[place], known.execution
        chosen = launches.finish(lab, chosen.side, chosen.reference, alpha, done)
        if chosen.failure is not None:
            known.messages.append(f"a finalist failed verification: {chosen.failure}")
            chosen = None
    kept: str | None = None
    if replace or chosen is None:
        chosen, kept = _against_baseline(known, lab, chosen)
    plain = _lossless(known, chosen)
    faster = _faster(known, chosen, plain) if replace and plain is not None else None
    if faster is not None:
        chosen, plain = faster, faster.side
    known.why = report_builder.explain(known, chosen, kept, tested, given=not replace)
    if run.effort.baseline is not None:
        previous_plan.race(known, Path(run.effort.baseline), chosen.side, folder.work)
    _ship(known, chosen, plain, folder)
    run.timed("verification", began)


def _tested(
    known: RunState, lab: DeploymentEvaluator, candidates: list[Deployment]
) -> list[Verified]:
    """Finalists in order, until one keeps every limit, none can, or time is over (a little more
    may be spent on another one that could keep them).
    """
    run = known.run
    tested: list[Verified] = []
    alphas = metrics.quality_alphas(run, len(candidates)) if candidates else ()
    for place, (deployment, alpha) in enumerate(zip(candidates, alphas, strict=True), start=1):
        began, others = run.bridge.now(), place < len(candidates)
        found = launches.verify(lab, deployment, alpha, known.execution, others=others)
        if found.failure is not None:
            known.messages.append(f"a finalist failed verification: {found.failure}")
            continue
        tested.append(found)
        launch_s = (run.bridge.now() - began) / len(found.side.launches)
        over = LOOKS[0] * launch_s > run.left_s + _OVER * run.effort.time_s
        if found.met or _no_other_helps(run, found) or over:
            break
    return tested


def _no_other_helps(run: RunContext, found: Verified) -> bool:
    """Whether what is not MET does not depend on the deployment: the training's own limits, what
    cannot be measured, and a drop of quality too small for these rows to certify at all.
    """

    def common(v: Verdict) -> bool:
        told = v.name.startswith("train_") or v.verdict == "NOT_MEASURED"
        return told or verification_verdicts.too_few(run, v)

    return not found.left and all(common(v) for v in found.verdicts if v.verdict != "MET")


def _pick(run: RunContext, tested: list[Verified]) -> Verified | None:
    """The first that met everything, else the least violating."""
    met = [v for v in tested if v.met]
    if met:
        return met[0]
    return min(tested, key=lambda v: _distance(run, v), default=None)


def _distance(run: RunContext, found: Verified) -> tuple[int, float]:
    """How far from every limit: first the exit code's severity, then the relative excess."""
    code = limit_tests.exit_code(found.verdicts)
    return {0: 0, 4: 1}.get(code, 2), sum(_excess(run, v) for v in found.verdicts)


def _excess(run: RunContext, v: Verdict) -> float:
    """By what decides; by the drop seen where the rows are too few for any plan, since their
    number says nothing against this one.
    """
    if v.verdict == "MET":
        return 0.0
    if verification_verdicts.too_few(run, v):
        v = msgspec.structs.replace(v, lower=None, upper=None)
    return max(0.0, -(describe.slack(v) or 0.0))


def _against_baseline(
    known: RunState, lab: DeploymentEvaluator, chosen: Verified | None
) -> tuple[Verified, str | None]:
    """The winner replaces the baseline only if it beats it beyond noise."""
    if chosen is None:
        own = launches.verify(
            lab, lab.dense(_fastest_threads(lab), lab.batch), metrics.QUALITY_ALPHA, known.execution
        )
        tried = any(not lab.is_baseline(t.trial.deployment) for t in lab.tried)
        what = "could be verified" if tried else "was tried, as time was short"
        return own, f"No candidate {what}: the baseline is the plan."
    if chosen.met and _improves(known.run, chosen):
        return chosen, None
    own = _baseline_of(known, chosen)
    if own.met and (not chosen.met or not _improves(known.run, chosen)):
        why = "does not beat it beyond noise" if chosen.met else _unkept(chosen)
        named = ranking.describe(chosen.side.deployment)
        return own, f"The baseline keeps every limit; the best candidate ({named}) {why}."
    if chosen.met or _distance(known.run, chosen) <= _distance(known.run, own):
        return chosen, None
    return own, "The baseline comes closer to the limits than any candidate."


def _unkept(found: Verified) -> str:
    """Which limits a finalist does not keep, and what would decide those that are undecided."""
    parts = [
        f"{v.name} is {v.verdict}" + (f" ({v.note})" if v.note else "")
        for v in found.verdicts
        if v.verdict != "MET"
    ]
    return f"does not: {'; '.join(parts)}"


def _baseline_of(known: RunState, found: Verified) -> Verified:
    """The baseline as a plan of its own, from the launches that it already had."""
    run, own = known.run, found.reference
    verdicts = (
        *verification_verdicts.judge(run, own, own, metrics.QUALITY_ALPHA),
        *verification_verdicts.training_verdicts(run.budget, known.execution, run),
    )
    return Verified(own, own, verdicts, None)


def _fastest_threads(lab: DeploymentEvaluator) -> int:
    """Threads of the fastest baseline that was measured."""
    timed = [t.trial for t in lab.baselines.values() if t.trial.latency_s is not None]
    best = min(timed, key=lambda t: t.latency_s.p50 if t.latency_s else math.inf, default=None)
    return best.deployment.threads if best else 1


def _improves(run: RunContext, found: Verified) -> bool:
    """Better than the baseline beyond noise, in what the goal asks for (or it keeps a limit
    that the baseline breaks).
    """
    comparison = found.comparison
    if comparison is None:
        return False
    if found.met and launches.unkept(run, found):
        return True
    goal = goal_of(run.budget, run.survey.task.higher_is_better)
    batch, base = found.side.deployment.batch_size, found.reference.launches
    return goal.improves(found.side.launches, base, batch, comparison)


def _ship(
    known: RunState, chosen: Verified, plain: Candidate | None, folder: run_folder.RunFolder
) -> None:
    """Ship the verified bytes and write down what was found, of the best plan without compression
    too.
    """
    run = known.run
    folder.ship(chosen.side.built.artifact, chosen.side.built.sha256)
    sha = chosen.side.built.sha256
    known.artifact = run_folder.artifact(folder.path / "artifact", chosen.side.deployment.runtime)
    known.chosen = launches.result(run, chosen.side, known.plan(chosen.side.deployment, sha))
    reference = chosen.reference
    if any(stage.name == "program" for stage in reference.built.stages):
        known.messages.append(
            "The model's source does not stand alone, so the eager baseline is an exported "
            "program, which can be slower than the model itself: ratios to it flatter."
        )
    known.baseline = launches.result(run, reference, known.plan(reference.deployment))
    known.lossless = _reported(known, chosen, plain)
    known.verdicts = chosen.verdicts
    known.execution = msgspec.structs.replace(
        known.execution,
        recovery_s=chosen.side.built.recovery_s,
        build_s=_build_s(known, chosen.side.deployment),
    )
    recorded_io.record(
        folder.work,
        folder.path / "artifact" / "recorded.npz",
        chosen.side.built.artifact,
        reference.scores,
    )


def _build_s(known: RunState, deployment: Deployment) -> float | None:
    """What the plan's build took when it was built (it has come from the cache since)."""
    tried = known.lab.tried if known.lab else []
    return next((t.trial.build_s for t in tried if t.trial.deployment == deployment), None)


def _lossless(known: RunState, chosen: Verified) -> Candidate | None:
    """The best plan without compression, launched like the others when time allows."""
    run, lab = known.run, known.lab
    assert lab is not None
    if chosen.side.deployment.lossless:
        return chosen.side
    found = [t for t in lab.ranked() if t.deployment.lossless]
    fast = min(
        (t for t in found if t.latency_s is not None),
        key=lambda t: t.latency_s.p50 if t.latency_s else math.inf,
        default=None,
    )
    if fast is None or run.left_s < 0.05 * run.effort.time_s:
        return None
    if lab.is_baseline(fast.deployment):
        return chosen.reference
    return launches.alone(lab, fast.deployment)


def _faster(known: RunState, chosen: Verified, plain: Candidate) -> Verified | None:
    """The best plan without compression where the chosen one loses quality for no gain: launched
    with it in turn it is faster beyond noise, and it keeps every limit.
    """
    run, lab, other = known.run, known.lab, chosen.side
    assert lab is not None
    if not chosen.met or lab.is_baseline(plain.deployment) or not _may_replace(run, plain, other):
        return None
    if launch_ratio.faster(plain.latencies, other.latencies, run.budget.percentile).ratio >= 1:
        return None
    launch_s = sum(side.launches[0].work_s for side in (plain, other, plain, chosen.reference))
    if LOOKS[0] * launch_s > run.left_s + _OVER * run.effort.time_s:
        return None
    by = launches.head_to_head(lab, plain.deployment, other.deployment)
    if by is None or not by.beyond_noise:
        return None
    found = launches.verify(lab, plain.deployment, metrics.QUALITY_ALPHA, known.execution)
    return found._replace(beaten=Beaten(other.deployment, by)) if found.met else None


def _may_replace(run: RunContext, plain: Candidate, other: Candidate) -> bool:
    """Whether the goal asks for the faster of the two, or for quality, which is no worse."""
    if plain.deployment.batch_size != other.deployment.batch_size:
        return False
    higher, gain = run.survey.task.higher_is_better, None
    if plain.scores is not None and other.scores is not None:
        gain = plain.scores.quality - other.scores.quality
        gain = gain if higher else -gain
    return goal_of(run.budget, higher).prefers_faster(gain)


def _reported(known: RunState, chosen: Verified, plain: Candidate | None) -> PlanResult | None:
    if plain is None:
        return None
    if plain is chosen.side:
        return known.chosen
    if plain is chosen.reference:
        return known.baseline
    return launches.result(known.run, plain, known.plan(plain.deployment))
