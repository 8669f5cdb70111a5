"""Which rows are train, select, confirm and adapt.  Pure index arithmetic, torch-free.

    train_data ──────────────────────────── train
        └─ no eval_data: a fifth ─┐
    eval_data ────────────────────┴─ half ─ select      (what the search sees)
        │                          └ half ─ confirm     (verification alone)
        └─ no train_data: thirds ─ adapt, select, confirm
    confirm_data ────────────────────────── confirm     (then all of eval is select)

Classes are kept in proportion.  The same seed and labels give the same rows.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
MIN_ADAPT_ROWS = 60  # recovery on fewer rows than this overfits them


class Parts(NamedTuple):
    """Row numbers: ``train`` and ``held`` of the training data, the others of the evaluation
    data (of the held-back rows where there is none).
    """

    select: Indices
    confirm: Indices | None
    adapt: Indices | None


def deal(rows: int, ways: int, seed: int, labels: NDArray[Any] | None = None) -> list[Indices]:
    """Deal ``rows`` rows into ``ways`` piles whose sizes differ by at most one.

    With ``labels`` each class is dealt in turn, so that its share in each pile differs from
    its share in the whole by less than one row.  Each pile is in ascending order.
    """
    rng = np.random.default_rng((seed, rows, ways))
    order = rng.permutation(rows)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    return [np.sort(order[way::ways]).astype(np.int64) for way in range(ways)]


def hold_back(rows: int, seed: int, labels: NDArray[Any] | None = None) -> tuple[Indices, Indices]:
    """Keep four fifths for training; hold a fifth back.  Returns ``(train, held)``."""
    held, *kept = deal(rows, 5, seed, labels)
    return np.sort(np.concatenate(kept)), held


def divide(
    rows: int,
    seed: int,
    labels: NDArray[Any] | None = None,
    *,
    own_confirm: bool,
    wants_adapt: bool,
) -> Parts:
    """Divide the evaluation rows.

    Args:
        rows: how many there are.
        seed: the task's.
        labels: ``[rows]`` classes, or None.
        own_confirm: the user gave ``confirm_data``: no rows of these are needed for it.
        wants_adapt: there is no training data: give a part to calibration and recovery
            where at least `MIN_ADAPT_ROWS` are left in each part.
    """
    ways = 1 if own_confirm else 2
    adapt = None
    if wants_adapt and rows // (ways + 1) >= MIN_ADAPT_ROWS:
        adapt, *piles = deal(rows, ways + 1, seed, labels)
    else:
        piles = deal(rows, ways, seed, labels)
    return Parts(piles[0], None if own_confirm else piles[1], adapt)
