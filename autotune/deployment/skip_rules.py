"""Deployments that need not be tried, and the seconds that a trial would take.

trials' failures --> unbuildable          why a build would fail as one like it has
weights' bytes   --> broken_bound         the memory limit that it cannot keep
trials' seconds  --> expected_s           does it fit into the time left?
"""

from autotune.context import RunContext
from autotune.deployment import metrics
from autotune.deployment.evaluator import DeploymentEvaluator
from autotune.deployment.metrics import Tried
from autotune.forms import ROAD, WORDS
from autotune.forms import reaches as becomes
from autotune.records.plan import Deployment, Step

_CUT_SHORT = 3.0
"""Times its seconds, that a trial is taken to need which was ended by its time limit."""


def unbuildable(evaluator: DeploymentEvaluator, deployment: Deployment) -> str | None:
    """Why a build would fail as one like it has, if one has."""
    for tried in evaluator.tried:
        failure = tried.trial.failure
        never = failure.never if failure is not None else None
        if never in {step.name for step in deployment.compress}:
            return f"this model cannot have {never}: see trial {tried.trial.number}"
        if (
            never in ROAD
            and _needs(evaluator, deployment, never)
            and not _altered(evaluator, tried)
        ):
            there = tried.trial.number
            return f"needs {WORDS[never]}, which this model cannot become: see trial {there}"
        for name, least in failure.least.items() if failure else ():
            step, _, parameter = name.partition(".")
            for asked in deployment.compress:
                value = asked.params.get(parameter)
                if asked.name == step and isinstance(value, float) and value < least:
                    return f"{parameter} {value:g} cannot be built: trial {tried.trial.number}"
    return None


def _needs(evaluator: DeploymentEvaluator, deployment: Deployment, form: str) -> bool:
    """Whether the way to it leads through ``form``."""
    names = {deployment.runtime, *(step.name for step in deployment.compress)}
    takes = {o.takes for o in evaluator.run.survey.options if o.name in names and o.takes}
    return any(becomes(form, t) for t in takes)


def _altered(evaluator: DeploymentEvaluator, tried: Tried) -> bool:
    """Whether a step changed the module: that, and not the model, may be what failed."""
    names = {step.name for step in tried.trial.deployment.compress}
    return any(o.takes == "module" for o in evaluator.run.survey.options if o.name in names)


def expected_s(evaluator: DeploymentEvaluator, deployment: Deployment) -> float:
    """Seconds that a trial is expected to take; 0 where nothing is known.

    The longest trial of the same runtime and kinds of compression, or for the first of its kind the
    shortest measurement of the runtime (else the runtime's ``build_s``); and the longest training
    after a compression step so far, where its own is not in the cache.
    """
    trains = frozenset(
        o.name for o in evaluator.run.survey.options if o.kind == "compress" and o.trains
    )
    kinds = [step.name for step in deployment.compress]
    training = _training(deployment, trains)
    cached = not training or any(
        t.built is not None and _training(t.trial.deployment, trains) == training
        for t in evaluator.tried
    )
    recovery_s = max((_recovery_s(t, trains) for t in evaluator.tried), default=0.0)
    runtime = [t for t in evaluator.tried if t.trial.deployment.runtime == deployment.runtime]
    like = [t for t in runtime if [s.name for s in t.trial.deployment.compress] == kinds]
    unknown_s = evaluator.run.survey.option("runtime", deployment.runtime).build_s
    least_s = min((t.trial.measure_s for t in runtime), default=unknown_s)
    took_s = max((_took_s(t, trains) for t in like), default=least_s)
    return took_s + (0.0 if cached else recovery_s)


def _took_s(tried: Tried, trains: frozenset[str]) -> float:
    failure = tried.trial.failure
    if failure is not None and failure.kind == "slow":
        return _CUT_SHORT * tried.trial.wall_s
    return tried.trial.wall_s - _recovery_s(tried, trains)


def _training(deployment: Deployment, trains: frozenset[str]) -> tuple[Step, ...]:
    """The steps up to the last one that trains."""
    steps = deployment.compress
    last = max((i for i, s in enumerate(steps) if s.name in trains), default=-1)
    return steps[: last + 1]


def _recovery_s(tried: Tried, trains: frozenset[str]) -> float:
    """Seconds of training in a trial's own build."""
    stages = tried.built.stages if tried.built is not None else ()
    return sum(s.wall_s for s in stages if s.name in trains and not s.cached)


def broken_bound(run: RunContext, deployment: Deployment, reference: Tried) -> str | None:
    """The memory limit that a deployment cannot keep, in words: the process that serves a model
    without compression holds its weights.
    """
    least_bytes = run.survey.traits.parameter_bytes if deployment.lossless else 0
    limit_bytes = metrics.resolve(run.budget.memory, reference.trial.memory_bytes)
    if limit_bytes is not None and least_bytes > limit_bytes:
        return f"memory is at least {least_bytes:.3g} B, the limit is {limit_bytes:.3g} B"
    return None
