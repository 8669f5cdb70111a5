"""The processor's rates: `microbenchmarks`, and those of single library paths and memory levels.

    quick      gemm_fp32_n256_{t}t_flop_per_s  too short to be interrupted
               conv_fp32_{t}t_flop_per_s     oneDNN's direct convolution
               linear_fp32_{t}t_flop_per_s   oneDNN's packed matrix product (compiled models)
               linear_rows{M}_fp32_{t}t_flop_per_s   eager products of few rows
               gemm_fp32_onnxruntime_{t}t_flop_per_s  its own: 1.3 times MKL's on a Zen 3 core
               read_{t}t_bytes_per_s         GEMV with a matrix that no cache holds
               read_cached_{t}t_bytes_per_s  the same within the cache that cores share
    thorough   gemm_fp32_n{N}_{t}t_flop_per_s, depthwise_fp32_{t}t_flop_per_s,
               gemm_int8_onnxruntime_{t}t_op_per_s  what its int8 models spend their time in
               triad_{t}t_bytes_per_s (memory), triad_cached_1t_bytes_per_s (a core's own cache)

Bounds need the fastest path of all; estimates need each.  Inputs are ones: on a CPU the values do
not change the speed.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from autotune.records.hardware import Leaf
from autotune.worker.machine.microbenchmarks import Timer

_SIZES = (128, 1024, 2048)
_SHORT = 256
_LINEAR_N = 512
_ONNX_N = 512
ROWS = (1, 2, 4, 8, 16, 32)
_FEW, _LONG, _SQUARE = 2, (4096, 256), (512, 512)
"""[depth, width] of the fastest product: long up to ``_FEW`` rows, square beyond."""
_TIMES = 8
_LINEAR_ROWS = 256
_CONV = (1, 128, 30)
"""Batch, channels in and out, and height and width of a 3x3 convolution."""
_DEPTHWISE = (2, 192, 58)


def cpu(
    timer: Timer,
    buffer_bytes: int,
    *,
    thorough: bool = False,
    own_cache_bytes: int | None = None,
    last_cache_bytes: int | None = None,
) -> dict[str, Leaf]:
    """Every CPU leaf, the most important first, as a spent budget drops the last ones.

    The cache sizes are of a core's own cache, and of the last one before memory.
    """
    counts = timer.counts
    found = timer.anchors(buffer_bytes, counts) | timer.narrow((1,), {})
    found |= _quick(timer, counts, buffer_bytes, last_cache_bytes)
    if thorough:
        found |= _thorough(timer, counts, buffer_bytes, own_cache_bytes)
        found |= timer.narrow(counts[1:], found)
    return found | timer.remeasured(found)


def _quick(
    timer: Timer, counts: Sequence[int], buffer_bytes: int, cache_bytes: int | None
) -> dict[str, Leaf]:
    """The rates that bounds need.  ``cache_bytes`` is the size of the last cache before memory."""
    batch, channels, side = _CONV
    name = f"gemm_fp32_n{_SHORT}_{{}}t_flop_per_s"
    found = timer.scaled(name, "FLOP/s", _gemm(_SHORT), 2.0 * _SHORT**3, counts)
    found |= timer.scaled(
        "conv_fp32_{}t_flop_per_s",
        "FLOP/s",
        convolution(batch, channels, side),
        2.0 * batch * 9 * channels**2 * (side - 2) ** 2,
        counts,
    )
    packed = packed_linear(_LINEAR_ROWS, _LINEAR_N, _LINEAR_N)
    if packed is not None:
        flops = 2.0 * _LINEAR_ROWS * _LINEAR_N**2
        found |= timer.scaled("linear_fp32_{}t_flop_per_s", "FLOP/s", packed, flops, counts)
    found |= _thin(timer, counts)
    found |= _onnx(timer, "gemm_fp32_onnxruntime_{}t_flop_per_s", "FLOP/s", False, counts)
    found |= timer.scaled(
        "read_{}t_bytes_per_s", "B/s", _read(buffer_bytes), float(buffer_bytes), counts
    )
    if cache_bytes:
        size = cache_bytes // 4
        found |= timer.scaled(
            "read_cached_{}t_bytes_per_s", "B/s", _read(size), float(size), counts
        )
    return found


def _thorough(
    timer: Timer, counts: Sequence[int], buffer_bytes: int, cache_bytes: int | None
) -> dict[str, Leaf]:
    """The further rates that estimates use.  ``cache_bytes`` is the size of a core's own cache."""
    found: dict[str, Leaf] = {}
    for size in _SIZES:
        name = f"gemm_fp32_n{size}_{{}}t_flop_per_s"
        found |= timer.scaled(name, "FLOP/s", _gemm(size), 2.0 * size**3, counts)
    batch, channels, side = _DEPTHWISE
    found |= timer.scaled(
        "depthwise_fp32_{}t_flop_per_s",
        "FLOP/s",
        convolution(batch, channels, side, groups=channels),
        2.0 * batch * 9 * channels * (side - 2) ** 2,
        counts,
    )
    found |= _onnx(timer, "gemm_int8_onnxruntime_{}t_op_per_s", "op/s", True, counts)
    found |= timer.scaled(
        "triad_{}t_bytes_per_s", "B/s", _triad(buffer_bytes), 3.0 * buffer_bytes, counts
    )
    if cache_bytes:
        size = cache_bytes // 4  # three arrays and room for what else there is
        found |= timer.scaled(
            "triad_cached_{}t_bytes_per_s", "B/s", _triad(size), 3.0 * size, counts[:1]
        )
    return found


