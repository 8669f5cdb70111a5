"""The train search, its stages, and the final training."""

from typing import TYPE_CHECKING

from autotune.faces import lazy

if TYPE_CHECKING:
    from autotune.training.trial import TrainState

__all__ = [
    "TrainState",
    "final",
    "lengths",
    "parallelism",
    "search",
    "search_space",
    "step_options",
    "target_quality",
    "throughput_stage",
    "width",
]

__getattr__ = lazy(__name__, {"TrainState": "trial"})
