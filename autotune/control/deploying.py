"""The deploy search: compression, runtime, threads, batch, under deployment budgets.

Each candidate is three jobs: *build* (a file, from the cache where a stage is known),
*measure* (a new interpreter that runs the shipped loader, timing on *select* inputs and
writing its outputs), *score* (the outputs against the targets).  Its constraints are
``measured / budget - 1``; that of quality uses the upper confidence bound of the drop, so
that what the search calls feasible is what verification can certify.
"""

from dataclasses import dataclass, field
from hashlib import sha256

import msgspec

from autotune.control import choose, deployments, foresight, recipes, reuse, space, verdict
from autotune.control.attempts import Attempt, outputs_of, part_of
from autotune.control.figures import Tried, broken_bound, constraints, objective
from autotune.control.run import Run
from autotune.control.search import Search
from autotune.errors import ContractError
from autotune.records import job as jobs
from autotune.records.plan import Deployment, Recipe, Value
from autotune.records.report import DeployTrial

CONSTRAINTS = ("energy", "latency", "memory", "quality")
_BUILD_TIMEOUT_S = 300.0
_MEASURE_TIMEOUT_S = 130.0
_SCREEN_S = 0.4
_MOST_REPEATS = 40
_HOPELESS = 1.5  # a thread count this much slower on the dense model is not searched


