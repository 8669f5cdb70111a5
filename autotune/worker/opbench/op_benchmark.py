"""Time a model's operators one by one on this machine, with their own shapes.

    tape of the model --distinct operators--> rebuilt, with several copies of their weights
                                   |-> eager: called in turn, results kept for a while
                                   |-> packed (`onednn_ops`): what a compiled model calls
                                   `-> ONNX Runtime (`onnx_ops`): with what it fuses

A model's weights have been pushed out of a core's own caches by all the others' weights, so each
call uses the next of enough copies; its input was just written, so that is reused.  The heap keeps
its pages (`runtimes._heap`): page faults are no part of an operator.

What this does not know: which blocks of memory a whole model writes to, and frequency that falls
under long load (`hardware.op_latency` corrects both by one run of the whole model).
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import median, median_low
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from autotune.records.job import Replay, Replayed
from autotune.records.measurement import OpReplay, OpTime
from autotune.runtimes._heap import keep_freed_memory
from autotune.worker.channel import Channel
from autotune.worker.contract import task
from autotune.worker.host import linux
from autotune.worker.machine.noise import Sample, best, timed
from autotune.worker.opbench import onednn_ops, onnx_ops
from autotune.worker.survey import op_trace, work_bounds
from autotune.worker.survey.op_trace import Cell, Played, Spec, Tape

_CALLS = 7
_OP_S = 0.02
"""Time for one operator at one setting, at most (but two calls)."""
_ALIVE = 2
"""Results that live at once, beside the one that is written: a model's last activations."""
_MOST_COPIES, _MOST_BYTES = 32, 96 << 20
_PASSES = 3
_ROUNDS = 3
"""Times that a disturbed timing is done, at most."""
_LEAST_ONNX = 4
"""Copies in a session, where they are small: they share the overhead of a run."""
_SMALL = 1 << 20
_NORMAL = ("norm", "softmax", "mean", "sum", "max", "pool", "var")
_MOVE = ("clone", "copy", "cat", "stack", "index", "gather", "embedding", "pad", "_to_copy",
         "repeat", "slice_scatter", "fill", "zeros", "empty", "ones", "full", "arange")  # fmt: skip


Timing = Callable[[], Sample | None]


class Piece(NamedTuple):
    """A distinct operator: ``followers`` are fused into it by ONNX Runtime, ``inside`` says that
    it is itself fused into another; ``deep``: see `onnx_ops`.
    """

    one: Played
    followers: tuple[Played, ...]
    inside: bool
    fused: bool
    deep: bool


class Weights(NamedTuple):
    """Where a model's weights are read from: ``cold_bytes`` of copies push the next one out of a
    core's own cache; 0 where the weights stay in it, which holds ``room_bytes`` of them.
    """

    cold_bytes: int
    room_bytes: int


def run(job: Replay, root: Path, channel: Channel) -> Replayed:
    """Replay ``job.task``'s fresh model."""
    loaded = task.load(job.task)
    loaded.read_inspected(root)
    model = loaded.make_model().eval()

    def inputs(size: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rows = loaded.rows("validation")
        samples = [loaded.sample("validation", i % rows) for i in range(size)]
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
    """Every setting that fits until ``until_s``; threads are restored.  Where there is time for it
    all is done once more, and once again: other work of some seconds slows what it meets of a pass.
    """
    began = time.monotonic()
    found: list[tuple[OpReplay, ...]] = []
    while len(found) < _PASSES:
        one = tuple(once(model, inputs, batch_sizes, threads, onnx=onnx, until_s=until_s))
        if found and len(one) < len(found[0]):
            break  # cut short
        found.append(one)
        now = time.monotonic()
        if now + (now - began) / len(found) > until_s:
            break
    return combined(found)


def once(
    model: nn.Module,
    inputs: Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]],
    batch_sizes: tuple[int, ...],
    threads: tuple[int, ...],
    *,
    onnx: bool,
    until_s: float = math.inf,
) -> Iterator[OpReplay]:
    """One pass over every setting, but for those that would begin after ``until_s``."""
    before = torch.get_num_threads()
    keep_freed_memory()
    try:
        for size in batch_sizes:
            args, kwargs = inputs(size)
            found = op_trace.record(model, args, kwargs)
            for count in threads:
                torch.set_num_threads(count)
                first = size == batch_sizes[0] and count == threads[0]
                whole = _timed(partial(model, *args, **kwargs), 0.3) if first else None
                ops = _ops(found, _weights(model, found, count), count, onnx=onnx)
                yield OpReplay(batch_size=size, threads=count, ops=ops, whole_s=whole)
                if time.monotonic() > until_s:
                    return
    finally:
        torch.set_num_threads(before)


def _timed(call: Callable[[], object], seconds: float) -> float:
    """The median of undisturbed calls for some time."""
    spent: list[Sample] = []
    with torch.inference_mode():
        for _ in range(3):
            call()
        while sum(s.seconds for s in spent) < seconds and len(spent) < 200:
            spent.append(timed(call))
    return median(best(spent))


