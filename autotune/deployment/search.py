"""The order in which the deploy search tries things.

    threads (baselines) -> seeds, the fastest predicted first -> the surrogate's proposals,
                                            every fourth the sampler's own, until the time is up

A seed tries one part: each runtime, each quantizer, one pruning level.  From these the surrogate
predicts combinations; the sampler (TPE) sees every result and keeps looking elsewhere.  A runtime
that needs a compiler and is predicted slower than what was measured waits: its prediction is told
to the surrogate, and it is tried once nothing else is expected to gain.
"""

import math
from collections.abc import Callable, Sequence
from statistics import median

from autotune.context import RunContext, thread_counts
from autotune.deployment import initial_order, qat_fallback, search_space, skip_rules
from autotune.deployment.evaluator import CONSTRAINTS, DeploymentEvaluator
from autotune.deployment.metrics import Tried, broken_bound
from autotune.errors import ContractError
from autotune.records.measurement import LOOKS
from autotune.records.plan import Deployment
from autotune.records.report import DeployTrial
from autotune.report.describe import describe
from autotune.search import space, surrogate, warm_start
from autotune.search.space import Values
from autotune.search.study import Initial, MixedStudy, Proposal, Study
from autotune.search.warm_start import WarmStart

_MOST_REPEATS = 40
_SAMPLED = 4
"""After the seeds each so manieth proposal is the sampler's own."""
_HOPELESS = 1.5  # a thread count this much slower on the dense model is not searched
_USUAL_S = 3.0
_WORTH = 1.3
"""So much faster a plan that needs a compiler has to be predicted to be tried among the first."""
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
    batches = _batches(evaluator)
    counts, fastest = _threads(evaluator, batches[0])
    searched = search_space.deploy_space(
        evaluator.run.survey, counts, batches, evaluator.run.effort
    )
    seeds = search_space.seeds(searched, evaluator.run.survey.options, fastest)
    ahead = initial_order.look(
        evaluator.run,
        evaluator.recipe,
        batches,
        counts,
        [t.trial for t in evaluator.baselines.values()],
    )
    ordered, dear = ahead.apart([(v, evaluator.deployment(v)) for v in seeds], batches)
    first = _initial(evaluator.run, searched, earlier, ordered)
    run = evaluator.run
    study = Study(searched, seed=run.effort.seed, constraints=CONSTRAINTS, journal=run.journal)
    mixed = MixedStudy(study, first, blind=earlier is not None)
    exploration = _Exploration(evaluator, searched, mixed, dear)
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
    given = [values for values in known if values is not None]
    run.listener.note(
        f"Starts from {len(given)} plans of {earlier.folder} ({earlier.model}), "
        "measured anew; every third of the sampler's trials has not seen them."
    )
    first: list[Initial] = [(values, warm_start.WHY) for values in given]
    return first + [(values, why) for values, why in usual if values not in given]


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
    counts = thread_counts(evaluator.run.profile, evaluator.run.effort)
    if evaluator.on_gpu:
        baseline = evaluator.baseline(evaluator.dense(1, batch)).trial
        if baseline.latency_s is not None:
            return counts, counts[-1]
        why = baseline.failure.message if baseline.failure else "no answer"
        evaluator.run.listener.note(f"The GPU cannot serve the model as it stands: {why}")
        evaluator.on_gpu = False
    found = [evaluator.baseline(evaluator.dense(threads, batch)).trial for threads in counts]
    times = {t.deployment.threads: t.latency_s.p50 for t in found if t.latency_s is not None}
    if not times:
        failure = found[0].failure
        why = f"{failure.kind}: {failure.message}\n{failure.log}" if failure else "no answer"
        raise ContractError(f"the trained model cannot be served even as it stands. {why}")
    fastest = min(times, key=lambda threads: times[threads])
    for threads, time_s in times.items():
        if time_s > _HOPELESS * times[fastest]:
            evaluator.run.listener.note(
                f"{threads} threads refused: {time_s / times[fastest]:.1f}x slower than "
                f"{fastest} on the dense model"
            )
    kept = tuple(t for t, time_s in times.items() if time_s <= _HOPELESS * times[fastest])
    return kept, fastest


