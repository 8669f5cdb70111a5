"""The hardware stage of training: the throughput of every parallelism layout, no quality involved.

With the global batch split over ranks and gradients scaled exactly, a layout does not change
what is learnt, so it is measured once and not searched.
"""

import math

import msgspec

from autotune.context import FINAL_MOST, FINAL_SHARE, TRAIN_SHARE, RunContext
from autotune.records import job as jobs
from autotune.records.plan import Recipe
from autotune.records.task import Layout
from autotune.training import search_space, throughput

_MOST_EPOCHS = 60
_PROBE_S = 0.4  # of one throughput
_METERED_S = 2.0  # of one whose energy is read
_START_S = 4.0  # of a process group
_WHOLE = 3.75  # trainings to the end that a train search should hold
_DEAR_S = 3.0
_SHORT = 12.0
"""Epochs under which a training's length is what its quality lacks most (Diamonds, AdamW: 0.825
after 4 epochs, 0.856 after 40)."""
NEARLY = 0.7
"""Of the final training: a trial that is so long is its beginning."""
_LEAST_EPOCHS, _MOST_WHOLE = 0.01, 10.0


def measure_layouts(
    run: RunContext, budget_s: float, *, channels_last: bool = False
) -> tuple[Layout, ...]:
    """Throughput of every legal layout at a small and a larger batch.

    A layout that fails is recorded with its reason.  Ranks are started once a batch size, so
    that a slow start-up is seen; what does not fit into ``budget_s`` is left out, several
    processes first.
    """
    legal = search_space.layouts(run.survey.options, run.profile, run.effort)
    sizes = throughput.sizes(run.survey.task.train_rows)
    chosen = tuple(dict.fromkeys((_nearest(sizes, 32), _nearest(sizes, 256))))
    wanted = [(s, chosen[0]) for s in legal] + [(s, b) for s in legal for b in chosen[1:]]
    started = run.bridge.now()
    out: list[Layout] = []
    for (parallel, ranks, threads), batch in wanted:
        spent = run.bridge.now() - started
        if spent > budget_s and out:
            break
        if ranks > 1 and budget_s - spent < _START_S:
            continue  # several processes take longer to start than they could save
        recipe = plain_recipe(run, (parallel, ranks, threads), batch)
        out.append(measured(run, msgspec.structs.replace(recipe, channels_last=channels_last)))
    return tuple(out)


def rate(run: RunContext, recipe: Recipe) -> float | None:
    """Training samples per second of one recipe; None where it cannot be trained."""
    return measured(run, recipe).samples_per_s


def _nearest(sizes: tuple[int, ...], wanted: int) -> int:
    return min(sizes, key=lambda s: abs(math.log2(s / wanted)))


def plain_recipe(run: RunContext, layout: tuple[str, int, int], batch: int) -> Recipe:
    """The default recipe on a layout: to measure, not to learn with."""
    parallel, ranks, threads = layout
    return Recipe(
        batch_size=batch,
        parallel=parallel,
        ranks=ranks,
        threads=threads,
        params=run.survey.task.params,
    )


def recipe_of(run: RunContext, layout: Layout, **changes: object) -> Recipe:
    """A recipe of the same layout and batch, but for ``changes``: to measure, not to learn with."""
    fields = {
        "parallel": layout.parallel,
        "ranks": layout.ranks,
        "threads": layout.threads,
        "batch_size": layout.batch_size,
        "params": run.survey.task.params,
        "channels_last": layout.channels_last,
    }
    return msgspec.convert(fields | changes, Recipe)


def measured(
    run: RunContext, recipe: Recipe, meter: str | None = None, timeout_s: float = 30.0
) -> Layout:
    """Throughput and memory of one recipe's step; a failure is recorded with its reason."""
    job = jobs.Throughput(
        task=run.task(recipe),
        recipe=recipe,
        seed=run.effort.seed,
        budget_s=_PROBE_S if meter is None else _METERED_S,
        meter=meter,
        device=run.effort.device,
    )
    result = run.bridge.run(job, timeout_s=timeout_s)
    rate = result.answer
    return Layout(
        parallel=recipe.parallel,
        ranks=recipe.ranks,
        threads=recipe.threads,
        batch_size=recipe.batch_size,
        precision=recipe.precision,
        workers=recipe.workers,
        compile=recipe.compile,
        recompute=recipe.recompute,
        channels_last=recipe.channels_last,
        first_s=rate.first_s if rate else None,
        samples_per_s=rate.samples_per_s if rate else None,
        startup_s=rate.startup_s if rate else None,
        peak_memory_bytes=rate.peak_memory_bytes if rate else None,
        waiting=rate.waiting if rate else None,
        power_limit_w=recipe.power_limit_w,
        clock_hz=recipe.clock_hz,
        unsteady=rate.unsteady if rate else (),
        energy_j_per_sample=rate.energy_j_per_sample if rate else None,
        failure=f"{result.failure.kind}: {result.failure.message}" if result.failure else None,
    )


