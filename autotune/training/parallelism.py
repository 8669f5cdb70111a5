"""The throughput of every parallel layout, quality not involved.

With the global batch split over ranks and gradients scaled exactly, a layout does not change
what is learnt, so it is measured once and not searched.
"""

import math

import msgspec

from autotune.context import RunContext
from autotune.records import job as jobs
from autotune.records.plan import Recipe
from autotune.records.task import Layout
from autotune.training import search_space, throughput

_PROBE_S = 0.4  # of one throughput
_METERED_S = 2.0  # of one whose energy is read
_START_S = 4.0  # of a process group
_OF_RECIPE = (
    *("parallel", "ranks", "threads", "batch_size", "precision", "workers"),
    *("compile", "recompute", "channels_last", "power_limit_w", "clock_hz"),
)


def measure_layouts(
    run: RunContext, budget_s: float, *, channels_last: bool = False
) -> tuple[Layout, ...]:
    """Throughput of every legal layout at a small and a larger batch.

    A layout that fails is recorded with its reason.  Ranks are started once per batch size, so
    that a slow start-up is seen; what does not fit into ``budget_s`` seconds is left out, several
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
    """The default recipe on a layout, for measurements."""
    parallel, ranks, threads = layout
    return Recipe(
        batch_size=batch,
        parallel=parallel,
        ranks=ranks,
        threads=threads,
        params=run.survey.task.params,
    )


def recipe_of(run: RunContext, layout: Layout, **changes: object) -> Recipe:
    """A recipe of the same layout and batch but for ``changes``, for measurements."""
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
    nothing = {"samples_per_s": None}
    found = msgspec.structs.asdict(result.answer) if result.answer else nothing
    return Layout(
        **{name: getattr(recipe, name) for name in _OF_RECIPE},
        **found,
        failure=f"{result.failure.kind}: {result.failure.message}" if result.failure else None,
    )
