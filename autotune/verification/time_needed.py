"""Seconds that verification will need, by the launches of the search, which has the rest.

    best candidate, its baseline --launches up to the looks, rows of test--> seconds x finalists

The share that is set aside beforehand (`context`) suits the slowest models; most need less.
"""

from autotune.deployment import DeploymentEvaluator
from autotune.deployment.metrics import Tried
from autotune.deployment.racing import launch_s
from autotune.records.measurement import LOOKS
from autotune.verification.launches import launch_window_s

_FINALISTS = 2
"""Finalists that are launched in full; one whose quality fails has a single launch."""
_WARMS_S = 1.5
"""Warming up before verification's timing, at most."""


def until_s(evaluator: DeploymentEvaluator, planned_s: float) -> float:
    """When the search has to end, by the run's clock: as planned, or later where verification is
    known to need less than what is left then.
    """
    ranked = evaluator.ranked()
    if not ranked:
        return planned_s
    best = evaluator.tried[ranked[0].number]
    sides = [best, evaluator.baseline(best.trial.deployment)]
    if any(side.launch is None for side in sides):
        return planned_s
    needed_s = _FINALISTS * sum(_verified_s(evaluator, side) for side in sides)
    return max(planned_s, evaluator.run.bridge.now() + evaluator.run.left_s - needed_s)


def _verified_s(evaluator: DeploymentEvaluator, side: Tried) -> float:
    """Seconds of all launches of one deployment, and of its outputs on *test*."""
    run, launch = evaluator.run, side.launch
    assert launch is not None
    limits = run.budget
    decided = not (limits.latency or limits.energy or limits.memory)
    launches = LOOKS[0] if decided else LOOKS[-1]
    each_s = launch_s(side) - launch.window_s + launch_window_s(run, launch) + _WARMS_S
    scored_s = max(0.0, launch.work_s - launch.load_s - launch.first_call_s - launch.window_s)
    info = run.survey.task
    return launches * each_s + scored_s * info.test_rows / max(1, info.validation_rows)
