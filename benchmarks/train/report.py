"""What the rows of the training benchmark say: tables, and the verdicts that are missed."""

import math
import statistics
from typing import Any

from autotune.stats.launch_ratio import student

ARMS = ("autotune", "half", "optuna", "halving", "plain")
OTHERS = ("plain", "optuna", "halving")

Row = dict[str, Any]
Rows = dict[tuple[str, str, int], Row]
"""By data set, arm and random seed."""


def report(rows: Rows, names: tuple[str, ...]) -> int:
    """Print the tables and the verdicts; 1 where one is missed."""
    print(
        f"\n{'set':10} {'arm':9} {'seeds':>5} {'wall s':>6} {'mean':>8} {'sd':>7} "
        f"{'autotune - arm (95 %)':>26}"
    )
    missed = [line for name in names for line in _set_lines(rows, name)]
    halves = [gap for name in names for gap in _gaps(rows, name, "half", "optuna")]
    if halves:
        share = sum(gap >= 0 for gap in halves) / len(halves)
        print(f"\nT/2 reaches optuna's quality at T in {share:.0%} of {len(halves)} runs")
        missed += ["half of T is not enough in the median"] * (share < 0.5)
    ratio = _reach_ratio(rows, names, "found_s")
    if ratio is not None:
        print(f"time to the plain arm's quality, found over plain: {ratio:.2f} (geometric mean)")
        best = _reach_ratio(rows, names, "best_s")
        print(f"the same with the recipe found for the best quality: {best:.2f}")
        missed += ["the found recipe takes over half of the plain one's time"] * (ratio > 0.5)
    over = [r for r in rows.values() if r.get("wall_s", 0.0) > 1.1 * _budget(r)]
    missed += [f"{len(over)} rows took over 1.1 T"] * bool(over)
    print("\n" + ("\n".join(f"MISSED: {line}" for line in missed) or "all kept"))
    return 1 if missed else 0


def _budget(row: Row) -> float:
    return float(row["budget_s"]) / (2 if row["arm"] == "half" else 1)


def _set_lines(rows: Rows, name: str) -> list[str]:
    missed = []
    for arm in ARMS:
        these = [r for (s, a, _), r in rows.items() if (s, a) == (name, arm) and "quality" in r]
        if not these:
            continue
        values = [row["quality"] for row in these]
        wall_s = statistics.mean(row["wall_s"] for row in these)
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        gaps = _gaps(rows, name, "autotune", arm) if arm in OTHERS else []
        text = ""
        if len(gaps) > 1:
            mean, half = interval(gaps)
            text = f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})"
            if mean + half < 0:
                missed.append(f"{name}: autotune is below {arm} beyond noise")
        shown = f"{wall_s:6.1f} {statistics.mean(values):8.4f} {spread:7.4f} {text:>26}"
        print(f"{name:10} {arm:9} {len(values):5} {shown}")
    return missed


def _gaps(rows: Rows, name: str, mine: str, other: str) -> list[float]:
    """Differences of quality of two arms with the same seed."""
    pairs = [
        (row, rows.get((name, other, seed)))
        for (s, arm, seed), row in rows.items()
        if (s, arm) == (name, mine)
    ]
    return [
        a["quality"] - b["quality"] for a, b in pairs if b and "quality" in a and "quality" in b
    ]


def interval(gaps: list[float]) -> tuple[float, float]:
    """Mean and half-width of Student's 95 % interval."""
    half = student(0.025, len(gaps) - 1) * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return statistics.mean(gaps), half


def _reach_ratio(rows: Rows, names: tuple[str, ...], which: str) -> float | None:
    """Geometric mean of ``which`` over plain; what is never reached counts as all of T (the plain
    recipe was there at T, by its own arm, and need not be again).
    """
    logs = []
    for (name, arm, _), row in rows.items():
        if arm == "reach" and name in names and "target" in row:
            found_s, plain_s = (row[key] or row["budget_s"] for key in (which, "plain_s"))
            logs.append(math.log(found_s / plain_s))
    return math.exp(statistics.mean(logs)) if logs else None
