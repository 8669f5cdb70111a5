"""Training recipes within a time budget, on five real data sets: autotune against three others.

    python -m benchmarks.train [--quick] [--minutes N] [--only SET] [--seeds 5]

    for each random seed, for each set: the arms in rotating order, each in a process of its own
        autotune, half (autotune with T/2), optuna, halving, plain      (`arms`)
        target: autotune with `--target-quality` (the plain arm's on *validation*) within T
        reach: the recipes of plain, target and autotune, each until the plain arm's final quality
    -> .cache/benchmarks/train.jsonl, one row each; a row that is there is not measured again

T is 60 s for Fashion-MNIST and 40 s for the others, the same for every arm; on two cores autotune
spends some 8 s of it before its first training.  Quality is measured on *test*, which no arm
sees: accuracy, and R2 for bikes.  ``--minutes`` stops after the row under way.

Verdicts at the end (`report`): autotune's mean against each arm's (paired over random seeds, 95 %
interval); T/2 against optuna's T; the ratio of times to the plain arm's quality, with the recipe
found by *target* (or, where that did not reach it, by *autotune*).  The exit code is 1 where one
is missed.
"""

import argparse
import json
import math
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from autotune.records import codec
from autotune.records.plan import Recipe
from benchmarks._common import rows as stored
from benchmarks._common.rows import CACHE
from benchmarks.train.arms import MODELS, Order
from benchmarks.train.report import ARMS, Row, Rows, report

BUDGETS_S = {"digits": 40.0, "fashion": 60.0, "diamonds": 40.0, "snippets": 40.0, "bikes": 40.0}
QUICK = ("digits", "snippets")
_PATIENCE = 4.0  # a process is killed after this multiple of its budget


def main() -> int:
    """Measure what is missing and print the tables."""
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
                    stored.append(given.rows, row)
                    rows[name, arm, seed] = row
    return report(rows, names)


def _load(path: Path) -> Rows:
    """The rows that were made with today's budgets."""
    return {
        (row["set"], row["arm"], row["seed"]): row
        for row in stored.read(path)
        if row["budget_s"] == BUDGETS_S[row["set"]]
    }


def _prepare(names: tuple[str, ...]) -> None:
    """Fetch and unpack the data once, outside any arm's budget."""
    for name in names:
        task = runpy.run_path(str(MODELS / f"{name}.py"))
        for part in ("train_data", "eval_data", "test_data"):
            task[part]()


def _profile() -> Path:
    """The profile of this machine; measured once, outside any arm's budget."""
    path = CACHE / "train-profile.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "autotune", "profile", "--quick", "--out", str(path)]
        subprocess.run(command, check=True)
    return path


def _measured(name: str, arm: str, seed: int, rows: Rows) -> Row:
    """One row; a failure is recorded as a row."""
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


def _for_target(name: str, seed: int, rows: Rows) -> Row:
    """A recipe for the plain arm's quality on *validation*."""
    plain = rows.get((name, "plain", seed), {})
    if "quality" not in plain:
        return {"failure": "the plain arm has no quality"}
    found = _run("target", name, seed, BUDGETS_S[name], target=plain["validation"])
    print(f"{name:10} target    seed {seed}: {_short(found)}", flush=True)
    return found


def _reached(name: str, seed: int, rows: Rows) -> Row:
    """Seconds that each recipe trains until the plain arm's final quality."""
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
        command = [sys.executable, "-m", "benchmarks.train.arms", str(given)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=_PATIENCE * budget_s + 60,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
            )
        except subprocess.TimeoutExpired:
            return {"failure": "timed out"}
        if done.returncode or not out.is_file():
            return {"failure": " ".join(done.stderr.split()[-40:])}
        found: Row = json.loads(out.read_text())
        return found


if __name__ == "__main__":
    sys.exit(main())
