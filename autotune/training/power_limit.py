"""The setting of batch size and power limit that trains with the least energy, in few looks.

    batch   8 .. 64 .. 256 .. 2048      1. at full power: the fastest batch, by a narrowing search
    limit                               2. there: lower limits, while the time allows it
    250 W      o    o    O    o         3. the neighbours of the best, until nothing is better
    175 W                O  o
    100 W

"Allows": the time is within a share (a tenth) of the fastest seen.  Rests on two things that hold
for GPUs: time over batch falls to a knee and then stays or rises slowly, and time over the limit
falls while energy first falls and then rises (Zeus, NSDI'23, figures 2 and 5).  Pure: what a look
costs, and who sets limits, is the caller's business.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

MOST_LOOKS = 12
SLOWER = 0.10

Setting = tuple[int, int]
"""Index of the batch size and of the power limit, both ascending."""


class Look(NamedTuple):
    """Seconds and joules of the same work at one setting; infinite where it cannot be done."""

    time_s: float
    energy_j: float


class Found(NamedTuple):
    """The best setting seen, and all looks in their order."""

    best: Setting
    looks: dict[Setting, Look]


def least_energy(
    batches: Sequence[int],
    limits: Sequence[float],
    look: Callable[[int, float], Look],
    *,
    most: int = MOST_LOOKS,
    slower: float = SLOWER,
) -> Found:
    """The least-energy setting whose time is within ``slower`` of the fastest.

    Args:
        batches: batch sizes, ascending.
        limits: power limits, ascending; the last is the full one.
        look: measures one setting.
        most: looks allowed.
        slower: how much longer than the fastest seen it may take.
    """
    view = _View(batches, limits, look, most, slower)
    top = len(limits) - 1
    _narrow(view, top)
    batch = min((s[0] for s in view.seen), key=lambda b: view.seen[b, top].time_s)
    _lower(view, batch, top)
    while view.left and (near := _neighbour(view)) is not None:
        view.at(near)
    return Found(view.best(), view.seen)


class _View:
    """What has been seen so far."""

    def __init__(
        self,
        batches: Sequence[int],
        limits: Sequence[float],
        look: Callable[[int, float], Look],
        most: int,
        slower: float,
    ) -> None:
        self.batches, self.limits = batches, limits
        self._look, self._most, self._slower = look, most, slower
        self.seen: dict[Setting, Look] = {}

    @property
    def left(self) -> int:
        return self._most - len(self.seen)

    def at(self, setting: Setting) -> Look:
        """Look, unless it has been seen or no look is left (then it counts as endless)."""
        if setting not in self.seen:
            if not self.left:
                return Look(math.inf, math.inf)
            batch, limit = setting
            self.seen[setting] = self._look(self.batches[batch], self.limits[limit])
        return self.seen[setting]

    def allowed_s(self) -> float:
        return (1 + self._slower) * min(look.time_s for look in self.seen.values())

    def best(self) -> Setting:
        """The least energy among what is fast enough."""
        allowed = self.allowed_s()
        fast = [s for s, look in self.seen.items() if look.time_s <= allowed]
        return min(fast, key=lambda s: (self.seen[s].energy_j, s))


def least_clock(
    clocks: Sequence[float],
    look: Callable[[float], Look],
    begin: Look,
    fastest_s: float,
    *,
    slower: float = SLOWER,
) -> float | None:
    """The highest clock to allow for the least energy: lower and lower, while that saves energy and
    the time is within ``slower`` of the fastest; None where the first is no gain already.

    Args:
        clocks: descending, all below the full one.
        look: measures one clock.
        begin: the same setting with its clocks as they are.
        fastest_s: time of the fastest setting seen.
        slower: how much longer it may take.
    """
    best, least_j = None, begin.energy_j
    for clock in clocks:
        found = look(clock)
        if found.time_s > (1 + slower) * fastest_s or found.energy_j >= least_j:
            break
        best, least_j = clock, found.energy_j
    return best


def _narrow(view: _View, top: int) -> None:
    """The batch of least time at full power: the larger two thirds first, as the knee lies there
    more often; the side of the slower of two inner points is left.
    """
    low, high = 0, len(view.batches) - 1
    while high - low > 2 and view.left > view._most // 2:
        one = low + (high - low + 1) // 2
        other = min(high, one + max(1, (high - one) // 2))
        if view.at((one, top)).time_s <= view.at((other, top)).time_s:
            high = other - 1 if other - one > 1 else one
            low = low if high - low <= 2 else low + 1
        else:
            low = one
    if view.left > view._most // 2:
        view.at(((low + high) // 2, top))


def _lower(view: _View, batch: int, top: int) -> None:
    """Bisect to the lowest limit that the time allows."""
    low, high = 0, top
    while high - low > 1 and view.left > 3:
        middle = (low + high) // 2
        if view.at((batch, middle)).time_s <= view.allowed_s():
            high = middle
        else:
            low = middle


def _neighbour(view: _View) -> Setting | None:
    """An unseen setting beside the best: at its limit the next batches, then the next limits."""
    batch, limit = view.best()
    near = (
        (batch + 1, limit),
        (batch - 1, limit),
        (batch, limit - 1),
        (batch + 1, limit - 1),
        (batch, limit + 1),
        (batch + 2, limit),
    )
    inside = (s for s in near if 0 <= s[0] < len(view.batches) and 0 <= s[1] < len(view.limits))
    return next((s for s in inside if s not in view.seen), None)