@dataclass
class Lab:
    """Builds and measures deployments of one set of weights."""

    run: Run
    weights: str
    recipe: Recipe
    recovery_epochs: int
    tried: list[Tried] = field(default_factory=list)
    baselines: dict[tuple[int, int], Tried] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        return self.run.budget.batch or 1

    def dense(self, threads: int, batch: int) -> Deployment:
        """The deploy baseline at these threads and this batch."""
        return Deployment(runtime="eager", threads=threads, batch_size=batch)

    # -- one candidate ---------------------------------------------------------------------

    def build(self, deployment: Deployment) -> jobs.Result:
        name = sha256(space.canonical(deployment).encode()).hexdigest()[:12]
        job = jobs.Build(
            task=self.run.task(self.recipe),
            weights=self.weights,
            compress=deployment.compress,
            runtime=deployment.runtime,
            threads=deployment.threads,
            batch_size=deployment.batch_size,
            seed=self.run.effort.seed,
            recipe=self.recipe,
            recovery_epochs=deployment.recovery_epochs,
            out=f"builds/{name}",
        )
        return self.run.bridge.run(job, timeout_s=_BUILD_TIMEOUT_S)

    def measure(self, built: jobs.Built, deployment: Deployment, every: int = 1) -> jobs.Result:
        """Time it on *select* and write its outputs on ``every`` so manieth row of it."""
        job = jobs.Measure(
            artifact=built.artifact,
            rows="data/select.npz",
            batch_size=deployment.batch_size,
            threads=deployment.threads,
            seed=self.run.effort.seed,
            min_calls=verdict.samples_needed(self.run.budget.percentile, 0.005),
            time_s=_SCREEN_S,
            score_rows="data/select.npz",
            every=every,
            outputs=outputs_of(built, "select"),
            meter=self.run.meter,
            load_per_s=self.run.budget.load_per_s,
        )
        return self.run.bridge.run(
            job, timeout_s=120.0 + 20 * _SCREEN_S + self.evaluation_limit_s()
        )

    def more(self, built: jobs.Built, deployment: Deployment, every: int) -> jobs.Result:
        """Its outputs on more rows: no second timing."""
        job = jobs.Measure(
            artifact=built.artifact,
            rows="data/select.npz",
            batch_size=deployment.batch_size,
            threads=deployment.threads,
            min_calls=1,
            max_calls=1,
            time_s=0.0,
            warmup_s=0.0,
            score_rows="data/select.npz",
            every=every,
            outputs=outputs_of(built, "select"),
        )
        return self.run.bridge.run(job, timeout_s=_MEASURE_TIMEOUT_S + self.evaluation_limit_s())

    def score(self, built: jobs.Built, part: str, every: int = 1) -> jobs.Result:
        job = jobs.Score(
            task=self.run.task(self.recipe),
            part=part,
            outputs=outputs_of(built, part),
            every=every,
            seed=self.run.effort.seed,
        )
        return self.run.bridge.run(job, timeout_s=_MEASURE_TIMEOUT_S + self.evaluation_limit_s())

    def trial(self, deployment: Deployment, why: str, *, baseline: bool = False) -> Tried:
        """Build, measure and score one candidate; never raises for what the candidate does."""
        attempt = Attempt(self, deployment, why)
        tried = attempt.run(None if baseline else self.baseline(deployment))
        return tried if baseline else self._constrained(tried)

    def evaluation_limit_s(self) -> float:
        """What one evaluation may take: a baseline's own, or the survey's guess, with room."""
        known = [t.trial.measure_s for t in self.baselines.values()]
        return 10 * max([*known, self.run.evaluation_s, 0.0 if known else 30.0])

    def _constrained(self, tried: Tried) -> Tried:
        if tried.scores is None:
            return tried
        reference = self.baseline(tried.trial.deployment)
        fields = constraints(self.run, tried, part_of(reference, tried))
        return tried._replace(trial=msgspec.structs.replace(tried.trial, **fields))

    def baseline(self, deployment: Deployment) -> Tried:
        """Dense eager at the deployment's threads and batch, measured once."""
        at = (deployment.threads, deployment.batch_size)
        if at not in self.baselines:
            raw = self.trial(self.dense(*at), "the deploy baseline", baseline=True)
            self.baselines[at] = raw
            if raw.scores is not None:
                self.baselines[at] = self._constrained(raw)
            self.keep(self.baselines[at])
        return self.baselines[at]

    def keep(self, tried: Tried) -> None:
        trial = msgspec.structs.replace(tried.trial, number=len(self.tried))
        self.tried.append(tried._replace(trial=trial))

    # -- the search ------------------------------------------------------------------------

    def search(self, until_s: float) -> None:
        """Fill `tried` until the run's clock reads ``until_s``, the trials are used up, or the
        space is exhausted.
        """
        run = self.run
        batches = self._batches()
        counts, fastest = self._threads(batches[0])
        searched = deployments.deploy_space(run.survey, counts, batches, run.effort)
        study, first = self._started(
            searched, deployments.seeds(searched, run.survey.options, fastest), batches, counts
        )
        limit = run.effort.trials or 10_000
        repeats = asked = 0
        while run.bridge.now() < until_s and len(self.tried) < limit and repeats < _MOST_REPEATS:
            proposal = study.ask()
            asked += 1
            deployment = self.deployment(proposal.values)
            tried = self._known(deployment)
            if tried is not None:  # a repeat buys an unseen neighbour of the best
                repeats += 1
                self._enqueue_neighbour(study, searched, asked)
            elif asked > 1 and self._expected_s(deployment) > until_s - run.bridge.now():
                repeats += 1
                study.abandon(proposal.number)
                continue
            else:
                repeats = 0
                bound = self._unbuildable(deployment)
                if asked > first:
                    bound = bound or broken_bound(run, deployment, self.baseline(deployment))
                tried = self._skipped(deployment, bound) if bound else None
                tried = tried or self.trial(deployment, proposal.why)
                tried = tried._replace(values=proposal.values)
                self.keep(tried)
                self._tell_listener(until_s)
            value = objective(run, tried, self.baseline(deployment))
            study.tell(proposal.number, value, tried.trial.constraints)

    def _started(
        self,
        searched: space.Space,
        usual: list[dict[str, Value]],
        batches: tuple[int, ...],
        counts: tuple[int, ...],
    ) -> tuple[reuse.Guided, int]:
        """The study with everything enqueued that is worth trying first, and how many these are."""
        run = self.run
        ahead = foresight.look(
            run, self.recipe, batches, counts, [t.trial for t in self.baselines.values()]
        )
        ordered = ahead.order([(v, self.deployment(v)) for v in usual], batches)
        donor = reuse.find(run, "deployments")
        first = reuse.seeds(run, donor, searched, ordered)
        study = Search(searched, seed=run.effort.seed, constraints=CONSTRAINTS, journal=run.journal)
        guided = reuse.Guided(study, study.apart() if donor is not None else None, len(first))
        for values, why in first:
            guided.enqueue(values, why)
        return guided, len(first)

    def _batches(self) -> tuple[int, ...]:
        """Batch sizes that are searched: one, but for the goals that are about many samples."""
        budget = self.run.budget
        if budget.batch is not None or budget.resolved_goal() not in ("energy", "throughput"):
            return (self.batch,)
        most = self.run.survey.task.select_rows
        return tuple(b for b in (1, 4, 16, 64, 256) if b <= most)

    def _threads(self, batch: int) -> tuple[tuple[int, ...], int]:
        """Measure the baseline at every thread count; keep those that are not clearly slower
        than the fastest, and say which were refused.

        Returns:
            The thread counts to search, and the fastest.

        Raises:
            ContractError: the baseline cannot be served at any.
        """
        counts = recipes.thread_counts(self.run.profile, self.run.effort)
        found = [self.baseline(self.dense(threads, batch)).trial for threads in counts]
        times = {t.deployment.threads: t.latency_s.p50 for t in found if t.latency_s is not None}
        if not times:
            failure = found[0].failure
            why = f"{failure.kind}: {failure.message}\n{failure.log}" if failure else "no answer"
            raise ContractError(f"the trained model cannot be served even as it stands. {why}")
        fastest = min(times, key=lambda threads: times[threads])
        for threads, time_s in times.items():
            if time_s > _HOPELESS * times[fastest]:
                self.run.listener.note(
                    f"{threads} threads refused: {time_s / times[fastest]:.1f}x slower than "
                    f"{fastest} on the dense model"
                )
        kept = tuple(t for t, time_s in times.items() if time_s <= _HOPELESS * times[fastest])
        return kept, fastest

    def _expected_s(self, deployment: Deployment) -> float:
        """What a trial like this took at most so far (same runtime, same kind of compression)."""
        kinds = [step.name for step in deployment.compress]
        like = [
            t.trial.wall_s
            for t in self.tried
            if t.trial.deployment.runtime == deployment.runtime
            and [step.name for step in t.trial.deployment.compress] == kinds
        ]
        return max(like, default=0.0)

    def _enqueue_neighbour(self, study: reuse.Guided, searched: space.Space, salt: int) -> None:
        ranked = self.ranked()
        best = self.tried[ranked[0].number] if ranked else None
        if best is not None and best.values is not None:
            seed = self.run.effort.seed * 7919 + salt
            study.enqueue(space.neighbour(searched, best.values, seed), "neighbour of the best")

    def deployment(self, values: dict[str, Value]) -> Deployment:
        return deployments.deployment(
            values,
            self.run.survey.options,
            batch_size=self.batch,
            recovery_epochs=self.recovery_epochs,
            keep_fp32=self.run.effort.keep_fp32,
        )

    def _known(self, deployment: Deployment) -> Tried | None:
        same = space.canonical(deployment)
        found = (t for t in self.tried if space.canonical(t.trial.deployment) == same)
        return next(found, None)

    def _unbuildable(self, deployment: Deployment) -> str | None:
        """What a failed build has told of every build like it."""
        for tried in self.tried:
            failure = tried.trial.failure
            for name, least in failure.least.items() if failure else ():
                step, _, parameter = name.partition(".")
                for asked in deployment.compress:
                    value = asked.params.get(parameter)
                    if asked.name == step and isinstance(value, float) and value < least:
                        return f"{parameter} {value:g} cannot be built: trial {tried.trial.number}"
        return None

    def _skipped(self, deployment: Deployment, bound: str) -> Tried:
        """A trial that is ruled out unmeasured."""
        trial = DeployTrial(
            number=len(self.tried),
            deployment=deployment,
            state="skipped",
            bound=bound,
            constraints={"bound": 1.0},
        )
        return Tried(trial)

    def _tell_listener(self, until_s: float) -> None:
        ranked = self.ranked()
        text = choose.describe(ranked[0].deployment) if ranked else "none yet"
        self.run.listener.trial(self.tried[-1].trial, text, until_s - self.run.bridge.now())
        self.run.on_progress()

    # -- choosing --------------------------------------------------------------------------

    def ranked(self) -> tuple[DeployTrial, ...]:
        """All completed trials, best first under the goal."""
        return choose.order(
            [t.trial for t in self.tried],
            self.run.budget.resolved_goal(),
            self.run.survey.task.higher_is_better,
            indistinguishable=self._same_quality,
        )

    def _same_quality(self, one: DeployTrial, other: DeployTrial) -> bool:
        """Whether the worse is within noise of the better (paired, on *select*)."""
        a, b = self.tried[one.number].scores, self.tried[other.number].scores
        if a is None or b is None:
            return False
        higher = self.run.survey.task.higher_is_better
        if (a.quality > b.quality) == higher:
            a, b = b, a
        found = verdict.quality(a, b, 0.0, higher_is_better=higher)
        return found.lower is None or found.lower <= 0
