"""What else ran while this machine was probed: foreign load and steal, as shares.

Does not know which process it was, nor load on shared caches and memory from outside.
"""

import time
from pathlib import Path

import msgspec

from autotune.records.hardware import Leaf
from autotune.worker.host import interference, linux


class Watch:
    """Counts from its making on; the root is that of `environment.counters`."""

    def __init__(self, root: Path = linux.ROOT) -> None:
        self._root = root
        self._before = interference.counters(root)
        self._cpu_s = time.process_time()

    def leaves(self) -> dict[str, Leaf]:
        """``foreign_load`` and ``steal_share`` of the usable processors; absent if unknown."""
        own = time.process_time() - self._cpu_s
        grown = interference.grown(self._before, interference.counters(self._root), own)
        found = {name: grown[name] for name in ("foreign_load", "steal_share")}
        return {
            name: Leaf(value=float(share), unit="1", source="probed")
            for name, share in found.items()
            if isinstance(share, float)
        }


def pooled(first: dict[str, Leaf], second: dict[str, Leaf]) -> dict[str, Leaf]:
    """Two rounds of the same leaves as one: the mean of the medians, the extremes of both.

    What is measured seconds apart also shows how a machine drifts, which samples of one tenth
    of a second do not.
    """
    return first | {name: _one(first[name], leaf) for name, leaf in second.items() if name in first}


def faster(a: Leaf, b: Leaf) -> Leaf:
    """Two rounds of one rate, of which others may have slowed either: the larger, the extremes of
    both.
    """
    both = _one(a, b)
    return msgspec.structs.replace(both, value=max(x for x in (a.value, b.value) if x is not None))


def _one(a: Leaf, b: Leaf) -> Leaf:
    if a.value is None or b.value is None:
        return a
    return Leaf(
        value=(a.value + b.value) / 2,
        unit=a.unit,
        source=a.source,
        low=min(x for x in (a.low, b.low, a.value, b.value) if x is not None),
        high=max(x for x in (a.high, b.high, a.value, b.value) if x is not None),
        samples=(a.samples or 0) + (b.samples or 0) or None,
    )
