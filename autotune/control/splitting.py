"""The hardware stage of training: the throughput of every parallelism split, no quality involved.

With the global batch split over ranks and gradients scaled exactly a split does not change
what is learnt, so it is measured once and not searched.
"""

import math

from autotune.control import recipes
from autotune.control.run import Run
from autotune.records import job as jobs
from autotune.records.plan import Recipe
from autotune.records.task import Split

_MOST_EPOCHS = 60


def measure_splits(run: Run, budget_s: float) -> tuple[Split, ...]:
    """Throughput of every legal split at a small and a larger batch.

    A split that fails is recorded with its reason.  Ranks are started once a batch size, so
    that a slow start-up is seen; what does not fit into ``budget_s`` is left out, single
    process first.
    """
    legal = recipes.splits(run.survey.options, run.profile, run.effort)
    sizes = recipes.batch_sizes(run.survey.task.train_rows)
    chosen = tuple(dict.fromkeys((_nearest(sizes, 32), sizes[-1])))
    wanted = [(s, chosen[0]) for s in legal] + [(s, b) for s in legal for b in chosen[1:]]
    started = run.bridge.now()
    out: list[Split] = []
    for (parallel, ranks, threads), batch in wanted:
        if run.bridge.now() - started > budget_s and len(out) >= len(legal):
            break
        recipe = Recipe(batch_size=batch, parallel=parallel, ranks=ranks, threads=threads)
        job = jobs.Throughput(
            task=run.spec,
            recipe=recipe,
            seed=run.effort.seed,
            budget_s=0.5,
            device=run.effort.device,
        )
        result = run.bridge.run(job, timeout_s=30.0)
        out.append(_split(recipe, result))
    return tuple(out)


def _nearest(sizes: tuple[int, ...], wanted: int) -> int:
    return min(sizes, key=lambda s: abs(math.log2(s / wanted)))


def _split(recipe: Recipe, result: jobs.Result) -> Split:
    rate = result.answer if isinstance(result.answer, jobs.Rate) else None
    return Split(
        parallel=recipe.parallel,
        ranks=recipe.ranks,
        threads=recipe.threads,
        batch_size=recipe.batch_size,
        precision=recipe.precision,
        samples_per_s=rate.samples_per_s if rate else None,
        startup_s=rate.startup_s if rate else None,
        peak_memory_bytes=rate.peak_memory_bytes if rate else None,
        failure=f"{result.failure.kind}: {result.failure.message}" if result.failure else None,
    )


def horizon(run: Run, share_s: float) -> int:
    """Epochs of the final training: asked for, or what ``share_s`` seconds (and the training
    time budget) allow at the default recipe's measured throughput.
    """
    if run.effort.epochs or run.survey.task.epochs:
        return int(run.effort.epochs or run.survey.task.epochs or 1)
    rates = [s.samples_per_s for s in run.survey.splits if s.samples_per_s]
    if not rates:
        return 10
    epoch_s = run.survey.task.train_rows / min(max(rates), 4 * min(rates))
    allowed = min(share_s, run.budget.train_time_s or math.inf)
    return max(1, min(_MOST_EPOCHS, int(0.9 * allowed / epoch_s)))
