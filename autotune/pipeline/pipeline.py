"""The whole story, top to bottom.

    model.py -> Task -> Survey -> Space -> Trials -> Finalists -> Artifact + Plan + Report

Data travels one way; nothing upstream is changed later.  The story talks to the workers
through a bridge and to the person through a listener; it never imports torch.
"""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from autotune.bridge.process import ProcessBridge, meter_arguments
from autotune.bridge.protocol import Bridge
from autotune.bridge.recording import Recorder, ReplayBridge, load_recording
from autotune.context import DEPLOY_SHARE, HARDWARE_SHARE, TRAIN_SHARE, Listener, RunContext
from autotune.deployment import finalists, racing, search
from autotune.deployment.evaluator import DenseCall, DeploymentEvaluator
from autotune.pipeline import cost_preview, earlier_reports, report_builder, survey
from autotune.pipeline.report_builder import RunState
from autotune.processes import interrupts
from autotune.records.base import Record
from autotune.records.budget import Budget, Effort
from autotune.records.hardware import Profile
from autotune.records.plan import Deployment, Plan, Recipe
from autotune.records.report import Report, TrainTrial
from autotune.records.task import TaskSpec
from autotune.report import run_folder
from autotune.report import text as report_text
from autotune.search.warm_start import WarmStart
from autotune.training import (
    final,
    parallelism,
    search_space,
    step_options,
    throughput_stage,
    width,
)
from autotune.training import search as training_search
from autotune.training import trial as training_trial
from autotune.verification import (
    explain,
    launches,
    previous_plan,
    recorded_io,
    select,
    time_needed,
)

_RECOVERY_SHARE = 0.08
"""Of the time that is left after training, for the recovery of one pruning level at most."""
_WIDTHS_SHARE = 0.2  # of the train search's time, at most, for the widths' latencies
_FEW_EPOCHS, _MOST_EPOCHS, _LEAST_EPOCHS = 3.0, 30.0, 0.02


class Request(Record, frozen=True, kw_only=True):
    """What an interrupted run was asked for; kept in its work folder."""

    path: str
    args: tuple[str, ...]
    weights: str | None = None
    pretrained: bool | None = None
    retrain: bool = False
    budget: Budget
    effort: Effort
    profile: Profile | None = None
    plan: Plan | None = None


def asked(spec: TaskSpec, budget: Budget, effort: Effort, **more: Any) -> Request:
    """The request for this task."""
    same = {name: getattr(spec, name) for name in ("path", "args", "weights", "pretrained")}
    return Request(**same, retrain=spec.retrain, budget=budget, effort=effort, **more)


def story(
    spec: TaskSpec,
    request: Request,
    folder: run_folder.RunFolder,
    listener: Listener,
    make_bridge: Callable[[Path], Bridge] | None = None,
) -> tuple[Report, Path]:
    """From the survey to the report, or to what is known of it when it was stopped.

    Args:
        spec: the task, for the workers.
        request: limits, effort, and the plan where one is executed.
        folder: where report and plan are written, as they come to be.
        listener: told what happens.
        make_bridge: as for `autotune.tune.tune`.

    Returns:
        The report and its folder.

    Raises:
        AutotuneError: what the task or a limit is at fault for; a report of what is known is left.
    """
    bridge = _bridge(folder, request.effort, listener, make_bridge)
    known: RunState | None = None
    status = "interrupted"
    try:
        run = survey.survey(bridge, spec, request.budget, request.effort, request.profile, listener)
        if request.effort.baseline is not None:
            previous_plan.check(Path(request.effort.baseline), run)
        earlier = earlier_reports.load(request.effort.like, folder.path)
        known = RunState(run)
        run.journal = folder.new_journal()
        run.on_progress = lambda: folder.checkpoint(report_builder.report(known, "running"))
        with interrupts() as interrupted:
            try:
                if request.plan is not None:
                    _replay_plan(known, request.plan, folder)
                else:
                    _search(known, folder, earlier)
                status = "complete"
            except KeyboardInterrupt:
                pass
            except Exception:
                if not interrupted:
                    raise
    except BaseException:
        _leave(folder, known)
        raise
    finally:
        bridge.close()
    report = report_builder.report(known, status)
    folder.save(report, report_text.files(report))
    if status == "complete":
        folder.clean()
    return report, folder.path


def _leave(folder: run_folder.RunFolder, known: RunState | None) -> None:
    """After an error: a valid report of what is known, or no folder at all."""
    if known is not None:
        report = report_builder.report(known, "interrupted")
        folder.save(report, report_text.files(report))
        return
    folder.clean()
    with contextlib.suppress(OSError):
        folder.path.rmdir()


