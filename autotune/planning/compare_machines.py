"""Two machines side by side, and the cheapest measurement that would decide between them.

The logarithm of the ratio of two times has the machines' own errors alone: errors of the model
about the software are the same on both and cancel.

    ln(time B / time A) ~ N(ln(predicted B / predicted A), own_A^2 + own_B^2)

A measurement reduces one machine's own error; it settles which is faster if the mean that
it leaves lies 1.28 sd from 0 (probability 0.9).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from autotune.planning import training_time
from autotune.planning.limit_words import LIKELY, UNLIKELY
from autotune.planning.machines import Machine
from autotune.records.outlook import Comparison, Estimate, Settling

_Z = 1.2815515655446004  # P(Z <= z) = 0.9
_LEFT_SD = 0.04  # what a measurement of a few seconds leaves of an error
_START_S = 60.0  # to load and warm up
_STEPS = 20


@dataclass(frozen=True)
class BestPlan:
    """The best plan of one machine: seconds a sample, devices, and its own errors."""

    machine: Machine
    devices: int
    sample_s: float
    call_s: float
    own_sd: float

    @property
    def price_per_h(self) -> float | None:
        """Of the devices that the plan uses."""
        whole = self.machine.price_per_h
        return None if whole is None else whole * self.devices / self.machine.devices


def cost_per_million(side: BestPlan, sd: float) -> Estimate | None:
    """Of a million samples, in the price's currency."""
    hourly = side.price_per_h
    if hourly is None:
        return None
    return training_time.estimate(hourly / 3600 * side.sample_s * 1e6, sd)


def compare(first: BestPlan, second: BestPlan) -> Comparison:
    """Which is faster and which is cheaper, a sample, and what would settle it."""
    middle = math.log(second.sample_s / first.sample_s)
    sd = math.hypot(first.own_sd, second.own_sd)
    faster = _above(middle, sd)
    cheaper = None
    a, b = first.price_per_h, second.price_per_h
    if a is not None and b is not None:
        cheaper = _above(middle + math.log(b / a), sd)
    settled = not UNLIKELY < faster < LIKELY
    return Comparison(
        first=first.machine.name,
        second=second.machine.name,
        faster=faster,
        ratio=training_time.estimate(math.exp(middle), sd),
        cheaper=cheaper,
        settling=None if settled else settling(first, second),
    )


def settling(first: BestPlan, second: BestPlan) -> Settling:
    """The cheapest measurement that more likely than not settles it; else the likeliest to."""
    found = sorted(_measurements(first, second), key=_price)
    return next((s for s in found if s.decides >= 0.5), max(found, key=lambda s: s.decides))


def _measurements(first: BestPlan, second: BestPlan) -> Iterator[Settling]:
    """Of one machine: a layer on one device, which removes half of its error, or its best plan in
    full; of both machines: the best plans in full.
    """
    middle = math.log(second.sample_s / first.sample_s)
    before = math.hypot(first.own_sd, second.own_sd)
    for side, other in ((first, second), (second, first)):
        name = side.machine.name
        if side.devices > 1:
            what = f"{_STEPS} calls of one layer of the model on one device of {name}"
            seconds = _START_S + min(_STEPS * side.call_s, _START_S)
            left = math.hypot(max(_LEFT_SD, 0.5 * side.own_sd), other.own_sd)
            yield _settling((side,), what, (seconds,), _decides(middle, before, left))
        left = math.hypot(_LEFT_SD, other.own_sd)
        yield _settling((side,), _whole(side), (_whole_s(side),), _decides(middle, before, left))
    both = f"{_whole(first)}, and {_whole(second)}"
    seconds_of = (_whole_s(first), _whole_s(second))
    decides = _decides(middle, before, math.hypot(_LEFT_SD, _LEFT_SD))
    yield _settling((first, second), both, seconds_of, decides)


def _whole(side: BestPlan) -> str:
    devices = "the device" if side.devices == 1 else f"{side.devices} devices"
    return f"{_STEPS} calls of the best plan on {devices} of {side.machine.name}"


def _whole_s(side: BestPlan) -> float:
    return side.devices * (_START_S + _STEPS * side.call_s)


def _decides(middle: float, before_sd: float, after_sd: float) -> float:
    """P(the mean that a measurement leaves lies `_Z` sd from 0)."""
    if after_sd >= before_sd:
        return 0.0
    moves = math.sqrt(before_sd**2 - after_sd**2)
    return _above(middle - _Z * after_sd, moves) + _above(-middle - _Z * after_sd, moves)


def _settling(
    sides: tuple[BestPlan, ...], what: str, device_s: tuple[float, ...], decides: float
) -> Settling:
    hourly = [(side.price_per_h or 0.0) / side.devices for side in sides]
    cost = None
    if all(side.price_per_h is not None for side in sides):
        cost = sum(h / 3600 * seconds for h, seconds in zip(hourly, device_s, strict=True))
    return Settling(
        what=what,
        machines=tuple(side.machine.name for side in sides),
        device_s=sum(device_s),
        cost=cost,
        decides=min(1.0, decides),
    )


def _price(found: Settling) -> tuple[float, float]:
    return (found.cost if found.cost is not None else found.device_s, found.device_s)


def _above(middle: float, sd: float) -> float:
    """P(X > 0) of a normal."""
    if sd == 0:
        return float(middle > 0)
    return 0.5 * math.erfc(-middle / (sd * math.sqrt(2)))
