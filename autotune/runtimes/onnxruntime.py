"""Runtime ``onnxruntime``: ONNX Runtime on the CPU, with no PyTorch in the process."""

from pathlib import Path

from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.task import Dim
from autotune.runtimes import RuntimeSettings, _artifact

DEVICE = "cpu"
TAKES = "onnx"
TIME_LEFT = 0.65  # fp32 beside eager PyTorch: 0.56 to 0.76 on four models (x86-64, 2 cores)
_NEEDS = ("onnx", "onnxruntime", "onnxscript")

SESSION = """\
    session = ort.InferenceSession(
        str(HERE / "model.onnx"),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=LEFT_OUT,
    )
"""
_HIDES = ("MatMulAddFusion",)
"""Fusions that keep a product from running in int8: with static shapes its weights would be
dequantized in each call (20 ms instead of 3 for a small BERT).
"""
LOADER = (
    '''"""Loads this model by itself: ``predict = load()``, then ``y = predict(x)``.

NumPy arrays in (positional, or by name), NumPy out.  Needs onnxruntime; not autotune, not PyTorch.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort

HERE = Path(__file__).resolve().parent
FREE = NAME_OF_BATCH  # name of the dynamic batch dimension; None: it is not overridden
LEFT_OUT = NAMES_OF_FUSIONS


def load():
    """predict(*arrays, **arrays) -> array, or tuple or dict of arrays."""
    info = json.loads((HERE / "artifact.json").read_text())
    names, kind, keys = info["input_names"], info["output_kind"], info["output_names"]
    size = info["batch_size"] if FREE else None
    session = _session(info, size)
    used = {i.name for i in session.get_inputs()}  # without inputs that the model ignores
    results = [o.name for o in session.get_outputs()]
    run, others = _run(session), []

    def other():
        """A session for other batch sizes than the plan's, made when first needed."""
        if not others:
            others.append(_run(_session(info, None)))
        return others[0]

    def predict(*arrays, **named):
        named.update(zip(names, arrays))
        feed = {n: np.ascontiguousarray(a) for n, a in named.items() if n in used}
        fits = not size or all(len(a) == size for a in feed.values())
        outputs = (run if fits else other())(results, feed, None)
        if kind == "dict":
            return dict(zip(keys, outputs))
        return outputs[0] if kind == "tensor" else tuple(outputs)

    name = names[0]

    def single(*arrays, **named):
        (array,) = arrays or (named[name],)
        fits = not size or len(array) == size
        feed = {name: np.ascontiguousarray(array)}
        return (run if fits else other())(results, feed, None)[0]

    if kind == "tensor" and used == set(names) == {name}:
        predict = single  # the same with less overhead in Python
    return PREDICT


def _session(info, size):
    """A session for exactly ``size`` rows, with static shapes, or (None) for any."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = info["threads"]
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    if size:
        options.add_free_dimension_override_by_name(FREE, size)
'''
    + SESSION
    + '''\
    return session


def _run(session):
    """Its run() without the checks in Python, which take as long as a small model."""
    return getattr(session, "_sess", session).run
'''
)


def unavailable(context: Context) -> str | None:
    """Needs the onnx extra."""
    del context
    return _artifact.missing(_NEEDS, "onnx")


def dims(context: Context) -> tuple[Dim, ...]:
    """None."""
    del context
    return ()


def write(form: Form, out: Path, settings: RuntimeSettings) -> None:
    """Write ``model.onnx`` and a loader, which fixes the batch to the plan's: static shapes save a
    small recurrent model or transformer a seventh of its time.
    """
    loader = named(LOADER, *_facts(form.folder / "model.onnx"))
    loader = _artifact.for_batch_size(loader, form)
    _artifact.write(form, out, settings, runtime="onnxruntime", loader=loader)


def named(loader: str, batch: str | None, left_out: tuple[str, ...] = ()) -> str:
    """The loader with the name of the batch dimension and the fusions to disable filled in."""
    loader = loader.replace("NAME_OF_BATCH", repr(batch))
    return loader.replace("NAMES_OF_FUSIONS", repr(list(left_out)))


def _facts(path: Path) -> tuple[str | None, tuple[str, ...]]:
    """The name of the inputs' dynamic first dimension (None where they have none or several), and
    the fusions to disable for a model with quantized weights.
    """
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    shapes = [i.type.tensor_type.shape.dim for i in graph.input if i.name not in weights]
    found = {dims[0].dim_param if dims else "" for dims in shapes}
    batch = (found.pop() or None) if len(found) == 1 else None
    rounded = any(node.op_type == "DequantizeLinear" for node in graph.node)
    return batch, _HIDES if rounded else ()
