"""The operators of a trace that no runtime can leave out, on which safe lower bounds rest.

    floor(tape of one sample, of two) -> Floor(FLOPs by kind, bytes read, ...)

*Needed* work depends on the input, reaches an output, is not done twice on the same operands
and touches no padding: the rest a compiler may fold, drop, share or skip.
"""

import os
from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from autotune.records.task import Floor
from autotune.worker.survey.op_trace import Played, Spec, Tape, written

_CAUSAL = 0.5
_SMALL = 20_480
"""Elements of a single input up to which PyTorch prefers NNPACK to oneDNN (its use_mkldnn)."""
_LEAST_REPEATED = 2**17
"""Bytes of a parameter below which any core's cache keeps it from step to step."""
_THIN = 32
"""Rows of a product above which it is as any other (`kernel_paths.ROWS` are measured)."""
_LAYER = "mkldnn_rnn_layer"
_WIDE = (torch.float32, torch.float64)


def floor(one: Tape, two: Tape | None) -> Floor:
    """The needed work of one sample, and what a second one adds (None: nothing is known)."""
    first = _needed(one)
    second = _needed(two) if two is not None else []
    flops = _by_kind(first)
    both = _by_kind(second)
    more = {kind: max(0.0, both[kind] - flops.get(kind, 0.0)) for kind in both}
    weights = {s.serial: s.bytes for p in first for s in p.operands if s.parameter}
    touched = {s.serial for p in one.played for s in p.operands}
    trained = {s: n for s, n in one.trainable.items() if s in touched}
    gradients = sum(
        _valid(p) * p.flops for p in first if any(s.serial in trained for s in p.operands)
    )
    narrow = any(s.dtype not in _WIDE for p in first for s in p.operands if s.shape)
    narrow = narrow or _less_precise()
    return Floor(
        flops=flops,
        more_flops={kind: n for kind, n in more.items() if n},
        read_bytes=sum(weights.values()),
        repeated=_repeated(one, first),
        most_flops_per_byte=_most_flops_per_byte(first),
        thin=_thin(first, second),
        trainable_bytes=sum(trained.values()),
        gradient_flops_per_sample=gradients,
        narrow=narrow,
    )


def _most_flops_per_byte(needed: Sequence[Played]) -> float | None:
    """The most FLOPs with a byte of one parameter, by the largest that each operator reads."""
    work: dict[int, float] = {}
    size: dict[int, int] = {}
    for played in needed:
        largest = max((s for s in played.operands if s.parameter), key=_bytes, default=None)
        if largest is None:
            return None
        size[largest.serial] = largest.bytes
        work[largest.serial] = work.get(largest.serial, 0.0) + played.flops * _valid(played)
    return max((work[serial] / size[serial] for serial in work), default=None)


def _thin(first: Sequence[Played], second: Sequence[Played]) -> tuple[tuple[int, float], ...]:
    """Products of few rows with a parameter, where a second sample doubles the rows."""
    alike = {"addmm": "mm"}  # a bias is added within or after: by how the rows lie in memory
    names = [[alike.get(p.name, p.name) for p in tape] for tape in (first, second)]
    if names[0] != names[1]:
        return ()
    found: dict[int, float] = {}
    for one, two in zip(first, second, strict=True):
        rows, both = _rows(one), _rows(two)
        if rows and rows <= _THIN and both == 2 * rows:
            found[rows] = found.get(rows, 0.0) + one.flops
    return tuple(sorted(found.items()))


def _rows(played: Played) -> int:
    """Of the left side of a product with a parameter; 0 for other operators."""
    if played.name not in ("mm", "addmm"):
        return 0
    left, right = (a for a in played.args[-2:])
    return int(left.shape[0]) if right.parameter and not left.parameter else 0


def _bytes(spec: Spec) -> int:
    return spec.bytes


def _repeated(tape: Tape, needed: Sequence[Played]) -> tuple[tuple[float, int], ...]:
    """Parameters that operators read one after another, each waiting for the one before: (bytes,
    times after the first).
    """
    uses: dict[int, list[Spec]] = {}
    for played in needed:
        for spec in played.operands:
            if spec.parameter and spec.bytes >= _LEAST_REPEATED:
                uses.setdefault(spec.serial, []).append(spec)
    counted = set(map(id, needed))
    layered = any(played.name == _LAYER for played in needed)
    out = []
    for serial, specs in uses.items():
        steps = _chain(tape, serial, counted) if layered or len(specs) > 1 else 1
        if steps > 1:
            out.append((float(min(s.bytes for s in specs)), steps - 1))
    return tuple(out)


