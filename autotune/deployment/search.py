"""The deploy search: which deployments are tried, in which order.

    baselines at every thread count -> initial configurations, the fastest predicted first
        -> the surrogate's proposals, every fourth the sampler's own, until the time is up

An initial configuration tries one part: each runtime, each quantizer, one pruning level.  From
these the surrogate predicts combinations; the sampler (TPE) sees every result and explores.  A
runtime that needs a compiler and is predicted slower than what was measured is deferred: the
surrogate has its prediction, and it is tried once nothing else is expected to improve.
"""

import math
from collections.abc import Callable, Sequence
from statistics import median

from autotune.context import RunContext, thread_counts
from autotune.deployment import initial_order, qat_fallback, search_space, skip_rules
from autotune.deployment.evaluator import CONSTRAINTS, DeploymentEvaluator
from autotune.deployment.metrics import Tried
from autotune.errors import ContractError
from autotune.records.measurement import LOOKS
from autotune.records.plan import Deployment
from autotune.records.report import DeployTrial
from autotune.report.describe import describe
from autotune.search import Initial, MixedStudy, Proposal, Study, space, surrogate
from autotune.search.space import Values
from autotune.search.warm_start import WarmStart

_MOST_REPEATS = 40
"""Proposals in succession that mean a known deployment, or do not fit into the time left."""
_SAMPLED = 4
"""After the initial configurations every fourth proposal is the sampler's own."""
_SLOWER = 1.5  # a thread count this much slower on the dense model is not searched
_USUAL_S = 3.0
_WORTH = 1.3
"""How much faster than the best a deferred plan has to be predicted, to be tried before the
surrogate's first proposal.
"""
_LEAST_TRIED = 3
"""Candidates before a run that is short of time turns to verification."""
_NEIGHBOUR = "neighbour of the best"


def explore(
    evaluator: DeploymentEvaluator,
    until_s: float,
    extended_s: Callable[[], float] | None = None,
    kept_s: float = 0.0,
    earlier: WarmStart | None = None,
) -> None:
    """Fill ``evaluator.tried`` until the deadline, or until the trials are used up or the space is
    exhausted.

    Args:
        evaluator: what builds and measures.
        until_s: the deadline as planned, by the run's clock.
        extended_s: the deadline by what has been measured, asked for after each trial: later than
            planned where verification needs less time than was set aside for it.
        kept_s: seconds before either deadline that are kept for the race of the finalists.
        earlier: the run whose deployments are tried first.

    Raises:
        ContractError: the trained model cannot be served even as it stands.
    """
    run, batches = evaluator.run, _batches(evaluator)
    counts, fastest = _threads(evaluator, batches[0])
    searched = search_space.deploy_space(run.survey, counts, batches, run.effort)
    initial = search_space.initial_configurations(searched, run.survey.options, fastest)
    ordered, deferred = initial_order.arrange(evaluator, initial)
    first = _initial(run, searched, earlier, ordered)
    study = Study(searched, seed=run.effort.seed, constraints=CONSTRAINTS, journal=run.journal)
    mixed = MixedStudy(study, first, blind=earlier is not None)
    exploration = _Exploration(evaluator, searched, mixed, deferred)
    exploration.run(until_s, extended_s or (lambda: until_s), kept_s)
    exploration.settle()
    evaluator.until_s = None


def _initial(
    run: RunContext, space: space.Space, earlier: WarmStart | None, usual: Sequence[Initial]
) -> list[Initial]:
    """What is tried first: an earlier run's deployments that this space has, then the usual."""
    if earlier is None:
        return list(usual)
    options = run.survey.options
    known = (search_space.values_of(d, space, options) for d in earlier.deployments)
    first, note = earlier.first(known, usual, "plans, measured anew")
    run.listener.note(note)
    return first


def _batches(evaluator: DeploymentEvaluator) -> tuple[int, ...]:
    """Batch sizes that are searched: one, but for the goals that are about many samples."""
    budget = evaluator.run.budget
    if budget.batch is not None or not evaluator.goal.searches_batch:
        return (evaluator.batch,)
    most = evaluator.run.survey.task.validation_rows
    return tuple(b for b in (1, 4, 16, 64, 256) if b <= most)


def _threads(evaluator: DeploymentEvaluator, batch: int) -> tuple[tuple[int, ...], int]:
    """Measure the baseline at every thread count; keep those that are not clearly slower
    than the fastest, and say which were refused.

    Returns:
        The thread counts to search, and the fastest.

    Raises:
        ContractError: the baseline cannot be served at any.
    """
    run = evaluator.run
    counts = thread_counts(run.profile, run.effort)
    if evaluator.on_gpu:
        baseline = evaluator.baseline(evaluator.dense(1, batch)).trial
        if baseline.latency_s is not None:
            return counts, counts[-1]
        why = baseline.failure.message if baseline.failure else "no answer"
        run.listener.note(f"The GPU cannot serve the model as it stands: {why}")
        evaluator.on_gpu = False
    found = [evaluator.baseline(evaluator.dense(threads, batch)).trial for threads in counts]
    times = {t.deployment.threads: t.latency_s.p50 for t in found if t.latency_s is not None}
    if not times:
        failure = found[0].failure
        why = f"{failure.kind}: {failure.message}\n{failure.log}" if failure else "no answer"
        raise ContractError(f"the trained model cannot be served even as it stands. {why}")
    fastest = min(times, key=lambda threads: times[threads])
    for threads, time_s in times.items():
        if time_s > _SLOWER * times[fastest]:
            run.listener.note(
                f"{threads} threads refused: {time_s / times[fastest]:.1f}x slower than "
                f"{fastest} on the dense model"
            )
    kept = tuple(t for t, time_s in times.items() if time_s <= _SLOWER * times[fastest])
    return kept, fastest


