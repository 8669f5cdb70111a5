"""The deploy search: compression, runtime, threads, batch, under deployment budgets.

Each candidate is three jobs: *build* (a file, from the cache where a stage is known),
*measure* (a new interpreter that runs the shipped loader, timing on *select* inputs and
writing its outputs), *score* (the outputs against the targets).  Its constraints are
``measured / budget - 1``; that of quality uses the upper confidence bound of the drop, so
that what the search calls feasible is what verification can certify.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

from autotune import plugins
from autotune.control import choose, cost, space, verdict
from autotune.control.run import Run
from autotune.control.search import Search
from autotune.errors import ContractError
from autotune.records import job as jobs
from autotune.records.budget import Limit
from autotune.records.measurement import Interval, Launch, Scores
from autotune.records.plan import Deployment, Recipe, Value
from autotune.records.report import DeployTrial, Failure

CONSTRAINTS = ("energy", "latency", "memory", "quality")
_BUILD_TIMEOUT_S = 300.0
_SCREEN_S = 0.4
_MOST_REPEATS = 40


class Tried(NamedTuple):
    """A trial with what does not go into the report."""

    trial: DeployTrial
    built: jobs.Built | None = None
    launch: Launch | None = None
    scores: Scores | None = None


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
            task=self.run.spec,
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

    def measure(
        self,
        built: jobs.Built,
        deployment: Deployment,
        seed: int,
        *,
        part: str | None,
        time_s: float,
    ) -> jobs.Result:
        job = jobs.Measure(
            artifact=built.artifact,
            rows="data/select.npz",
            batch_size=deployment.batch_size,
            threads=deployment.threads,
            seed=seed,
            min_calls=verdict.samples_needed(self.run.budget.percentile, 0.005),
            time_s=time_s,
            score_rows=f"data/{part}.npz" if part else None,
            outputs=outputs_of(built, part) if part else None,
            meter=self.run.meter,
        )
        return self.run.bridge.run(job, timeout_s=120.0 + 20 * time_s)

    def score(self, built: jobs.Built, part: str) -> jobs.Result:
        job = jobs.Score(
            task=self.run.spec,
            part=part,
            outputs=outputs_of(built, part),
            seed=self.run.effort.seed,
        )
        return self.run.bridge.run(job, timeout_s=120.0)

    def trial(self, deployment: Deployment, why: str, *, baseline: bool = False) -> Tried:
        """Build, measure and score one candidate; never raises for what the candidate does."""
        number = len(self.tried)
        results: list[jobs.Result] = []

        def spent(**fields: object) -> DeployTrial:
            overhead = sum(max(0.0, r.wall_s - r.work_s) for r in results)
            wall = sum(r.wall_s for r in results)
            build = sum(r.wall_s for r in results[:1])
            self.run.overheads.append(overhead)
            base: dict[str, object] = {
                "number": number,
                "deployment": deployment,
                "why": why,
                "build_s": build,
                "measure_s": wall - build,
                "wall_s": wall,
                "overhead_s": overhead,
            }
            return DeployTrial(**(base | fields))  # type: ignore[arg-type]

        def failed(failure: Failure) -> Tried:
            return Tried(spent(state="failed", failure=failure, constraints={"failed": 1.0}))

        results.append(self.build(deployment))
        built = results[-1].answer
        if not isinstance(built, jobs.Built):
            return failed(_of(results[-1]))
        results.append(
            self.measure(built, deployment, self.run.effort.seed, part="select", time_s=_SCREEN_S)
        )
        measured = results[-1].answer
        if not isinstance(measured, jobs.Measured):
            return failed(_of(results[-1]))
        results.append(self.score(built, "select"))
        scored = results[-1].answer
        if not isinstance(scored, jobs.Scored):
            return failed(_of(results[-1]))
        launch, scores = measured.launch, scored.scores
        fields = describe(self.run, [launch], deployment)
        fields |= {"size_bytes": built.size_bytes, "quality": scores.quality, "state": "complete"}
        tried = Tried(spent(**fields), built, launch, scores)
        return tried if baseline else self._constrained(tried)

    def _constrained(self, tried: Tried) -> Tried:
        import msgspec

        reference = self.baseline(tried.trial.deployment)
        fields = constraints(self.run, tried, reference)
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
        import msgspec

        trial = msgspec.structs.replace(tried.trial, number=len(self.tried))
        self.tried.append(tried._replace(trial=trial))

    # -- the search ------------------------------------------------------------------------

    def search(self, until_s: float) -> None:
        """Fill `tried` until the run's clock reads ``until_s``, the trials are used up, or the
        space is exhausted.
        """
        run = self.run
        goal = run.budget.resolved_goal()
        batches: tuple[int, ...] = (self.batch,)
        if goal in ("energy", "throughput") and run.budget.batch is None:
            batches = tuple(b for b in (1, 4, 16, 64, 256) if b <= run.survey.task.select_rows)
        searched = space.deploy_space(run.survey, run.profile, batches)
        study = Search(searched, seed=run.effort.seed, constraints=CONSTRAINTS)
        threads = self._baselines(batches[0])
        seeds = space.seeds(searched, run.survey.options, threads)
        for values in seeds:
            study.enqueue(values, "seed")
        limit = run.effort.trials or 10_000
        repeats = 0
        asked = 0
        while run.bridge.now() < until_s and len(self.tried) < limit and repeats < _MOST_REPEATS:
            proposal = study.ask()
            asked += 1
            deployment = self.deployment(proposal.values)
            known = self._known(deployment)
            repeats = repeats + 1 if known else 0
            tried = known or self._bounded(deployment) if asked > len(seeds) else known
            if tried is None:
                tried = self.trial(deployment, proposal.why)
                self.keep(tried)
                self._tell_listener(until_s)
            elif tried is not known:
                self.keep(tried)
            study.tell(
                proposal.number,
                objective(run, tried, self.baseline(deployment)),
                tried.trial.constraints,
            )

    def _baselines(self, batch: int) -> int:
        """Measure the baseline at every thread count; return the fastest one's threads."""
        counts = space.thread_counts(self.run.profile)
        found = [self.baseline(self.dense(threads, batch)) for threads in counts]
        known = [t.trial for t in found if t.trial.latency_s is not None]
        if not known:
            failure = found[0].trial.failure
            why = f"{failure.kind}: {failure.message}\n{failure.log}" if failure else "no answer"
            raise ContractError(f"the trained model cannot be served even as it stands. {why}")
        fastest = min(known, key=lambda t: t.latency_s.p50 if t.latency_s else math.inf)
        return fastest.deployment.threads

    def deployment(self, values: dict[str, Value]) -> Deployment:
        return space.deployment(
            values,
            self.run.survey.options,
            batch_size=self.batch,
            recovery_epochs=self.recovery_epochs,
        )

    def _known(self, deployment: Deployment) -> Tried | None:
        same = space.canonical(deployment)
        found = (t for t in self.tried if space.canonical(t.trial.deployment) == same)
        return next(found, None)

    def _bounded(self, deployment: Deployment) -> Tried | None:
        """A trial that a provable bound rules out, unmeasured."""
        bound = _broken_bound(self.run, deployment, self.baseline(deployment))
        if bound is None:
            return None
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


