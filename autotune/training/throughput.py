"""Read from measured throughput: the knee of the batch curve, what pays, how fast a recipe is.

    samples/s      . - - - -      the knee: the smallest batch at 90 % of the highest rate.
            .  '   |              Beyond it a larger batch only means fewer steps per epoch.
         ---+--.---+----- batch

Pure functions of the survey's `Layout` rows, which `throughput_stage` measures.
"""

import math
from collections.abc import Iterable, Sequence

from autotune.records.budget import Effort
from autotune.records.plan import Recipe
from autotune.records.task import Layout, Survey
from autotune.training.power_limit import SLOWER

DOUBLING_GAIN = 1.1
"""A batch twice as large is measured while the last doubling gained this much."""
PAYS = 1.05
"""A gain below this is not worth a dimension of the search."""


def sizes(train_rows: int) -> tuple[int, ...]:
    """Powers of two from 16, at most an eighth of the training rows (at least 8 steps an epoch)."""
    most = max(16, train_rows // 8)
    return tuple(1 << i for i in range(4, 13) if 1 << i <= most)


def plain(layout: Layout) -> bool:
    """Measured in fp32, with batches loaded by the rank itself and the step without options."""
    usual = layout.precision == "fp32" and not layout.workers and layout.power_limit_w is None
    usual = usual and layout.plain_step and layout.clock_hz is None
    return usual and layout.samples_per_s is not None


def like(layout: Layout, other: Layout) -> bool:
    """The same layout, whatever its batch size."""
    same = (layout.parallel, layout.ranks, layout.threads)
    return same == (other.parallel, other.ranks, other.threads) and plain(layout)


def knee(rows: Sequence[Layout]) -> int | None:
    """The smallest batch whose throughput is 90 % of the highest; None where fewer than three
    sizes were measured.
    """
    best: dict[int, float] = {}
    for layout in rows:
        if plain(layout):
            rate = layout.samples_per_s or 0.0
            best[layout.batch_size] = max(best.get(layout.batch_size, 0.0), rate)
    if len(best) < 3:
        return None
    most = max(best.values())
    return min(size for size, rate in best.items() if rate >= 0.9 * most)


def batch_sizes(survey: Survey, *, measured: bool = True) -> tuple[int, ...]:
    """Batch sizes worth searching: up to the knee, and none that did not fit."""
    all_sizes = sizes(survey.task.train_rows)
    if not measured:
        return all_sizes
    failed = [s.batch_size for s in survey.layouts if s.failure and s.failure.startswith("oom")]
    most = min(knee(survey.layouts) or all_sizes[-1], min(failed, default=math.inf))
    return tuple(size for size in all_sizes if size <= max(most, all_sizes[0]))


def precisions(survey: Survey, *, measured: bool = True) -> tuple[str, ...]:
    """fp32 and the available ones that were not measured to be no faster; the fastest last."""
    legal = [o.name for o in survey.options if o.kind == "precision" and o.available]
    rows = survey.layouts if measured else ()
    found = [(gain(rows, name), name) for name in legal if name != "fp32"]
    paying = sorted((ratio or PAYS, name) for ratio, name in found if (ratio or PAYS) >= PAYS)
    return ("fp32", *(name for _, name in paying)) if "fp32" in legal or not legal else tuple(legal)


def gain(rows: Sequence[Layout], precision: str) -> float | None:
    """Throughput in a precision over that in fp32, at one layout and batch; None: not measured."""
    for layout in rows:
        if layout.precision == precision:
            same = [s for s in rows if like(s, layout) and s.batch_size == layout.batch_size]
            if layout.samples_per_s is None:
                return 0.0
            if same and same[0].samples_per_s:
                return layout.samples_per_s / same[0].samples_per_s
    return None


def workers(rows: Sequence[Layout]) -> int:
    """Loader workers that were measured to pay; 0 where none were."""
    for layout in rows:
        if layout.workers and layout.samples_per_s:
            same = [s for s in rows if like(s, layout) and s.batch_size == layout.batch_size]
            if same and layout.samples_per_s >= PAYS * (same[0].samples_per_s or 0.0):
                return layout.workers
    return 0


def gpu_setting(rows: Sequence[Layout]) -> tuple[float | None, float | None]:
    """Power limit (W) and highest clock (Hz) of least energy among the settings at most 10 % slower
    than the fastest; None where none was tried, or the default is best.
    """
    tried = [s for s in rows if s.power_limit_w and s.samples_per_s and s.energy_j_per_sample]
    most = max((s.samples_per_s or 0.0 for s in tried), default=0.0)
    fast = [s for s in tried if (1 + SLOWER) * (s.samples_per_s or 0.0) >= most]
    best = min(fast, key=lambda s: s.energy_j_per_sample or math.inf, default=None)
    return (best.power_limit_w, best.clock_hz) if best else (None, None)


def channels_last(rows: Sequence[Layout]) -> bool:
    """Whether everything was measured in channels-last format (`step_options.channels_last`)."""
    return any(layout.channels_last for layout in rows)


def recomputed_sizes(survey: Survey, effort: Effort) -> tuple[int, ...]:
    """Batch sizes that fit only with activation checkpointing."""
    if not offered(survey, effort, "recompute"):
        return ()
    return tuple(s.batch_size for s in survey.layouts if s.recompute and s.samples_per_s)


def offered(survey: Survey, effort: Effort, name: str) -> bool:
    """Whether a step option is searched: it is available, or the user fixes it (then it need not
    pay).
    """
    found = next((o for o in survey.options if (o.kind, o.name) == ("step", name)), None)
    if found is None or found.excluded_by_user or survey.task.own_train:
        return False
    held = any(text.partition("=")[0].strip() == name for text in effort.fix)
    return found.available or (held and bool(survey.layouts))


def net_gain(rows: Sequence[Layout], whole_s: float) -> float | None:
    """Speed-up of a training of ``whole_s`` seconds by the compiled step, compilation included;
    None where that was not measured.
    """
    row = next((s for s in rows if s.compile and s.samples_per_s and s.first_s), None)
    base = same_as(rows, row) if row is not None else None
    if row is None or base is None or whole_s <= 0:
        return None
    assert row.samples_per_s
    assert row.first_s
    assert base.samples_per_s
    compile_s = max(0.0, row.first_s - row.batch_size / row.samples_per_s)
    return whole_s / (compile_s + whole_s * base.samples_per_s / row.samples_per_s)


def same_as(rows: Iterable[Layout], row: Layout) -> Layout | None:
    """The plain row of the same layout and batch."""
    here = (s for s in rows if like(s, row) and s.batch_size == row.batch_size)
    return next(here, None)


def speed(rows: Sequence[Layout], recipe: Recipe) -> float | None:
    """Samples per second that a recipe is expected to train at, interpolated between measured batch
    sizes; None where nothing was measured.
    """
    known = [s for s in rows if plain(s)]
    if not known:
        return None
    same = (recipe.parallel, recipe.ranks, recipe.threads)
    own = [s for s in known if (s.parallel, s.ranks, s.threads) == same] or known
    curve = sorted({s.batch_size: s.samples_per_s or 0.0 for s in own}.items())
    return _between(curve, recipe.batch_size) * (gain(rows, recipe.precision) or 1.0)


def _between(curve: list[tuple[int, float]], batch: int) -> float:
    """Interpolated between logarithms of batch sizes; constant beyond either end."""
    below = [point for point in curve if point[0] <= batch] or curve[:1]
    above = [point for point in curve if point[0] >= batch] or curve[-1:]
    (low, less), (high, more) = below[-1], above[0]
    if low == high:
        return less
    way = math.log(batch / low) / math.log(high / low)
    return less + way * (more - less)