def _ops(found: Tape, weights: Weights, threads: int, *, onnx: bool) -> tuple[OpTime, ...]:
    calls: dict[Any, int] = {}
    pieces: dict[Any, Piece] = {}
    for piece in _pieces(found):
        key = (_identity(piece.one), tuple(map(_identity, piece.followers)), piece.inside)
        calls[key] = calls.get(key, 0) + 1
        pieces.setdefault(key, piece)
    cells = dict(enumerate(found.cells))
    eager = _rounds({k: partial(_eager, p, weights.cold_bytes) for k, p in pieces.items()})
    packs = _rounds({k: partial(_packed, p, weights.cold_bytes) for k, p in pieces.items()})
    layers = _rounds({k: partial(_cell, cell) for k, cell in cells.items()})
    own: dict[Any, float] = {}
    own_layers: dict[Any, float] = {}
    if onnx:
        # after all of PyTorch's: two pools of threads that wait by spinning slow each other down
        own = _rounds({k: partial(_onnx, p, weights, threads) for k, p in pieces.items()})
        own_layers = _rounds({k: partial(_onnx_cell, c, threads) for k, c in cells.items()})
    ops = [
        OpTime(
            kind=kind_of(piece.one),
            calls=calls[key],
            eager_s=eager[key],
            packed_s=packs.get(key),
            onnx_s=own.get(key),
            bytes_moved=sum(spec.bytes for spec in (*piece.one.operands, *piece.one.made)),
            fused=piece.fused,
        )
        for key, piece in pieces.items()
        if key in eager
    ]
    for key, seconds in layers.items():
        more = OpTime(kind="recurrent", calls=1, eager_s=seconds, onnx_s=own_layers.get(key))
        ops.append(more)
    return tuple(ops)


def _rounds(timings: Mapping[Any, Timing]) -> dict[Any, float]:
    """Seconds of each; what other work disturbed is timed again after all others, some times."""
    out: dict[Any, float] = {}
    left = dict(timings)
    for _ in range(_ROUNDS):
        disturbed = {}
        for key, timing in left.items():
            taken = timing()
            if taken is None:
                continue
            out[key] = min(out.get(key, math.inf), taken.seconds)
            if not taken.clean:
                disturbed[key] = timing
        left = disturbed
    return out


def _pieces(found: Tape) -> list[Piece]:
    """Every operator with what follows it, but the steps of recurrent layers."""
    made_by: dict[int, tuple[str, Spec]] = {}
    stepped = {i for cell in found.cells for i in range(cell.start, cell.stop)}
    out: list[Piece] = []
    head, last = -1, -1
    for i, one in enumerate(found.played):
        kind = kind_of(one)
        sources = [made_by[s.serial] for s in one.operands if s.serial in made_by]
        fused = _fusable(one, kind, [kind for kind, _ in sources])
        deep = any(len(spec.shape) > 2 for _, spec in sources)
        joins = head >= 0 and onnx_ops.follows(one) and _takes(one, last)
        if joins:
            led = out[head]
            out[head] = led._replace(followers=(*led.followers, one))
        if i not in stepped:
            out.append(Piece(one, (), joins, fused, deep))
        if i in stepped:
            head = -1
        elif not joins and one.name != "empty":  # a batch norm in inference makes empty tensors
            head = len(out) - 1 if kind in ("matmul", "conv", "depthwise") else -1
        if one.name != "empty":
            last = next((s.serial for s in op_trace.written(one)), -1)
        for spec in op_trace.written(one):
            made_by[spec.serial] = (kind, spec)
    return out


def _takes(one: Played, serial: int) -> bool:
    """Whether a result goes into it."""
    return any(s.serial == serial for s in one.operands if not s.parameter)


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


def _eager(piece: Piece, cold_bytes: int) -> Sample | None:
    try:
        return _in_turn([_call(piece.one) for _ in range(_copies(piece.one, cold_bytes))])
    except (RuntimeError, TypeError, IndexError):
        return None  # what cannot be done again with made-up values


def _packed(piece: Piece, cold_bytes: int) -> Sample | None:
    if kind_of(piece.one) not in ("matmul", "conv", "depthwise"):
        return None
    made = [onednn_ops.call(piece.one) for _ in range(_copies(piece.one, cold_bytes))]
    ready = [call for call in made if call is not None]
    return _in_turn(ready) if ready else None


