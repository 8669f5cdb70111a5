"""Coverage of the calibrated power model's interval.  ``python -m benchmarks.energy_model``

Each of the nine published SPECpower servers is left out in turn: the curve is fitted to the other
eight and calibrated with the server's own idle and full-load watts (which a user states).  At
least 90 % of its published watts at idle, half and full load must lie in the model's 90 % interval,
which may nowhere be wider than +-25 %.  As idle and full load calibrate the model, the same must
hold for half load alone.
"""

import sys
from typing import NamedTuple

from autotune.meters import modelled

COVERED = 0.90
WIDEST = 0.25


class Point(NamedTuple):
    """One load of one server: published watts, and what the model says without it."""

    system: str
    load: float
    watts: float
    value: float
    low: float
    high: float

    @property
    def held(self) -> bool:
        return self.low <= self.watts <= self.high

    @property
    def width(self) -> float:
        """The larger half of the range, relative to the value."""
        return max(self.high - self.value, self.value - self.low) / self.value


def points() -> list[Point]:
    """Every load of every server, predicted by the others."""
    found = []
    for left_out, published in modelled.SPECPOWER.items():
        others = [w for name, w in modelled.SPECPOWER.items() if name != left_out]
        shape = modelled.fit(others)
        for load, watts in zip((0.0, 0.5, 1.0), published, strict=True):
            said = modelled.calibrated(published[0], published[2], load, shape)
            found.append(Point(left_out, load, watts, said.value, said.low, said.high))
    return found


def share(some: list[Point]) -> float:
    """Share of points that lie in their range."""
    return sum(point.held for point in some) / len(some)


def main() -> int:
    """Print the table; 0 if the range holds."""
    found = points()
    half = [point for point in found if point.load == 0.5]
    print("server      load   published   model   90 % range       error   half-width   held")
    for p in found:
        print(
            f"{p.system:10}  {p.load:4.0%}  {p.watts:7.1f} W  {p.value:6.1f}   "
            f"{p.low:6.1f}-{p.high:6.1f}   {p.value / p.watts - 1:+7.1%}   "
            f"{p.width:8.1%}     {'yes' if p.held else 'NO'}"
        )
    widest = max(point.width for point in found)
    print(f"\ncovered: {share(found):.1%} of {len(found)} points, {share(half):.1%} of half loads")
    print(f"widest range: +-{widest:.1%}")
    holds = min(share(found), share(half)) >= COVERED and widest <= WIDEST + 1e-9
    print(f"{'PASS' if holds else 'FAIL'}: at least {COVERED:.0%} and at most +-{WIDEST:.0%}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
