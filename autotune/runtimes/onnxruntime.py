"""Runtime ``onnxruntime``: ONNX Runtime on the CPU, with no PyTorch in the process."""

from pathlib import Path

from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.task import Dim
from autotune.runtimes import Tools, _artifact

TAKES = "onnx"
_NEEDS = ("onnx", "onnxruntime", "onnxscript")

SESSION = """\
    session = ort.InferenceSession(
        str(HERE / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
"""
LOADER = '''"""Loads this model by itself: ``predict = load()``, then ``y = predict(x)``.

NumPy arrays in (positional, or by name), NumPy out.  Needs onnxruntime; not autotune, not PyTorch.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort

HERE = Path(__file__).resolve().parent


def load():
    """predict(*arrays, **arrays) -> array, or tuple or dict of arrays."""
    info = json.loads((HERE / "artifact.json").read_text())
    options = ort.SessionOptions()
    options.intra_op_num_threads = info["threads"]
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(
        str(HERE / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    names, kind, keys = info["input_names"], info["output_kind"], info["output_names"]
    used = {i.name for i in session.get_inputs()}  # an input the model ignores is not there
    results = [o.name for o in session.get_outputs()]
    # What run() checks in Python takes as long as a small model does, and holds here by itself.
    run = getattr(session, "_sess", session).run

    def predict(*arrays, **named):
        named.update(zip(names, arrays))
        feed = {n: np.ascontiguousarray(a) for n, a in named.items() if n in used}
        outputs = run(results, feed, None)
        if kind == "dict":
            return dict(zip(keys, outputs))
        return outputs[0] if kind == "tensor" else tuple(outputs)

    name = names[0]

    def single(*arrays, **named):
        (array,) = arrays or (named[name],)
        return run(results, {name: np.ascontiguousarray(array)}, None)[0]

    if kind == "tensor" and used == set(names) == {name}:
        predict = single  # the same, with less to do around the model
    return PREDICT
'''


def unavailable(context: Context) -> str | None:
    """Needs the onnx extra."""
    del context
    return _artifact.missing(_NEEDS, "onnx")


def dims(context: Context) -> tuple[Dim, ...]:
    """None so far."""
    del context
    return ()


def write(form: Form, out: Path, tools: Tools) -> None:
    """Write ``model.onnx`` and a loader."""
    loader = _artifact.for_its_batch(LOADER, form)
    _artifact.write(form, out, tools, runtime="onnxruntime", loader=loader)
