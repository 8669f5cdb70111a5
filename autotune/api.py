"""What a program calls: `tune`, `resume`, `dry_run`, `execute`, `verify`.

Each makes or reopens a report folder and lets `pipeline.pipeline` do the work; none imports torch.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from autotune.bridge import Bridge, ProcessBridge
from autotune.context import Listener, Silent
from autotune.pipeline import cost_preview, survey
from autotune.pipeline.cost_preview import CostPreview
from autotune.pipeline.pipeline import Request, make_request, meter_args, run_pipeline
from autotune.records import codec
from autotune.records.budget import Budget, Effort
from autotune.records.hardware import Profile
from autotune.records.plan import Plan
from autotune.records.report import Report
from autotune.report import run_folder
from autotune.task import Task
from autotune.verification import reverify


def tune(
    task: Task,
    budget: Budget | None = None,
    effort: Effort | None = None,
    *,
    profile: Profile | None = None,
    out: Path | None = None,
    listener: Listener | None = None,
    bridge: Callable[[Path], Bridge] | None = None,
) -> tuple[Report, Path]:
    """Survey, search, verify, execute and report.

    Args:
        task: what to tune.
        budget: the limits; none by default.
        effort: time and scope of the search; ten minutes by default.
        profile: a saved profile; only its anchors are measured again.
        out: the report folder, ``reports/<name>-<UTC time>`` by default.
        listener: is called with phases, notes and trials as they happen.
        bridge: makes the bridge from the work folder (for replays); the real one by default.

    Returns:
        The report and its folder.

    Raises:
        ContractError: the task is wrong.  OutputError: the folder cannot be written.
    """
    budget, effort = budget or Budget(), effort or Effort()
    folder = run_folder.RunFolder.create(out, task.name)
    with task.spec(effort.seed) as spec:
        request = make_request(spec, budget, effort, profile=profile)
        run_folder.write(folder.work / "request.json", codec.encode(request).decode())
        return run_pipeline(spec, request, folder, listener or Silent(), bridge)


def resume(
    path: Path, *, time_s: float | None = None, listener: Listener | None = None
) -> tuple[Report, Path]:
    """Go on with an interrupted run: its recording is replayed, then the work goes on live.

    ``time_s`` allows more time than the run was given at first.
    """
    folder = run_folder.RunFolder.reopen(path)
    data = (folder.work / "request.json").read_bytes()
    request = codec.decode(data, Request, what=f"the request in {path}")
    if time_s is not None:
        effort = msgspec.structs.replace(request.effort, time_s=time_s)
        request = msgspec.structs.replace(request, effort=effort)
    task = Task.from_file(
        request.path,
        *request.args,
        weights=request.weights,
        pretrained=request.pretrained,
        retrain=request.retrain,
    )
    with task.spec(request.effort.seed) as spec:
        return run_pipeline(spec, request, folder, listener or Silent())


def dry_run(
    task: Task,
    budget: Budget | None = None,
    effort: Effort | None = None,
    *,
    profile: Profile | None = None,
    listener: Listener | None = None,
) -> CostPreview:
    """What `tune` would cost: each kind of job is done once, and nothing is kept."""
    budget, effort = budget or Budget(), effort or Effort()
    with (
        tempfile.TemporaryDirectory(prefix="autotune-dry-run-") as folder,
        task.spec(effort.seed) as spec,
    ):
        bridge = ProcessBridge(Path(folder), meter=meter_args(effort))
        try:
            run = survey.survey(bridge, spec, budget, effort, profile, listener or Silent())
            return cost_preview.measured(run)
        finally:
            bridge.close()


def execute(
    plan: Plan,
    task: Task,
    budget: Budget | None = None,
    effort: Effort | None = None,
    *,
    out: Path | None = None,
    listener: Listener | None = None,
) -> tuple[Report, Path]:
    """Replay a plan's chain on this machine: train, compress, build, verify, report."""
    budget = budget or Budget(batch=plan.deployment.batch_size)
    effort = msgspec.structs.replace(effort or Effort(), seed=plan.seed)
    folder = run_folder.RunFolder.create(out, task.name)
    with task.spec(plan.seed) as spec:
        request = make_request(spec, budget, effort, plan=plan)
        run_folder.write(folder.work / "request.json", codec.encode(request).decode())
        return run_pipeline(spec, request, folder, listener or Silent())


def verify(
    folder: Path,
    model: str | Path | None = None,
    *,
    changes: dict[str, Any] | None = None,
    effort: Effort | None = None,
) -> reverify.Reverified:
    """Measure a report's artifact again; with the model file, its quality too.

    ``changes`` replace fields of the report's own budget.
    """

    def make(work: Path, how: Effort) -> Bridge:
        return ProcessBridge(work, meter=meter_args(how))

    report = run_folder.load_report(folder)
    budget = msgspec.structs.replace(report.budget, **(changes or {}))
    if model is None:
        return reverify.verify(folder, make, budget=budget, effort=effort)
    plan = run_folder.load_plan(folder)
    # rows are wanted, not weights: those of the artifact are what is verified
    trained = report.survey.task.pretrained or None
    task = Task.from_file(model, *plan.args, pretrained=trained, retrain=not trained)
    with task.spec(plan.seed) as spec:
        return reverify.verify(folder, make, budget=budget, effort=effort, spec=spec)
