"""autotune: hardware-aware auto-tuner for PyTorch under latency and energy budgets.

    report, folder = autotune.tune(autotune.Task.from_file("model.py"),
                                   autotune.Budget(latency=autotune.Limit(value=5e-3)))

Names are imported when they are first used, so that ``import autotune`` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.records.budget import Budget, Effort, Limit
    from autotune.records.hardware import Profile
    from autotune.records.plan import Deployment, Plan, Recipe
    from autotune.records.report import Report
    from autotune.task import Task
    from autotune.tune import execute, resume, tune

_WHERE = {
    "Budget": "records.budget",
    "Effort": "records.budget",
    "Limit": "records.budget",
    "Profile": "records.hardware",
    "Deployment": "records.plan",
    "Plan": "records.plan",
    "Recipe": "records.plan",
    "Report": "records.report",
    "Task": "task",
    "execute": "tune",
    "resume": "tune",
    "tune": "tune",
}

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


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'autotune' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"autotune.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
