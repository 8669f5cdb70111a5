"""The hardware stage of training: what a step costs on this machine, quality not involved.

    memory format -> layouts at two batch sizes -> batch curve of the fastest
                     -> precisions, loader workers -> step options -> power limits

Rows are `Layout` records of the survey, which `throughput` reads.  Not known here: which batch
size gives the best quality.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from autotune.context import RunContext
from autotune.records import job as jobs
from autotune.records.task import Layout
from autotune.training import parallelism, power_limit, step_options, throughput
from autotune.training.throughput import knee, like, plain, sizes

_LAYOUTS_SHARE, _CURVE_SHARE = 0.6, 0.2  # of the stage's time
_WAITING = 0.3
_LIMITS = 6
_CLOCKS = (0.9, 0.8, 0.7, 0.6, 0.5)  # of the highest
_OTHER = ("bf16", "tf32", "fp16")


def measure(run: RunContext, budget_s: float) -> RunContext:
    """The run with everything that the train search needs to know of the hardware, measured within
    about ``budget_s`` seconds: layouts, options that do not pay, what an evaluation takes.
    """
    began = run.bridge.now()
    last, refused = step_options.channels_last(run)
    run = run.with_survey(
        options=step_options.refused(run.survey.options, {"channels_last": refused})
    )
    rows = parallelism.measure_layouts(run, _LAYOUTS_SHARE * budget_s, channels_last=last)
    if unsteady := dict.fromkeys(name for layout in rows for name in layout.unsteady):
        run.listener.note(
            f"Not deterministic here: {', '.join(unsteady)}; the same seed may train other weights."
        )
    if run.survey.task.own_train:  # its batches and precision are its own
        return run.with_survey(layouts=rows)
    run = replace(run, evaluation_s=_evaluation_s(run, rows))
    until_s = began + budget_s
    curve_s = _CURVE_SHARE * budget_s
    rows += _curve(run, rows, max(until_s - curve_s, run.bridge.now() + curve_s))
    rows += _precisions(run, rows)
    if run.bridge.now() < until_s:
        rows += _workers(run, rows)
    rows += step_options.measure(run, rows, until_s)
    return run.with_survey(layouts=rows + _power(run, rows))


def _evaluation_s(run: RunContext, rows: tuple[Layout, ...]) -> float:
    """Seconds of one evaluation of *validation*: on a GPU no more than training on as many rows
    takes, as the survey estimated them by the processor.
    """
    best = max((s.samples_per_s or 0.0 for s in rows if s.precision == "fp32"), default=0.0)
    if run.profile.gpus and run.effort.device != "cpu" and best:
        return min(run.evaluation_s, run.survey.task.validation_rows / best)
    return run.evaluation_s


def _curve(run: RunContext, rows: tuple[Layout, ...], until_s: float) -> tuple[Layout, ...]:
    """Batches of the fastest layout, doubled until one is no faster or does not fit."""
    first = _fastest(rows)
    if first is None:
        return ()
    known = {s.batch_size: s for s in rows if like(s, first)}
    out: tuple[Layout, ...] = ()
    last: Layout | None = None
    for size in sizes(run.survey.task.train_rows):
        here = known.get(size)
        if here is None and size > min(known) and run.bridge.now() < until_s:
            if not step_options.fits(run, list(known.values()), size):
                break
            here = parallelism.measured(run, parallelism.recipe_of(run, first, batch_size=size))
            out += (here,)
            known[size] = here
        if here is None:
            continue
        if here.samples_per_s is None:
            break
        if last is not None and here.samples_per_s < throughput.DOUBLING_GAIN * (
            last.samples_per_s or 0.0
        ):
            break
        last = here
    return out


def _precisions(run: RunContext, rows: tuple[Layout, ...]) -> tuple[Layout, ...]:
    """Other precisions of the fastest layout, at the knee."""
    first = _fastest(rows)
    legal = {o.name for o in run.survey.options if o.kind == "precision" and o.available}
    if first is None:
        return ()
    size = knee(rows) or first.batch_size
    return tuple(
        parallelism.measured(
            run, parallelism.recipe_of(run, first, batch_size=size, precision=name)
        )
        for name in _OTHER
        if name in legal
    )


def _workers(run: RunContext, rows: tuple[Layout, ...]) -> tuple[Layout, ...]:
    """Loader workers on the cores that training leaves free, where batches are waited for."""
    first = _fastest(rows)
    if first is None or run.survey.task.own_loader or (first.waiting or 0.0) < _WAITING:
        return ()
    spare = math.floor(run.profile.cpu.cores) - first.ranks * first.threads
    counts = {max(1, spare // first.ranks)} if spare > 0 else {1}
    size = first.batch_size
    return tuple(
        parallelism.measured(run, parallelism.recipe_of(run, first, batch_size=size, workers=count))
        for count in counts
    )


def _power(run: RunContext, rows: tuple[Layout, ...]) -> tuple[Layout, ...]:
    """Batch sizes and power limits by energy (`power_limit`), then clocks at the best of these.

    Only where the user allows it and energy counts in the search; what cannot be set is reported.
    """
    weighs = run.budget.train_energy_j is not None or bool(run.budget.eta)
    first = _fastest(rows)
    if not run.effort.allow_power_limit or not weighs or first is None:
        return ()
    allowed = run.bridge.run(jobs.PowerRange(), timeout_s=30.0).answer or jobs.PowerLimits()
    if allowed.low_w is None or allowed.high_w is None or run.meter is None:
        reason = allowed.reason or "energy cannot be measured"
        run.listener.note(f"The power limit stays as it is: {reason}.")
        return ()
    limits = [
        allowed.low_w + (allowed.high_w - allowed.low_w) * i / _LIMITS for i in range(_LIMITS + 1)
    ]
    found: list[Layout] = []

    def look(batch: int, watts: float, clock_hz: float | None = None) -> power_limit.Look:
        recipe = parallelism.recipe_of(
            run, first, batch_size=batch, power_limit_w=round(watts, 1), clock_hz=clock_hz
        )
        layout = parallelism.measured(run, recipe, run.meter)
        found.append(layout)
        if not layout.samples_per_s or layout.energy_j_per_sample is None:
            return power_limit.Look(math.inf, math.inf)
        return power_limit.Look(1 / layout.samples_per_s, layout.energy_j_per_sample)

    within = throughput.batch_sizes(run.with_survey(layouts=rows).survey)
    best = power_limit.least_energy(within, limits, look)
    batch, watts = within[best.best[0]], limits[best.best[1]]
    _clocks(run, allowed, best, lambda clock_hz: look(batch, watts, clock_hz))
    return tuple(found)


def _clocks(
    run: RunContext,
    allowed: jobs.PowerLimits,
    best: power_limit.Found,
    look: Callable[[float], power_limit.Look],
) -> None:
    """Lower and lower clocks at the best setting, where the boards lock any."""
    if allowed.low_hz is None or allowed.high_hz is None:
        run.listener.note(
            f"The GPU's clocks stay as they are: {allowed.clock_reason or 'no answer'}."
        )
        return
    lower = [round(share * allowed.high_hz, -6) for share in _CLOCKS]
    fastest_s = min(seen.time_s for seen in best.looks.values())
    within = [clock for clock in lower if clock >= allowed.low_hz]
    power_limit.least_clock(within, look, best.looks[best.best], fastest_s)


def _fastest(rows: Sequence[Layout]) -> Layout | None:
    """The fastest plain layout at the smallest batch measured."""
    known = [s for s in rows if plain(s)]
    least = min((s.batch_size for s in known), default=0)
    here = [s for s in known if s.batch_size == least]
    return max(here, key=lambda s: s.samples_per_s or 0.0, default=None)
