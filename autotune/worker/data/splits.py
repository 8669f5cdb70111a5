"""Which rows are train, validation, test and calibration.  Pure index arithmetic, torch-free.

    train_data ──────────────────────────── train
        └─ no eval_data: a fifth ─┐
    eval_data ────────────────────┴─ half ─ validation   (what the search sees)
        │                          └ half ─ test         (verification alone)
        └─ no train_data: thirds ─ calibration, validation, test
    test_data ────────────────────────── test         (then all of eval is validation)

Classes are kept in proportion.  The same seed and labels give the same rows.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
MIN_CALIBRATION_ROWS = 60  # recovery on fewer rows than this overfits them


class SplitRows(NamedTuple):
    """Row numbers within the evaluation data (the held-back rows where there is none)."""

    validation: Indices
    test: Indices | None
    calibration: Indices | None


def stratified(
    rows: int, ways: int, seed: int, labels: NDArray[Any] | None = None
) -> list[Indices]:
    """Distribute ``rows`` rows over ``ways`` parts whose sizes differ by at most one.

    With ``labels`` each class is distributed in turn, so that a part has its share of the class to
    within one row.  Each part is in ascending order.
    """
    rng = np.random.default_rng((seed, rows, ways))
    order = rng.permutation(rows)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    return [np.sort(order[way::ways]).astype(np.int64) for way in range(ways)]


def hold_back(rows: int, seed: int, labels: NDArray[Any] | None = None) -> tuple[Indices, Indices]:
    """Keep four fifths for training; hold a fifth back.  Returns ``(train, held)``."""
    held, *kept = stratified(rows, 5, seed, labels)
    return np.sort(np.concatenate(kept)), held


def divide(
    rows: int,
    seed: int,
    labels: NDArray[Any] | None = None,
    *,
    own_test: bool,
    wants_calibration: bool,
) -> SplitRows:
    """Divide the evaluation rows.

    Args:
        rows: how many there are.
        seed: the task's.
        labels: ``[rows]`` classes, or None.
        own_test: the user gave ``test_data``, so that no rows are needed for it.
        wants_calibration: there is no training data, so that calibration and recovery get a part
            where each part has at least `MIN_CALIBRATION_ROWS`.
    """
    ways = 1 if own_test else 2
    calibration = None
    if wants_calibration and rows // (ways + 1) >= MIN_CALIBRATION_ROWS:
        calibration, *parts = stratified(rows, ways + 1, seed, labels)
    else:
        parts = stratified(rows, ways, seed, labels)
    return SplitRows(parts[0], None if own_test else parts[1], calibration)
