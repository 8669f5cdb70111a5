"""The width of the model (``--joint`` and ``make_model(width=1.0)``): how much narrower it pays.

    each width, untrained --a step, build, measure--> seconds of one call of the dense model
    objective = quality - allowed drop x (seconds of a call / those at full width)

Before the search each width is measured as it would be deployed; one that is hardly faster than
the next wider one is refused with its figure.  In the search a narrower model may then lose of
quality what it saves of time, as a share of ``--max-drop``: at half of the time half of it.  Not
known here: energy and memory, which follow the same way, and what compression does to a narrow
model, which the deploy search finds out.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from autotune import units
from autotune.context import RunContext, first_epoch
from autotune.records.budget import Effort
from autotune.records.plan import Recipe, Value
from autotune.records.report import Failure, TrainTrial
from autotune.records.task import Survey, Width
from autotune.training import throughput

NAME = "width"
_FULL = 1.0
_NARROWER = (0.75, 0.5, 0.25)
_STEP_S = 1e-3  # of training: one step
_TIMEOUT_S = 120.0


class DenseCall(Protocol):
    """Times a call of the uncompressed model: deployment can, training cannot."""

    @property
    def runtime(self) -> str:
        """Name of the runtime that serves it."""
        ...

    def median_s(self, weights: str, recipe: Recipe) -> tuple[float | None, Failure | None]:
        """Median seconds of a call with the weights of this file, or why there is none."""
        ...


def of(recipe: Recipe) -> float:
    """The width of a recipe's model; what a user's own ``space`` calls so may be anything."""
    found = recipe.params.get(NAME, _FULL)
    return float(found) if isinstance(found, int | float) else _FULL


def params(values: Mapping[str, Value]) -> dict[str, Value]:
    """Sampled values as what ``make_model`` gets; nothing at full width."""
    width = values.get(NAME, _FULL)
    return {} if width == _FULL else {NAME: width}


def searched(survey: Survey, effort: Effort) -> tuple[float, ...]:
    """The widths to search, the full one first; none where there is nothing to choose.

    Before anything was measured all of them; what the user holds fast need not pay.
    """
    if not effort.joint or survey.task.width is None or survey.task.own_train:
        return ()
    held = any(text.partition("=")[0].strip() == NAME for text in effort.fix)
    if held or not survey.layouts:
        return (_FULL, *_NARROWER)
    found = [w.width for w in survey.widths if w.refused is None]
    return tuple(found) if len(found) > 1 else ()


def measure(run: RunContext, until_s: float, call: DenseCall) -> tuple[Width, ...]:
    """Each width's latency, until the run's clock reads ``until_s``; nothing where widths are not
    searched.
    """
    if not run.effort.joint or run.survey.task.width is None:
        return ()
    if run.survey.task.own_train:
        run.listener.note("The width is not searched: your own train() takes the model as it is.")
        return ()
    out: list[Width] = []
    for width in (_FULL, *_NARROWER):
        if out and run.bridge.now() >= until_s:
            run.listener.note(f"Width {width:g} and narrower are not searched: no time to measure.")
            break
        found = _measured(run, width, call)
        refused = found.refused or _slow(found, [w for w in out if w.refused is None])
        out.append(msgspec.structs.replace(found, refused=refused))
        if refused is not None:
            run.listener.note(f"Width {width:g} refused: {refused}")
        if width == _FULL and refused is not None:
            break
    return tuple(out)


def _slow(found: Width, wider: Sequence[Width]) -> str | None:
    """Why a width does not pay, if it does not."""
    if not wider or found.latency_s is None or wider[-1].latency_s is None:
        return None
    if throughput.PAYS * found.latency_s <= wider[-1].latency_s:
        return None
    mine, other = (units.show(s, "s") for s in (found.latency_s, wider[-1].latency_s))
    return f"a call of the dense model takes {mine}, at {wider[-1].width:g} {other}"


def _measured(run: RunContext, width: float, call: DenseCall) -> Width:
    """One step of training for the weights, then some calls of the dense model."""
    recipe = Recipe(params={**run.survey.task.params, **params({NAME: width})})
    weights = f"weights/width-{width:g}.safetensors"
    job = first_epoch(run, recipe, weights, _STEP_S)
    latency, failure = None, run.bridge.run(job, timeout_s=_TIMEOUT_S).failure
    if failure is None:
        latency, failure = call.median_s(weights, recipe)
    refused = f"{failure.kind}: {failure.message}" if failure else None
    return Width(width=width, runtime=call.runtime, latency_s=latency, refused=refused)


def price(run: RunContext, recipe: Recipe, quality: float) -> float:
    """What a recipe's objective is charged for the time that a call of its model takes; 0 where
    widths are not searched.
    """
    known = _known(run)
    if of(recipe) not in known:
        return 0.0
    allowed = run.max_drop if run.max_drop is not None else 0.01 * abs(quality)
    return allowed * known[of(recipe)] / known[_FULL]


def _known(run: RunContext) -> dict[float, float]:
    found = {w.width: w.latency_s for w in run.survey.widths if w.latency_s and not w.refused}
    return found if len(found) > 1 else {}


def report_lines(
    run: RunContext, winner: TrainTrial | None, tried: Sequence[TrainTrial]
) -> list[str]:
    """A line for the report: the width chosen, and the best of each other."""
    known = _known(run)
    if winner is None or of(winner.recipe) not in known:
        return []
    best: dict[float, TrainTrial] = {}
    for trial in tried:
        width = of(trial.recipe)
        if width in known and trial.quality_mean is not None and trial.state == "complete":
            higher = run.survey.task.higher_is_better
            before = best.get(width, trial).quality_mean or 0.0
            if (trial.quality_mean >= before) == higher or width not in best:
                best[width] = trial
    best[of(winner.recipe)] = winner
    parts = [
        f"{width:g}: {units.metric(best[width].quality_mean)}, {units.show(known[width], 's')}"
        for width in sorted(best, reverse=True)
    ]
    return [
        f"Width {of(winner.recipe):g} was chosen; the best quality on validation and a call of the "
        f"dense model by width: {'; '.join(parts)}."
    ]
