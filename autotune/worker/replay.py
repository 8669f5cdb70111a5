"""Time a model's operators one by one, with their own shapes, as this machine does them.

    tape of the model --distinct operators--> built anew --each timed--> OpTime
                                              `- cold: between two calls the caches are filled
                                                 with as much else as the model's own weights

An input was just written by the operator before it, so it is warm; weights have been pushed out
by all the others' weights, as far as these are too many for a cache.  Heavy operators are also
timed by ONNX Runtime (`onnxops`) and with packed weights.

What this does not know: how a runtime lays out memory between operators, and frequency that
falls under long load: one run of the whole model tells (control.estimate).
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from autotune.records.job import Replay, Replayed
from autotune.records.measurement import OpReplay, OpTime
from autotune.worker import contract, onnxops, paths, system, tape
from autotune.worker.channel import Channel
from autotune.worker.quiet import Sample, best, timed
from autotune.worker.tape import Played, Spec

_CALLS = 7
_OP_S = 0.02
"""Time for one operator at one setting, at most (but two calls)."""
_NORMAL = ("norm", "softmax", "mean", "sum", "max", "pool", "var")
_MOVE = ("clone", "copy", "cat", "stack", "index", "gather", "embedding", "pad", "_to_copy",
         "repeat", "slice_scatter", "fill", "zeros", "empty", "ones", "full", "arange")  # fmt: skip
_HEAVY = ("matmul", "conv", "depthwise", "attention", "recurrent")


class Call(NamedTuple):
    """One operator with operands of its own; ``warm`` is the operand that was just written."""

    run: Callable[[], object]
    warm: Tensor | None


def run(job: Replay, root: Path, channel: Channel) -> Replayed:
    """Replay ``job.task``'s fresh model."""
    loaded = contract.load(job.task)
    loaded.remember(root)
    model = loaded.make_model().eval()

    def inputs(size: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rows = loaded.rows("select")
        samples = [loaded.sample("select", i % rows) for i in range(size)]
        return loaded.model_inputs(loaded.collate(samples)[0])

    return Replayed(
        replays=replay(
            model,
            inputs,
            job.batch_sizes,
            job.threads,
            onnx=job.onnx,
            until_s=time.monotonic() + job.budget_s,
        )
    )


def replay(
    model: nn.Module,
    inputs: Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]],
    batch_sizes: tuple[int, ...],
    threads: tuple[int, ...],
    *,
    onnx: bool,
    until_s: float,
) -> tuple[OpReplay, ...]:
    """Every setting that fits until ``until_s``; threads are restored."""
    before = torch.get_num_threads()
    out: list[OpReplay] = []
    try:
        for size in batch_sizes:
            args, kwargs = inputs(size)
            played = tape.record(model, args, kwargs).played
            for count in threads:
                if time.monotonic() > until_s and out:
                    return tuple(out)
                torch.set_num_threads(count)
                whole = None if out else _timed(partial(model, *args, **kwargs), 0.3)
                ops = _ops(played, _pressure(model, played), count if onnx else None)
                out.append(OpReplay(batch_size=size, threads=count, ops=ops, whole_s=whole))
    finally:
        torch.set_num_threads(before)
    return tuple(out)


def _timed(call: Callable[[], object], seconds: float) -> float:
    """The median of undisturbed calls for some time."""
    spent: list[Sample] = []
    with torch.inference_mode():
        for _ in range(3):
            call()
        while sum(s.seconds for s in spent) < seconds and len(spent) < 200:
            spent.append(timed(call))
    return median(best(spent))


def _ops(
    played: tuple[Played, ...], pressure: Callable[[], object] | None, onnx_threads: int | None
) -> tuple[OpTime, ...]:
    calls: dict[Any, int] = {}
    first: dict[Any, tuple[Played, bool]] = {}
    made_by: dict[int, str] = {}
    for one in played:
        key = _identity(one)
        calls[key] = calls.get(key, 0) + 1
        kind = kind_of(one)
        before = [made_by.get(spec.serial, "") for spec in one.operands if not spec.parameter]
        fused = _fusable(one, kind, before)
        first.setdefault(key, (one, fused))
        for spec in one.made:
            made_by[spec.serial] = kind
    timed_ops = []
    for key, (one, fused) in first.items():
        found = _op(one, calls[key], fused, pressure)
        if found is not None:
            timed_ops.append((one, found))
    if onnx_threads is None:
        return tuple(found for _, found in timed_ops)
    # after all of PyTorch's: two pools of threads that wait by spinning slow each other down
    return tuple(_with_onnx(one, found, pressure, onnx_threads) for one, found in timed_ops)


def _fusable(one: Played, kind: str, before: list[str]) -> bool:
    """Pointwise work, and a batch norm after a convolution (folded into its weights)."""
    if "batch_norm" in one.name:
        return any(k in ("conv", "depthwise") for k in before)
    return kind == "pointwise"


