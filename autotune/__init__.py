"""autotune: hardware-aware auto-tuner for PyTorch under latency and energy budgets.

    report, folder = autotune.tune(autotune.Task.from_file("model.py"),
                                   autotune.Budget(latency=autotune.Limit(value=5e-3)))

Names are imported when they are first used, so that ``import autotune`` costs nothing.
"""

from typing import TYPE_CHECKING

from autotune.faces import lazy

if TYPE_CHECKING:
    from autotune.api import execute, resume, tune
    from autotune.records.budget import Budget, Effort, Limit
    from autotune.records.hardware import Profile
    from autotune.records.plan import Deployment, Plan, Recipe
    from autotune.records.report import Report
    from autotune.task import Task


__all__ = [
    "Budget",
    "Deployment",
    "Effort",
    "Limit",
    "Plan",
    "Profile",
    "Recipe",
    "Report",
    "Task",
    "execute",
    "resume",
    "tune",
]

__getattr__ = lazy(
    __name__,
    {
        "Budget": "records.budget",
        "Effort": "records.budget",
        "Limit": "records.budget",
        "Profile": "records.hardware",
        "Deployment": "records.plan",
        "Plan": "records.plan",
        "Recipe": "records.plan",
        "Report": "records.report",
        "Task": "task",
        "execute": "api",
        "resume": "api",
        "tune": "api",
    },
)
