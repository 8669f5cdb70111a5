"""Errors of latency and memory estimates.  ``python -m benchmarks.cost_model [--quick]``

Models that no constant was fitted to (`zoo`), at several batch sizes and thread counts, in eager
PyTorch, compiled, and in ONNX Runtime.  The operators of each model are timed
(`worker.opbench.op_benchmark`) and each runtime is run end to end once, at batch 4 on one thread;
these points are not counted.  All others are predicted, and measured in processes of their own
(`points`): the second fastest of three processes' medians, of up to six where they disagree.  A
point is left out, and counted as left out, where no two of six agree because of other load.

Targets: at least 200 points of 12 models; mean absolute error 12 %, its 90th percentile 25 %,
Kendall's tau 0.85 over pairs that differ by more than 10 %, 85 to 95 % within their 90 % intervals.
``--quick`` measures four models in about a minute on an idle machine.  ``--calibrate`` prints the
same table for models of `families`, which the constants of `hardware.op_latency` may be set by.  A
run continues where the last one stopped.
"""

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from itertools import combinations
from statistics import mean
from typing import Any, NamedTuple

from autotune.hardware import op_latency
from autotune.records import codec
from benchmarks._common.rows import CACHE
from benchmarks.cost_model import step_memory
from benchmarks.cost_model.points import (
    MEMORY_BATCHES,
    THREADS,
    Measured,
    Peak,
    agree,
    calibrating,
    collect,
    jobs,
    read,
    rows,
)

ANCHOR = (4, 1)
LEAST_CLEAN = 0.1
"""A point of one process is left out where fewer of its calls were undisturbed."""


class Point(NamedTuple):
    """A prediction and the measured value, in seconds."""

    model: str
    runtime: str
    batch: int
    threads: int
    predicted: float
    low: float
    high: float
    measured: float

    @property
    def error(self) -> float:
        return abs(self.predicted / self.measured - 1)


def points(wanted: list[tuple[str, str]], most: int = max(THREADS)) -> tuple[list[Point], int]:
    """Every stored measurement with its prediction; how many were left out."""
    out, left_out = [], 0
    for name, what in wanted:
        if what.startswith("memory"):
            continue
        measured, found = read(name, what, most)
        at = [t for t in measured if (t.batch, t.threads) == ANCHOR]
        known = [op_latency.Anchor(t.runtime, t.batch, t.threads, t.seconds) for t in at]
        for t in measured:
            guess = op_latency.latency_s(found, known, t.runtime, t.batch, t.threads)
            if guess is None or t in at:
                continue
            if not settles(t):
                left_out += 1
                continue
            key = (t.model, t.runtime, t.batch, t.threads)
            out.append(Point(*key, guess.value, guess.low, guess.high, t.seconds))
    return out, left_out


def settles(point: Measured) -> bool:
    """Whether the point is reliable: processes agree, or enough calls of one were undisturbed."""
    return agree(point.each_s) if len(point.each_s) > 1 else point.clean >= LEAST_CLEAN


def memory(wanted: list[tuple[str, str]]) -> list[tuple[str, int, float, bool]]:
    """(model, batch, predicted over true peak memory, within its interval)."""
    out = []
    for name in dict.fromkeys(name for name, _ in wanted):
        path = CACHE / f"cost-{name}-memory.jsonl"
        if not path.exists():
            continue
        found = codec.decode(path.read_bytes().strip(), step_memory.StepMemory, what=path.name)
        for batch in MEMORY_BATCHES:
            path = CACHE / f"cost-{name}-memory{batch}.jsonl"
            if path.exists():
                peak = codec.decode(path.read_bytes().strip(), Peak, what=path.name)
                guess = step_memory.predicted(found, batch)
                inside = guess.low <= peak.peak_bytes <= guess.high
                out.append((name, batch, guess.value / peak.peak_bytes, inside))
    return out


def memory_summary(found: list[tuple[str, int, float, bool]]) -> tuple[list[str], bool]:
    """Lines, and whether the median error is within 10 %."""
    if not found:
        return [], True
    errors = [abs(ratio - 1) for _, _, ratio, _ in found]
    good = mean(errors) <= 0.10
    worst = max(found, key=lambda row: abs(row[2] - 1))
    covered = mean(inside for *_, inside in found)
    return [
        f"peak training memory: {len(found)} points, MAPE {mean(errors):.3f}, "
        f"{sum(e <= 0.10 for e in errors)} within 10 %, worst {worst[0]} batch {worst[1]} "
        f"{worst[2]:.2f}x, in interval {covered:.2f}  {'PASS' if good else 'FAIL'}  (<= 0.10)"
    ], good


