"""How much of a training a trial is, and where within it is looked at.

share of a trial   1/9 ---- 1/3 ---------- 1      rungs: halving decides
.  .  .  .  .  .  .  .  .      looks: the best one's weights are kept
"""

from typing import NamedTuple

from autotune.context import RunContext
from autotune.search.halving import REDUCTION
from autotune.training import parallelism, target_quality

_FEW = 3.0  # epochs
_LOOKS, _LOOKS_SHARE = 9, 0.1


class Length(NamedTuple):
    """How long one recipe is trained: the horizon of its schedule, the rungs at which halving
    decides, and all ``looks``.
    """

    epochs: int | float
    rungs: tuple[float, ...]
    looks: tuple[float, ...]

    @property
    def reach(self) -> float:
        """Epochs that a trial is trained for."""
        return self.rungs[-1]


def looks(run: RunContext, rungs: tuple[float, ...]) -> tuple[float, ...]:
    """The rungs of a training and further looks at *validation*, of which the best is kept: at most
    one an epoch, and so many that they take a small share of the training, reckoned by rows (a
    forward pass is a third of a step) so that the same seed keeps the same weights; none where an
    evaluation was seen to take longer than an epoch.
    """
    task = run.survey.task
    if run.budget.target_quality is not None or task.own_train:
        return target_quality.looks(run, rungs)
    whole, epoch_s = rungs[-1], parallelism.one_epoch_s(run) or 0.0
    if run.evaluation_s > epoch_s > 0:
        return rungs
    epochs = 3 * task.train_rows / max(1, task.validation_rows)  # that cost as much as a look
    count = min(_LOOKS, int(whole), int(_LOOKS_SHARE * whole * epochs))
    more = (float(int(whole * n / count)) for n in range(1, count))
    return tuple(sorted({*rungs, *more}))


def rung(run: RunContext, epochs: float) -> float:
    """Where halving decides: after whole epochs, as far as there is one or they are cheap."""
    cut = epochs < 1 or (parallelism.dear(run) and epochs < _FEW)
    return round(epochs, 3) if cut else float(int(epochs))


def shares_of(run: RunContext, reach: float) -> tuple[float, ...]:
    """Shares of a trial at which halving decides, the last being its end.

    None lies within the first epoch, unless an epoch is dear and its batches are ours to cut; none
    so early that evaluating takes over a third of the way (a forward pass is a third of a step).
    """
    shares, task = (REDUCTION**-2, REDUCTION**-1, 1.0), run.survey.task
    if parallelism.dear(run):
        look = task.validation_rows / (3 * task.train_rows)  # in epochs
        return tuple(share for share in shares if share == 1.0 or share * reach >= 3 * look)
    return tuple(share for share in shares if share * reach >= 1)