def _search(known: RunState, folder: run_folder.RunFolder, earlier: tuple[WarmStart, ...]) -> None:
    """The train search and final training, the deploy search, verification."""
    run = known.run
    if not run.survey.task.pretrained:
        _train(known, earlier)
        run = known.run
        if run.effort.search_only:
            plan = known.plan(Deployment(batch_size=run.budget.batch or 1))
            folder.save_plan(plan)
            return
    else:
        cost_preview.say(run, 0)
    weights = final.WEIGHTS if known.recipe is not None else "weights.safetensors"
    recipe = known.recipe or search_space.fine_tuning(run.survey)
    run = known.run = survey.of_recipe(run, recipe)
    lab = DeploymentEvaluator(run, weights, recipe, _recovery_epochs(run, known, recipe))
    known.lab = lab
    began = run.bridge.now()
    run.bridge.preload(("onnxscript", "torch_pruning", "onnxruntime.quantization"))
    until = began + DEPLOY_SHARE * run.left_s
    run.listener.phase("deploy search", until - began)

    def extended_s() -> float:
        return time_needed.until_s(lab, until)

    kept_s = racing.kept_s(run.left_s, until - began)
    first = earlier_reports.choose(run, earlier, "deployments")
    search.explore(lab, until, extended_s, kept_s, first)
    said = racing.run(lab, extended_s())
    known.messages += [said] if said else []
    run.timed("deploy search", began)
    _verify(known, [t.trial.deployment for t in finalists.chosen(lab)], folder)


def _replay_plan(known: RunState, plan: Plan, folder: run_folder.RunFolder) -> None:
    """Execute a plan: the same chain, nothing searched."""
    run = known.run
    if plan.source_sha256 != run.survey.task.source_sha256:
        known.messages.append("the model file differs from the one that the plan was made for")
    known.epochs = plan.epochs
    if plan.recipe is not None and not run.survey.task.pretrained:
        known.recipe = training_search.fitting(run, plan.recipe)
        _final(known, known.recipe)
        run = known.run
    weights = final.WEIGHTS if known.recipe is not None else "weights.safetensors"
    recipe = known.recipe or search_space.fine_tuning(run.survey)
    run = known.run = survey.of_recipe(run, recipe)
    known.lab = DeploymentEvaluator(run, weights, recipe, plan.deployment.recovery_epochs)
    known.lab.baseline(plan.deployment)
    if not known.lab.is_baseline(plan.deployment):
        known.lab.keep(known.lab.trial(plan.deployment, "the plan"))
    _verify(known, [plan.deployment], folder, given=True)


# -- verification --------------------------------------------------------------------------


def _verify(
    known: RunState,
    candidates: list[Deployment],
    folder: run_folder.RunFolder,
    *,
    given: bool = False,
) -> None:
    """Verify the finalists, or the one that was given, and ship the bytes of the one chosen."""
    run, evaluator = known.run, known.lab
    assert evaluator is not None
    began = run.bridge.now()
    run.listener.phase("verification", run.left_s)
    found = select.conclude(evaluator, candidates, known.execution, replace=not given)
    known.messages += found.messages
    known.why = explain.explain(evaluator, found, given=given)
    if run.effort.baseline is not None:
        run.listener.phase(f"the plan of {run.effort.baseline}", run.left_s)
        previous = Path(run.effort.baseline)
        known.earlier, said = previous_plan.race(
            evaluator, previous, found.chosen.side, folder.work
        )
        known.messages.append(said)
    _ship(known, evaluator, found, folder)
    run.timed("verification", began)


def _ship(
    known: RunState,
    evaluator: DeploymentEvaluator,
    found: select.Conclusion,
    folder: run_folder.RunFolder,
) -> None:
    """Ship the verified bytes, and write down what was found."""
    run, side, reference = known.run, found.chosen.side, found.chosen.reference
    folder.ship(side.built.artifact, side.built.sha256)
    known.artifact = run_folder.artifact(folder.path / "artifact", side.deployment.runtime)
    chosen = launches.result(run, side, known.plan(side.deployment, side.built.sha256))
    if any(stage.name == "program" for stage in reference.built.stages):
        known.messages.append(
            "The model's source does not stand alone, so the eager baseline is an exported "
            "program, which can be slower than the model itself: ratios to it may be too good."
        )
    baseline = launches.result(run, reference, known.plan(reference.deployment))
    known.chosen, known.baseline, known.lossless = chosen, baseline, None
    if (lossless := found.lossless) is side:
        known.lossless = chosen
    elif lossless is reference:
        known.lossless = baseline
    elif lossless is not None:
        known.lossless = launches.result(run, lossless, known.plan(lossless.deployment))
    known.verdicts = found.chosen.verdicts
    built_s = (t.trial.build_s for t in evaluator.tried if t.trial.deployment == side.deployment)
    known.execution = msgspec.structs.replace(
        known.execution, recovery_s=side.built.recovery_s, build_s=next(built_s, None)
    )
    recorded = folder.path / "artifact" / "recorded.npz"
    recorded_io.record(folder.work, recorded, side.built.artifact, reference.scores)


