"""One run, from the survey to the report.

    model.py -> Task -> survey -> train search -> final training
                     -> deploy search -> verification -> artifact + plan + report

Stages take values and return a value; only this file puts them into the run's `RunState`, from
which a report can be made at any moment.  It talks to the workers through a bridge and to the
person through a listener, and never imports torch.
"""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from autotune.bridge import (
    Bridge,
    ProcessBridge,
    Recorder,
    ReplayBridge,
    load_recording,
    meter_arguments,
)
from autotune.context import DEPLOY_SHARE, HARDWARE_SHARE, TRAIN_SHARE, Listener
from autotune.deployment import DeploymentEvaluator, finalists, racing, search
from autotune.deployment.artifact_jobs import DenseCall
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
    TrainState,
    final,
    lengths,
    parallelism,
    search_space,
    step_options,
    throughput_stage,
    width,
)
from autotune.training import search as training_search
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


def make_request(spec: TaskSpec, budget: Budget, effort: Effort, **more: Any) -> Request:
    """The request for this task."""
    same = {name: getattr(spec, name) for name in ("path", "args", "weights", "pretrained")}
    return Request(**same, retrain=spec.retrain, budget=budget, effort=effort, **more)


def run_pipeline(
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
        folder: where report and plan are written as they come to be.
        listener: its methods are called as the run proceeds (progress).
        make_bridge: as for `autotune.api.tune`.

    Returns:
        The report and its folder.

    Raises:
        AutotuneError: the task or a limit is wrong; a report of what is known is left.
    """
    bridge = _bridge(folder, request.effort, listener, make_bridge)
    state: RunState | None = None
    status = "interrupted"
    try:
        run = survey.survey(bridge, spec, request.budget, request.effort, request.profile, listener)
        if request.effort.baseline is not None:
            previous_plan.check(Path(request.effort.baseline), run)
        earlier = earlier_reports.load(request.effort.like, folder.path)
        state = RunState(run)
        run.journal = folder.new_journal()
        run.on_progress = lambda: folder.checkpoint(report_builder.report(state, "running"))
        with interrupts() as interrupted:
            try:
                if request.plan is None:
                    _search(state, folder, earlier)
                else:
                    _execute(state, folder, request.plan)
                status = "complete"
            except KeyboardInterrupt:
                pass
            except Exception:
                if not interrupted:
                    raise
    except BaseException:
        _leave(folder, state)
        raise
    finally:
        bridge.close()
    report = report_builder.report(state, status)
    folder.save(report, report_text.files(report))
    if status == "complete":
        folder.clean()
    return report, folder.path


def _leave(folder: run_folder.RunFolder, state: RunState | None) -> None:
    """After an error: a valid report of what is known, or no folder at all."""
    if state is not None:
        report = report_builder.report(state, "interrupted")
        folder.save(report, report_text.files(report))
        return
    folder.clean()
    with contextlib.suppress(OSError):
        folder.path.rmdir()


def _search(state: RunState, folder: run_folder.RunFolder, earlier: tuple[WarmStart, ...]) -> None:
    """Search a recipe and train it, search a deployment, verify and ship it."""
    if state.run.survey.task.pretrained:
        cost_preview.say(state.run, 0)
    else:
        budget_s, began = TRAIN_SHARE * state.run.effort.time_s, state.run.bridge.now()
        winner = _train_search(state, earlier, budget_s)
        if state.run.effort.search_only:
            state.messages.append("the search alone was asked for: nothing was trained in full")
            folder.save_plan(state.plan(Deployment(batch_size=state.run.budget.batch or 1)))
            return
        _final_training(state, winner.recipe, winner, began + budget_s - state.run.bridge.now())
        assert state.training is not None
        state.messages += state.training.messages
    evaluator = _evaluator(state)
    _deploy_search(state, evaluator, earlier)
    _verify(state, evaluator, [t.trial.deployment for t in finalists.chosen(evaluator)], folder)


def _execute(state: RunState, folder: run_folder.RunFolder, plan: Plan) -> None:
    """Execute a plan: the same stages, nothing searched."""
    task, deployment = state.run.survey.task, plan.deployment
    if plan.source_sha256 != task.source_sha256:
        state.messages.append("the model file differs from the one that the plan was made for")
    state.epochs = plan.epochs
    if plan.recipe is not None and not task.pretrained:
        state.recipe = training_search.fitting(state.run, plan.recipe)
        _final_training(state, state.recipe)
    evaluator = _evaluator(state, deployment.recovery_epochs)
    evaluator.baseline(deployment)
    if not evaluator.is_baseline(deployment):
        evaluator.keep(evaluator.trial(deployment, "the plan"))
    _verify(state, evaluator, [deployment], folder, given=True)


# -- training ------------------------------------------------------------------------------


def _train_search(state: RunState, earlier: tuple[WarmStart, ...], budget_s: float) -> TrainTrial:
    """Measure the hardware, then search a recipe; the winner.

    Raises:
        ContractError: no recipe could be trained.
    """
    run = state.run
    began = run.bridge.now()
    run.listener.phase("train search", budget_s)
    run = throughput_stage.measure(run, HARDWARE_SHARE * budget_s)
    widths = width.measure(run, run.bridge.now() + _WIDTHS_SHARE * budget_s, DenseCall(run))
    run = run.with_survey(widths=widths)
    run.timed("hardware", began)
    state.epochs, reach = lengths.usual(run)
    run = state.run = run.with_survey(options=step_options.judged(run, reach))
    searching = run.bridge.now()
    cost_preview.say(run, state.epochs)
    training = TrainState(run, state.epochs, reach, lengths.timed(run))
    state.training = training
    first = earlier_reports.choose(run, earlier, "recipes")
    training_search.search(training, began + budget_s, first)
    run.timed("train search", searching)
    winner = training.winner
    if winner is None:
        raise training_search.nothing_trained(training.trials)
    state.recipe, state.epochs = winner.recipe, training.final_epochs(winner)
    return winner


def _final_training(
    state: RunState, recipe: Recipe, winner: TrainTrial | None = None, more_s: float = 0.0
) -> None:
    """Train a plan's recipe, or the winner's after its search, which left ``more_s``."""
    run = state.run
    began = run.bridge.now()
    run.listener.phase("final training", final.expected_s(run, state.epochs, winner))
    if winner is None or state.training is None:
        state.execution = final.final(run, recipe, state.epochs)
    else:
        state.execution, state.epochs = final.last(state.training, winner, more_s)
    run.timed("final training", began)
    kept = state.execution.kept_epochs
    if kept is not None and kept < state.epochs:
        state.messages.append(
            f"The weights are those after {kept:g} of {state.epochs} epochs, "
            "the best on validation."
        )
    if cost_preview.set_apart(run):
        state.run = replace(run, apart_s=run.bridge.now() - began)
    run.on_progress()


# -- deployment ----------------------------------------------------------------------------


def _evaluator(state: RunState, recovery_epochs: float | None = None) -> DeploymentEvaluator:
    """What builds and measures deployments of the weights that were trained, or came trained."""
    weights = final.WEIGHTS if state.recipe is not None else "weights.safetensors"
    recipe = state.recipe or search_space.fine_tuning(state.run.survey)
    run = state.run = survey.of_recipe(state.run, recipe)
    if recovery_epochs is None:
        recovery_epochs = _recovery_epochs(state, recipe)
    state.evaluator = DeploymentEvaluator(run, weights, recipe, recovery_epochs)
    return state.evaluator


def _recovery_epochs(state: RunState, recipe: Recipe) -> float:
    """Epochs of recovery training after pruning: a share of the time that is left, by the
    training's own speed; 0 without rows to train on.
    """
    run, info = state.run, state.run.survey.task
    rows = info.train_rows or info.calibration_rows
    if not rows:
        return 0.0
    if state.execution.train_s and state.epochs:
        epoch_s = state.execution.train_s / state.epochs
    else:
        rate = parallelism.rate(run, recipe)
        if rate is None:
            return _FEW_EPOCHS
        epoch_s = rows / rate
    epochs = _RECOVERY_SHARE * run.left_s / epoch_s
    return float(min(_MOST_EPOCHS, round(epochs))) if epochs >= 1 else max(epochs, _LEAST_EPOCHS)


def _deploy_search(
    state: RunState, evaluator: DeploymentEvaluator, earlier: tuple[WarmStart, ...]
) -> None:
    """Search a deployment, then launch the leading ones again in turn."""
    run = state.run
    began = run.bridge.now()
    run.bridge.preload(("onnxscript", "torch_pruning", "onnxruntime.quantization"))
    until_s = began + DEPLOY_SHARE * run.left_s
    run.listener.phase("deploy search", until_s - began)

    def extended_s() -> float:
        return time_needed.until_s(evaluator, until_s)

    kept_s = racing.kept_s(run.left_s, until_s - began)
    first = earlier_reports.choose(run, earlier, "deployments")
    search.explore(evaluator, until_s, extended_s, kept_s, first)
    race = racing.run(evaluator, extended_s())
    state.messages += [race] if race else []
    run.timed("deploy search", began)


# -- verification --------------------------------------------------------------------------


def _verify(
    state: RunState,
    evaluator: DeploymentEvaluator,
    candidates: list[Deployment],
    folder: run_folder.RunFolder,
    *,
    given: bool = False,
) -> None:
    """Verify the finalists, or the one that was given, and ship the bytes of the one chosen."""
    run = evaluator.run
    began = run.bridge.now()
    run.listener.phase("verification", run.left_s)
    found = select.conclude(evaluator, candidates, state.execution, replace=not given)
    state.messages += found.messages
    state.why = explain.explain(evaluator, found, given=given)
    if run.effort.baseline is not None:
        run.listener.phase(f"the plan of {run.effort.baseline}", run.left_s)
        previous = Path(run.effort.baseline)
        state.earlier, said = previous_plan.race(
            evaluator, previous, found.chosen.side, folder.work
        )
        state.messages.append(said)
    _ship(state, evaluator, found, folder)
    run.timed("verification", began)


def _ship(
    state: RunState,
    evaluator: DeploymentEvaluator,
    found: select.Conclusion,
    folder: run_folder.RunFolder,
) -> None:
    """Ship the verified bytes, and write down what was found."""
    run, side, reference = evaluator.run, found.chosen.side, found.chosen.reference
    folder.ship(side.built.artifact, side.built.sha256)
    state.artifact = run_folder.artifact(folder.path / "artifact", side.deployment.runtime)
    chosen = launches.result(run, side, state.plan(side.deployment, side.built.sha256))
    if any(stage.name == "program" for stage in reference.built.stages):
        state.messages.append(
            "The model's source does not stand alone, so the eager baseline is an exported "
            "program, which can be slower than the model itself: ratios to it may be too good."
        )
    baseline = launches.result(run, reference, state.plan(reference.deployment))
    state.chosen, state.baseline, state.lossless = chosen, baseline, None
    if (lossless := found.lossless) is side:
        state.lossless = chosen
    elif lossless is reference:
        state.lossless = baseline
    elif lossless is not None:
        state.lossless = launches.result(run, lossless, state.plan(lossless.deployment))
    state.verdicts = found.chosen.verdicts
    built_s = (t.trial.build_s for t in evaluator.tried if t.trial.deployment == side.deployment)
    state.execution = msgspec.structs.replace(
        state.execution, recovery_s=side.built.recovery_s, build_s=next(built_s, None)
    )
    recorded = folder.path / "artifact" / "recorded.npz"
    recorded_io.record(folder.work, recorded, side.built.artifact, reference.scores)


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
    """What the meter process counts, by the user's options."""
    return meter_arguments(effort.device, effort.powercap_root, effort.powercap_label)


def _memory_limit() -> int | None:
    """What one job may allocate: nine tenths of what is available now (Linux only)."""
    if sys.platform != "linux":
        return None
    import psutil

    return int(0.9 * psutil.virtual_memory().available)
