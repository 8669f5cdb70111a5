"""What a run will cost, shown before it is spent.

    survey    --say-->        the lines of a preview, from measured throughput and one scored batch
    --dry-run --measured-->   the same from one epoch and one deployment, both done

    survey -> layouts -> train search -> final training -> deploy search -> verification

The preview is arithmetic over a few measured unit costs (`Costs`); shares are those of `context`.
What a share cannot hold (the pinned trainings, the baselines) is done all the same and makes the
run longer than ``--time``.

A training step's seconds and joules (`StepCost`) stand as 90 % intervals, labelled modelled: they
inform and order, and no verdict rests on them.  Not known: evaluations between epochs, a data
loader that falls behind, and how much slower another optimizer's step is than the baseline's
(Muon's took half as long again).
"""

import math

import msgspec

from autotune import units
from autotune.context import DEPLOY_SHARE, HARDWARE_SHARE, TRAIN_SHARE, RunContext, thread_counts
from autotune.deployment import DeploymentEvaluator
from autotune.meters import modelled
from autotune.records.base import Record
from autotune.records.hardware import Leaf
from autotune.records.measurement import Interval
from autotune.records.plan import Recipe
from autotune.training import final, lengths, search_space, throughput_stage

_USUAL_TRIAL_S = 2.5  # of a small model: build, launch, warm-up
_LEAST_LAUNCH_S = 1.5
_LAUNCHES = 9  # three pairs and the best lossless plan's three
_JUDGED = 3  # the plan, the baseline, the best lossless plan
_ENOUGH_TRAIN, _ENOUGH_DEPLOY = 20, 20  # trials
_SPREAD = 1.4
"""A training's step over its layout's, either way, in nine of ten trainings of like recipes."""
_USUAL, _LEAST, _MOST = 0.9, 0.5, 1.1
"""Training's power above idle, as shares of what matrix products add to it: a prior."""


class Costs(Record, frozen=True, kw_only=True):
    """Measured unit costs, in seconds.

    ``recipe_s`` is a trial of the train search that nothing cuts short; ``pinned`` ones run
    whatever they cost.  ``training_s`` is the final training; ``apart``: it is not part of
    ``--time``.  ``spent_s`` is what the survey took; ``rungs`` are those of a trial.
    """

    spent_s: float
    evaluation_s: float
    training_s: float = 0.0
    recipe_s: float = 0.0
    pinned: int = 0
    trial_s: float = 0.0
    launch_s: float = 0.0
    baselines: int = 1
    epochs: int | float = 0
    rungs: int = 1
    apart: bool = False


class StepCost(Record, frozen=True, kw_only=True):
    """One step of the baseline recipe at its fastest layout.

    ``step_j`` is None where no power is known; ``watts`` says whose power it is.
    """

    batch_size: int
    step_s: Interval
    step_j: Interval | None = None
    watts: str | None = None
    steps: int = 0


class CostPreview(Record, frozen=True, kw_only=True):
    """``recommended_s`` is the ``--time`` that tries some twenty recipes and deployments;
    ``step`` is what a training step takes and draws.
    """

    evaluation_s: float
    final_training_s: float
    epochs: int | float = 0
    train_trials: int
    deploy_trials: int
    whole_s: float
    recommended_s: float
    step: StepCost | None = None


# -- asking ---------------------------------------------------------------------------------


def measured(run: RunContext) -> CostPreview:
    """By one epoch of training and one deployment, both done."""
    weights, evaluation_s, training_s = "weights.safetensors", 0.0, 0.0
    epochs: int | float = 0
    surveyed_s, recipe_s = run.bridge.now(), 0.0
    if not run.survey.task.pretrained:
        run = throughput_stage.measure(run, HARDWARE_SHARE * TRAIN_SHARE * run.effort.time_s)
        epochs, _ = lengths.usual(run)
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
        apart=set_apart(run),
    )
    found = preview(costs, run.effort.time_s)
    return msgspec.structs.replace(found, step=step_cost(run, epochs))