def convolution(batch: int, channels: int, side: int, groups: int = 1) -> Callable[[], object]:
    """A 3x3 convolution without padding, as eager PyTorch does it."""
    import torch

    source = torch.ones(batch, channels, side, side)
    weight = torch.ones(channels, channels // groups, 3, 3)

    def call() -> object:
        with torch.no_grad():
            return torch.conv2d(source, weight, groups=groups)

    return call


def packed_linear(rows: int, depth: int, width: int) -> Callable[[], object] | None:
    """A linear layer [rows, depth] -> [rows, width] with weights packed for oneDNN; None where
    PyTorch was built without it.
    """
    import torch

    backend: Any = torch.backends.mkldnn
    ops: Any = torch.ops.mkldnn
    if not backend.is_available() or not hasattr(ops, "_linear_pointwise"):
        return None
    source = torch.ones(rows, depth)
    weight = ops._reorder_linear_weight(torch.ones(width, depth), rows)

    def call() -> object:
        with torch.no_grad():
            return ops._linear_pointwise(source, weight, None, "none", [], "")

    return call


def _thin(timer: Timer, counts: Sequence[int]) -> dict[str, Leaf]:
    """Eager linear layers with few rows."""
    found: dict[str, Leaf] = {}
    for rows in ROWS:
        depth, width = _LONG if rows <= _FEW else _SQUARE
        name, work = f"linear_rows{rows}_fp32_{{}}t_flop_per_s", 2.0 * _TIMES * rows * depth * width
        call = _linear(rows, depth, width)
        found |= timer.scaled(name, "FLOP/s", call, work, counts, may_slow=True)
    return found


def _linear(rows: int, depth: int, width: int) -> Callable[[], object]:
    import torch

    source, weight, bias = torch.ones(rows, depth), torch.ones(width, depth), torch.ones(width)

    def call() -> None:
        with torch.no_grad():
            for _ in range(_TIMES):
                torch.nn.functional.linear(source, weight, bias)

    return call


def _gemm(size: int) -> Callable[[], object]:
    import torch

    left, right = torch.ones(2, size, size)
    out = torch.empty(size, size)
    return lambda: torch.mm(left, right, out=out)


def _onnx(timer: Timer, name: str, unit: str, int8: bool, counts: Sequence[int]) -> dict[str, Leaf]:
    """A product with packed weights; none where the packages are missing."""
    found: dict[str, Leaf] = {}
    floor: float | None = None
    for threads in counts:
        call = onnx_product(_ONNX_N, threads, int8=int8)
        if call is None:
            break
        found |= timer.leaf(name.format(threads), unit, call, 2.0 * _ONNX_N**3, floor)
        leaf = found.get(name.format(threads))
        floor = leaf.value if leaf is not None else floor
    return found


def onnx_product(size: int, threads: int, *, int8: bool) -> Callable[[], object] | None:
    """A square product in ONNX Runtime, of fp32 or of unsigned by signed int8; None where it cannot
    be built here.
    """
    if any(find_spec(name) is None for name in ("onnx", "onnxruntime")):
        return None
    import numpy as np
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    shape = [size, size]
    kinds: tuple[Any, ...] = (
        ("MatMulInteger", TensorProto.UINT8, TensorProto.INT32, np.uint8, np.int8)
        if int8
        else ("MatMul", TensorProto.FLOAT, TensorProto.FLOAT, np.float32, np.float32)
    )
    operator, given, made, left, right = kinds
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", given, shape)],
        [helper.make_tensor_value_info("y", made, shape)],
        [numpy_helper.from_array(np.ones(shape, right), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {"x": np.ones(shape, left)}
    return lambda: session.run(None, feed)


def _read(size: int) -> Callable[[], object]:
    import torch

    width = 4096
    matrix = torch.ones(max(1, size // (4 * width)), width)
    vector = torch.ones(width)
    return lambda: torch.mv(matrix, vector)


def _triad(size: int) -> Callable[[], object]:
    import torch

    left, right, out = (torch.ones(max(1, size // 4)) for _ in range(3))
    return lambda: torch.add(left, right, alpha=2.0, out=out)
