"""Which initial configurations are tried first, and which wait.

    baseline's median x TIME_LEFT of the runtime and of each step --> predicted seconds of a call

``TIME_LEFT`` is each plug-in's own prior (`Option.time_left`).  Within each group (dense,
compressed) the fastest predicted come first.  What a compiler builds takes ten times as long as an
export, so it is deferred: tried where it is predicted faster than what was measured, or once
nothing else is expected to gain.  Predictions order; they reject nothing.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from autotune import units
from autotune.deployment.evaluator import DeploymentEvaluator
from autotune.records.plan import Deployment, Value
from autotune.records.task import Option
from autotune.search import Initial


class Predicted(NamedTuple):
    """A configuration, why it is tried, and the predicted median of one call in seconds."""

    values: Mapping[str, Value]
    why: str
    predicted_s: float


def arrange(
    evaluator: DeploymentEvaluator, initial: Sequence[Mapping[str, Value]]
) -> tuple[list[Initial], list[Predicted]]:
    """The initial configurations in their order, and those that are deferred, the fastest first.

    On a GPU nothing is predicted: the configurations keep their order.
    """
    if evaluator.run.profile.gpus:
        return [(values, "initial") for values in initial], []
    now: list[Initial] = []
    deferred: list[Predicted] = []
    deployments = [(values, evaluator.deployment(values)) for values in initial]
    for _, group in groupby(deployments, key=lambda one: one[1].lossless):
        found = [(_predicted(evaluator, *one), _compiles(evaluator, one[1])) for one in group]
        for one, compiles in sorted(found, key=lambda pair: pair[0].predicted_s):
            if compiles:
                deferred.append(one)
            else:
                now.append((one.values, one.why))
    return now, sorted(deferred, key=lambda one: one.predicted_s)


def _compiles(evaluator: DeploymentEvaluator, deployment: Deployment) -> bool:
    return evaluator.run.survey.option("runtime", deployment.runtime).compiles is not None


def _predicted(
    evaluator: DeploymentEvaluator, values: Mapping[str, Value], deployment: Deployment
) -> Predicted:
    survey = evaluator.run.survey
    share = survey.option("runtime", deployment.runtime).time_left
    for step in deployment.compress:
        share *= _time_left(survey.option("compress", step.name), step.params)
    dense = evaluator.dense(deployment.threads, deployment.batch_size)
    at = (dense.threads, dense.batch_size)
    known = evaluator.baselines.get(at, evaluator.reference).trial.latency_s
    if known is None:
        return Predicted(values, "initial", math.inf)
    call_s = share * known.p50
    return Predicted(values, f"initial, predicted {units.show(call_s, 's')}", call_s)


def _time_left(option: Option, params: Mapping[str, Value]) -> float:
    """A step's prior; where a parameter says what share of the model's work is left, that."""
    for dim in option.dims:
        value = params.get(dim.name)
        if dim.neutral == 1 and isinstance(value, float | int):
            return float(value)
    return option.time_left
