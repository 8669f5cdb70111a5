"""Options of the training step, searched only where this machine was measured to gain by them.

    compile    T / (compilation + T x seconds of a compiled step / of a plain one) >= 1.05
               T: a trial's time, by the measured throughput
    recompute  activation checkpointing, for a batch that does not fit without it: it fits, and
               gives 5 % more samples per second than the largest that fits without

Each is measured by a `Layout` row; what does not pay is refused with its figures.  Not known here:
a trial that is resumed compiles once more (from the run's cache, in a fraction of the time).
"""

import math
from collections.abc import Mapping, Sequence

import msgspec

from autotune import units
from autotune.context import RunContext
from autotune.records.task import Layout, Option
from autotune.training import lengths, parallelism, search_space, throughput
from autotune.training.throughput import plain

_MEMORY_SHARE = 0.8
_LEAST_S = 15.0
"""A shorter trial cannot pay for a compilation, which takes seconds."""
_LEAST_PATIENCE_S = 4.0
_PATIENCE_S, _PATIENCE_SHARE = 10.0, 0.25  # and of a trial: what compiles for longer hardly pays


# -- the memory format ------------------------------------------------------------------


def channels_last(run: RunContext) -> tuple[bool, str | None]:
    """Whether convolutions' weights and inputs lie in the channels-last format while all else is
    measured and trained: where a step of the first layout is 5 % faster so.  It changes nothing
    that is learnt.

    Returns:
        Whether it is used; and where it was measured not to pay, the reason with both rates.
    """
    if not throughput.offered(run.survey, run.effort, "channels_last"):
        return False, None
    legal = search_space.layouts(run.survey.options, run.profile, run.effort)
    recipe = parallelism.plain_recipe(run, legal[0], search_space.baseline(run.survey).batch_size)
    usual = parallelism.measured(run, recipe)
    last = parallelism.measured(run, msgspec.structs.replace(recipe, channels_last=True))
    reason = _memory_format_refused(usual, last)
    return reason is None, reason


def _memory_format_refused(usual: Layout, last: Layout) -> str | None:
    if last.samples_per_s is None:
        return last.failure or "no answer"
    if last.samples_per_s >= throughput.PAYS * (usual.samples_per_s or 0.0):
        return None
    rates = f"{last.samples_per_s:.4g} samples/s with it, {usual.samples_per_s or 0.0:.4g} without"
    return f"a batch of {last.batch_size} gives {rates}"


# -- what is measured ------------------------------------------------------------------------


def measure(run: RunContext, rows: tuple[Layout, ...], until_s: float) -> tuple[Layout, ...]:
    """A row for each option that may pay, until the run's clock reads ``until_s``."""
    out: tuple[Layout, ...] = ()
    run = run.with_survey(layouts=rows)
    if throughput.offered(run.survey, run.effort, "recompute") and run.bridge.now() < until_s:
        out += _recomputed(run, rows)
    if throughput.offered(run.survey, run.effort, "compile") and run.bridge.now() < until_s:
        out += _compiled(run, rows, until_s)
    return out


def _compiled(run: RunContext, rows: tuple[Layout, ...], until_s: float) -> tuple[Layout, ...]:
    """The fastest plain layout at the knee, compiled, where it is one process."""
    whole_s = _trial_s(run)
    patience_s = min(_PATIENCE_S + _PATIENCE_SHARE * whole_s, until_s - run.bridge.now())
    size = throughput.knee(rows)
    plains = [s for s in rows if plain(s) and (size is None or s.batch_size == size)]
    first = max(plains, key=lambda s: s.samples_per_s or 0.0, default=None)
    if first is None or first.ranks > 1 or whole_s < _LEAST_S or patience_s < _LEAST_PATIENCE_S:
        return ()
    recipe = parallelism.recipe_of(run, first, compile=True)
    return (parallelism.measured(run, recipe, timeout_s=patience_s),)


def _trial_s(run: RunContext) -> float:
    """Seconds of a whole trial in the search, by what is measured so far."""
    _, reach = lengths.usual(run)
    return reach * (lengths.one_epoch_s(run) or 0.0)


def _recomputed(run: RunContext, rows: tuple[Layout, ...]) -> tuple[Layout, ...]:
    wish = _wished(run, rows)
    if wish is None:
        return ()
    first, size = wish
    return (
        parallelism.measured(
            run, parallelism.recipe_of(run, first, batch_size=size, recompute=True)
        ),
    )


