"""What a run will cost, echoed before it is spent.

after the survey:  throughput, one batch scored --say--> lines of the forecast
for a dry run:     one epoch, one deployment    --measured--> the forecast
"""

import msgspec

from autotune.context import TRAIN_SHARE, RunContext, thread_counts
from autotune.deployment.evaluator import DeploymentEvaluator
from autotune.pipeline import forecast, outlay
from autotune.pipeline.forecast import Costs, Forecast
from autotune.training import final, lengths, parallelism, search_space, throughput_stage

_USUAL_TRIAL_S = 2.5  # of a small model: build, launch, warm-up
_LEAST_LAUNCH_S = 1.5


def measured(run: RunContext) -> Forecast:
    """One epoch and one deployment tell the rest."""
    weights, evaluation_s, training_s = "weights.safetensors", 0.0, 0.0
    epochs: int | float = 0
    surveyed_s, recipe_s = run.bridge.now(), 0.0
    if not run.survey.task.pretrained:
        measured = throughput_stage.measure(run, 0.3 * TRAIN_SHARE * run.effort.time_s)
        run.survey = msgspec.structs.replace(run.survey, layouts=measured)
        epochs, _ = parallelism.usual_lengths(run)
        evaluation_s, epoch_s = final.one_epoch(run)
        training_s = epochs * epoch_s + evaluation_s
        recipe_s = _recipe_s(run, epoch_s, evaluation_s)
        weights = final.WEIGHTS
    lab = DeploymentEvaluator(run, weights, search_space.baseline(run.survey), 1)
    counts = thread_counts(run.profile, run.effort)
    tried = lab.baseline(lab.dense(counts[0], lab.batch)).trial
    costs = Costs(
        spent_s=surveyed_s,
        evaluation_s=evaluation_s or tried.measure_s,
        training_s=training_s,
        recipe_s=recipe_s,
        pinned=0 if run.survey.task.pretrained else 1 + bool(run.survey.task.recipe),
        trial_s=tried.wall_s,
        launch_s=max(_LEAST_LAUNCH_S, tried.measure_s - evaluation_s),
        baselines=len(counts),
        epochs=epochs,
        rungs=_rungs(run) if epochs else 1,
        apart=apart(run),
    )
    found = forecast.forecast(costs, run.effort.time_s)
    return msgspec.structs.replace(found, outlay=outlay.of(run, epochs))


def say(run: RunContext, epochs: int | float) -> None:
    """What the run is going to cost, said before it is spent; the deploy search's part is a
    guess until its first trial.
    """
    epoch_s = parallelism.one_epoch_s(run) or 0.0
    trial_s = _USUAL_TRIAL_S + run.evaluation_s
    costs = Costs(
        spent_s=run.bridge.now(),
        evaluation_s=run.evaluation_s,
        training_s=epochs * epoch_s + run.evaluation_s if epochs else 0.0,
        recipe_s=_recipe_s(run, epoch_s, run.evaluation_s) if epochs else 0.0,
        pinned=1 + bool(run.survey.task.recipe) if epochs else 0,
        trial_s=trial_s,
        launch_s=_LEAST_LAUNCH_S,
        baselines=len(thread_counts(run.profile, run.effort)),
        epochs=epochs,
        rungs=_rungs(run) if epochs else 1,
        apart=apart(run),
    )
    found = forecast.forecast(costs, run.effort.time_s)
    found = msgspec.structs.replace(found, outlay=outlay.of(run, epochs))
    for line in forecast.lines(found, run.effort.time_s):
        run.listener.note(line)


def _rungs(run: RunContext) -> int:
    """At how many shares of a trial halving decides."""
    return len(lengths.shares_of(run, parallelism.usual_lengths(run)[1]))


def _recipe_s(run: RunContext, epoch_s: float, evaluation_s: float) -> float:
    """Seconds of a trial that nothing cuts short: its epochs, and an evaluation at each look."""
    _, reach = parallelism.usual_lengths(run)
    rungs = tuple(share * reach for share in lengths.shares_of(run, reach))
    return reach * epoch_s + len(lengths.looks(run, rungs)) * evaluation_s


def apart(run: RunContext) -> bool:
    """Whether the user sets the final training apart from ``--time``."""
    return bool(run.effort.epochs or run.effort.steps or run.budget.train_time_s)