class _Exploration:
    """One search under way, of a study with its seeds in it; ``dear`` ones wait."""

    def __init__(
        self,
        evaluator: DeploymentEvaluator,
        searched: space.Space,
        study: MixedStudy,
        dear: list[initial_order.Seed],
    ) -> None:
        self._evaluator = evaluator
        self._run = evaluator.run
        self._space = searched
        self._study = study
        self._dear = dear
        self._asked = 0
        self._late = 0
        """Proposals after the seeds."""
        self._rescued = False
        self._repeats: list[Tried] = []
        """Other values of what was tried: they mean the same deployment."""

    def run(self, planned_s: float, extended_s: Callable[[], float], kept_s: float) -> None:
        limit = self._run.effort.trials or 10_000
        repeats = 0
        self._evaluator.until_s = planned_s - kept_s
        while self._left_s() > 0 and len(self._evaluator.tried) < limit and repeats < _MOST_REPEATS:
            if not self._study.waiting and not self._rescued and self._rescue():
                continue
            proposal = self._next()
            deployment = self._evaluator.deployment(proposal.values)
            tried = self._known(deployment)
            if tried is not None:  # a repeat buys a neighbour of the best, unless it was one
                repeats += 1
                self._repeats.append(tried._replace(values=proposal.values))
                if proposal.why != _NEIGHBOUR:
                    self._enqueue_neighbour()
            elif (
                self._asked > 1
                and skip_rules.expected_s(self._evaluator, deployment) > self._left_s()
            ):
                repeats += 1
                self._study.abandon(proposal.number)
                continue
            else:
                repeats = 0
                tried = self._tried(proposal, deployment)
                self._evaluator.keep(tried)
                if len(self._evaluator.tried) >= len(self._evaluator.baselines) + _LEAST_TRIED:
                    self._evaluator.until_s = extended_s() - kept_s
                self._tell_listener()
            value = self._evaluator.goal.objective(self._run, tried, self._evaluator.reference)
            self._study.tell(proposal.number, value, tried.trial.constraints)

    def settle(self) -> None:
        """Note each plan's objective as all trials together have it."""
        known = [(i, s) for i, t in enumerate(self._evaluator.tried) if (s := self._as_seen(t))]
        values = surrogate.smoothed(self._space, [s for _, s in known], self._guesses())
        for (i, _), value in zip(known, values, strict=True):
            self._evaluator.tried[i] = self._evaluator.tried[i]._replace(steady=value)

    def _rescue(self) -> bool:
        """Train for int8, once, where that could change the plan and there is time; whether the
        question has come up.
        """
        deployment = qat_fallback.candidate(self._evaluator)
        if deployment is None:
            return False
        self._rescued = True
        expected_s = skip_rules.expected_s(self._evaluator, deployment)
        if expected_s < self._left_s():
            self._evaluator.keep(
                self._evaluator.trial(deployment, qat_fallback.WHY, expected_s=expected_s)
            )
            self._tell_listener()
        return True

    def _left_s(self) -> float:
        """Until the search ends: once some candidates were tried sooner, where launches of the best
        and of its baseline, in turn until a first look, would need longer than what is set aside.
        """
        assert self._evaluator.until_s is not None
        left_s = self._evaluator.until_s - self._run.bridge.now()
        ranked = self._evaluator.ranked()
        if not ranked or len(self._evaluator.tried) < len(self._evaluator.baselines) + _LEAST_TRIED:
            return left_s
        best = self._evaluator.tried[ranked[0].number]
        sides = [best.launch, self._evaluator.baseline(best.trial.deployment).launch]
        launches_s = LOOKS[0] * sum(one.work_s for one in sides if one is not None)
        return min(left_s, self._run.left_s - launches_s)

    # -- proposing -------------------------------------------------------------------------

    def _next(self) -> Proposal:
        self._asked += 1
        if not self._study.waiting:  # what waits was proposed after the last result
            if not self._late:
                self._release()
            if not self._study.waiting:
                self._late += 1
                if self._late % _SAMPLED:
                    self._enqueue_best()
        proposal = self._study.ask()
        if proposal.why == "sampler" and (
            self._waits(self._evaluator.deployment(proposal.values))
            or self._hopeless(proposal.values)
        ):
            self._study.abandon(proposal.number)
            self._enqueue_best()
            proposal = self._study.ask()
        return proposal

    def _release(self) -> None:
        """Seeds that need a compiler go ahead where they are predicted faster, by what that costs,
        than the best that was measured and keeps its quality; one without compression, than the
        best that has none.
        """
        tried = [
            t.trial for t in self._evaluator.tried if t.trial.constraints.get("quality", 0.0) <= 0
        ]

        def worth_it(seed: initial_order.Seed) -> bool:
            lossless = self._evaluator.deployment(seed.values).lossless
            rivals = [t for t in tried if t.deployment.lossless or not lossless]
            times = [t.latency_s.p50 for t in rivals if t.latency_s is not None]
            return _WORTH * seed.predicted_s < min(times, default=math.inf)

        soon = [seed for seed in self._dear if worth_it(seed)]
        for seed in soon:
            self._study.enqueue(seed.values, seed.why)
        self._dear = [seed for seed in self._dear if seed not in soon]

    def _waits(self, deployment: Deployment) -> bool:
        """Whether its runtime waits: then what compresses the model for it waits too."""
        return any(
            self._evaluator.deployment(s.values).runtime == deployment.runtime for s in self._dear
        )

    def _seen(self) -> list[surrogate.Observation]:
        """What was tried, as the surrogate sees it."""
        both = (self._as_seen(tried) for tried in (*self._evaluator.tried, *self._repeats))
        return [seen for seen in both if seen is not None]

    def _as_seen(self, tried: Tried) -> surrogate.Observation | None:
        deployment = tried.trial.deployment
        values = tried.values or search_space.values_of(
            deployment, self._space, self._run.survey.options
        )
        if values is None:
            return None
        value = self._evaluator.goal.objective(self._run, tried, self._evaluator.reference)
        return surrogate.Observation(values, value, tried.trial.constraints)

    def _guesses(self) -> list[surrogate.Observation]:
        """The predictions of uncompressed seeds that wait."""
        guesses = []
        for seed in self._dear:
            deployment = self._evaluator.deployment(seed.values)
            if not deployment.lossless:
                continue
            batch, reference = deployment.batch_size, self._evaluator.reference
            value = self._evaluator.goal.predicted(seed.predicted_s, batch, reference)
            if value is not None:
                guesses.append(surrogate.Observation(seed.values, value, {}))
        return guesses

    def _hopeless(self, values: Values) -> bool:
        return surrogate.unpromising(self._space, self._seen(), values, self._guesses())

    def _enqueue_best(self) -> None:
        """What the surrogate expects most of; where it expects nothing, a seed that waits."""

        def cost_s(values: Values) -> float:
            deployment = self._evaluator.deployment(values)
            if self._waits(deployment):
                return math.inf
            expected_s = skip_rules.expected_s(self._evaluator, deployment) or usual_s
            return expected_s if expected_s <= left_s else math.inf

        left_s = self._left_s()
        usual_s = median([t.trial.wall_s for t in self._evaluator.tried] or [_USUAL_S])
        found = surrogate.propose(self._space, self._seen(), cost_s, self._salt(), self._guesses())
        if found is not None:
            self._study.enqueue(found, "surrogate")
        elif self._dear:
            seed = self._dear.pop(0)
            self._study.enqueue(seed.values, seed.why)

    def _enqueue_neighbour(self) -> None:
        ranked = self._evaluator.ranked()
        best = self._evaluator.tried[ranked[0].number] if ranked else None
        if best is not None and best.values is not None:
            found = space.neighbour(self._space, best.values, self._salt())
            self._study.enqueue(found, _NEIGHBOUR)

    def _salt(self) -> int:
        return self._run.effort.seed * 7919 + self._asked

    # -- trying ----------------------------------------------------------------------------

    def _tried(self, proposal: Proposal, deployment: Deployment) -> Tried:
        """The trial; a skipped one where it is known beforehand that it cannot be."""
        bound = skip_rules.unbuildable(self._evaluator, deployment)
        if self._late:
            bound = bound or broken_bound(
                self._run, deployment, self._evaluator.baseline(deployment)
            )
        if bound:
            return self._skipped(deployment, bound)._replace(values=proposal.values)
        expected_s = skip_rules.expected_s(self._evaluator, deployment)
        tried = self._evaluator.trial(deployment, proposal.why, expected_s=expected_s)
        return tried._replace(values=proposal.values)

    def _known(self, deployment: Deployment) -> Tried | None:
        same = space.canonical(deployment)
        found = (t for t in self._evaluator.tried if space.canonical(t.trial.deployment) == same)
        return next(found, None)

    def _skipped(self, deployment: Deployment, bound: str) -> Tried:
        """A trial that is ruled out unmeasured."""
        trial = DeployTrial(
            number=len(self._evaluator.tried),
            deployment=deployment,
            state="skipped",
            bound=bound,
            constraints={"bound": 1.0},
        )
        return Tried(trial)

    def _tell_listener(self) -> None:
        ranked = self._evaluator.ranked()
        text = describe(ranked[0].deployment) if ranked else "none yet"
        self._run.listener.trial(self._evaluator.tried[-1].trial, text, self._left_s())
        self._run.on_progress()
