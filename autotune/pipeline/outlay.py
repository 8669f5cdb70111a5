"""What a training step takes and draws, said before anything is trained: estimates, never figures.

    layouts (measured, half a second each) --rows of a batch / rate--> seconds of a step
    watts: of the profile, or the user's  --x seconds---------------> joules of a step

They inform and order; no verdict rests on them.  Both stand as 90 % intervals, labelled modelled.

What this does not know: evaluations between epochs, a data loader that falls behind, and how much
hungrier or slower another update rule is than the baseline's (Muon's step took half as long again).
"""

import math

import msgspec

from autotune import plugins, units
from autotune.context import RunContext
from autotune.records.base import Record
from autotune.records.hardware import Leaf
from autotune.records.measurement import Interval
from autotune.records.plan import Recipe
from autotune.training import parallelism, search_space

_SPREAD = 1.4
"""A training's step over its layout's, either way, in nine of ten trainings of like recipes."""
_USUAL, _LEAST, _MOST = 0.9, 0.5, 1.1
"""Training's power above idle, as shares of what matrix products add to it: a prior."""


class Outlay(Record, frozen=True, kw_only=True):
    """Of the baseline recipe at its fastest layout.  ``step_j`` is None where no power is known;
    ``watts`` says whose power it is.
    """

    batch_size: int
    step_s: Interval
    step_j: Interval | None = None
    watts: str | None = None
    steps: int = 0


def of(run: RunContext, epochs: float) -> Outlay | None:
    """The outlay of a training of so many epochs; None where no layout could be measured."""
    epoch_s, rows = parallelism.one_epoch_s(run), run.survey.task.train_rows
    if epoch_s is None or not epochs:
        return None
    recipe = _recipe(run)
    seconds = epoch_s * recipe.batch_size / rows
    step_s = Interval(value=seconds, low=seconds / _SPREAD, high=seconds * _SPREAD)
    known = _power(run, recipe)
    return Outlay(
        batch_size=recipe.batch_size,
        step_s=step_s,
        step_j=None if known is None else _product(known[0], step_s),
        watts=None if known is None else known[1],
        steps=math.ceil(epochs * -(-rows // recipe.batch_size)),
    )


def lines(found: Outlay) -> tuple[str, ...]:
    """The outlay in words."""
    step = found.step_s
    out = [
        f"A training step of {found.batch_size} samples takes about {_said(step, 's')}; modelled "
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
            f"It draws about {_said(joules, 'J')}, the whole training {_said(whole, 'J')}; "
            f"modelled from {found.watts}, not measured."
        )
    return tuple(out)


def _said(value: Interval, unit: str) -> str:
    return units.around(value.value, value.low, value.high, unit)


def _recipe(run: RunContext) -> Recipe:
    """The baseline with the threads and ranks of its fastest layout."""
    recipe = search_space.baseline(run.survey)
    legal = search_space.layouts(run.survey.options, run.profile, run.effort)
    layout = search_space.fastest_layout(
        run.survey.layouts, recipe.batch_size, recipe.precision, legal
    )
    parallel, ranks, threads = layout
    return msgspec.structs.replace(recipe, parallel=parallel, ranks=ranks, threads=threads)


# -- power ---------------------------------------------------------------------------------


def _power(run: RunContext, recipe: Recipe) -> tuple[Interval, str] | None:
    """Watts while the recipe trains, and whose they are; None where nothing tells."""
    if run.profile.gpus and run.effort.device != "cpu":
        figures = run.profile.gpus[0].figures
        pair = figures.get("idle_power_w"), figures.get("loaded_power_w")
        return _between(*pair, recipe.ranks, "the measured power of the boards alone")
    figures, busy = run.profile.figures, recipe.ranks * recipe.threads
    pair = figures.get("idle_power_w"), figures.get(f"loaded_power_{busy}t_w")
    return _between(*pair, 1, "the machine's measured power") or _told(run, busy)


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


def _told(run: RunContext, busy: int) -> tuple[Interval, str] | None:
    """By the power model: from the user's watts, or where joules are limited by its prior."""
    effort, limits = run.effort, run.budget
    told = effort.cpu_idle_w is not None and effort.cpu_max_w is not None
    if not told and limits.train_energy_j is None:
        return None
    found, _ = plugins.load("meters", "modelled").energy(
        run.profile, float(busy), 1.0, idle_w=effort.cpu_idle_w, max_w=effort.cpu_max_w
    )
    return found, "the watts you gave" if told else "a prior a core (no power is known here)"


def _product(watts: Interval, seconds: Interval) -> Interval:
    """Of two intervals that err apart: their logarithmic half-widths add as squares."""
    value = watts.value * seconds.value
    low = math.hypot(math.log(watts.value / watts.low), math.log(seconds.value / seconds.low))
    high = math.hypot(math.log(watts.high / watts.value), math.log(seconds.high / seconds.value))
    return Interval(value=value, low=value * math.exp(-low), high=value * math.exp(high))
