"""Which of some timed calls had the machine to themselves.

A call is disturbed when one of this process's threads was taken off its core during it (an
involuntary context switch), or when this thread waited for over a tenth of it: then its time
says how busy the machine was.  Spread alone does not show it: a neighbour that takes half of
every slice halves every sample alike.

What this does not know: a neighbour on the other thread of the same core, and a shared cache.
"""

import resource
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

_BUSY = 0.9
_SHORT_S = 20e-6
"""Under this, the clock of CPU time is too coarse to tell."""
_LEAST = 3


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
    """Whether so many were clean that the others can be left."""
    return sum(s.clean for s in samples) >= _LEAST


def best(samples: Sequence[Sample]) -> list[float]:
    """The clean ones; where they are too few, the fastest half of all."""
    if enough(samples):
        return [s.seconds for s in samples if s.clean]
    return sorted(s.seconds for s in samples)[: max(1, (len(samples) + 1) // 2)]
