"""Training recipes under one wall budget, on five real data sets: autotune against three others.

    python -m benchmarks.train [--quick] [--minutes N] [--only SET] [--seeds 5]

    for each seed, for each set: the arms in rotating order, each in a process of its own
        autotune, half (autotune with T/2), optuna, halving, plain      `train_arms`
        target: autotune with `--target-quality`, that of the plain arm on *validation*, within T
        reach: the plain recipe, *target*'s and autotune's until the plain arm's final quality
    -> .cache/benchmarks/train.jsonl, one row each; a row that is there is not measured again

T is 60 s for Fashion-MNIST and 40 s for the others, the same for every arm; on two cores autotune
spends some 8 s of it before its first training.  Quality is that of *test*, which no arm sees:
accuracy, and R2 for bikes.  ``--minutes`` stops after the row in flight.

Verdicts at the end: autotune's mean against each arm's (paired over seeds, 95 % interval); T/2
against optuna's T; the ratio of times to the plain arm's quality, with the recipe that was found
for that quality (or, where that search did not reach it, for the best one).  The exit code is 1
where one is missed.  Does not know how well an arm would do with more time.
"""

import argparse
import json
import math
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from autotune.records import codec
from autotune.records.plan import Recipe
from autotune.stats.launch_ratio import student
from benchmarks.train_arms import MODELS, Order

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "benchmarks"
BUDGETS_S = {"digits": 40.0, "fashion": 60.0, "diamonds": 40.0, "snippets": 40.0, "bikes": 40.0}
QUICK = ("digits", "snippets")
ARMS = ("autotune", "half", "optuna", "halving", "plain")
OTHERS = ("plain", "optuna", "halving")
_PATIENCE = 4.0  # times the budget, before a process is ended

Row = dict[str, Any]


def main() -> int:
    """Measure what is missing and say how it stands."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two sets, two seeds")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long")
    parser.add_argument("--only", choices=list(BUDGETS_S), action="append", help="these sets")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=Path, default=CACHE / "train.jsonl")
    given = parser.parse_args()
    names = tuple(given.only or (QUICK if given.quick else BUDGETS_S))
    seeds = min(given.seeds, 2) if given.quick else given.seeds
    until = time.monotonic() + 60 * given.minutes
    rows = _load(given.rows)
    _prepare(names)
    for seed in range(seeds):
        for number, name in enumerate(names):
            turn = (seed + number) % len(ARMS)
            for arm in (*ARMS[turn:], *ARMS[:turn], "target", "reach"):
                if (name, arm, seed) not in rows and time.monotonic() < until:
                    row = _measured(name, arm, seed, rows)
                    _append(given.rows, row)
                    rows[name, arm, seed] = row
    return report(rows, names)


def _load(path: Path) -> dict[tuple[str, str, int], Row]:
    """Rows by set, arm and seed; a torn last line is no row."""
    found = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["budget_s"] == BUDGETS_S[row["set"]]:
            found[row["set"], row["arm"], row["seed"]] = row
    return found


def _append(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _prepare(names: tuple[str, ...]) -> None:
    """Fetch and unpack the sets' data once, so that no arm pays for it."""
    for name in names:
        task = runpy.run_path(str(MODELS / f"{name}.py"))
        for part in ("train_data", "eval_data", "test_data"):
            task[part]()


def _profile() -> Path:
    """Where this machine's profile is; it is made once, and no arm pays for it."""
    path = CACHE / "train-profile.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "autotune", "profile", "--quick", "--out", str(path)]
        subprocess.run(command, check=True)
    return path


def _measured(name: str, arm: str, seed: int, rows: dict[tuple[str, str, int], Row]) -> Row:
    """One row; a failure is a row too."""
    row: Row = {"set": name, "arm": arm, "seed": seed, "budget_s": BUDGETS_S[name]}
    if arm == "reach":
        return row | _reached(name, seed, rows)
    if arm == "target":
        return row | _for_target(name, seed, rows)
    budget_s = BUDGETS_S[name] / (2 if arm == "half" else 1)
    found = _run("autotune" if arm == "half" else arm, name, seed, budget_s)
    print(f"{name:10} {arm:9} seed {seed}: {_short(found)}", flush=True)
    return row | found