def _wished(run: RunContext, rows: Sequence[Layout]) -> tuple[Layout, int] | None:
    """The smallest batch that memory alone keeps from being tried, and the layout to try it with;
    None where memory forbids nothing that would be faster.
    """
    failed = [s for s in rows if s.failure and s.failure.startswith("oom")]
    plains = [s for s in rows if plain(s)]
    if not plains:
        least = min(failed, key=lambda s: s.batch_size, default=None)
        return None if least is None else (least, least.batch_size)
    most = max(s.batch_size for s in plains)
    first = max((s for s in plains if s.batch_size == most), key=lambda s: s.samples_per_s or 0.0)
    over = [s.batch_size for s in failed if s.batch_size > most]
    if over:
        return first, min(over)
    known = [s for s in plains if throughput.like(s, first)]
    curve = {s.batch_size: s.samples_per_s or 0.0 for s in known}
    less = max((size for size in curve if size < most), default=None)
    larger = next((n for n in throughput.sizes(run.survey.task.train_rows) if n > most), None)
    if larger is None or less is None or fits(run, known, larger):
        return None
    rising = curve[most] >= throughput.DOUBLING_GAIN * curve[less]
    return (first, larger) if rising else None


def fits(run: RunContext, known: Sequence[Layout], size: int) -> bool:
    """Whether a batch is likely to fit: memory grows linearly with it."""
    points = sorted((s.batch_size, s.peak_memory_bytes) for s in known if s.peak_memory_bytes)
    if run.profile.gpus or len(points) < 2:
        return True  # the host's memory bounds nothing there
    (low, less), (high, more) = points[0], points[-1]
    each = max(0.0, (more - less) / (high - low))
    return more + each * (size - high) <= _limit_bytes(run)


def _limit_bytes(run: RunContext) -> float:
    usable = _MEMORY_SHARE * (run.profile.usable_memory_bytes or math.inf)
    return min(usable, run.budget.train_memory_bytes or math.inf)


# -- what is refused ----------------------------------------------------------------------------


def judged(run: RunContext, reach: float) -> tuple[Option, ...]:
    """The survey's options, those of the step that do not pay refused with their figures.

    Args:
        run: whose survey holds the measured rows.
        reach: epochs of a whole trial.
    """
    whole_s = reach * (lengths.one_epoch_s(run) or 0.0)
    reasons = {"compile": _compile_refused(run, whole_s), "recompute": _recompute_refused(run)}
    return refused(run.survey.options, reasons)


def refused(options: Sequence[Option], reasons: Mapping[str, str | None]) -> tuple[Option, ...]:
    """All options; those of the step that have a reason are no longer available."""
    out: list[Option] = []
    for option in options:
        reason = reasons.get(option.name) if option.kind == "step" else None
        if reason is not None and option.available:
            option = msgspec.structs.replace(option, available=False, reason=reason)
        out.append(option)
    return tuple(out)


def _compile_refused(run: RunContext, whole_s: float) -> str | None:
    rows = run.survey.layouts
    row = next((s for s in rows if s.compile), None)
    if row is None:
        return (
            f"not measured: a training of {units.show(whole_s, 's')} is too short for it, the "
            "fastest layout is several processes, or there was no time"
        )
    gain = throughput.net_gain(rows, whole_s)
    if gain is None:
        return row.failure or "its plain step could not be measured"
    if gain >= throughput.PAYS:
        return None
    base = throughput.same_as(rows, row)
    return (
        f"a training of {units.show(whole_s, 's')} would be {gain:.2f}x as fast: the first step "
        f"takes {units.show(row.first_s, 's')}, then {row.samples_per_s:.4g} samples/s against "
        f"{base.samples_per_s if base else 0.0:.4g}"
    )


def _recompute_refused(run: RunContext) -> str | None:
    rows = run.survey.layouts
    row = next((s for s in rows if s.recompute), None)
    if row is None:
        return "memory forbids no batch that would be faster"
    if row.samples_per_s is None:
        return row.failure or "no answer"
    if (row.peak_memory_bytes or 0) > _limit_bytes(run) and not run.profile.gpus:
        peak = units.show(row.peak_memory_bytes, "B")
        return f"a batch of {row.batch_size} takes {peak} with it, which is still too much"
    best = max((s.samples_per_s or 0.0 for s in rows if plain(s)), default=0.0)
    if row.samples_per_s >= throughput.PAYS * best:
        return None
    return (
        f"a batch of {row.batch_size} gives {row.samples_per_s:.4g} samples/s with it, "
        f"smaller ones {best:.4g} without"
    )
