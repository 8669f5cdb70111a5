"""Whether a killed and resumed run loses anything.  ``python -m benchmarks.kills [--quick]``

    whole    one run of examples/digits_mlp.py with a fixed number of trials and epochs
    killed   the same run, killed with SIGKILL at a random moment, then resumed

Twenty moments (``--quick``: three), uniform over the length of the run.  Each resumed run must end
complete, with every recipe that was tried before the kill at the same place, with the validation
losses that it had by then and the same quality where it was complete; a winner that was known stays
the winner.  Only the run itself is killed: its workers must end by themselves.
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

from benchmarks._common.rows import CACHE, ROOT

FOLDER = CACHE / "kills"
MODEL = ROOT / "examples" / "digits_mlp.py"
COMMAND = (
    "--train-trials", "6", "--trials", "2", "--epochs", "12", "--time", "600s",
    "--only", "runtime=onnxruntime", "--without", "prune,ddp,int8_static,int8_dynamic",
    "--threads", "1",
)  # fmt: skip
MOMENTS, QUICK = 20, 3
MOST_S = 600.0


class Resumed(NamedTuple):
    """One killed run: ``at_s`` seconds after its start, with ``trials`` reported by then."""

    at_s: float
    trials: int
    wrong: tuple[str, ...]


def started(folder: Path) -> "subprocess.Popen[bytes]":
    """Start the run in a session of its own."""
    command = [sys.executable, "-m", "autotune", "run", str(MODEL), "--out", str(folder), *COMMAND]
    out = subprocess.DEVNULL
    return subprocess.Popen(command, start_new_session=True, stdout=out, stderr=out)


def report_of(folder: Path) -> dict[str, Any] | None:
    """A run's report, if it has written one."""
    path = folder / "report.json"
    return json.loads(path.read_bytes()) if path.exists() else None


def resumed(folder: Path) -> dict[str, Any] | None:
    """Resume a run; its report.  A run killed before its first job ended is started again."""
    if not (folder / "work" / "recording.jsonl").exists():
        shutil.rmtree(folder, ignore_errors=True)
        started(folder).wait(MOST_S)
    else:
        command = [sys.executable, "-m", "autotune", "run", str(MODEL), "--resume", str(folder)]
        subprocess.run(command, capture_output=True, check=False, timeout=MOST_S)
    return report_of(folder)


def differences(before: dict[str, Any] | None, found: dict[str, Any] | None) -> tuple[str, ...]:
    """Differences of the resumed run's report from what the killed one had written."""
    if found is None:
        return ("no report",)
    wrong = []
    if found["status"] != "complete":
        wrong.append(f"status {found['status']}")
    known = before["train_trials"] if before else []
    if len(known) > len(found["train_trials"]):
        wrong.append("trials were lost")
    for ours, theirs in zip(known, found["train_trials"], strict=False):
        name = f"trial {ours['number']}"
        if ours["recipe"] != theirs["recipe"]:
            wrong.append(f"{name} is another recipe")
        elif ours["values"] != theirs["values"][: len(ours["values"])]:
            wrong.append(f"{name} has other validation losses")
        elif ours["state"] == "complete" and ours["quality"] != theirs["quality"]:
            wrong.append(f"{name} has another quality")
    if before and before["chosen"] and recipe_of(before) != recipe_of(found):
        wrong.append("another recipe won")
    return tuple(wrong)


def recipe_of(report: dict[str, Any]) -> Any:
    """The recipe of the chosen plan."""
    return (report["chosen"] or {}).get("plan", {}).get("recipe")


def kill_at(at_s: float, folder: Path) -> Resumed:
    """Kill a run, resume it, compare it."""
    shutil.rmtree(folder, ignore_errors=True)
    process = started(folder)
    time.sleep(at_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = report_of(folder)
    known = len(before["train_trials"]) if before else 0
    return Resumed(at_s, known, differences(before, resumed(folder)))


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
        found = kill_at(rng.uniform(0.02, 0.98) * length_s, FOLDER / f"{number}")
        said = "; ".join(found.wrong) or "nothing lost"
        print(f"killed at {found.at_s:5.1f} s with {found.trials} recipes: {said}", flush=True)
        good += not found.wrong
    print(f"{good} of {count} lost nothing: {'PASS' if good == count else 'FAIL'}")
    return 0 if good == count else 1


if __name__ == "__main__":
    sys.exit(main())