def _short(found: Row) -> str:
    kept = {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}
    return ", ".join(f"{k} {v}" for k, v in kept.items() if k != "recipe")


def _for_target(name: str, seed: int, rows: dict[tuple[str, str, int], Row]) -> Row:
    """A recipe for the plain arm's quality on *validation*."""
    plain = rows.get((name, "plain", seed), {})
    if "quality" not in plain:
        return {"failure": "the plain arm has no quality"}
    found = _run("target", name, seed, BUDGETS_S[name], target=plain["validation"])
    print(f"{name:10} target    seed {seed}: {_short(found)}", flush=True)
    return found


def _reached(name: str, seed: int, rows: dict[tuple[str, str, int], Row]) -> Row:
    """How long each recipe trains until the plain arm's final quality."""
    plain, best, quick = (rows.get((name, a, seed), {}) for a in ("plain", "autotune", "target"))
    if "quality" not in plain or "quality" not in best:
        return {"failure": "an arm that it compares has no quality"}
    found: Row = {"target": plain["quality"], "plain_s": _trained(name, seed, plain, None)}
    found["best_s"] = _trained(name, seed, plain, best)
    found["found_s"] = found["best_s"]
    if quick.get("reached"):
        found["found_s"] = _trained(name, seed, plain, quick)
    print(f"{name:10} reach     seed {seed}: {_short(found)}", flush=True)
    return found


def _trained(name: str, seed: int, plain: Row, ours: Row | None) -> float | None:
    """Seconds of training; None where the quality is not reached."""
    more: dict[str, Any] = {"target": plain["quality"]}
    if ours is not None:
        recipe = codec.decode(json.dumps(ours["recipe"]).encode(), Recipe)
        more |= {"recipe": recipe, "epochs": ours["epochs"]}
    reached: float | None = _run("reach", name, seed, BUDGETS_S[name], **more).get("reached_s")
    return reached


def _run(arm: str, name: str, seed: int, budget_s: float, **more: Any) -> Row:
    profile = _profile()
    with tempfile.TemporaryDirectory() as folder:
        out, given = Path(folder) / "row.json", Path(folder) / "order.json"
        order = Order(
            arm=arm,
            set=name,
            seed=seed,
            budget_s=budget_s,
            started_s=time.monotonic(),
            profile=str(profile),
            out=str(out),
            **more,
        )
        given.write_bytes(msgspec.json.encode(order))
        command = [sys.executable, "-m", "benchmarks.train_arms", str(given)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=_PATIENCE * budget_s + 60,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
            )
        except subprocess.TimeoutExpired:
            return {"failure": "it hung"}
        if done.returncode or not out.is_file():
            return {"failure": " ".join(done.stderr.split()[-40:])}
        found: Row = json.loads(out.read_text())
        return found


# -- what the rows say ---------------------------------------------------------------------


def report(rows: dict[tuple[str, str, int], Row], names: tuple[str, ...]) -> int:
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


def _set_lines(rows: dict[tuple[str, str, int], Row], name: str) -> list[str]:
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


def _gaps(rows: dict[tuple[str, str, int], Row], name: str, mine: str, other: str) -> list[float]:
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


def _reach_ratio(
    rows: dict[tuple[str, str, int], Row], names: tuple[str, ...], which: str
) -> float | None:
    """Geometric mean of ``which`` over plain; what is never reached counts as all of T (the plain
    recipe was there at T, by its own arm, and need not be again).
    """
    logs = []
    for (name, arm, _), row in rows.items():
        if arm == "reach" and name in names and "target" in row:
            found_s, plain_s = (row[key] or row["budget_s"] for key in (which, "plain_s"))
            logs.append(math.log(found_s / plain_s))
    return math.exp(statistics.mean(logs)) if logs else None


if __name__ == "__main__":
    sys.exit(main())
