"""``--baseline DIR``: the shipped artifact of an earlier report against the new one.

Its bytes are launched in turn with those of the chosen plan, and scored on the same *test* rows.
The report says which is faster and by how much; the earlier one is never shipped again.
"""

import shutil
from pathlib import Path

from autotune import units
from autotune.context import RunContext
from autotune.deployment import DeploymentEvaluator
from autotune.errors import UsageError
from autotune.records import job as jobs
from autotune.records.report import PlanResult, Report
from autotune.report import run_folder
from autotune.stats import launch_ratio
from autotune.verification import launches
from autotune.verification.verdicts import Candidate

_INPUTS = ("input_kind", "input_names", "input_shapes", "input_dtypes", "metric")


def check(folder: Path, run: RunContext) -> None:
    """Refuse an artifact that could not be compared, before any time is spent on it.

    Raises:
        UsageError: no finished report, or its artifact takes other inputs.
        OutputError: its artifact is not the one that was verified.
    """
    old, new = run_folder.verified(folder).survey.task, run.survey.task
    for name in _INPUTS:
        if getattr(old, name) != getattr(new, name):
            raise UsageError(
                f"--baseline {folder}: its {name} is {getattr(old, name)}, this model's is "
                f"{getattr(new, name)}; give a report of a model for the same data"
            )


def race(
    evaluator: DeploymentEvaluator, folder: Path, chosen: Candidate, work: Path
) -> tuple[PlanResult | None, str]:
    """Launch the earlier plan in turn with the chosen one.

    Returns:
        Its figures, None where it could not be measured; and the outcome in a sentence.
    """
    report = run_folder.verified(folder)
    assert report.chosen is not None
    plan = report.chosen.plan
    theirs = Candidate(plan.deployment, _brought(report, folder, work))
    ours = Candidate(chosen.deployment, chosen.built, scores=chosen.scores)
    failure = launches.in_turn(evaluator, ours, theirs)
    if failure is not None:
        return None, f"The earlier plan of {folder} could not be measured: {failure}"
    percentile = evaluator.run.budget.percentile
    found = launch_ratio.faster(ours.latencies, theirs.latencies, percentile)
    sure = "beyond noise" if found.high < 1 or found.low > 1 else "within noise"
    return launches.result(evaluator.run, theirs, plan), (
        f"Against the plan of {folder} ({report.created_utc[:10]}), in turn with it: "
        f"{found.ratio:.2f}x its time (95 % interval {found.low:.2f} to {found.high:.2f}), {sure}; "
        f"quality {_quality(ours)} against {_quality(theirs)}."
    )


def _brought(report: Report, folder: Path, work: Path) -> jobs.Built:
    """The earlier artifact, copied into the work folder."""
    assert report.artifact is not None
    name = f"builds/earlier-{report.artifact.sha256[:12]}"
    shutil.copytree(folder / "artifact", work / name, dirs_exist_ok=True)
    return jobs.Built(
        artifact=name,
        sha256=report.artifact.sha256,
        files=report.artifact.files,
        size_bytes=report.artifact.size_bytes,
        stages=(),
    )


def _quality(side: Candidate) -> str:
    return units.metric(side.scores.quality if side.scores else None)
