"""What a run will cost, said before it is spent: pure arithmetic over a few measured unit costs.

    survey --> layouts --> train search --> final training --> deploy search --> verification

Shares are those of `context`; what a share cannot hold (the pinned trainings, the
baselines) is done all the same and makes the run longer than ``--time``.
"""

import math

from autotune import units
from autotune.context import DEPLOY_SHARE, TRAIN_SHARE
from autotune.pipeline import outlay
from autotune.pipeline.outlay import Outlay
from autotune.records.base import Record

_LAUNCHES = 9  # three pairs and the best lossless plan's three
_JUDGED = 3  # the plan, the baseline, the best lossless plan
_ENOUGH_TRAIN, _ENOUGH_DEPLOY = 20, 20


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


class Forecast(Record, frozen=True, kw_only=True):
    """``recommended_s`` is the ``--time`` that tries some twenty recipes and deployments;
    ``outlay`` what a training step takes and draws.
    """

    evaluation_s: float
    final_training_s: float
    epochs: int | float = 0
    train_trials: int
    deploy_trials: int
    whole_s: float
    recommended_s: float
    outlay: Outlay | None = None


def forecast(costs: Costs, time_s: float) -> Forecast:
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
    return Forecast(
        evaluation_s=costs.evaluation_s,
        final_training_s=costs.training_s,
        epochs=costs.epochs,
        train_trials=int(train_trials),
        deploy_trials=int(trials),
        whole_s=costs.spent_s + train_s + deploy_s + verify_s,
        recommended_s=recommended,
    )


def lines(found: Forecast, time_s: float) -> tuple[str, ...]:
    """The forecast in words."""
    out = [
        f"One evaluation of the validation rows takes about {units.show(found.evaluation_s, 's')}."
    ]
    if found.final_training_s:
        out.append(
            f"The final training ({found.epochs} epochs) takes about "
            f"{units.show(found.final_training_s, 's')}; about {found.train_trials} recipes fit "
            "into the train search."
        )
    if found.outlay is not None:
        out += outlay.lines(found.outlay)
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