def say(run: RunContext, epochs: int | float) -> None:
    """Report what the run is going to cost; the deploy search's part is a guess until its first
    trial.
    """
    epoch_s = lengths.one_epoch_s(run) or 0.0
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
        apart=set_apart(run),
    )
    found = preview(costs, run.effort.time_s)
    found = msgspec.structs.replace(found, step=step_cost(run, epochs))
    for line in lines(found, run.effort.time_s):
        run.listener.note(line)


def _rungs(run: RunContext) -> int:
    """At how many shares of a trial halving decides."""
    return len(lengths.shares_of(run, lengths.usual(run)[1]))


def _recipe_s(run: RunContext, epoch_s: float, evaluation_s: float) -> float:
    """Seconds of a trial that nothing cuts short: its epochs, and an evaluation at each look."""
    _, reach = lengths.usual(run)
    rungs = tuple(share * reach for share in lengths.shares_of(run, reach))
    return reach * epoch_s + len(lengths.looks(run, rungs)) * evaluation_s


def set_apart(run: RunContext) -> bool:
    """Whether the user sets the final training apart from ``--time``."""
    return bool(run.effort.epochs or run.effort.steps or run.budget.train_time_s)


# -- the whole run ---------------------------------------------------------------------------


def preview(costs: Costs, time_s: float) -> CostPreview:
    """The whole run under ``--time``."""
    # successive halving ends two of three trials at their first rung
    usual_s = (0.4 if costs.rungs > 1 else 1.0) * costs.recipe_s
    train_s = train_trials = apart_s = 0.0
    if costs.pinned:
        pinned_s = costs.pinned * costs.recipe_s
        # the last one begins in time and ends after it
        train_s = max(TRAIN_SHARE * time_s + usual_s / 2, pinned_s)
        train_trials = costs.pinned + max(0.0, train_s - pinned_s) / max(usual_s, 1e-3)
        train_s += costs.training_s
        apart_s = costs.training_s if costs.apart else 0.0
    left_s = max(0.0, time_s + apart_s - costs.spent_s - train_s)
    verify_s = _LAUNCHES * costs.launch_s + _JUDGED * costs.evaluation_s
    fixed_s = costs.baselines * costs.trial_s
    deploy_s = max(DEPLOY_SHARE * left_s, fixed_s)
    trials = costs.baselines + max(0.0, deploy_s - fixed_s) / max(costs.trial_s, 1e-3)
    least_s = costs.spent_s + verify_s
    enough_train = _ENOUGH_TRAIN * usual_s / TRAIN_SHARE if costs.pinned else 0.0
    enough_deploy = _ENOUGH_DEPLOY * costs.trial_s / DEPLOY_SHARE
    recommended = max(enough_train, least_s + costs.training_s + enough_deploy)
    return CostPreview(
        evaluation_s=costs.evaluation_s,
        final_training_s=costs.training_s,
        epochs=costs.epochs,
        train_trials=int(train_trials),
        deploy_trials=int(trials),
        whole_s=costs.spent_s + train_s + deploy_s + verify_s,
        recommended_s=recommended,
    )


def lines(found: CostPreview, time_s: float) -> tuple[str, ...]:
    """The preview in words."""
    out = [
        f"One evaluation of the validation rows takes about {units.show(found.evaluation_s, 's')}."
    ]
    if found.final_training_s:
        out.append(
            f"The final training ({found.epochs} epochs) takes about "
            f"{units.show(found.final_training_s, 's')}; about {found.train_trials} recipes fit "
            "into the train search."
        )
    if found.step is not None:
        out += step_lines(found.step)
    out.append(f"About {found.deploy_trials} deployments fit into the deploy search.")
    out.append(f"The whole run would take about {units.show(found.whole_s, 's')}.")
    if found.recommended_s > time_s:
        asked = round_up(found.recommended_s)
        out.append(f"Recommended: --time {asked} (some twenty recipes and deployments).")
    return tuple(out)


def round_up(seconds: float) -> str:
    """As one would type it: the next ten seconds, over five minutes the next minute."""
    if seconds <= 300:
        return f"{10 * math.ceil(seconds / 10)}s"
    return f"{math.ceil(seconds / 60)}min"


