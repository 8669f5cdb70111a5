"""Quantization-aware recovery, where it could change the plan: one trial, outside the space.

    int8 trials over the floor on quality --as if they kept it--> would one be the best plan?
                                                                `--yes--> the same, trained for it

A dimension of its own would have the sampler train for int8 in plans that have none, or that
lose nothing by it.  Pure but for what it reads of the lab.
"""

import msgspec

from autotune.deployment import ranking
from autotune.deployment.evaluator import DeploymentEvaluator
from autotune.records.plan import Deployment, Step
from autotune.records.report import DeployTrial

STEP = "int8_aware"
WHY = "static int8 trained for"
_QUANTIZERS = ("int8_static", "int8_openvino")
_BEFORE = ("prune",)


def candidate(lab: DeploymentEvaluator) -> Deployment | None:
    """The deployment to try; None where it would not help, or nothing can train."""
    options = lab.run.survey.options
    if lab.recovery_epochs <= 0 or not any(o.name == STEP and o.available for o in options):
        return None
    known = {tried.trial.number: tried.trial for tried in lab.tried}
    ranked = ranking.order([_kept(trial) for trial in known.values()], lab.goal)
    if not ranked or not _over(known[ranked[0].number]):
        return None
    return _with_training(ranked[0].deployment, lab)


def _over(trial: DeployTrial) -> bool:
    """Whether static int8, alone or after pruning, is what takes its quality under the floor."""
    names = [step.name for step in trial.deployment.compress]
    return (
        trial.state == "complete"
        and trial.constraints.get("quality", 0.0) > 0
        and names[-1:] != []
        and names[-1] in _QUANTIZERS
        and all(name in _BEFORE for name in names[:-1])
    )


def _kept(trial: DeployTrial) -> DeployTrial:
    """The trial as if training had brought its quality back."""
    if not _over(trial):
        return trial
    kept = {name: v for name, v in trial.constraints.items() if name != "quality"}
    return msgspec.structs.replace(trial, constraints=kept)


def _with_training(deployment: Deployment, lab: DeploymentEvaluator) -> Deployment:
    *before, quantizer = deployment.compress
    shared = ("reduce_range", "per_tensor", "keep_fp32")
    params = {name: value for name, value in quantizer.params.items() if name in shared}
    return msgspec.structs.replace(
        deployment,
        compress=(*before, Step(name=STEP, params=params), quantizer),
        recovery_epochs=lab.recovery_epochs,
    )
