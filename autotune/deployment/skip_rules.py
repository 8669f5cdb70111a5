"""What the trials so far tell of one to come: whether it can be built, and how long it would take.

tried --failures--> unbuildable: why not        tried --seconds--> expected_s
"""

from autotune.deployment.evaluator import DeploymentEvaluator
from autotune.deployment.metrics import Tried
from autotune.forms import reaches as becomes
from autotune.records.plan import Deployment, Step

_FORMS = {
    "onnx": "an ONNX model, which this model cannot become",
    "openvino": "an OpenVINO model, which this model cannot become",
}
_CUT_SHORT = 3.0


def unbuildable(evaluator: DeploymentEvaluator, deployment: Deployment) -> str | None:
    """What a failed build has told of every build like it."""
    for tried in evaluator.tried:
        failure = tried.trial.failure
        never = failure.never if failure is not None else None
        if never in {step.name for step in deployment.compress}:
            return f"this model cannot have {never}: see trial {tried.trial.number}"
        if (
            never in _FORMS
            and _needs(evaluator, deployment, never)
            and not _altered(evaluator, tried)
        ):
            return f"needs {_FORMS[never]}: see trial {tried.trial.number}"
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
    """What a trial like this took at most so far (same runtime, same kind of compression; the
    first of its kind at least what measuring its runtime takes, or a compiler), and the
    longest recovery where its own is not in the cache; 0 where nothing is known.  A build that
    was cut short would have taken longer.
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
    """What training took in a trial's own build."""
    stages = tried.built.stages if tried.built is not None else ()
    return sum(s.wall_s for s in stages if s.name in trains and not s.cached)
