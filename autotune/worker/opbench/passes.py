"""Several passes over a model's operators make one replay, and tell how steady the machine is.

passes, each [setting: operators' seconds] --middle of each operator--> one
--sums, pair by pair-------> apart
"""

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import median_low

import msgspec

from autotune.records.measurement import OpReplay


def combined(passes: Sequence[Sequence[OpReplay]]) -> tuple[OpReplay, ...]:
    """The middle of each operator's timings at each setting, the less of two; passes of the same
    settings in the same order.
    """
    return tuple(_middle(same) for same in zip(*passes, strict=True))


def _middle(same: Sequence[OpReplay]) -> OpReplay:
    """One setting of several passes."""

    def middle(seconds: Iterable[float | None]) -> float | None:
        known = [s for s in seconds if s is not None]
        return median_low(known) if known else None

    one = same[0]
    # an operator may be timed in some passes alone
    alike = [r for r in same if [op.kind for op in r.ops] == [op.kind for op in one.ops]]
    if len(alike) == 1:
        return one
    ops = tuple(
        msgspec.structs.replace(
            found[0],
            eager_s=median_low(op.eager_s for op in found),
            packed_s=middle(op.packed_s for op in found),
            onnx_s=middle(op.onnx_s for op in found),
        )
        for found in zip(*(r.ops for r in alike), strict=True)
    )
    whole_s = middle(r.whole_s for r in alike)
    return msgspec.structs.replace(one, ops=ops, whole_s=whole_s, apart=_apart(alike))


def _apart(same: Sequence[OpReplay]) -> float:
    """The root mean square of the log-ratios of two passes' sums, of eager's or of ONNX Runtime's
    times, whichever is larger.
    """
    eager = [math.fsum(op.calls * op.eager_s for op in r.ops) for r in same]
    onnx = [math.fsum(op.calls * (op.onnx_s or 0.0) for op in r.ops) for r in same]
    return max(_spread(eager), _spread(onnx))


def _spread(sums: Sequence[float]) -> float:
    pairs = [math.log(a / b) for a, b in combinations(sums, 2) if a and b]
    return math.sqrt(math.fsum(x * x for x in pairs) / len(pairs)) if pairs else 0.0
