"""What ends a training early: a diverging loss, or a throughput that is far too low.

DivergenceCheck.see(loss)                 -> JobError diverged
ThroughputCheck.see(steps, seconds, rate) -> JobError slow
"""

from collections import deque

from autotune.errors import JobError
from autotune.parallel import Group
from autotune.records.plan import Recipe

_STEPS = 5  # whose mean loss is compared
_FACTOR = 20.0  # times the loss of the first steps: such a training does not recover
_MEASURED_S = 0.5  # of steps after the first, before the throughput is compared


class DivergenceCheck:
    """Compares the mean loss of the last steps with the least of the first ones."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=_STEPS)

    def see(self, value: float, step: int, recipe: Recipe) -> None:
        """Take one step's loss in.

        Raises:
            JobError: ``diverged``: the mean of the last 5 steps is over 20 times the least loss
                of the first 5.
        """
        if len(self._first) < _STEPS:
            self._first.append(abs(value))
            # only the very first loss is of untrained weights: later ones may have diverged
            self._first[:] = [min(self._first)] * len(self._first)
            return
        self._last.append(value)
        base, mean = self._first[0], sum(self._last) / len(self._last)
        if len(self._last) == _STEPS and mean > _FACTOR * max(base, 1e-12):
            raise JobError(
                "diverged",
                f"the training loss climbed from {base:.3g} to {mean:.3g} within {step} steps "
                f"({recipe.optimizer}, lr {recipe.lr:g}, batch {recipe.batch_size})",
            )


class ThroughputCheck:
    """Compares samples per second, as rank 0 sees them, once; tried whenever the number of steps
    is a power of two.
    """

    def __init__(self, least: float, recipe: Recipe, group: Group) -> None:
        self._least, self._recipe, self._group = least, recipe, group
        self._done = False

    def see(self, steps: int, spent_s: float, rate: float) -> None:
        """Take ``steps`` in: ``spent_s`` seconds of all but the first, at ``rate`` samples/s.

        Raises:
            JobError: ``slow``.
        """
        if self._done or steps < 2 or steps & (steps - 1):
            return
        rate = self._group.share(rate if spent_s >= _MEASURED_S else 0.0)
        self._done = rate > 0
        if 0 < rate < self._least:
            raise JobError(
                "slow",
                f"{rate:.3g} samples/s where the search allows no less than {self._least:.3g} "
                f"({self._recipe.optimizer}, batch {self._recipe.batch_size})",
            )
