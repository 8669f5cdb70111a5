"""The processor's rates: `microbenchmarks`, and those of single library paths.

    thorough   gemm_fp32_n{N}_{t}t_flop_per_s            PyTorch's product of other sizes
               gemm_fp32_onnxruntime_{t}t_flop_per_s     ONNX Runtime's own
               gemm_int8_onnxruntime_{t}t_op_per_s       what its int8 models spend their time in

Inputs are ones: on a CPU the values do not change the speed.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from autotune.records.hardware import Leaf
from autotune.worker.machine.microbenchmarks import Timer

_SIZES = (128, 256, 1024, 2048)
_ONNX_N = 512


def cpu(timer: Timer, buffer_bytes: int, *, thorough: bool = False) -> dict[str, Leaf]:
    """Every CPU leaf, the most important first, as a spent budget drops the last ones."""
    counts = timer.counts
    found = timer.anchors(buffer_bytes, counts) | timer.narrow((1,), {})
    if thorough:
        for size in _SIZES:
            name = f"gemm_fp32_n{size}_{{}}t_flop_per_s"
            found |= timer.scaled(name, "FLOP/s", _gemm(size), 2.0 * size**3, counts)
        found |= _onnx(timer, "gemm_fp32_onnxruntime_{}t_flop_per_s", "FLOP/s", False, counts)
        found |= _onnx(timer, "gemm_int8_onnxruntime_{}t_op_per_s", "op/s", True, counts)
        found |= timer.narrow(counts[1:], found)
    return found | timer.remeasured(found)


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