def _onnx(piece: Piece, weights: Weights, threads: int) -> Sample | None:
    if piece.inside:
        return Sample(0.0, True)
    chain = (piece.one, *piece.followers)
    moved = sum(s.bytes for one in chain for s in (*one.operands, *one.made))
    copies = max(_copies(piece.one, weights.cold_bytes), _LEAST_ONNX if moved < _SMALL else 2)
    own = sum(s.bytes for s in piece.one.operands if s.parameter)
    if own and not weights.cold_bytes:  # as a model's do, they stay in a core's own cache
        copies = max(1, min(copies, weights.room_bytes // own))
    call = onnx_ops.chain(chain, piece.deep, copies, threads)
    if call is None:
        return None
    taken = _in_turn([call])
    return Sample(max(0.0, taken.seconds - onnx_ops.overhead_s(threads)) / copies, taken.clean)


def _cell(cell: Cell) -> Sample | None:
    """A recurrent layer whole: its steps are called without Python between them."""
    build = getattr(nn, cell.kind.split("_")[0])
    layer = build(cell.shape[-1], cell.hidden, cell.layers, batch_first=cell.batch_first).eval()
    return _in_turn([partial(layer, torch.rand(cell.shape))])


def _onnx_cell(cell: Cell, threads: int) -> Sample | None:
    """The same as ONNX Runtime has it."""
    call = onnx_ops.cell(cell, 1, threads) if len(cell.shape) == 3 else None
    if call is None:
        return None
    taken = _in_turn([call])
    return Sample(max(0.0, taken.seconds - onnx_ops.overhead_s(threads)), taken.clean)


def kind_of(one: Played) -> str:
    """See `OpTime`."""
    name = one.name
    if one.flops:
        kind = work_bounds.kind_of(one)
        if kind.startswith(("conv", "winograd")):
            return "depthwise" if len(one.args) > 8 and one.args[8] > 1 else "conv"
        return kind
    if any(part in name for part in _MOVE):
        return "move"
    return "normal" if any(part in name for part in _NORMAL) else "pointwise"


def _call(one: Played) -> Callable[[], object]:
    def build(leaf: Any) -> Any:
        return _tensor(leaf) if isinstance(leaf, Spec) else leaf

    is_spec = lambda leaf: isinstance(leaf, Spec)  # noqa: E731
    args, kwargs = tree_map(build, (one.args, dict(one.kwargs)), is_leaf=is_spec)
    return lambda: one.op(*args, **kwargs)


def _tensor(spec: Spec) -> Tensor:
    if spec.dtype.is_floating_point:
        # the middle of a positive range: a variance, a probability and a logit alike
        return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype).uniform_(0.1, 1.0)
    tensor = torch.zeros(spec.shape, dtype=spec.dtype)
    if spec.most and spec.dtype != torch.bool:
        tensor = torch.randint(0, spec.most + 1, spec.shape, dtype=spec.dtype)
    return tensor


def _in_turn(calls: Sequence[Callable[[], object]]) -> Sample:
    """The median of some calls, each by the next copy; the last results stay alive.  Clean where
    most calls were.
    """
    spent: list[Sample] = []
    alive: deque[object] = deque(maxlen=_ALIVE)
    with torch.inference_mode():
        for call in (*calls, calls[0]):
            alive.append(call())
        while not _enough(spent):
            call = calls[(len(spent) + 1) % len(calls)]
            spent.append(timed(partial(_kept, alive, call)))
    return Sample(median(best(spent)), sum(s.clean for s in spent) > len(spent) / 2)


def _kept(alive: deque[object], call: Callable[[], object]) -> None:
    alive.append(call())


def _enough(spent: list[Sample]) -> bool:
    clean, total = sum(s.clean for s in spent), sum(s.seconds for s in spent)
    if clean >= _CALLS or len(spent) >= 3 * _CALLS:
        return True
    return (clean >= 2 and total > _OP_S) or total > 4 * _OP_S


def _copies(one: Played, cold_bytes: int) -> int:
    """How many copies of an operator's weights together leave no room for the next one's."""
    own = sum(s.bytes for s in one.operands if s.parameter)
    every = sum(s.bytes for s in (*one.operands, *one.made))
    if not own or not one.flops or not cold_bytes:
        return 1
    return max(1, min(math.ceil(cold_bytes / own), _MOST_COPIES, _MOST_BYTES // every))


def _weights(model: nn.Module, found: Tape, threads: int) -> Weights:
    """Copies as many as the model's weights, and no more than push out all of a cache."""
    caches = linux.caches()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    own, shared = caches.l2_bytes or 1 << 20, caches.l3_bytes or 16 << 20
    read = {s.serial: s.bytes for p in found.played for s in p.operands if s.parameter and p.flops}
    size = min(size, sum(read.values()))
    if size < own // 2:
        return Weights(0, own // 2)
    return Weights(min(size, 2 * shared if size > shared else 2 * own * threads), own // 2)


def combined(passes: Sequence[Sequence[OpReplay]]) -> tuple[OpReplay, ...]:
    """Several passes over a model's operators as one: the (lower) median of each operator's timings
    at each setting.  All passes have the same settings in the same order.
    """
    return tuple(_combined(same) for same in zip(*passes, strict=True))


def _combined(same: Sequence[OpReplay]) -> OpReplay:
    """One setting of several passes."""

    def median_of(seconds: Iterable[float | None]) -> float | None:
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
            packed_s=median_of(op.packed_s for op in found),
            onnx_s=median_of(op.onnx_s for op in found),
        )
        for found in zip(*(r.ops for r in alike), strict=True)
    )
    whole_s = median_of(r.whole_s for r in alike)
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