def dear(run: RunContext) -> bool:
    """Whether an epoch takes so long that a training is looked at within it: its batches must be
    ours to cut.
    """
    epoch_s, task = one_epoch_s(run), run.survey.task
    return epoch_s is not None and epoch_s > _DEAR_S and not task.own_train and not task.own_loader


def _in_parts(run: RunContext) -> bool:
    """Whether trainings may end within an epoch; what reaching a quality costs is whole epochs'."""
    return dear(run) and run.budget.target_quality is None


def count(run: RunContext, epochs: float) -> int | float:
    """So many epochs as a training can have: whole ones, and parts of one where epochs are dear."""
    if not _in_parts(run):
        return max(1, round(epochs))
    found = float(f"{max(_LEAST_EPOCHS, epochs):.3g}")
    return int(found) if found >= _MOST_WHOLE or found == int(found) else found


def horizon(run: RunContext, share_s: float, most_s: float | None = None) -> int | float:
    """Epochs of the final training: asked for, or what the training time budget allows at the
    measured throughput; without one ``share_s`` seconds, where those are a few epochs up to
    ``most_s``.
    """
    effort, info = run.effort, run.survey.task
    if effort.epochs:
        return effort.epochs
    steps = effort.steps or (None if info.epochs else info.steps)
    if steps:
        batch = search_space.baseline(run.survey).batch_size
        return max(1, math.ceil(steps * batch / info.train_rows))
    if info.epochs:
        return info.epochs
    epoch_s = one_epoch_s(run)
    if epoch_s is None:
        return 10
    epochs = 0.9 * (run.budget.train_time_s or share_s) / epoch_s
    if run.budget.train_time_s is None and most_s is not None and epochs < _SHORT:
        epochs = min(_SHORT, 0.9 * most_s / epoch_s)
    return count(run, min(_MOST_EPOCHS, epochs if _in_parts(run) else int(epochs)))


def timed(run: RunContext) -> bool:
    """Whether the horizon follows from time, not from a number of epochs that was asked for."""
    effort, info = run.effort, run.survey.task
    return not (effort.epochs or effort.steps or info.epochs or info.steps)


def one_epoch_s(run: RunContext) -> float | None:
    """Seconds of one epoch at the baseline's batch size by the fastest layout; None where no layout
    could be measured.
    """
    batch = search_space.baseline(run.survey).batch_size
    rows = [s for s in run.survey.layouts if s.plain_step]
    known = [(abs(math.log2(s.batch_size / batch)), s.samples_per_s) for s in rows]
    rates = [(distance, rate) for distance, rate in known if rate]
    if not rates:
        return None
    nearest = min(distance for distance, _ in rates)
    return run.survey.task.train_rows / max(r for distance, r in rates if distance == nearest)


def reach(run: RunContext, epochs: float, search_s: float) -> int | float:
    """Epochs that a trial is trained for: the horizon, or fewer where the search's time does not
    hold some four whole trainings.
    """
    epoch_s = one_epoch_s(run)
    if epoch_s is None:
        return count(run, epochs)
    held = search_s / (_WHOLE * epoch_s)
    return count(run, min(epochs, held if _in_parts(run) else int(held)))


def lengths(
    run: RunContext, share_s: float, most_s: float, search_s: float
) -> tuple[int | float, int | float]:
    """Epochs of the final training (`horizon`) and of a trial (`reach`).  Where the length follows
    from time and a trial is nearly as long, that is the final training: the winner goes on from it.
    """
    epochs = horizon(run, share_s, most_s)
    trial = reach(run, epochs, search_s)
    return (trial if timed(run) and trial >= NEARLY * epochs else epochs), trial


def usual_lengths(run: RunContext) -> tuple[int | float, int | float]:
    """`lengths` by the shares of a run's time."""
    time_s = run.effort.time_s
    return lengths(run, FINAL_SHARE * time_s, FINAL_MOST * time_s, TRAIN_SHARE * time_s)