# -- one training step -----------------------------------------------------------------------


def step_cost(run: RunContext, epochs: float) -> StepCost | None:
    """A step of a training of ``epochs`` epochs; None where no layout could be measured."""
    epoch_s, rows = lengths.one_epoch_s(run), run.survey.task.train_rows
    if epoch_s is None or not epochs:
        return None
    recipe = search_space.on_fastest_layout(run, search_space.baseline(run.survey))
    seconds = epoch_s * recipe.batch_size / rows
    step_s = Interval(value=seconds, low=seconds / _SPREAD, high=seconds * _SPREAD)
    known = _power(run, recipe)
    return StepCost(
        batch_size=recipe.batch_size,
        step_s=step_s,
        step_j=None if known is None else _product(known[0], step_s),
        watts=None if known is None else known[1],
        steps=math.ceil(epochs * -(-rows // recipe.batch_size)),
    )


def step_lines(found: StepCost) -> tuple[str, ...]:
    """A step's cost in words."""
    step = found.step_s
    out = [
        f"A training step of {found.batch_size} samples takes about {_around(step, 's')}; modelled "
        "from the layouts' rates."
    ]
    if found.step_j is not None:
        joules = found.step_j
        whole = Interval(
            value=joules.value * found.steps,
            low=joules.low * found.steps,
            high=joules.high * found.steps,
        )
        out.append(
            f"It draws about {_around(joules, 'J')}, the whole training {_around(whole, 'J')}; "
            f"modelled from {found.watts}, not measured."
        )
    return tuple(out)


def _around(value: Interval, unit: str) -> str:
    return units.around(value.value, value.low, value.high, unit)


def _power(run: RunContext, recipe: Recipe) -> tuple[Interval, str] | None:
    """Watts while the recipe trains, and whose they are; None where nothing is known."""
    if run.profile.gpus and run.effort.device != "cpu":
        figures = run.profile.gpus[0].figures
        pair = figures.get("idle_power_w"), figures.get("loaded_power_w")
        return _between(*pair, recipe.ranks, "the measured power of the boards alone")
    figures, busy = run.profile.figures, recipe.ranks * recipe.threads
    pair = figures.get("idle_power_w"), figures.get(f"loaded_power_{busy}t_w")
    return _between(*pair, 1, "the machine's measured power") or _modelled(run, busy)


def _between(
    idle: Leaf | None, loaded: Leaf | None, count: int, whose: str
) -> tuple[Interval, str] | None:
    if idle is None or loaded is None or not idle.value or not loaded.value:
        return None
    added, most = loaded.value - idle.value, (loaded.high or loaded.value) - idle.value
    watts = Interval(
        value=count * (idle.value + _USUAL * added),
        low=count * ((idle.low or idle.value) + _LEAST * max(0.0, added)),
        high=count * (idle.value + _MOST * max(0.0, most)),
    )
    return watts, whose


def _modelled(run: RunContext, busy: int) -> tuple[Interval, str] | None:
    """By the power model: from the user's watts, or where joules are limited by its prior."""
    effort, limits = run.effort, run.budget
    given = effort.cpu_idle_w is not None and effort.cpu_max_w is not None
    if not given and limits.train_energy_j is None:
        return None
    found, _ = modelled.energy(
        run.profile, float(busy), 1.0, idle_w=effort.cpu_idle_w, max_w=effort.cpu_max_w
    )
    return found, "the watts you gave" if given else "a prior a core (no power is known here)"


def _product(watts: Interval, seconds: Interval) -> Interval:
    """Product of two independent intervals: their logarithmic half-widths add in quadrature."""
    value = watts.value * seconds.value
    low = math.hypot(math.log(watts.value / watts.low), math.log(seconds.value / seconds.low))
    high = math.hypot(math.log(watts.high / watts.value), math.log(seconds.high / seconds.value))
    return Interval(value=value, low=value * math.exp(-low), high=value * math.exp(high))
