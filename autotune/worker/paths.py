"""The other ways through this machine: each library path and memory level at its own rate.

    quick      gemm_fp32_n256_{t}t_flop_per_s  too short for other work to come between
               conv_fp32_{t}t_flop_per_s     oneDNN's direct convolution
               linear_fp32_{t}t_flop_per_s   oneDNN's packed matrix product (compiled models)
               read_{t}t_bytes_per_s         cold GEMV: a matrix that no cache holds, once through
               read_cached_{t}t_bytes_per_s  the same within the cache that cores share
    thorough   gemm_fp32_n{N}_{t}t_flop_per_s, depthwise_fp32_{t}t_flop_per_s,
               gemm_int8_onnxruntime_{t}t_op_per_s  what its int8 models spend their time in
               triad_{t}t_bytes_per_s (memory), triad_cached_1t_bytes_per_s (a core's own cache)

Bounds need the fastest path of all; estimates need each.  Inputs are small integers: exact,
and as fast as any other.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from autotune.records.hardware import Leaf


class Bench(Protocol):
    """What times: see `probes.Bench`."""

    def scaled(
        self, name: str, unit: str, call: Callable[[], object], work: float, counts: Sequence[int]
    ) -> dict[str, Leaf]:
        """The same call at several thread counts, ``{}`` in ``name``."""
        ...

    def leaf(
        self, name: str, unit: str, call: Callable[[], object], work: float,
        floor: float | None = None,
    ) -> dict[str, Leaf]:  # fmt: skip
        """One call as it is; not recorded where it lies far under ``floor``."""
        ...


_SIZES = (128, 1024, 2048)
_SHORT = 256
_LINEAR_N = 512
_INT8_N = 512
_LINEAR_ROWS = 256
_CONV = (1, 128, 30)
"""Batch, channels in and out, and height and width of a 3x3 convolution."""
_DEPTHWISE = (2, 192, 58)


def quick(
    bench: Bench, counts: Sequence[int], buffer_bytes: int, cache_bytes: int | None
) -> dict[str, Leaf]:
    """What bounds need.  ``cache_bytes`` is the size of the last cache before memory."""
    batch, channels, side = _CONV
    name = f"gemm_fp32_n{_SHORT}_{{}}t_flop_per_s"
    found = bench.scaled(name, "FLOP/s", _gemm(_SHORT), 2.0 * _SHORT**3, counts)
    found |= bench.scaled(
        "conv_fp32_{}t_flop_per_s",
        "FLOP/s",
        convolution(batch, channels, side),
        2.0 * batch * 9 * channels**2 * (side - 2) ** 2,
        counts,
    )
    packed = packed_linear(_LINEAR_ROWS, _LINEAR_N, _LINEAR_N)
    if packed is not None:
        flops = 2.0 * _LINEAR_ROWS * _LINEAR_N**2
        found |= bench.scaled("linear_fp32_{}t_flop_per_s", "FLOP/s", packed, flops, counts)
    found |= bench.scaled(
        "read_{}t_bytes_per_s", "B/s", _read(buffer_bytes), float(buffer_bytes), counts
    )
    if cache_bytes:
        size = cache_bytes // 4
        found |= bench.scaled(
            "read_cached_{}t_bytes_per_s", "B/s", _read(size), float(size), counts
        )
    return found


def thorough(
    bench: Bench, counts: Sequence[int], buffer_bytes: int, cache_bytes: int | None
) -> dict[str, Leaf]:
    """What estimates gain from."""
    found: dict[str, Leaf] = {}
    for size in _SIZES:
        name = f"gemm_fp32_n{size}_{{}}t_flop_per_s"
        found |= bench.scaled(name, "FLOP/s", _gemm(size), 2.0 * size**3, counts)
    batch, channels, side = _DEPTHWISE
    found |= bench.scaled(
        "depthwise_fp32_{}t_flop_per_s",
        "FLOP/s",
        convolution(batch, channels, side, groups=channels),
        2.0 * batch * 9 * channels * (side - 2) ** 2,
        counts,
    )
    found |= _int8_onnx(bench, counts)
    found |= bench.scaled(
        "triad_{}t_bytes_per_s", "B/s", _triad(buffer_bytes), 3.0 * buffer_bytes, counts
    )
    if cache_bytes:
        size = cache_bytes // 4  # three arrays and room for what else there is
        found |= bench.scaled(
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


def _gemm(size: int) -> Callable[[], object]:
    import torch

    left, right = torch.ones(2, size, size)
    out = torch.empty(size, size)
    return lambda: torch.mm(left, right, out=out)


def _int8_onnx(bench: Bench, counts: Sequence[int]) -> dict[str, Leaf]:
    """Unsigned times signed int8, with weights packed; none where the packages are missing."""
    found: dict[str, Leaf] = {}
    floor: float | None = None
    for threads in counts:
        call = int8_product(_INT8_N, threads)
        if call is None:
            break
        name = f"gemm_int8_onnxruntime_{threads}t_op_per_s"
        found |= bench.leaf(name, "op/s", call, 2.0 * _INT8_N**3, floor)
        leaf = found.get(name)
        floor = leaf.value if leaf is not None else floor
    return found


def int8_product(size: int, threads: int) -> Callable[[], object] | None:
    """A square int8 product in ONNX Runtime; None where it cannot be built here."""
    if any(find_spec(name) is None for name in ("onnx", "onnxruntime")):
        return None
    import numpy as np
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    shape = [size, size]
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, shape)],
        [numpy_helper.from_array(np.ones(shape, np.int8), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {"x": np.ones(shape, np.uint8)}
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
