"""Is a killed run as good as one that was not?  ``python -m benchmarks.kills [--quick]``

    whole    one run of examples/digits_mlp.py, a fixed number of trials and epochs, not disturbed
    killed   the same run, killed with SIGKILL at a random moment, then resumed

Twenty moments, drawn over the whole run's length.  Each resumed run must end complete, with the
whole run's recipes, their validation losses and its winner; the log lines of a training that was
cut (``resumed_epochs`` of its job) show what was lost: all but the epoch in flight, or the last
second where epochs are shorter, comes with its state.  ``--quick``: three moments.

A run is killed alone: its workers end by themselves, and the next run finds none of them.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(".cache/benchmarks/kills")
MODEL = Path(__file__).parent.parent / "examples" / "digits_mlp.py"
COMMAND = (
    "--train-trials", "6", "--trials", "2", "--epochs", "12", "--time", "600s",
    "--only", "runtime=onnxruntime", "--without", "prune,ddp,int8_static,int8_dynamic",
    "--threads", "1", "--fix", "batch_size=32",
)  # fmt: skip
MOMENTS, QUICK = 20, 3
MOST_S = 600.0


class Resumed(NamedTuple):
    """One killed run: ``at_s`` after its start, ``trials`` known by then; what is wrong."""

    at_s: float
    trials: int
    wrong: tuple[str, ...]


def started(folder: Path) -> "subprocess.Popen[bytes]":
    """The run, in a session of its own."""
    command = [sys.executable, "-m", "autotune", "run", str(MODEL), "--out", str(folder), *COMMAND]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, start_new_session=True, **quiet)


def report_of(folder: Path) -> dict[str, Any] | None:
    """What a run has written, where it has."""
    path = folder / "report.json"
    return json.loads(path.read_bytes()) if path.exists() else None


def resumed(folder: Path) -> dict[str, Any] | None:
    """The report once `--resume` has ended; a run killed before its first job begins anew."""
    if not (folder / "work" / "recording.jsonl").exists():
        shutil.rmtree(folder, ignore_errors=True)
        started(folder).wait(MOST_S)
    else:
        command = [sys.executable, "-m", "autotune", "run", str(MODEL), "--resume", str(folder)]
        subprocess.run(command, capture_output=True, check=False, timeout=MOST_S)
    return report_of(folder)


def differences(whole: dict[str, Any], found: dict[str, Any] | None) -> tuple[str, ...]:
    """What a resumed run's report says otherwise."""
    if found is None:
        return ("no report",)
    wrong = []
    if found["status"] != "complete":
        wrong.append(f"status {found['status']}")
    ours, theirs = whole["train_trials"], found["train_trials"]
    if [t["recipe"] for t in ours] != [t["recipe"] for t in theirs]:
        wrong.append("other recipes were tried")
    if [t["values"] for t in ours] != [t["values"] for t in theirs]:
        wrong.append("validation losses differ")
    if recipe_of(whole) != recipe_of(found):
        wrong.append("another recipe won")
    return tuple(wrong)


def recipe_of(report: dict[str, Any]) -> Any:
    """The recipe of the chosen plan."""
    return (report["chosen"] or {}).get("plan", {}).get("recipe")


def kill_at(at_s: float, folder: Path, whole: dict[str, Any]) -> Resumed:
    """Kill a run, resume it, compare it."""
    shutil.rmtree(folder, ignore_errors=True)
    process = started(folder)
    time.sleep(at_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = report_of(folder)
    known = len(before["train_trials"]) if before else 0
    return Resumed(at_s, known, differences(whole, resumed(folder)))


def main(argv: list[str] | None = None) -> int:
    """Print each moment and what was wrong; 0 if nothing was."""
    parser = argparse.ArgumentParser(prog="benchmarks.kills", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} moments")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    shutil.rmtree(FOLDER, ignore_errors=True)
    began = time.monotonic()
    started(FOLDER / "whole").wait(MOST_S)
    length_s = time.monotonic() - began
    whole = report_of(FOLDER / "whole")
    if whole is None or whole["status"] != "complete":
        print("the undisturbed run did not end")
        return 1
    print(f"undisturbed: {length_s:.0f} s, {len(whole['train_trials'])} recipes", flush=True)
    rng = random.Random(given.seed)
    good, count = 0, QUICK if given.quick else MOMENTS
    for number in range(count):
        found = kill_at(rng.uniform(0.02, 0.98) * length_s, FOLDER / f"{number}", whole)
        said = "; ".join(found.wrong) or "as the undisturbed run"
        print(f"killed at {found.at_s:5.1f} s with {found.trials} recipes: {said}", flush=True)
        good += not found.wrong
    print(f"{good} of {count} as the undisturbed run: {'PASS' if good == count else 'FAIL'}")
    return 0 if good == count else 1


if __name__ == "__main__":
    sys.exit(main())
