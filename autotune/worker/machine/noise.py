"""What else ran while this machine was probed: per timed call, and over the whole probing.

    timed(call)     one call's seconds, and whether anything disturbed it
    ForeignLoad     foreign load and steal since it was made, as shares
    pooled, faster  two rounds of one measurement as one

A call is disturbed when one of this process's threads was taken off its core during it (an
involuntary context switch), or when this thread waited for over a tenth of it: then its time
says how busy the machine was.  Spread alone does not show it: a neighbour that takes half of
every time slice halves every sample alike.

What this does not know: which process it was, a neighbour on the other thread of the same core,
and load on shared caches and memory.
"""

import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from autotune.records.hardware import Leaf
from autotune.worker.host import interference, linux

_BUSY = 0.9
_SHORT_S = 20e-6
"""Calls shorter than this: the clock of CPU time is too coarse for them."""
_CLEAN_SAMPLES = 3


class Sample(NamedTuple):
    """``clean``: nothing disturbed it."""

    seconds: float
    clean: bool


def timed(call: Callable[[], object]) -> Sample:
    """One call."""
    switched = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    worked, started = time.thread_time(), time.perf_counter()
    call()
    seconds = time.perf_counter() - started
    worked = time.thread_time() - worked
    same = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == switched
    return Sample(max(seconds, 1e-9), same and (seconds < _SHORT_S or worked > _BUSY * seconds))


def enough(samples: Sequence[Sample]) -> bool:
    """Whether enough were clean that the others can be dropped."""
    return sum(s.clean for s in samples) >= _CLEAN_SAMPLES


def best(samples: Sequence[Sample]) -> list[float]:
    """Seconds of the clean ones; where they are too few, of the fastest half of all."""
    if enough(samples):
        return [s.seconds for s in samples if s.clean]
    return sorted(s.seconds for s in samples)[: max(1, (len(samples) + 1) // 2)]


class ForeignLoad:
    """Counts from its making on; ``root`` is that of `interference.counters`."""

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

    Rounds that are seconds apart also show how a machine drifts, which the samples of a tenth of a
    second do not.
    """
    return first | {name: _both(first[name], x) for name, x in second.items() if name in first}


def faster(a: Leaf, b: Leaf) -> Leaf:
    """Two rounds of one rate, either of which others may have slowed: the larger value, the
    extremes of both.
    """
    both = _both(a, b)
    return msgspec.structs.replace(both, value=max(x for x in (a.value, b.value) if x is not None))


def _both(a: Leaf, b: Leaf) -> Leaf:
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