def _chain(tape: Tape, serial: int, counted: set[int]) -> int:
    """The most reads of a parameter of which each needs what the one before gave."""
    depth: dict[int, int] = {}
    for played in tape.played:
        before = max((depth.get(s.serial, 0) for s in played.operands), default=0)
        reads = id(played) in counted and any(s.serial == serial for s in played.operands)
        after = before + (_steps(played, serial) if reads else 0)
        for spec in written(played):
            depth[spec.serial] = max(depth.get(spec.serial, 0), after)
    return max(depth.values(), default=0)


def _steps(played: Played, serial: int) -> int:
    """How many times in turn one operator reads a parameter: a recurrent layer its second weight,
    but for the first step, whose state may be zeros.
    """
    if played.name != _LAYER or played.args[2].serial != serial:
        return 1
    return max(1, int(played.args[0].shape[0]) - 1)  # [time, batch, in]


def _less_precise() -> bool:
    """Whether the model's file or the environment lets fp32 products be done in less."""
    if torch.get_float32_matmul_precision() != "highest":
        return True
    backend: Any = torch.backends.mkldnn
    settings = [
        getattr(part, "fp32_precision", "none")
        for part in (backend, getattr(backend, "matmul", None), getattr(backend, "conv", None))
    ]
    mode = os.environ.get("ONEDNN_DEFAULT_FPMATH_MODE", "strict").lower()
    return mode != "strict" or any(found not in ("none", "ieee") for found in settings)


def _by_kind(needed: Sequence[Played]) -> dict[str, float]:
    out: dict[str, float] = {}
    for played in needed:
        kind = kind_of(played)
        out[kind] = out.get(kind, 0.0) + played.flops * _valid(played)
    return out


def _needed(tape: Tape) -> list[Played]:
    """Operators with FLOPs whose work depends on the input and reaches an output, each once."""
    varying = set(tape.inputs)
    moving = []
    for played in tape.played:
        if any(s.serial in varying for s in played.operands) or _random(played):
            varying |= {s.serial for s in written(played)}
            moving.append(played)
    live = set(tape.outputs)
    needed = []
    for played in reversed(moving):
        if any(s.serial in live for s in written(played)):
            live |= {s.serial for s in played.operands}
            needed.append(played)
    seen: set[Any] = set()
    out = []
    for played in reversed(needed):
        key = (played.name, tuple((s.serial, s.shape) for s in played.operands))
        if played.flops and key not in seen:
            out.append(played)
        seen.add(key)
    return out


def _random(played: Played) -> bool:
    return played.name in ("bernoulli", "rand", "randn", "normal", "uniform", "multinomial")


def kind_of(played: Played) -> str:
    """matmul, conv, winograd (a convolution that Winograd's algorithm fits; _small: with an input
    that PyTorch does not give to oneDNN when it comes alone), attention, recurrent.
    """
    name = played.name
    if "attention" in name:
        return "attention"
    if "rnn" in name or "lstm" in name or "gru" in name:
        return "recurrent"
    if "conv" not in name:
        return "matmul"
    if len(played.args) < 9:
        return "conv"
    source, weight, _, stride, _, dilation, transposed, _, groups = played.args[:9]
    plain = not transposed and set(stride) == {1} and set(dilation) == {1} and groups == 1
    if not plain or max(weight.shape[2:]) == 1:
        return "conv"
    return "winograd_small" if prod(source.shape[1:]) <= _SMALL else "winograd"


def _valid(played: Played) -> float:
    """Share of a convolution's taps that lie inside its input; half of causal attention."""
    if "attention" in played.name:
        flags = [a for a in (*played.args, *played.kwargs.values()) if isinstance(a, bool)]
        return _CAUSAL if any(flags) else 1.0
    if "conv" not in played.name or len(played.args) < 9:
        return 1.0
    source, weight, _, stride, padding, dilation, transposed = played.args[:7]
    share = 1.0
    for axis, kernel in enumerate(weight.shape[2:]):
        i = min(axis, len(stride) - 1)
        small, large = source.shape[2 + axis], played.made[0].shape[2 + axis]
        if transposed:
            small, large = large, small
        share *= _taps(small, large, kernel, stride[i], padding[i], dilation[i])
    return share


def _taps(
    size: int, positions: int, kernel: int, stride: int, padding: int, dilation: int
) -> float:
    inside = 0
    for tap in range(kernel):
        first, offset = -(-max(0, padding - tap * dilation) // stride), tap * dilation - padding
        last = min(positions - 1, (size - 1 - offset) // stride)
        inside += max(0, last - first + 1)
    return inside / max(1, positions * kernel)
