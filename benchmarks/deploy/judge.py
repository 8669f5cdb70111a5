"""Judges rows of the deployment benchmark: which plans keep the quality floor, which is fastest.

    scores on test + medians of launches -> fastest peer that keeps the floor
        -> slowdown of autotune against it, with its lower bound; geometric mean over rows

The floor is the same for all: quality on *test* falls by at most one percentage point.  A peer that
breaks it is listed, but is not compared with.  The observed drop decides; whether the rows are
enough to certify it (the exact paired test of `autotune.stats.paired`) is printed beside it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from autotune.records.measurement import Scores
from autotune.stats import paired
from benchmarks.deploy.race import Launches, Ratio, ratio, typical

MAX_DROP = 0.01
MOST_SLOWDOWN = 0.03
LEAST_SPEEDUP = 1.3
ALPHA = 0.05
OURS = "autotune"
BASE = "eager"


class Quality(NamedTuple):
    """On *test*.  ``upper`` bounds the drop at 95 %."""

    value: float
    drop: float
    upper: float

    @property
    def kept(self) -> bool:
        return self.drop <= MAX_DROP

    @property
    def certified(self) -> bool:
        return self.upper <= MAX_DROP


def quality(scores: Sequence[float], baseline: Sequence[float]) -> Quality:
    """A contestant's scores against the dense model's, row by row."""
    mine, theirs = _scores(scores), _scores(baseline)
    pairing = paired.pair(mine, theirs, 1.0)
    assert pairing is not None
    return Quality(mine.quality, theirs.quality - mine.quality, pairing.bounds(ALPHA).upper)


def _scores(values: Sequence[float]) -> Scores:
    found = tuple(float(value) for value in values)
    return Scores(quality=math.fsum(found) / len(found), rows=len(found), per_sample=found)


class Outcome(NamedTuple):
    """Of one row.  ``best`` is None where no peer kept the floor."""

    best: str | None
    slowdown: Ratio | None
    speedup: float | None
    failures: tuple[str, ...]


def outcome(launches: Mapping[str, Launches], qualities: Mapping[str, Quality]) -> Outcome:
    """Judge autotune against the fastest peer that kept the floor."""
    kept = {
        name: typical(found)
        for name, found in launches.items()
        if name != OURS and qualities[name].kept
    }
    best = min(kept, key=kept.__getitem__) if kept else None
    if OURS not in launches:
        return Outcome(best, None, None, ("autotune gave no plan",))
    failures = []
    if not qualities[OURS].kept:
        failures.append(f"autotune's plan fell by {100 * qualities[OURS].drop:.2f} points")
    if best is None:
        return Outcome(None, None, None, tuple(failures))
    slow = ratio(launches[OURS], launches[best])
    if slow.low > 1 + MOST_SLOWDOWN:
        failures.append(f"slower than {best}: {slow.value:.3f}x, at least {slow.low:.3f}x")
    return Outcome(best, slow, 1 / slow.value, tuple(failures))


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def row_outcome(row: Mapping[str, Any]) -> Outcome:
    """The outcome of a row as it was stored."""
    raced = {n: c for n, c in row["contestants"].items() if c.get("launches")}
    return outcome(
        {name: one["launches"] for name, one in raced.items()},
        {name: Quality(*one["quality"]) for name, one in raced.items()},
    )


def table(row: Mapping[str, Any]) -> list[str]:
    """A row as plain lines, fastest first."""
    found = row_outcome(row)
    lines = [f"{row['model']}  batch {row['batch']}  {row['threads']} threads  "
             f"{row['test_rows']} rows"]  # fmt: skip
    known = row["contestants"]
    raced = sorted((n for n in known if known[n].get("launches")), key=lambda n: known[n]["p50_s"])
    for name in raced:
        one, q = known[name], Quality(*known[name]["quality"])
        mark = "*" if name == OURS else "=" if name == found.best else " "
        said = "kept" if q.kept else "BROKEN"
        said += "" if q.certified or not q.kept else f" (not certified: drop < {q.upper:.2%})"
        lines.append(
            f" {mark} {one['title']:38} {1e3 * one['p50_s']:9.4f} ms  quality {q.value:.4f}  "
            f"drop {100 * q.drop:+.2f}  floor {said}"
        )
    lines += [f"   {known[n]['title']:38} failed: {known[n]['failure']}"
              for n in known if "failure" in known[n]]  # fmt: skip
    if row.get("plan"):
        lines.append(f"   plan: {row['plan']}; {row['tried']} trials in {row['search_s']:.0f} s")
    if found.slowdown is not None:
        lines.append(
            f"   time against {found.best}: {found.slowdown.value:.3f}x "
            f"({found.slowdown.low:.3f} to {found.slowdown.high:.3f})"
        )
    if OURS not in known:
        return lines
    verdict = "FAIL: " + "; ".join(found.failures) if found.failures else "PASS"
    return [*lines, f"   {verdict}"]


def summary(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], bool]:
    """The benchmark's claims over all rows there are: lines, and whether all hold."""
    lines, good = [], bool(rows)
    for batch in sorted({row["batch"] for row in rows}):
        these = [row for row in rows if row["batch"] == batch]
        outcomes = {row["model"]: row_outcome(row) for row in these}
        failed = [model for model, one in outcomes.items() if one.failures]
        speedups = [one.speedup for one in outcomes.values() if one.speedup is not None]
        mean = geometric_mean(speedups) if speedups else 0.0
        fast = mean >= LEAST_SPEEDUP
        good = good and not failed and fast
        lines += [
            f"batch {batch}: {'FAIL' if failed else 'PASS'}: on each of {len(these)} models within "
            f"{MOST_SLOWDOWN:.0%} of the best peer, quality kept"
            + (f" (not on {', '.join(failed)})" if failed else ""),
            f"batch {batch}: {'PASS' if fast else 'FAIL'}: {mean:.2f}x faster than the best peer "
            f"of each model in the geometric mean (wanted {LEAST_SPEEDUP}x)",
        ]
    return lines, good
