"""The deploy search: which compression, runtime and threads for one set of weights."""

from typing import TYPE_CHECKING

from autotune.faces import lazy

if TYPE_CHECKING:
    from autotune.deployment.evaluator import DeploymentEvaluator

__all__ = [
    "DeploymentEvaluator",
    "artifact_jobs",
    "finalists",
    "goal",
    "metrics",
    "racing",
    "ranking",
    "search",
    "search_space",
]

__getattr__ = lazy(__name__, {"DeploymentEvaluator": "evaluator"})
