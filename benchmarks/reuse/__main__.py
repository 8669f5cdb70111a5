"""Whether a second run gains from a first one's report.  ``python -m benchmarks.reuse``

    profile of this machine -+-> first   model of width 32
                             +-> second  a similar model (width 40), --like first
                             +-> cold    the model of width 40, without --like

Each is a whole `autotune run` with the saved profile.  Counted are the trials of *second* until it
has a result as good as what *first* found, within noise:

- *recipe*: quality on *validation*, the mean over the random seeds it was trained with, at most one
  standard error of the difference below the best of *cold*;
- *deployment*: within every limit, at most 1.05 times the latency of the plan of *first* in the
  same run (or, where that plan was not tried, of the best of *cold*).

Both must be reached in at most half of the trials of *first*.  Complete runs are not repeated;
``--only first`` stops after one.
"""

import argparse
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from autotune.api import tune
from autotune.hardware import doctor
from autotune.hardware import profiles as hardware_profiles
from autotune.records.budget import Budget, Effort
from autotune.records.hardware import Profile
from autotune.records.plan import Deployment
from autotune.records.report import DeployTrial, Report
from autotune.report import run_folder
from autotune.search.space import canonical
from autotune.task import Task
from benchmarks._common.rows import CACHE

MODEL = Path(__file__).with_name("model.py")
FOLDER = CACHE / "reuse"
WIDTHS = {"first": 32, "second": 40, "cold": 40}
BUDGET = Budget(goal="latency", max_drop=0.05)
"""The drop is the smallest that 448 rows can certify for a compressed plan."""
TIME_S, TRAIN_TRIALS, TRIALS = 75.0, 12, 24
WITHOUT = ("compiled",)
"""Compiling would take most of so short a run."""
NEAR = 1.05


class Found(NamedTuple):
    """Trials that *second* and *cold* needed (None: never reached), and the trials of *first*."""

    what: str
    needed: int | None
    cold: int | None
    first: int

    @property
    def good(self) -> bool:
        return self.needed is not None and self.needed <= self.first / 2


def until(trials: Sequence[object], there: Callable[[int], bool]) -> int | None:
    """The number of trials up to and including the first that is good enough."""
    return next((number + 1 for number in range(len(trials)) if there(number)), None)


def recipes(first: Report, second: Report, cold: Report) -> Found:
    """Trials until the best recipe's quality, within noise."""
    means = (t.quality_mean for t in cold.train_trials if t.state == "complete")
    best = max((mean for mean in means if mean is not None), default=0.0)
    rows = max(1, second.survey.task.validation_rows)
    enough = best - math.sqrt(2 * best * (1 - best) / rows)

    def count(report: Report) -> int | None:
        trials = report.train_trials

        def there(number: int) -> bool:
            quality = trials[number].quality_mean
            complete = trials[number].state == "complete"
            return complete and quality is not None and quality >= enough

        return until(trials, there)

    return Found("recipe", count(second), count(cold), len(first.train_trials))


def deployments(first: Report, second: Report, cold: Report) -> Found:
    """Trials until the first run's plan, or one as fast on this model."""

    def count(report: Report) -> int | None:
        trials, target = report.deploy_trials, wanted_s(first, report, cold)

        def there(number: int) -> bool:
            seconds = _seconds(trials[number])
            return trials[number].feasible and seconds <= NEAR * target

        return until(trials, there)

    return Found("deployment", count(second), count(cold), len(first.deploy_trials))


def wanted_s(first: Report, report: Report, cold: Report) -> float:
    """Seconds of the first run's plan in a report; of the cold run's best without it."""
    assert first.chosen is not None
    plan = _plan(first.chosen.plan.deployment)
    within = [t for t in report.deploy_trials if t.feasible]
    same = [t for t in within if _plan(t.deployment) == plan]
    return min(_seconds(t) for t in same or (t for t in cold.deploy_trials if t.feasible))


def _plan(deployment: Deployment) -> str:
    """The identity of a deployment, whatever its recovery epochs."""
    return canonical(msgspec.structs.replace(deployment, recovery_epochs=0))


def _seconds(trial: DeployTrial) -> float:
    return math.inf if trial.latency_s is None else trial.latency_s.p50


# -- runs ----------------------------------------------------------------------------------


def profile() -> Profile:
    """The profile of this machine, measured once."""
    path = FOLDER / "profile.json"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        hardware_profiles.save_profile(doctor.profile(), path)
    return hardware_profiles.load_profile(str(path))


def report(name: str) -> Report:
    """A run's report; the run is made where none is stored."""
    folder = FOLDER / name
    if (folder / "report.json").exists():
        made = run_folder.load_report(folder)
        if made.status == "complete":
            return made
    shutil.rmtree(folder, ignore_errors=True)  # an interrupted run starts again
    like = str(FOLDER / "first") if name == "second" else None
    effort = Effort(
        time_s=TIME_S, trials=TRIALS, train_trials=TRAIN_TRIALS, without=WITHOUT, like=like
    )
    task = Task.from_file(MODEL, str(WIDTHS[name]))
    return tune(task, BUDGET, effort, profile=profile(), out=folder)[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and print the counts; 0 if both are at most half."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reuse")
    parser.add_argument("--only", choices=tuple(WIDTHS), help="make this run alone")
    only = parser.parse_args(argv).only
    if only is not None:
        made = report(only)
        print(f"{only}: {len(made.train_trials)} recipes, {len(made.deploy_trials)} deployments")
        return 0
    first, second, cold = (report(name) for name in WIDTHS)
    found = (recipes(first, second, cold), deployments(first, second, cold))
    print(f"{'':12}{'first, in all':>15}{'second, --like':>16}{'cold':>6}")
    for part in found:
        needed, alone = (str(n) if n else "never" for n in (part.needed, part.cold))
        print(f"{part.what:12}{part.first:>15}{needed:>16}{alone:>6}")
    good = all(part.good for part in found)
    print(f"reached in at most half of the first run's trials: {'PASS' if good else 'FAIL'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