def _identity(one: Played) -> Any:
    def plain(leaf: Any) -> Any:
        if isinstance(leaf, Spec):
            return (leaf.shape, leaf.stride, leaf.dtype, leaf.parameter)
        return repr(leaf)

    leaves = tree_leaves((one.args, dict(one.kwargs)), is_leaf=lambda x: isinstance(x, Spec))
    return (str(one.op), tuple(plain(leaf) for leaf in leaves))


def _op(
    one: Played, calls: int, fused: bool, pressure: Callable[[], object] | None
) -> OpTime | None:
    kind = kind_of(one)
    try:
        eager = _cold(_call(one), pressure)
    except (RuntimeError, TypeError, IndexError):
        return None  # what cannot be done again with made-up values
    return OpTime(
        kind=kind,
        calls=calls,
        eager_s=eager,
        packed_s=_packed(one, pressure) if kind == "matmul" else None,
        bytes_moved=sum(spec.bytes for spec in (*one.operands, *one.made)),
        fused=fused,
    )


def _with_onnx(
    one: Played, found: OpTime, pressure: Callable[[], object] | None, threads: int
) -> OpTime:
    single = onnxops.single(one, threads) if found.kind in _HEAVY else None
    if single is None:
        return found
    # its threads spin between the operators of a whole model, but not through other work
    between = pressure if threads == 1 else None
    seconds = _cold(Call(single, None), between) - onnxops.overhead_s(threads)
    return msgspec.structs.replace(found, onnx_s=max(0.0, seconds))


def kind_of(one: Played) -> str:
    """See `OpTime`."""
    name = one.name
    if one.flops:
        kind = tape.kind_of(one)
        if kind.startswith(("conv", "winograd")):
            return "depthwise" if len(one.args) > 8 and one.args[8] > 1 else "conv"
        return kind
    if any(part in name for part in _MOVE):
        return "move"
    return "normal" if any(part in name for part in _NORMAL) else "pointwise"


def _call(one: Played) -> Call:
    made: list[Tensor] = []

    def build(leaf: Any) -> Any:
        if not isinstance(leaf, Spec):
            return leaf
        tensor = _tensor(leaf)
        if not leaf.parameter:
            made.append(tensor)
        return tensor

    is_spec = lambda leaf: isinstance(leaf, Spec)  # noqa: E731
    args, kwargs = tree_map(build, (one.args, dict(one.kwargs)), is_leaf=is_spec)
    warm = max(made, key=Tensor.numel, default=None)
    return Call(lambda: one.op(*args, **kwargs), warm)


def _tensor(spec: Spec) -> Tensor:
    if spec.dtype.is_floating_point:
        # the middle of a positive range: a variance, a probability and a logit alike
        return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype).uniform_(0.1, 1.0)
    tensor = torch.zeros(spec.shape, dtype=spec.dtype)
    if spec.most and spec.dtype != torch.bool:
        tensor = torch.randint(0, spec.most + 1, spec.shape, dtype=spec.dtype)
    return tensor


def _packed(one: Played, pressure: Callable[[], object] | None) -> float | None:
    """A matrix product with a constant right side, as a compiled model does it."""
    operands = one.operands
    if one.name not in ("addmm", "mm") or not operands[-1].parameter:
        return None
    rows, depth = operands[-2].shape
    call = paths.packed_linear(rows, depth, operands[-1].shape[1])
    return _cold(Call(call, None), pressure) if call is not None else None


def _cold(call: Call, pressure: Callable[[], object] | None) -> float:
    """The median of a few calls, each with caches as the model leaves them."""
    spent: list[Sample] = []
    with torch.inference_mode():
        call.run()
        call.run()
        while not _enough(spent):
            if pressure is not None:
                pressure()
                if call.warm is not None and call.warm.is_floating_point():
                    call.warm.sum()
            spent.append(timed(call.run))
    return median(best(spent))


def _enough(spent: list[Sample]) -> bool:
    clean, total = sum(s.clean for s in spent), sum(s.seconds for s in spent)
    if clean >= _CALLS or len(spent) >= 3 * _CALLS:
        return True
    return (clean >= 2 and total > _OP_S) or total > 4 * _OP_S


def _pressure(model: nn.Module, played: tuple[Played, ...]) -> Callable[[], object] | None:
    """Fills caches with as much as a model's weights do; None where they stay in a core's own."""
    caches = system.caches()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    own, shared = caches.l2_bytes or 1 << 20, caches.l3_bytes or 16 << 20
    read = {s.serial: s.bytes for one in played for s in one.operands if s.parameter and one.flops}
    size = min(size, sum(read.values()))
    if size < own // 2:
        return None
    wanted = 2 * shared if size > shared else min(4 * own, 2 * size)
    other = torch.ones(wanted // 4)
    return other.sum
