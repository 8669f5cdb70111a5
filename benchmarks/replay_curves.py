"""Whether extrapolating learning curves would save epochs.  ``python -m benchmarks.replay_curves``

    simulated curves, four families -> successive halving (`search.halving`)
                                    -> the same, but a trial that is predicted not to become the
                                       best is paused at the second rung
                                    -> the same by an oracle, which knows every final value

Rungs lie at a ninth, a third and all of a training, so that a power law gains from the second to
the third a fixed share of what it gained from the first to the second.  The forecast takes the
largest such share that a complete trial has shown, times an allowance.  Printed are the epochs
until the quality that plain halving ends with, relative to plain halving's (geometric mean over
searches of 14 trainings each).  Decision "No learning curve is extrapolated" rests on this.  Not
covered: forecasts from many evaluations before the first rung.
"""

import math
import random
import statistics
from collections.abc import Callable
from typing import NamedTuple

from autotune.search.halving import Halving

Curve = Callable[[float], float]
RUNGS = (1 / 9, 1 / 3, 1.0)
BUDGET = 14.0  # whole trainings
SEARCHES = 400
NOISES = (0.0, 0.01)
ALLOWED: tuple[float | None, ...] = (1.0, 1.5, 2.0, 3.0, None)  # None: the oracle
_LEAST_SHARE = 0.1


def power(rng: random.Random) -> Curve:
    """A power law."""
    end, height, speed = (
        0.3 + 0.25 * rng.expovariate(1),
        rng.uniform(0.1, 0.6),
        rng.uniform(0.3, 1.2),
    )
    return lambda x: end + height * ((9 * x) ** -speed - 9**-speed)


def annealed(rng: random.Random) -> Curve:
    """A power law whose second half is the fall of the learning rate's."""
    plain, height = power(rng), rng.uniform(0.05, 0.4)
    return lambda x: plain(x) + height * (0.5 + 0.5 * math.cos(math.pi * x))


def overfitting(rng: random.Random) -> Curve:
    """A third of the trials turn upwards."""
    plain, turned, at = power(rng), rng.choice((0.0, 0.0, 0.3)), rng.uniform(0.2, 0.6)
    return lambda x: plain(x) + turned * max(0.0, x - at) ** 2


def late(rng: random.Random) -> Curve:
    """Large rates are worse at first and best at the end."""
    rate = rng.random()
    end = 0.3 + 0.3 * abs(rate - 0.65) + 0.1 * rng.expovariate(1)
    return lambda x: end + 0.6 * rate * (1 - x) ** (0.5 + rate) + 0.2 * ((9 * x) ** -0.7 - 9**-0.7)


FAMILIES = {"power": power, "annealed": annealed, "overfitting": overfitting, "late": late}


class Plain(NamedTuple):
    """Nothing is forecast."""

    def may_win(self, search: "Search", number: int) -> bool:
        return True


class Forecast(NamedTuple):
    """``allowed`` times the largest share seen; None: the ends are known."""

    allowed: float | None

    def may_win(self, search: "Search", number: int) -> bool:
        """Whether a trial at the second rung may end below the best complete one."""
        if len(search.shares) < 2:
            return True
        if self.allowed is None:
            return search.curves[number](1.0) < min(search.ends.values())
        first, second = search.seen[number][:2]
        best = min(search.seen[n][2] for n in search.ends)
        most = self.allowed * max(*search.shares, _LEAST_SHARE)
        return second - best <= most * max(first - second, search.noise)


class Search:
    """One search: as `training.search` goes about it, with as many epochs as there are."""

    def __init__(self, family: Callable[[random.Random], Curve], seed: int, noise: float) -> None:
        self._rng, self._noisy = random.Random(seed), random.Random(seed + 999)
        self._family, self.noise = family, noise
        self._halving = Halving(len(RUNGS))
        self.curves: list[Curve] = []
        self.seen: dict[int, list[float]] = {}
        self.ends: dict[int, float] = {}
        self.shares: list[float] = []
        self.spent = 0.0
        self.trace: list[tuple[float, float]] = []

    def run(self, rule: Plain | Forecast) -> "Search":
        """Until the budget is spent; two trials are trained to the end first."""
        for _ in range(2):
            self._train(self._fresh(), 0, rule, pinned=True)
        while self.spent < BUDGET:
            number = self._halving.promotable()
            if number is None:
                self._train(self._fresh(), 0, rule)
                continue
            rung = self._halving.rung_of(number) or 0
            self._halving.resume(number, rung)
            if rung == 0 or rule.may_win(self, number):
                self._train(number, rung + 1, rule)
        return self

    def epochs_to(self, quality: float) -> float:
        """Trainings until a trial ended at ``quality``; 1.5 times the budget where none did."""
        return next((s for s, v in self.trace if v <= quality + 1e-9), 1.5 * BUDGET)

    def _fresh(self) -> int:
        self.curves.append(self._family(self._rng))
        self.seen[len(self.curves) - 1] = []
        return len(self.curves) - 1

    def _train(
        self, number: int, rung: int, rule: Plain | Forecast, *, pinned: bool = False
    ) -> None:
        go = True
        while go:
            self.spent += RUNGS[rung] - (RUNGS[rung - 1] if rung else 0.0)
            value = self.curves[number](RUNGS[rung]) + self._noisy.gauss(0, self.noise)
            self.seen[number].append(value)
            go = self._halving.report(number, rung, value, "all") or pinned
            if rung == len(RUNGS) - 1:
                self._ended(number)
                return
            if go and rung == 1 and not pinned and not rule.may_win(self, number):
                self._halving.pause(number, rung)
                return
            if pinned:
                self._halving.resume(number, rung)
            rung += 1

    def _ended(self, number: int) -> None:
        self._halving.forget(number)
        self.ends[number] = self.curves[number](1.0)
        first, second, last = self.seen[number]
        if first - second > 2 * self.noise:
            self.shares.append((second - last) / (first - second))
        self.trace.append((self.spent, min(self.ends.values())))


def ratio(family: str, noise: float, allowed: float | None, searches: int = SEARCHES) -> float:
    """Epochs with the forecast over those of halving alone."""
    logs = []
    for seed in range(searches):
        plain = Search(FAMILIES[family], seed, noise).run(Plain())
        other = Search(FAMILIES[family], seed, noise).run(Forecast(allowed))
        goal = plain.trace[-1][1]
        logs.append(math.log(other.epochs_to(goal) / plain.epochs_to(goal)))
    return math.exp(statistics.fmean(logs))


def main() -> None:
    """Print the table."""
    names = [f"x {a:g}" if a is not None else "oracle" for a in ALLOWED]
    print(f"{'curves':<12} {'noise':>6} " + " ".join(f"{name:>7}" for name in names))
    for family in FAMILIES:
        for noise in NOISES:
            found = [ratio(family, noise, allowed) for allowed in ALLOWED]
            print(f"{family:<12} {noise:>6g} " + " ".join(f"{x:>7.2f}" for x in found), flush=True)


if __name__ == "__main__":
    main()