# -- training ------------------------------------------------------------------------------


def _train(known: RunState, earlier: tuple[WarmStart, ...]) -> None:
    run = known.run
    began = run.bridge.now()
    budget_s = TRAIN_SHARE * run.effort.time_s
    run.listener.phase("train search", budget_s)
    run = throughput_stage.measure(run, HARDWARE_SHARE * budget_s)
    widths = width.measure(run, run.bridge.now() + _WIDTHS_SHARE * budget_s, DenseCall(run))
    run = run.with_survey(widths=widths)
    run.timed("hardware", began)
    known.epochs, reach = parallelism.usual_lengths(run)
    run = known.run = run.with_survey(options=step_options.judged(run, reach))
    searching = run.bridge.now()
    cost_preview.say(run, known.epochs)
    known.training = training_trial.TrainState(run, known.epochs, reach, parallelism.timed(run))
    first = earlier_reports.choose(run, earlier, "recipes")
    training_search.search(known.training, began + budget_s, first)
    run.timed("train search", searching)
    winner = known.training.winner
    if winner is None:
        raise training_search.nothing_trained(known.training.trials)
    known.recipe = winner.recipe
    known.epochs = known.training.final(winner)
    if run.effort.search_only:
        known.messages.append("the search alone was asked for: nothing was trained in full")
        return
    _final(known, winner.recipe, winner, began + budget_s - run.bridge.now())
    known.messages += known.training.said


def _final(
    known: RunState, recipe: Recipe, trial: TrainTrial | None = None, more_s: float = 0.0
) -> None:
    """Train a plan's recipe, or the winner's after its search, which left ``more_s``."""
    run = known.run
    began = run.bridge.now()
    run.listener.phase("final training", _expected_s(run, known.epochs, trial))
    if trial is None or known.training is None:
        known.execution = final.final(run, recipe, known.epochs)
    else:
        known.execution, known.epochs = final.last(known.training, trial, more_s)
    run.timed("final training", began)
    kept = known.execution.kept_epochs
    if kept is not None and kept < known.epochs:
        known.messages.append(
            f"The weights are those after {kept:g} of {known.epochs} epochs, "
            "the best on validation."
        )
    if cost_preview.set_apart(run):
        run = known.run = replace(run, apart_s=run.bridge.now() - began)
    run.on_progress()


def _expected_s(run: RunContext, epochs: float, trial: TrainTrial | None) -> float:
    """Seconds of what is still to be trained, by the trial's pace or the measured throughput."""
    if trial is not None and trial.rungs and trial.train_s:
        ahead = epochs - (trial.rungs[-1] if trial.epochs == epochs else 0.0)
        return ahead * trial.train_s / trial.rungs[-1]
    return epochs * (parallelism.one_epoch_s(run) or 0.0)


def _recovery_epochs(run: RunContext, known: RunState, recipe: Recipe) -> float:
    """Epochs of recovery training after pruning: a share of the time that is left, by the
    training's own speed; 0 without rows to train on.
    """
    info = run.survey.task
    rows = info.train_rows or info.calibration_rows
    if not rows:
        return 0.0
    if known.execution.train_s and known.epochs:
        epoch_s = known.execution.train_s / known.epochs
    else:
        rate = parallelism.rate(run, recipe)
        if rate is None:
            return _FEW_EPOCHS
        epoch_s = rows / rate
    epochs = _RECOVERY_SHARE * run.left_s / epoch_s
    return float(min(_MOST_EPOCHS, round(epochs))) if epochs >= 1 else max(epochs, _LEAST_EPOCHS)


# -- bridge --------------------------------------------------------------------------------


def _bridge(
    folder: run_folder.RunFolder,
    effort: Effort,
    listener: Listener,
    make: Callable[[Path], Bridge] | None,
) -> Bridge:
    """The real bridge behind what is already recorded, itself recorded."""
    if make is not None:
        return make(folder.work)

    def live(started_s: float) -> Bridge:
        inner = ProcessBridge(
            folder.work,
            meter=meter_args(effort),
            started_s=started_s,
            waiting=listener.note,
            memory_bytes=_memory_limit(),
        )
        return Recorder(inner, folder.recording)

    return ReplayBridge(load_recording(folder.recording), live)


def meter_args(effort: Effort) -> tuple[str, ...]:
    """What the meter process is told of the person's wishes."""
    return meter_arguments(effort.device, effort.powercap_root, effort.powercap_label)


def _memory_limit() -> int | None:
    """What one job may allocate: nine tenths of what is available now (Linux only)."""
    if sys.platform != "linux":
        return None
    import psutil

    return int(0.9 * psutil.virtual_memory().available)
