"""Real runs of the command line, small enough to take seconds."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
# a search of a few trials: enough to go through every stage
QUICK = ("--trials", "4", "--train-trials", "2", "--epochs", "4", "--time", "60s", "--threads", "1")


class Ran(NamedTuple):
    """``report`` is None where none was written."""

    code: int
    out: str
    err: str
    folder: Path
    report: dict[str, Any] | None

    @property
    def verdicts(self) -> dict[str, str]:
        assert self.report is not None, self.err
        return {v["name"]: v["verdict"] for v in self.report["verdicts"]}

    @property
    def deployment(self) -> dict[str, Any]:
        assert self.report is not None, self.err
        found: dict[str, Any] = self.report["chosen"]["plan"]["deployment"]
        return found


def command(*args: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """``autotune ARGS`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "autotune", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def read(folder: Path) -> dict[str, Any] | None:
    path = folder / "report.json"
    return json.loads(path.read_text()) if path.exists() else None


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of the machine, measured once for all workers of a test run."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    path = shared / "machine.json"
    with (shared / "machine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            assert command("profile", "--out", path).returncode == 0
    return path


@pytest.fixture
def run(tmp_path: Path, measured: Path) -> Callable[..., Ran]:
    """``run(model, *options)``: one `autotune run` into a folder of its own, with a profile that
    is there already, as a second run on a machine has it.
    """
    count = 0

    def one(model: Path, *options: object) -> Ran:
        nonlocal count
        count += 1
        # relative, as people give it and as the default is: a job that changes its folder
        # must still find the run's files
        folder = tmp_path / f"report{count}"
        known = () if "--profile" in options else ("--profile", measured)
        done = command("run", model, "--out", folder.name, *options, *known, cwd=tmp_path)
        return Ran(done.returncode, done.stdout, done.stderr, folder, read(folder))

    return one


def workers(folder: Path) -> set[int]:
    """Process ids of everything of autotune's that works for a run under ``folder`` now."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if any("autotune.worker" in word for word in line) and str(folder) in " ".join(line):
            found.add(process.pid)
    return found
