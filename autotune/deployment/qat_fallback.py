"""Quantization-aware training, where it could change the plan: one trial outside the space.

    int8 trials that lose too much quality --as if they did not--> would one be the best plan?
                                                                `--yes--> the same, trained for it

As a dimension of the space it would be sampled for plans without int8 too, and for those that
lose nothing by it.
"""

from collections.abc import Mapping

import msgspec

from autotune.deployment import ranking
from autotune.deployment.evaluator import DeploymentEvaluator
from autotune.records.plan import Deployment, Step
from autotune.records.report import DeployTrial

WHY = "quantization-aware training"


def candidate(evaluator: DeploymentEvaluator) -> Deployment | None:
    """The deployment to try; None where it would not help, or nothing can train."""
    options = evaluator.run.survey.options
    preparing = {name: o.name for o in options if o.available for name in o.prepares}
    if evaluator.recovery_epochs <= 0 or not preparing:
        return None
    trains = {o.name for o in options if o.trains and o.searched}

    def over(trial: DeployTrial) -> bool:
        """Whether a quantizer that can be trained for, alone or after a step that trains, takes
        the trial's quality under the floor.
        """
        *before, last = [step.name for step in trial.deployment.compress] or [""]
        return (
            trial.state == "complete"
            and trial.constraints.get("quality", 0.0) > 0
            and last in preparing
            and trains.issuperset(before)
        )

    def kept(trial: DeployTrial) -> DeployTrial:
        """The trial as if training had brought its quality back."""
        if not over(trial):
            return trial
        others = {name: v for name, v in trial.constraints.items() if name != "quality"}
        return msgspec.structs.replace(trial, constraints=others)

    known = {tried.trial.number: tried.trial for tried in evaluator.tried}
    ranked = ranking.order([kept(trial) for trial in known.values()], evaluator.goal)
    if not ranked or not over(known[ranked[0].number]):
        return None
    return _prepared(ranked[0].deployment, preparing, evaluator.recovery_epochs)


def _prepared(
    deployment: Deployment, preparing: Mapping[str, str], recovery_epochs: float
) -> Deployment:
    """The deployment with the step before its quantizer that trains for it, rounding alike."""
    *before, quantizer = deployment.compress
    shared = ("reduce_range", "per_tensor", "keep_fp32")
    params = {name: value for name, value in quantizer.params.items() if name in shared}
    return msgspec.structs.replace(
        deployment,
        compress=(*before, Step(name=preparing[quantizer.name], params=params), quantizer),
        recovery_epochs=recovery_epochs,
    )
