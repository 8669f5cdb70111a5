"""Finalists are verified, and one is chosen.

The winner replaces the baseline only if it beats it beyond noise; where nothing keeps every
limit, the plan that breaks them least is chosen and the verdicts say by how much.  The best plan
without compression is launched too, and is chosen instead where it turns out to be faster.
"""

import math
from typing import NamedTuple

import msgspec

from autotune.context import RunContext
from autotune.deployment import DeploymentEvaluator, metrics
from autotune.records.measurement import LOOKS, Verdict
from autotune.records.plan import Deployment
from autotune.records.report import Execution
from autotune.report import describe
from autotune.stats import launch_ratio, limit_tests
from autotune.verification import launches, verdicts
from autotune.verification.launches import Beaten, Verified
from autotune.verification.verdicts import Candidate

_OVERTIME = 0.05
"""Share of a run's time that a further finalist may end after it."""
_LEAST_SHARE = 0.05
"""Share of a run's time that has to be left for launches of the best plan without compression."""


class Conclusion(NamedTuple):
    """What verification found."""

    chosen: Verified
    lossless: Candidate | None
    """The best plan without compression, launched too; None where there was no time for it."""
    tested: tuple[Verified, ...]
    """The finalists that were launched, in their order."""
    kept_baseline: str | None
    """Why the baseline is the plan, if it is."""
    messages: tuple[str, ...]


def conclude(
    evaluator: DeploymentEvaluator,
    finalists: list[Deployment],
    execution: Execution,
    *,
    replace: bool = True,
) -> Conclusion:
    """Verify finalists in order until one keeps every limit and beats the baseline.

    Args:
        evaluator: what built and measured them.
        finalists: in their order; the baseline, which stands ready behind them, is none of them.
        execution: what training did, which has limits of its own.
        replace: whether another plan (the baseline, a faster one) may be chosen instead.
    """
    return _Selection(evaluator, finalists, execution).conclude(replace)


