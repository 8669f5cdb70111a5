"""Error rate and power of latency verdicts.  ``python -m benchmarks.verdicts``

10,000 simulated verifications of each scenario, with the schedule (`measurement.LOOKS`,
`launches.calls_per_launch`) and the test (`limit_tests.latency`) of a run:

- edge: the limit is the true quantile, so that every MET is false; at most 1.25 % observed where
  1 % is promised, with independent and with AR(1) calls;
- power: a true miss rate of 2.5 % under a p95 limit; MET in at least 95 %, within 2,000 calls.

Latencies are lognormal; AR(1) is in their logarithm, each launch starting in its
stationary state.
"""

import math
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from autotune.records.measurement import LOOKS
from autotune.stats import limit_tests
from autotune.verification import launches as verification_launches
from autotune.verification import verdicts as verification_verdicts

SEED = 20_240_601
RUNS = 10_000
MOST_FALSE_MET = 0.0125
LEAST_POWER = 0.95
_CHUNK = 200
_SIGMA = 0.4


class Scenario(NamedTuple):
    """``miss_rate`` is the true share of calls over the limit."""

    name: str
    percentile: float
    miss_rate: float
    correlation: float
    runs: int = RUNS

    @property
    def power(self) -> bool:
        return self.miss_rate < 1 - self.percentile / 100 - 1e-9


SCENARIOS = (
    Scenario("edge, independent", 95, 0.05, 0.0),
    Scenario("edge, AR(1) 0.5", 95, 0.05, 0.5),
    Scenario("edge, AR(1) 0.9", 95, 0.05, 0.9),
    Scenario("edge, independent", 99, 0.01, 0.0),
    Scenario("edge, AR(1) 0.9", 99, 0.01, 0.9),
    Scenario("power, miss rate 2.5 %", 95, 0.025, 0.0),
)


class Outcome(NamedTuple):
    verdicts: Counter[str]
    samples: dict[str, list[int]]
    met_at: Counter[int]


def normal(rng: np.random.Generator, shape: tuple[int, ...], correlation: float) -> Any:
    """Standard normal [..., calls], AR(1) along the last axis."""
    out = rng.standard_normal(shape)
    if correlation:
        fresh = math.sqrt(1 - correlation**2)
        for call in range(1, shape[-1]):
            out[..., call] = correlation * out[..., call - 1] + fresh * out[..., call]
    return out


def draws(scenario: Scenario, seed: int) -> Iterator[list[Any]]:
    """For every run the launches of each look: arrays [launches, calls], in seconds."""
    rng = np.random.default_rng(seed)
    calls = verification_launches.calls_per_launch(scenario.percentile)
    launches = np.diff(np.array([0, *LOOKS]))
    for start in range(0, scenario.runs, _CHUNK):
        size = min(_CHUNK, scenario.runs - start)
        looks = [
            1e-3 * np.exp(_SIGMA * normal(rng, (size, int(count), calls), scenario.correlation))
            for count in launches
        ]
        for run in range(size):
            yield [look[run] for look in looks]


def simulate(scenario: Scenario, seed: int = SEED) -> Outcome:
    """Verify ``runs`` plans as `launches.verify` does: with more launches while undecided."""
    limit = 1e-3 * math.exp(_SIGMA * -float(ndtri(scenario.miss_rate)))
    outcome = Outcome(Counter(), {}, Counter())
    for looks in draws(scenario, seed):
        runs: list[Any] = []
        taken = 0
        for look in looks:
            taken += 1
            runs += list(look)
            found = limit_tests.latency(
                runs, limit, scenario.percentile, alpha=verification_verdicts.LATENCY_ALPHA
            )
            if found.verdict != "UNDECIDED":
                break
        outcome.verdicts[found.verdict] += 1
        outcome.samples.setdefault(found.verdict, []).append(found.samples)
        outcome.met_at[taken] += found.verdict == "MET"
    return outcome


def passed(scenario: Scenario, outcome: Outcome) -> bool:
    share = outcome.verdicts["MET"] / scenario.runs
    return share >= LEAST_POWER if scenario.power else share <= MOST_FALSE_MET


def row(scenario: Scenario, outcome: Outcome, wall_s: float) -> str:
    shares = [outcome.verdicts[name] / scenario.runs for name in ("MET", "NOT_MET", "UNDECIDED")]
    taken = [
        f"{np.mean(outcome.samples[name]):.0f}" if name in outcome.samples else "-"
        for name in ("MET", "NOT_MET", "UNDECIDED")
    ]
    looks = "/".join(str(outcome.met_at[n]) for n in range(1, len(LOOKS) + 1))
    return (
        f"{scenario.name:<24} p{scenario.percentile:<4g}"
        + "".join(f"{100 * share:>8.2f} %" for share in shares)
        + f"{looks:>12}"
        + "".join(f"{text:>10}" for text in taken)
        + f"{wall_s:>7.1f} s  {'PASS' if passed(scenario, outcome) else 'FAIL'}"
    )


def main() -> int:
    """Print the table; 0 if every row passes."""
    looks = " and ".join(map(str, LOOKS))
    print(f"{RUNS} simulated verifications a row, seed {SEED}.  Looks after {looks} launches, each")
    print(
        f"at {verification_verdicts.LATENCY_ALPHA:g}: 99 % confidence.  "
        f"False MET allowed: {MOST_FALSE_MET:.2%}"
    )
    print(f"observed at the edge; MET at a miss rate of 2.5 %: at least {LEAST_POWER:.0%}.\n")
    print(
        f"{'':<30}{'MET':>9} {'NOT_MET':>10}{'UNDECIDED':>10}{'MET by look':>12}"
        f"{'calls: MET':>12}{'NOT_MET':>9}{'UNDEC.':>9}"
    )
    good = True
    for scenario in SCENARIOS:
        began = time.perf_counter()
        outcome = simulate(scenario)
        print(row(scenario, outcome, time.perf_counter() - began), flush=True)
        good &= passed(scenario, outcome)
    print("\nPASS" if good else "\nFAIL")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