# -- the verdict ---------------------------------------------------------------------------


def kendall(found: list[Point]) -> float:
    """Kendall's tau over pairs that differ by more than 10 %."""
    agree = total = 0
    for a, b in combinations(found, 2):
        if abs(math.log(a.measured / b.measured)) > math.log(1.1):
            total += 1
            agree += 1 if (a.measured > b.measured) == (a.predicted > b.predicted) else -1
    return agree / total if total else 0.0


def within(found: list[Point]) -> float:
    """Kendall's tau within each model, averaged: what a search of one model needs."""
    models: dict[str, list[Point]] = defaultdict(list)
    for point in found:
        models[point.model].append(point)
    return mean(kendall(group) for group in models.values())


def summary(found: list[Point], *, whole: bool = True) -> tuple[list[str], bool]:
    """Lines to print, and whether every target is met (not ``whole``: of errors alone)."""
    errors = sorted(p.error for p in found)
    p90 = errors[min(len(errors) - 1, int(0.9 * len(errors)))]
    covered = mean(p.low <= p.measured <= p.high for p in found)
    tau, models = kendall(found), len({p.model for p in found})
    rows = [
        ("points", len(found), len(found) >= 200 or not whole, ">= 200" if whole else ""),
        ("models", models, models >= 12 or not whole, ">= 12" if whole else ""),
        ("MAPE", mean(errors), mean(errors) <= 0.12, "<= 0.12"),
        ("p90 of errors", p90, p90 <= 0.25, "<= 0.25"),
        ("Kendall tau", tau, tau >= 0.85, ">= 0.85"),
        ("Kendall tau within a model", within(found), True, ""),
        ("within 90 % interval", covered, 0.85 <= covered <= 0.95, "0.85 to 0.95"),
    ]
    lines = [f"{'group':<24}{'n':>5}{'MAPE':>8}{'bias':>8}{'in interval':>13}"]
    for label, key in (("runtime", 1), ("threads", 3), ("batch", 2), ("model", 0)):
        groups: dict[Any, list[Point]] = defaultdict(list)
        for point in found:
            groups[point[key]].append(point)
        for name, group in sorted(groups.items()):
            bias = math.exp(mean(math.log(p.predicted / p.measured) for p in group)) - 1
            inside = mean(p.low <= p.measured <= p.high for p in group)
            error = mean(p.error for p in group)
            text = f"{label} {name}"
            lines.append(f"{text:<24}{len(group):>5}{error:>8.3f}{bias:>+8.3f}{inside:>13.2f}")
    for what, value, good, target in rows:
        shown = f"{value:d}" if isinstance(value, int) else f"{value:.3f}"
        mark = ("PASS" if good else "FAIL") + f"  ({target})" if target else ""
        lines.append(f"{what:<28}{shown:>8}  {mark}")
    return lines, all(good for _, _, good, _ in rows)


def main(argv: list[str] | None = None) -> int:
    """Measure what is missing, print errors by group and the targets; 0 if all are met."""
    parser = argparse.ArgumentParser(prog="benchmarks.cost_model", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four models, in about a minute")
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop, to go on later")
    parser.add_argument("--fresh", action="store_true", help="forget the rows of earlier runs")
    parser.add_argument("--threads", type=int, choices=THREADS, default=max(THREADS), help="most")
    parser.add_argument("--calibrate", action="store_true", help="the families' models instead")
    given = parser.parse_args(argv)
    wanted = calibrating() if given.calibrate else jobs(given.quick)
    if given.fresh:
        for name, what in wanted:
            rows(name, what, given.threads).unlink(missing_ok=True)
    failures = collect(wanted, time.monotonic() + given.seconds, given.threads)
    found, left_out = points(wanted, given.threads)
    if not found:
        print("\n".join(["no point was measured", *failures]))
        return 1
    if left_out:
        print(f"{left_out} points left out: no two of their processes agree within 10 %")
    lines, good = summary(found, whole=not (given.quick or given.calibrate))
    more, fits = memory_summary(memory(wanted))
    good = good and fits
    print("\n".join([*lines, *more, *failures]))
    print(json.dumps({"points": len(found), "passed": good}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