class _Selection:
    def __init__(
        self, evaluator: DeploymentEvaluator, finalists: list[Deployment], execution: Execution
    ) -> None:
        self._evaluator = evaluator
        self._run = evaluator.run
        self._finalists = finalists
        self._alphas = metrics.quality_alphas(self._run, len(finalists)) if finalists else ()
        self._execution = execution
        self._messages: list[str] = []

    def conclude(self, replace: bool) -> Conclusion:
        tested = self._tested()
        chosen, kept = self._pick(tested), None
        if replace or chosen is None:
            chosen, kept = self._against_baseline(chosen)
        lossless = self._lossless(chosen)
        faster = self._faster(chosen, lossless) if replace and lossless is not None else None
        if faster is not None:
            chosen, lossless = faster, faster.side
        return Conclusion(chosen, lossless, tuple(tested), kept, tuple(self._messages))

    def _verify(self, deployment: Deployment, alpha: float, *, others: bool = False) -> Verified:
        return launches.verify(self._evaluator, deployment, alpha, self._execution, others=others)

    def _failed(self, found: Verified) -> bool:
        if found.failure is not None:
            self._messages.append(f"a finalist failed verification: {found.failure}")
        return found.failure is not None

    def _tested(self) -> list[Verified]:
        """Finalists in order, until one keeps every limit, none can, or time is over (a little more
        may be spent on another one that could keep them).
        """
        run = self._run
        tested: list[Verified] = []
        for place, deployment in enumerate(self._finalists):
            began, others = run.bridge.now(), place + 1 < len(self._finalists)
            found = self._verify(deployment, self._alphas[place], others=others)
            if self._failed(found):
                continue
            tested.append(found)
            launch_s = (run.bridge.now() - began) / len(found.side.launches)
            if found.met or _no_other_helps(run, found) or self._too_late(launch_s):
                break
        return tested

    def _too_late(self, launch_s: float) -> bool:
        """Whether launches that take so long do not fit into what is left, up to a first look."""
        return LOOKS[0] * launch_s > self._run.left_s + _OVERTIME * self._run.effort.time_s

    def _pick(self, tested: list[Verified]) -> Verified | None:
        """The first that met everything, else the one that breaks the limits least."""
        met = [v for v in tested if v.met]
        if met:
            return met[0]
        chosen = min(tested, key=lambda v: _distance(self._run, v), default=None)
        if chosen is not None and chosen.stopped_early:
            alpha = self._alphas[self._finalists.index(chosen.side.deployment)]
            chosen = launches.finish(
                self._evaluator, chosen.side, chosen.reference, alpha, self._execution
            )
            return None if self._failed(chosen) else chosen
        return chosen

    # -- the baseline ------------------------------------------------------------------------

    def _against_baseline(self, chosen: Verified | None) -> tuple[Verified, str | None]:
        """The winner replaces the baseline only if it beats it beyond noise."""
        evaluator, run = self._evaluator, self._run
        if chosen is None:
            dense = evaluator.dense(_fastest_threads(evaluator), evaluator.batch)
            own = self._verify(dense, metrics.QUALITY_ALPHA)
            tried = any(not evaluator.is_baseline(t.trial.deployment) for t in evaluator.tried)
            what = "could be verified" if tried else "was tried, as time was short"
            return own, f"No candidate {what}: the baseline is the plan."
        if chosen.met and self._improves(chosen):
            return chosen, None
        own = self._baseline_of(chosen)
        if own.met:
            why = "does not beat it beyond noise" if chosen.met else _unkept(chosen)
            named = describe.describe(chosen.side.deployment)
            return own, f"The baseline keeps every limit; the best candidate ({named}) {why}."
        if chosen.met or _distance(run, chosen) <= _distance(run, own):
            return chosen, None
        return own, "The baseline comes closer to the limits than any candidate."

    def _baseline_of(self, found: Verified) -> Verified:
        """The baseline as a plan of its own, from the launches that it already had."""
        run, own = self._run, found.reference
        judged = (
            *verdicts.judge(run, own, own, metrics.QUALITY_ALPHA),
            *verdicts.training_verdicts(run.budget, self._execution, run),
        )
        return Verified(own, own, judged, None)

    def _improves(self, found: Verified) -> bool:
        """Better than the baseline beyond noise, in what the goal asks for (or it keeps a limit
        that the baseline breaks).
        """
        if found.comparison is None:
            return False
        if found.met and launches.unkept(self._run, found):
            return True
        own, base = found.side.launches, found.reference.launches
        batch = found.side.deployment.batch_size
        return self._evaluator.goal.improves(own, base, batch, found.comparison)

    # -- the plan without compression ----------------------------------------------------------

    def _lossless(self, chosen: Verified) -> Candidate | None:
        """The best plan without compression, launched like the others when time allows."""
        run, evaluator = self._run, self._evaluator
        if chosen.side.deployment.lossless:
            return chosen.side
        found = [t for t in evaluator.ranked() if t.deployment.lossless]
        fast = min(
            (t for t in found if t.latency_s is not None),
            key=lambda t: t.latency_s.p50 if t.latency_s else math.inf,
            default=None,
        )
        if fast is None or run.left_s < _LEAST_SHARE * run.effort.time_s:
            return None
        if evaluator.is_baseline(fast.deployment):
            return chosen.reference
        return launches.alone(evaluator, fast.deployment)

    def _faster(self, chosen: Verified, lossless: Candidate) -> Verified | None:
        """The best plan without compression where the chosen one loses quality for no gain:
        launched with it in turn it is faster beyond noise, and it keeps every limit.
        """
        run, other = self._run, chosen.side
        if not chosen.met or self._evaluator.is_baseline(lossless.deployment):
            return None
        if not self._may_replace(lossless, other):
            return None
        percentile = run.budget.percentile
        if launch_ratio.faster(lossless.latencies, other.latencies, percentile).ratio >= 1:
            return None
        sides = (lossless, other, lossless, chosen.reference)
        if self._too_late(sum(side.launches[0].work_s for side in sides)):
            return None
        by = launches.head_to_head(self._evaluator, lossless.deployment, other.deployment)
        if by is None or not by.beyond_noise:
            return None
        found = self._verify(lossless.deployment, metrics.QUALITY_ALPHA)
        return found._replace(beaten=Beaten(other.deployment, by)) if found.met else None

    def _may_replace(self, lossless: Candidate, other: Candidate) -> bool:
        """Whether the goal asks for the faster of the two, or for quality, which is no worse."""
        if lossless.deployment.batch_size != other.deployment.batch_size:
            return False
        gain = None
        if lossless.scores is not None and other.scores is not None:
            gain = lossless.scores.quality - other.scores.quality
            gain = gain if self._evaluator.goal.higher_is_better else -gain
        return self._evaluator.goal.prefers_faster(gain)


def _no_other_helps(run: RunContext, found: Verified) -> bool:
    """Whether what is not MET does not depend on the deployment: the training's own limits, what
    cannot be measured, and a drop of quality too small for these rows to certify at all.
    """

    def common(v: Verdict) -> bool:
        elsewhere = v.name.startswith("train_") or v.verdict == "NOT_MEASURED"
        return elsewhere or verdicts.too_few(run, v)

    return not found.stopped_early and all(common(v) for v in found.verdicts if v.verdict != "MET")


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
    if verdicts.too_few(run, v):
        v = msgspec.structs.replace(v, lower=None, upper=None)
    return max(0.0, -(describe.slack(v) or 0.0))


def _unkept(found: Verified) -> str:
    """Which limits a finalist does not keep, and what would decide those that are undecided."""
    parts = [
        f"{v.name} is {v.verdict}" + (f" ({v.note})" if v.note else "")
        for v in found.verdicts
        if v.verdict != "MET"
    ]
    return f"does not: {'; '.join(parts)}"


def _fastest_threads(evaluator: DeploymentEvaluator) -> int:
    """Threads of the fastest baseline that was measured."""
    timed = [t.trial for t in evaluator.baselines.values() if t.trial.latency_s is not None]
    best = min(timed, key=lambda t: t.latency_s.p50 if t.latency_s else math.inf, default=None)
    return best.deployment.threads if best else 1