class _Exploration:
    """One search under way, of a study with its initial configurations enqueued but for those that
    are ``deferred``.
    """

    def __init__(
        self,
        evaluator: DeploymentEvaluator,
        searched: space.Space,
        study: MixedStudy,
        deferred: list[initial_order.Predicted],
    ) -> None:
        self._evaluator = evaluator
        self._run, self._goal, self._tried = evaluator.run, evaluator.goal, evaluator.tried
        self._space = searched
        self._study = study
        self._deferred = deferred
        self._asked = 0
        self._late = 0
        """Proposals after the initial configurations."""
        self._qat_considered = False
        self._repeats: list[Tried] = []
        """Other values of what was tried: they mean the same deployment."""

    def run(self, planned_s: float, extended_s: Callable[[], float], kept_s: float) -> None:
        limit = self._run.effort.trials or 10_000
        repeats = 0
        self._evaluator.until_s = planned_s - kept_s
        while self._left_s() > 0 and len(self._tried) < limit and repeats < _MOST_REPEATS:
            if not self._study.waiting and not self._qat_considered and self._try_qat():
                continue
            proposal = self._next()
            deployment = self._evaluator.deployment(proposal.values)
            tried = self._known(deployment)
            if tried is not None:  # after a repeat a neighbour of the best, unless it was one
                repeats += 1
                self._repeats.append(tried._replace(values=proposal.values))
                if proposal.why != _NEIGHBOUR:
                    self._enqueue_neighbour()
            elif self._asked > 1 and self._expected_s(deployment) > self._left_s():
                repeats += 1
                self._study.abandon(proposal.number)
                continue
            else:
                repeats = 0
                tried = self._try(proposal, deployment)
                self._evaluator.keep(tried)
                if self._tried_a_few:
                    self._evaluator.until_s = extended_s() - kept_s
                self._report_progress()
            self._study.tell(proposal.number, self._objective(tried), tried.trial.constraints)

    def settle(self) -> None:
        """Give each trial the objective that the surrogate, fitted to all of them, has for it."""
        known = [(i, s) for i, t in enumerate(self._tried) if (s := self._as_seen(t))]
        values = surrogate.smoothed(self._space, [s for _, s in known], self._predictions())
        for (i, _), value in zip(known, values, strict=True):
            self._tried[i] = self._tried[i]._replace(smoothed=value)

    def _try_qat(self) -> bool:
        """Quantization-aware training, once, where that could change the plan and there is time.

        Returns:
            Whether the question has come up.
        """
        deployment = qat_fallback.candidate(self._evaluator)
        if deployment is None:
            return False
        self._qat_considered = True
        expected_s = self._expected_s(deployment)
        if expected_s < self._left_s():
            tried = self._evaluator.trial(deployment, qat_fallback.WHY, expected_s=expected_s)
            self._evaluator.keep(tried)
            self._report_progress()
        return True

    @property
    def _tried_a_few(self) -> bool:
        return len(self._tried) >= len(self._evaluator.baselines) + _LEAST_TRIED

    def _expected_s(self, deployment: Deployment) -> float:
        return skip_rules.expected_s(self._evaluator, deployment)

    def _objective(self, tried: Tried) -> float | None:
        return self._goal.objective(self._run, tried, self._evaluator.reference)

    def _left_s(self) -> float:
        """Seconds until the search ends.  Once a few candidates were tried: sooner than planned
        where a first look at the best one and its baseline needs more than the time set aside.
        """
        assert self._evaluator.until_s is not None
        left_s = self._evaluator.until_s - self._run.bridge.now()
        ranked = self._evaluator.ranked()
        if not ranked or not self._tried_a_few:
            return left_s
        best = self._tried[ranked[0].number]
        sides = [best.launch, self._evaluator.baseline(best.trial.deployment).launch]
        launches_s = LOOKS[0] * sum(one.work_s for one in sides if one is not None)
        return min(left_s, self._run.left_s - launches_s)

    # -- proposing -------------------------------------------------------------------------

    def _next(self) -> Proposal:
        self._asked += 1
        if not self._study.waiting:  # what waits was proposed after the last result
            if not self._late:
                self._enqueue_deferred()
            if not self._study.waiting:
                self._late += 1
                if self._late % _SAMPLED:
                    self._enqueue_best()
        proposal = self._study.ask()
        if proposal.why == "sampler" and (
            self._is_deferred(self._evaluator.deployment(proposal.values))
            or self._unpromising(proposal.values)
        ):
            self._study.abandon(proposal.number)
            self._enqueue_best()
            proposal = self._study.ask()
        return proposal

    def _enqueue_deferred(self) -> None:
        """Enqueue what was deferred where it is predicted `_WORTH` times faster than the best that
        was measured and keeps its quality; one without compression, than the best without.
        """
        tried = [t.trial for t in self._tried if t.trial.constraints.get("quality", 0.0) <= 0]

        def worth_it(one: initial_order.Predicted) -> bool:
            lossless = self._evaluator.deployment(one.values).lossless
            rivals = [t for t in tried if t.deployment.lossless or not lossless]
            times = [t.latency_s.p50 for t in rivals if t.latency_s is not None]
            return _WORTH * one.predicted_s < min(times, default=math.inf)

        soon = [one for one in self._deferred if worth_it(one)]
        for one in soon:
            self._study.enqueue(one.values, one.why)
        self._deferred = [one for one in self._deferred if one not in soon]

    def _is_deferred(self, deployment: Deployment) -> bool:
        """Whether its runtime is: then what compresses the model for it is too."""
        deferred = (self._evaluator.deployment(one.values) for one in self._deferred)
        return any(other.runtime == deployment.runtime for other in deferred)

    def _seen(self) -> list[surrogate.Observation]:
        """What was tried, as the surrogate sees it."""
        both = (self._as_seen(tried) for tried in (*self._tried, *self._repeats))
        return [seen for seen in both if seen is not None]

    def _as_seen(self, tried: Tried) -> surrogate.Observation | None:
        deployment = tried.trial.deployment
        values = tried.values or search_space.values_of(
            deployment, self._space, self._run.survey.options
        )
        if values is None:
            return None
        return surrogate.Observation(values, self._objective(tried), tried.trial.constraints)

    def _predictions(self) -> list[surrogate.Observation]:
        """Of what is deferred and not compressed, as the surrogate sees it."""
        predictions = []
        for one in self._deferred:
            deployment = self._evaluator.deployment(one.values)
            if not deployment.lossless:
                continue
            batch, reference = deployment.batch_size, self._evaluator.reference
            value = self._goal.predicted(one.predicted_s, batch, reference)
            if value is not None:
                predictions.append(surrogate.Observation(one.values, value, {}))
        return predictions

    def _unpromising(self, values: Values) -> bool:
        return surrogate.unpromising(self._space, self._seen(), values, self._predictions())

    def _enqueue_best(self) -> None:
        """The surrogate's best; where it expects no improvement, the first that is deferred."""

        def cost_s(values: Values) -> float:
            deployment = self._evaluator.deployment(values)
            if self._is_deferred(deployment):
                return math.inf
            expected_s = self._expected_s(deployment) or usual_s
            return expected_s if expected_s <= left_s else math.inf

        left_s = self._left_s()
        usual_s = median([t.trial.wall_s for t in self._tried] or [_USUAL_S])
        found = surrogate.propose(
            self._space, self._seen(), cost_s, self._salt(), self._predictions()
        )
        if found is not None:
            self._study.enqueue(found, "surrogate")
        elif self._deferred:
            one = self._deferred.pop(0)
            self._study.enqueue(one.values, one.why)

    def _enqueue_neighbour(self) -> None:
        ranked = self._evaluator.ranked()
        best = self._tried[ranked[0].number] if ranked else None
        if best is not None and best.values is not None:
            found = space.neighbour(self._space, best.values, self._salt())
            self._study.enqueue(found, _NEIGHBOUR)

    def _salt(self) -> int:
        return self._run.effort.seed * 7919 + self._asked

    # -- trying ----------------------------------------------------------------------------

    def _try(self, proposal: Proposal, deployment: Deployment) -> Tried:
        """The trial; a skipped one where it is known that it would fail or break a limit."""
        reason = skip_rules.unbuildable(self._evaluator, deployment)
        if self._late and not reason:
            baseline = self._evaluator.baseline(deployment)
            reason = skip_rules.broken_bound(self._run, deployment, baseline)
        if reason:
            trial = DeployTrial(
                number=len(self._tried),
                deployment=deployment,
                state="skipped",
                bound=reason,
                constraints={"bound": 1.0},
            )
            return Tried(trial, values=proposal.values)
        expected_s = self._expected_s(deployment)
        tried = self._evaluator.trial(deployment, proposal.why, expected_s=expected_s)
        return tried._replace(values=proposal.values)

    def _known(self, deployment: Deployment) -> Tried | None:
        same = space.canonical(deployment)
        found = (t for t in self._tried if space.canonical(t.trial.deployment) == same)
        return next(found, None)

    def _report_progress(self) -> None:
        ranked = self._evaluator.ranked()
        text = describe(ranked[0].deployment) if ranked else "none yet"
        self._run.listener.trial(self._tried[-1].trial, text, self._left_s())
        self._run.on_progress()
