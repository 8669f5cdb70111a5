"""How long trainings are: the final one, a trial, and where within a trial it is evaluated.

share of a trial   1/9 ---- 1/3 ---------- 1      rungs: successive halving decides
.  .  .  .  .  .  .  .  .      looks: evaluations, of which the best one's weights are kept

Lengths are in epochs: whole ones, and fractions where an epoch takes long.
"""

import math
from typing import NamedTuple

from autotune.context import FINAL_MOST, FINAL_SHARE, TRAIN_SHARE, RunContext
from autotune.search.halving import REDUCTION
from autotune.training import search_space, target_quality

NEARLY = 0.7
"""Of the final training: a trial that is so long is its beginning."""
_WHOLE_TRAININGS = 3.75  # to the end, that a train search should hold
_MOST_EPOCHS, _LEAST_EPOCHS = 60, 0.01
_UNKNOWN = 10  # epochs, where no throughput could be measured
_LONG_EPOCH_S = 3.0
_SHORT = 12.0
"""Epochs under which a training's length is what its quality lacks most (Diamonds, AdamW: 0.825
after 4 epochs, 0.856 after 40)."""
_ALWAYS_WHOLE = 10.0  # epochs from which no fractions are needed
_WHOLE_RUNGS = 3.0  # epochs from which halving decides after whole ones
_LOOKS, _LOOKS_SHARE = 9, 0.1


class Length(NamedTuple):
    """How long one recipe is trained: the horizon of its schedule in epochs, the rungs at which
    halving decides, and all ``looks``.
    """

    epochs: int | float
    rungs: tuple[float, ...]
    looks: tuple[float, ...]

    @property
    def reach(self) -> float:
        """Epochs that a trial is trained for."""
        return self.rungs[-1]


# -- within a training ---------------------------------------------------------------------


def looks(run: RunContext, rungs: tuple[float, ...]) -> tuple[float, ...]:
    """The rungs of a training and further looks at *validation*, of which the best is kept.

    At most one per epoch, and as many as take a tenth of the training: estimated by rows (a forward
    pass is a third of a step), not by time, so that the same seed keeps the same weights.  None
    beside the rungs where an evaluation was seen to take longer than an epoch.
    """
    task = run.survey.task
    if run.budget.target_quality is not None or task.own_train:
        return target_quality.looks(run, rungs)
    whole, epoch_s = rungs[-1], one_epoch_s(run) or 0.0
    if run.evaluation_s > epoch_s > 0:
        return rungs
    epochs = 3 * task.train_rows / max(1, task.validation_rows)  # that cost as much as a look
    count = min(_LOOKS, int(whole), int(_LOOKS_SHARE * whole * epochs))
    more = (float(int(whole * n / count)) for n in range(1, count))
    return tuple(sorted({*rungs, *more}))


def rung(run: RunContext, epochs: float) -> float:
    """Where halving decides: after whole epochs, but where there is none yet or few long ones."""
    cut = epochs < 1 or (long_epochs(run) and epochs < _WHOLE_RUNGS)
    return round(epochs, 3) if cut else float(int(epochs))


def shares_of(run: RunContext, reach: float) -> tuple[float, ...]:
    """Shares of a trial at which halving decides, the last being its end.

    None lies within the first epoch unless epochs are long, and none so early that an evaluation
    takes over a third of the training up to it (a forward pass is a third of a step).
    """
    shares, task = (REDUCTION**-2, REDUCTION**-1, 1.0), run.survey.task
    if long_epochs(run):
        look = task.validation_rows / (3 * task.train_rows)  # in epochs
        return tuple(share for share in shares if share == 1.0 or share * reach >= 3 * look)
    return tuple(share for share in shares if share * reach >= 1)


# -- of a training -------------------------------------------------------------------------


def long_epochs(run: RunContext) -> bool:
    """Whether an epoch takes so long that a training is evaluated within it, which it can be only
    where its batches are ours and not the user's own loop's or loader's.
    """
    epoch_s, task = one_epoch_s(run), run.survey.task
    return (
        epoch_s is not None
        and epoch_s > _LONG_EPOCH_S
        and not task.own_train
        and not task.own_loader
    )


def _fractional(run: RunContext) -> bool:
    """Whether trainings may end within an epoch; where reaching a quality is what costs, they may
    not.
    """
    return long_epochs(run) and run.budget.target_quality is None


def rounded(run: RunContext, epochs: float) -> int | float:
    """As many epochs as a training can have: whole ones, or a fraction where epochs are long."""
    if not _fractional(run):
        return max(1, round(epochs))
    found = float(f"{max(_LEAST_EPOCHS, epochs):.3g}")
    return int(found) if found >= _ALWAYS_WHOLE or found == int(found) else found


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
        return _UNKNOWN
    epochs = 0.9 * (run.budget.train_time_s or share_s) / epoch_s
    if run.budget.train_time_s is None and most_s is not None and epochs < _SHORT:
        epochs = min(_SHORT, 0.9 * most_s / epoch_s)
    return rounded(run, min(_MOST_EPOCHS, epochs if _fractional(run) else int(epochs)))


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


def trial_epochs(run: RunContext, epochs: float, search_s: float) -> int | float:
    """Epochs that a trial is trained for: the horizon, or fewer where the search's time does not
    hold some four whole trainings.
    """
    epoch_s = one_epoch_s(run)
    if epoch_s is None:
        return rounded(run, epochs)
    held = search_s / (_WHOLE_TRAININGS * epoch_s)
    return rounded(run, min(epochs, held if _fractional(run) else int(held)))


def planned(
    run: RunContext, share_s: float, most_s: float, search_s: float
) -> tuple[int | float, int | float]:
    """Epochs of the final training (`horizon`) and of a trial (`trial_epochs`).

    Where the length follows from time and a trial is nearly as long as the final training, both
    are: the winner's trial is resumed to its end.
    """
    epochs = horizon(run, share_s, most_s)
    trial = trial_epochs(run, epochs, search_s)
    return (trial if timed(run) and trial >= NEARLY * epochs else epochs), trial


def usual(run: RunContext) -> tuple[int | float, int | float]:
    """`planned` by the shares of a run's time."""
    time_s = run.effort.time_s
    return planned(run, FINAL_SHARE * time_s, FINAL_MOST * time_s, TRAIN_SHARE * time_s)
