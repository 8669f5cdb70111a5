"""Estimates with 90 % intervals, from operators timed one by one on this machine.

    replay (ops at batch b, threads t) --runtime's way of doing each kind--> sum S(b, t)
    one run of the whole model --residual--> host overhead h and scale r
    T(b, t) = h + r S(b, t),  T x/÷ exp(1.645 sigma)

Eager PyTorch does operators as they were timed.  A compiled model and ONNX Runtime fuse pointwise
work into what comes before, have packed weights or kernels of their own (timed), and spend next
to nothing on dispatch.  Batches between replayed ones are interpolated, beyond them extended.

Estimates order and seed a search; they never reject (`cost` does) and are never a verdict.
What this does not know: allocation, frequency under long load, and what else a process does.
"""

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from autotune.records.measurement import Interval, OpReplay, OpTime
from autotune.records.plan import Deployment, Step

_Z90 = 1.645
_DISPATCH_S = 1.5e-6
"""What an eager operator costs before it does anything, about."""
_HOST_PER_OP_S = 6e-6
"""The most that modules and Python add to an operator in a whole eager model, and the guards on
modules and weights in a compiled one.
"""
_RUN_S = {"eager": 0.0, "compiled": 15e-6, "onnxruntime": 8e-6}
"""One call that does nothing."""
_LIGHT = {"eager": 1.0, "compiled": 0.5, "onnxruntime": 0.8}
"""Light operators' work beside eager's; fused ones in `_FUSED`."""
_FUSED = {"eager": 1.0, "compiled": 0.15, "onnxruntime": 0.35}
_HEAVY = ("matmul", "conv", "depthwise", "attention", "recurrent")
SIGMA = {"eager": 0.06, "compiled": 0.15, "onnxruntime": 0.06}
"""Log-error of a prediction with the runtime's own anchor, at the anchor's batch and threads; it
grows with the distance from there.  Round priors, chosen after a first look at the benchmark's
errors, not fitted; ``benchmarks.cost_model --calibrate`` tests them on other models.
"""
_PER_LOG_BATCH, _OTHER_THREADS = 0.05, 0.05
_SIGMA_UNANCHORED = 0.35
_OF_MIDDLES = 0.67
"""The deviation between the middles of two triples, each 0.67 of one reading's, over the root mean
square between two readings, 1.41 of it (normal log-times).
"""
_USUALLY_LEFT = 0.5
_LEFT = {"int8_dynamic": 0.55, "int4_weights": 0.9}
"""Of the dense time, where it differs: dynamic int8 reaches Linear layers alone and looks for
ranges at each call; 4-bit weights took 0.86 to 1.0 at batch 1 on four models (x86-64, 2 cores).
"""


class Anchor(NamedTuple):
    """The whole model, measured once by ``runtime`` at ``batch_size`` and ``threads``."""

    runtime: str
    batch_size: int
    threads: int
    seconds: float


def anchors(replays: Sequence[OpReplay]) -> tuple[Anchor, ...]:
    """The whole runs among the replays (eager)."""
    return tuple(Anchor("eager", r.batch_size, r.threads, r.whole_s) for r in replays if r.whole_s)


def op_s(op: OpTime, runtime: str) -> float:
    """Seconds of one call of one operator in a runtime: by the runtime's own kernel where that
    was timed, else a share of eager's work.
    """
    if runtime == "eager":
        return op.eager_s
    if runtime == "onnxruntime" and op.onnx_s is not None:
        return op.onnx_s
    work = max(0.0, op.eager_s - _DISPATCH_S)
    if op.kind in _HEAVY:
        own = op.packed_s if runtime == "compiled" else None
        return min(work, own) if own is not None else work
    if op.kind == "normal" and op.fused:  # a batch norm that is folded into weights
        return 0.0
    return work * (_FUSED if op.fused else _LIGHT)[runtime]


def total_s(replay: OpReplay, runtime: str) -> float:
    """All operators of one call."""
    return sum(op.calls * op_s(op, runtime) for op in replay.ops)


