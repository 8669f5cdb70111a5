"""What the int8 steps share: their parameters, and the preparation of an ONNX graph."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from autotune.compress import CompressTools, _paths
from autotune.compress._int8 import kept
from autotune.errors import JobError
from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.plan import Value
from autotune.records.task import Dim

_MATRIX = ("MultiheadAttention", "Conv1D")  # Conv1D: transformers' name for a Linear
_LAYERS = ("Linear", "Conv1D", "Conv1d", "Conv2d", "Conv3d", "MultiheadAttention")
_PER_TENSOR = "per_tensor"


def reduce_range(context: Context) -> Dim:
    """7-bit weights where an x86 CPU has no VNNI.

    Without VNNI the u8s8 product saturates in 16 bits, which silently costs accuracy; 7-bit
    weights cut the error by a factor of 3 to 14.
    """
    cpu = context.profile.cpu
    x86 = (cpu.architecture or "").lower() in ("x86_64", "amd64", "i386", "i686")
    saturates = x86 and not any("vnni" in name.lower() for name in cpu.isa)
    return Dim(name="reduce_range", kind="choice", choices=(saturates,))


def per_tensor(context: Context) -> tuple[Dim, ...]:
    """Whether a weight has one scale instead of one per output channel.

    Per-tensor scales are less accurate and faster at small batches: 0.70 of the time for an MLP at
    batch 1, 0.94 for a small BERT (AVX-512 with VNNI).  Convolutions gain only 2 % and lose more
    accuracy, so a model with convolutions has per-channel scales.
    """
    convolves = any("Conv" in name and name not in _MATRIX for name in context.traits.module_types)
    return () if convolves else (Dim(name=_PER_TENSOR, kind="choice", choices=(False, True)),)


def slower(context: Context) -> str | None:
    """Why ONNX Runtime's int8 is not used here: its product was measured to be no faster."""
    return _paths.slower(context.profile, _paths.INT8_ONNXRUNTIME, "ONNX Runtime's int8 product")


def linear(context: Context) -> bool:
    """Whether the model has a layer that is a matrix product."""
    return any(name.endswith("Linear") or name in _MATRIX for name in context.traits.module_types)


def layers(context: Context) -> int:
    """About how many layers of the model int8 reaches."""
    types = context.traits.module_types
    return sum(count for name, count in types.items() if name.endswith(_LAYERS))


def run(
    form: Form,
    tools: CompressTools,
    params: dict[str, Value],
    quantize: Callable[[str, str, dict[str, object]], None],
) -> Form:
    """Prepare the graph (shapes inferred, batch norm folded), quantize it, check it.

    ``quantize(source, target, shared)`` gets the options that every quantizer has: the step's
    ``reduce_range`` and ``per_tensor``, and the nodes that ``keep_fp32`` leaves in fp32.

    Raises:
        JobError: unsupported, with the quantizer's last line.
    """
    from autotune.forms.exported import last_line, quiet

    target = tools.workdir / "model.onnx"
    try:
        with quiet():
            prepared = _prepare(form.folder / "model.onnx", tools.workdir / "prepared.onnx")
            original = str(form.folder / "model.onnx")
            shared = {
                "per_channel": rounding(params).per_channel,
                "reduce_range": bool(params.get("reduce_range", True)),
                "nodes_to_exclude": kept.nodes(
                    original, str(prepared), str(params.get("keep_fp32", ""))
                ),
            }
            quantize(str(prepared), str(target), shared)
    except JobError:
        raise
    except Exception as error:
        raise JobError("unsupported", f"int8 quantization failed: {last_line(error)}") from error
    (tools.workdir / "prepared.onnx").unlink(missing_ok=True)
    return Form("onnx", tools.workdir, form.about)


def _prepare(source: Path, target: Path) -> Path:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
    except Exception:  # optional: the quantizer accepts the graph without it
        return target if _untie(source, target) else source
    _untie(target, target)
    return target


HEAVY = ("Conv", "MatMul", "Gemm")
"""Kinds of nodes that multiply by a weight."""
_LEVELS = {True: 64, False: 127}
"""Levels of a weight on either side of 0, by ``reduce_range``, as in ONNX Runtime."""


class Rounding(NamedTuple):
    """How weights are rounded: ``levels`` on either side of 0, a scale per channel or tensor."""

    levels: int = _LEVELS[False]
    per_channel: bool = True


def rounding(params: Mapping[str, Value]) -> Rounding:
    """The rounding that a step's parameters ask for."""
    return Rounding(_LEVELS[bool(params.get("reduce_range", True))], not params.get(_PER_TENSOR))


def _untie(source: Path, target: Path) -> bool:
    """Give products that read one weight in two ways (tied: ``x W`` and ``x W^T``) a copy each:
    their scales lie along different axes.  False, and nothing written, where none do.
    """
    import onnx

    model = onnx.load(str(source))
    held = {value.name: value for value in model.graph.initializer}
    read: dict[str, list[tuple[int, Any]]] = {}
    for node in model.graph.node:
        if node.op_type in HEAVY and node.input[1] in held:
            dims = len(held[node.input[1]].dims)
            read.setdefault(node.input[1], []).append((channel(node, dims), node))
    tied = [(name, rest) for name, (first, *rest) in _by_axis(read).items() if rest]
    for name, others in tied:
        for number, (_, nodes) in enumerate(others):
            copied = onnx.TensorProto.FromString(held[name].SerializeToString())
            copied.name = f"{name}_untied_{number}"
            model.graph.initializer.append(copied)
            for node in nodes:
                node.input[1] = copied.name
    if tied:
        onnx.save(model, str(target))
    return bool(tied)


def _by_axis(read: dict[str, list[tuple[int, Any]]]) -> dict[str, list[tuple[int, list[Any]]]]:
    """The nodes that read each weight, by the axis of their output channels."""
    found: dict[str, list[tuple[int, list[Any]]]] = {}
    for name, uses in read.items():
        axes = dict.fromkeys(axis for axis, _ in uses)
        found[name] = [(axis, [n for a, n in uses if a == axis]) for axis in axes]
    return found


def channel(node: Any, dims: int) -> int:
    """The axis of a weight that counts output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return dims - 1


def weighted(path: str, kinds: tuple[str, ...]) -> list[str]:
    """Names of the graph's nodes of these kinds that have constant weights, in its order."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    held = {value.name for value in graph.initializer}
    return [
        node.name for node in graph.node if node.op_type in kinds and held & set(node.input[:2])
    ]
