"""A ``metric()`` object fed batch by batch, and replicates of it without keeping outputs.

    small    outputs are kept up to KEPT_BYTES: REPLICATES exact bootstrap resamples of the rows
    large    one object over all rows, and one over each of up to GROUPS groups of rows;
             replicate = metric + mean of resampled group metrics - mean of group metrics

The second is the method of batch means: the variance of the whole is that of the groups' metrics
divided by their number.  It holds for metrics that are smooth in the data (means, rates, F1,
perplexity), not for a maximum.  A row's group is its number modulo the number of groups, so that
two models on one part are paired.  Where groups would hold fewer than LEAST_ROWS rows, or there
would be fewer than 8, there are no replicates.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.worker.contract import Functions
from autotune.worker.data.batch_tree import join, size_of, take
from autotune.worker.data.streams import rows_of

REPLICATES = 200
KEPT_BYTES = 64 << 20
GROUPS = 32
LEAST_ROWS = 8
_LEAST_GROUPS = 8


def resamples(rows: int, seed: int) -> NDArray[np.int64]:
    """Row numbers of `REPLICATES` bootstrap resamples, ``[REPLICATES, rows]``."""
    return np.random.default_rng((seed, rows)).integers(0, rows, (REPLICATES, rows))


def bootstrap(
    functions: Functions, output: Any, target: Any, quality: float, rows: int, seed: int
) -> tuple[float, ...]:
    """The metric of each resample of the rows; ``quality`` where that is not finite."""
    found = []
    for drawn in resamples(rows, seed):
        value = functions.quality(take(output, drawn), take(target, drawn))
        found.append(value if math.isfinite(value) else quality)
    return tuple(found)


class Streamed:
    """The user's metric over a part of ``rows`` rows."""

    def __init__(self, functions: Functions, rows: int, seed: int) -> None:
        self._functions = functions
        self._rows = rows
        self._seed = seed
        self._seen = 0
        self._whole = functions.new_metric()
        self._kept: list[tuple[Any, Any]] | None = []
        self._kept_bytes = 0
        count = min(GROUPS, rows // LEAST_ROWS)
        self._groups = [
            functions.new_metric() for _ in range(count if count >= _LEAST_GROUPS else 0)
        ]

    def add(self, output: Any, target: Any, rows: int) -> None:
        """One batch."""
        self._functions.update(self._whole, output, target)
        if self._kept is not None:
            self._kept.append((output, target))
            self._kept_bytes += size_of(output)
            if self._kept_bytes > KEPT_BYTES:
                self._stop_keeping()
        else:
            self._to_groups(output, target, rows)
        self._seen += rows

    def result(self) -> tuple[float, tuple[float, ...] | None]:
        """The metric, and its replicates (None where there are too few rows for them)."""
        quality = self._functions.compute(self._whole)
        if self._kept is None:
            return quality, self._from_groups(quality)
        output, target = (join(list(pieces)) for pieces in zip(*self._kept, strict=True))
        rows = (self._rows, self._seed)
        return quality, bootstrap(self._functions, output, target, quality, *rows)

    def _stop_keeping(self) -> None:
        kept, self._kept = self._kept or [], None
        seen, self._seen = self._seen, 0
        for output, target in kept:
            rows = rows_of(target)
            self._to_groups(output, target, rows)
            self._seen += rows
        self._seen = seen

    def _to_groups(self, output: Any, target: Any, rows: int) -> None:
        if not self._groups:
            return
        group = (self._seen + np.arange(rows)) % len(self._groups)
        for number in np.unique(group):
            mine = np.flatnonzero(group == number)
            self._functions.update(self._groups[number], take(output, mine), take(target, mine))

    def _from_groups(self, quality: float) -> tuple[float, ...] | None:
        if not self._groups:
            return None
        values = np.array([self._functions.compute(group) for group in self._groups])
        if not np.isfinite(values).all():
            return None
        count = len(values)
        drawn = np.random.default_rng((self._seed, count)).integers(0, count, (REPLICATES, count))
        wide = math.sqrt(
            count / (count - 1)
        )  # a bootstrap of n values is narrower by sqrt((n-1)/n)
        spread = (values[drawn].mean(1) - values.mean()) * wide
        return tuple((quality + spread).tolist())