def operators_s(
    replays: Sequence[OpReplay], runtime: str, batch: int, threads: int
) -> float | None:
    """Seconds of all operators at any batch: linear between those replayed; None for a thread
    count that was not.
    """
    known = sorted(
        (r.batch_size, total_s(r, runtime)) for r in replays if r.threads == threads and r.ops
    )
    if not known:
        return None
    if len(known) == 1:
        size, seconds = known[0]
        return seconds * batch / size
    upper = next((i for i, (size, _) in enumerate(known) if size >= batch), len(known) - 1)
    (b0, s0), (b1, s1) = known[max(0, upper - 1)], known[max(1, upper)]
    return max(s0 + (s1 - s0) * (batch - b0) / (b1 - b0), min(s0, s1) * batch / max(batch, b1))


def _residual(replays: Sequence[OpReplay], anchor: Anchor) -> tuple[float, float] | None:
    """Host overhead (s) and scale that make the anchor's sum its measured time."""
    summed = operators_s(replays, anchor.runtime, anchor.batch_size, anchor.threads)
    if not summed:
        return None
    calls = max((sum(op.calls for op in r.ops) for r in replays), default=0)
    run_s = _RUN_S.get(anchor.runtime, 0.0)
    most = run_s + (calls * _HOST_PER_OP_S if anchor.runtime != "onnxruntime" else 0.0)
    host = min(max(0.0, anchor.seconds - summed), most)
    return host, (anchor.seconds - host) / summed


def latency_s(
    replays: Sequence[OpReplay], found: Sequence[Anchor], runtime: str, batch: int, threads: int
) -> Interval | None:
    """One call of the dense model; None where nothing like it was replayed.

    Without an anchor of the runtime's own its sum stands by itself, with a wide interval.
    """
    if runtime not in _RUN_S:
        return None
    summed = operators_s(replays, runtime, batch, threads)
    if summed is None:
        return None
    own = [a for a in found if a.runtime == runtime]
    host, scale, sigma = _RUN_S[runtime], 1.0, _SIGMA_UNANCHORED
    if own:
        nearest = min(
            own, key=lambda a: (a.threads != threads, abs(math.log(a.batch_size / batch)))
        )
        fitted = _residual(replays, nearest)
        if fitted is not None:
            host, scale = fitted
            sigma = math.hypot(_sigma(nearest, batch, threads), _unsteady(replays, threads))
    return _around(host + scale * summed, sigma)


def _unsteady(replays: Sequence[OpReplay], threads: int) -> float:
    """Log-deviation between the replay and what it predicts, each a middle of several timings, as
    far as the machine's unsteadiness at so many threads makes it.  Of the settings the middle one
    tells: a pass that was disturbed once moves ``apart`` there, but not the middle of the passes.
    """
    found = [r.apart for r in replays if r.apart is not None and r.threads == threads]
    return _OF_MIDDLES * median(found) if found else 0.0


def _sigma(anchor: Anchor, batch: int, threads: int) -> float:
    far = _PER_LOG_BATCH * abs(math.log(batch / anchor.batch_size))
    other = _OTHER_THREADS if threads != anchor.threads else 0.0
    return math.hypot(SIGMA[anchor.runtime], far, other)


def deployment_s(
    replays: Sequence[OpReplay], found: Sequence[Anchor], deployment: Deployment
) -> Interval | None:
    """One call of a deployment: pruned work scales, the rest is guessed, with a wide interval."""
    dense = latency_s(replays, found, deployment.runtime, deployment.batch_size, deployment.threads)
    if dense is None or deployment.lossless:
        return dense
    share = 1.0
    for step in deployment.compress:
        share *= left(step)
    least = _RUN_S[deployment.runtime]
    return _around(max(least, dense.value * share), _SIGMA_UNANCHORED)


def left(step: Step) -> float:
    """What a step leaves of the dense model's time: a guess, but for pruning."""
    level = step.params.get("macs_kept")
    return float(level) if isinstance(level, float | int) else _LEFT.get(step.name, _USUALLY_LEFT)


def _around(value: float, sigma: float) -> Interval:
    factor = math.exp(_Z90 * sigma)
    return Interval(value=value, low=value / factor, high=value * factor)
