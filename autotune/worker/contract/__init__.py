"""The user's task, loaded: model, data, loss, quality."""

from typing import TYPE_CHECKING

from autotune.faces import lazy

if TYPE_CHECKING:
    from autotune.worker.contract.functions import Functions
    from autotune.worker.contract.model_factory import reinitialise
    from autotune.worker.contract.task import LoadedTask, load, preload

__all__ = [
    "Functions",
    "LoadedTask",
    "agreement",
    "default_metrics",
    "dynamic_shapes",
    "frameworks",
    "load",
    "preload",
    "reinitialise",
]

__getattr__ = lazy(
    __name__,
    {
        "Functions": "functions",
        "LoadedTask": "task",
        "load": "task",
        "preload": "task",
        "reinitialise": "model_factory",
    },
)
