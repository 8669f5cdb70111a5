"""What ends a training early: a loss that climbs away, a pace that is far too slow.

Climb.see(loss)  -> JobError diverged          Pace.see(steps, seconds, rate) -> JobError slow
"""

from collections import deque

from autotune.errors import JobError
from autotune.parallel import Group
from autotune.records.plan import Recipe

_SETTLING = 5  # steps whose mean loss is compared
_CLIMB = 20.0  # times the loss of the first steps: a training that does not come back
_PACE_S = 0.5  # of steps after the first, by which a pace is judged


class Climb:
    """Sees a loss that climbs away: the last steps' mean against the first ones'."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=_SETTLING)

    def see(self, value: float, step: int, recipe: Recipe) -> None:
        """Take one step's loss in.

        Raises:
            JobError: ``diverged``: the last few steps' mean is 20 times the first few's.
        """
        if len(self._first) < _SETTLING:
            self._first.append(abs(value))
            # the first loss alone is before any step: later ones may be up already
            self._first[:] = [min(self._first)] * len(self._first)
            return
        self._last.append(value)
        base, mean = self._first[0], sum(self._last) / len(self._last)
        if len(self._last) == _SETTLING and mean > _CLIMB * max(base, 1e-12):
            raise JobError(
                "diverged",
                f"the training loss climbed from {base:.3g} to {mean:.3g} within {step} steps "
                f"({recipe.optimizer}, lr {recipe.lr:g}, batch {recipe.batch_size})",
            )


class Pace:
    """Judges samples per second once, as rank 0 sees them, asked at each doubling of the steps."""

    def __init__(self, least: float, recipe: Recipe, group: Group) -> None:
        self._least, self._recipe, self._group = least, recipe, group
        self._judged = False

    def see(self, steps: int, spent_s: float, rate: float) -> None:
        """Take ``steps`` in: ``spent_s`` seconds of all but the first, at ``rate`` samples/s.

        Raises:
            JobError: ``slow``.
        """
        if self._judged or steps < 2 or steps & (steps - 1):
            return
        rate = self._group.share(rate if spent_s >= _PACE_S else 0.0)
        self._judged = rate > 0
        if 0 < rate < self._least:
            raise JobError(
                "slow",
                f"{rate:.3g} samples/s where the search allows no less than {self._least:.3g} "
                f"({self._recipe.optimizer}, batch {self._recipe.batch_size})",
            )