def outputs_of(built: jobs.Built, part: str | None) -> str:
    """Rows file of an artifact's outputs on one part of the data."""
    return f"outputs/{built.artifact.rpartition('/')[2]}-{part}.npz"


def _of(result: jobs.Result) -> Failure:
    return result.failure or Failure(kind="error", message="no answer")


def describe(run: Run, launches: Sequence[Launch], deployment: Deployment) -> dict[str, object]:
    """Figures of a deployment from its launches."""
    latencies = [launch.latency_s for launch in launches]
    batch = deployment.batch_size
    busy = sum(sum(latency) for latency in latencies)
    modelled = None
    if run.meter is None:
        modelled = modelled_energy(run, launches, batch)
    return {
        "latency_s": verdict.quantiles(latencies, run.budget.percentile),
        "energy_j_per_sample": energy_per_sample(launches, batch),
        "energy_modelled": modelled,
        "memory_bytes": max(launch.peak_memory_bytes for launch in launches),
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


def modelled_energy(run: Run, launches: Sequence[Launch], batch: int) -> Interval:
    """The power model's joules per sample; never a measurement."""
    cpu = sum(launch.cpu_s for launch in launches)
    window = sum(launch.window_s for launch in launches)
    samples = batch * sum(launch.window_calls for launch in launches)
    effort = run.effort
    found, _ = plugins.load("meters", "modelled").energy(
        run.profile, cpu, window, idle_w=effort.cpu_idle_w, max_w=effort.cpu_max_w
    )
    return Interval(value=found.value / samples, low=found.low / samples, high=found.high / samples)


# -- limits --------------------------------------------------------------------------------


def resolve(limit: Limit | None, baseline: float | None) -> float | None:
    """A limit in SI units; None where it is relative to something that was not measured."""
    if limit is None:
        return None
    if not limit.relative:
        return limit.value
    return limit.value * baseline if baseline is not None else None


def at_percentile(run: Run, tried: Tried) -> float | None:
    """The latency at the budget's percentile, in seconds."""
    if tried.launch is None:
        return None
    return verdict.point_quantile(tried.launch.latency_s, run.budget.percentile)


def max_drop(run: Run, baseline_quality: float) -> float:
    """Allowed fall of quality, in the metric's unit."""
    given = run.max_drop
    return given if given is not None else 0.01 * abs(baseline_quality)


def known_energy(trial: DeployTrial) -> float | None:
    """Measured joules per sample, else the model's value (which orders and never decides)."""
    if trial.energy_j_per_sample is not None:
        return trial.energy_j_per_sample
    return trial.energy_modelled.value if trial.energy_modelled else None


def constraints(run: Run, tried: Tried, reference: Tried) -> dict[str, object]:
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
        higher = run.survey.task.higher_is_better
        found = verdict.quality(tried.scores, reference.scores, allowed, higher_is_better=higher)
        drop, upper = found.estimate, found.upper
        judged = upper if _certifiable(run, allowed) else drop
        if judged is not None and allowed > 0:
            out["quality"] = judged / allowed - 1
        elif judged is not None:
            out["quality"] = judged - allowed
    return {"constraints": out, "drop": drop, "drop_upper": upper}


def _certifiable(run: Run, allowed: float) -> bool:
    """Whether *select* has rows enough to certify the allowed drop at all."""
    least = verdict.smallest_certifiable_drop(run.survey.task.select_rows)
    return run.survey.task.binary and least is not None and least < allowed


def _broken_bound(run: Run, deployment: Deployment, reference: Tried) -> str | None:
    traits = run.survey.traits
    least_s = cost.latency_bound_s(deployment, traits, run.profile)
    limit_s = resolve(run.budget.latency, at_percentile(run, reference))
    if limit_s is not None and least_s is not None and least_s > limit_s:
        return f"latency is at least {least_s:.3g} s, the limit is {limit_s:.3g} s"
    least_bytes = cost.memory_bound_bytes(deployment, traits)
    limit_bytes = resolve(run.budget.memory, reference.trial.memory_bytes)
    if limit_bytes is not None and least_bytes > limit_bytes:
        return f"memory is at least {least_bytes:.3g} B, the limit is {limit_bytes:.3g} B"
    return None


def objective(run: Run, tried: Tried, reference: Tried) -> float | None:
    """What the sampler minimises; None for a trial that failed or was skipped."""
    trial, base = tried.trial, reference.trial
    latency, base_latency = at_percentile(run, tried), at_percentile(run, reference)
    if trial.state != "complete" or not latency or not base_latency:
        return None
    speed = math.log(latency / base_latency)
    goal = run.budget.resolved_goal()
    if goal == "quality" and trial.drop is not None and reference.scores is not None:
        scale = max_drop(run, reference.scores.quality) or 1.0
        return trial.drop / scale + 0.1 * speed
    if goal == "energy":
        energy, other = known_energy(trial), known_energy(base)
        return math.log(energy / other) if energy and other else speed
    if goal == "throughput":
        return -math.log(trial.throughput_per_s) if trial.throughput_per_s else speed
    if goal == "memory":
        return math.log(trial.memory_bytes) if trial.memory_bytes else speed
    return speed
