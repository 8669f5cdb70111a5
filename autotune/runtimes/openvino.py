"""Runtime ``openvino``: OpenVINO on the CPU, with no PyTorch in the process.

    model.xml --reshape to the plan's batch--> compiled ---one request, its own input memory---> y
        `--as it is, when first needed---> compiled for any batch

The precision is set explicitly, as OpenVINO would choose bf16 for an fp32 plan on a CPU that has
it.  Concurrent calls are not parallel: they queue.
"""

from pathlib import Path

from autotune.errors import JobError
from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.task import Dim
from autotune.runtimes import RuntimeSettings, _artifact

DEVICE = "cpu"
TAKES = "openvino"
TIME_LEFT = 0.75  # fp32 beside eager PyTorch: 0.54 to 1.5 on four models
_NEEDS = ("onnx", "onnxscript", "openvino")  # the first two export what OpenVINO converts
_PRECISION = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}

_LOADER = '''"""Loads this model by itself: ``predict = load()``, then ``y = predict(x)``.

NumPy arrays in (positional, or by name), NumPy out.  Needs openvino; not autotune, not PyTorch.
"""

import json
import sys
import threading
from pathlib import Path

import numpy as np

_SENDS = "openvino_telemetry"  # hidden, so that importing openvino sends no telemetry
_hidden = sys.modules.setdefault(_SENDS, None) is None
import openvino as ov  # noqa: E402

if _hidden:
    del sys.modules[_SENDS]

HERE = Path(__file__).resolve().parent
COPIED = 1 << 16  # bytes; larger inputs are shared, not copied


def load():
    """predict(*arrays, **arrays) -> array, or tuple or dict of arrays."""
    info = json.loads((HERE / "artifact.json").read_text())
    names, kind, keys = info["input_names"], info["output_kind"], info["output_names"]
    ready = [_ready(info, info["batch_size"]) or _ready(info)]
    lock = threading.Lock()

    def predict(*arrays, **named):
        if named:
            named.update(zip(names, arrays))
            arrays = [named[name] for name in names]
        with lock:
            outputs = ready[0](arrays)
            if outputs is None:  # not the plan's batch size
                if len(ready) == 1:
                    ready.append(_ready(info))
                outputs = ready[1](arrays)
        if kind == "dict":
            return dict(zip(keys, outputs))
        return outputs[0] if kind == "tensor" else outputs

    return PREDICT


def _ready(info, size=None):
    """call(arrays) -> outputs, for exactly ``size`` rows (any shapes where that is None).

    None where other dimensions than the batch are dynamic; a call returns None for other shapes.
    """
    core = ov.Core()
    model = core.read_model(HERE / "model.xml")
    if size:
        shapes = {i: i.get_partial_shape() for i in model.inputs}
        for shape in shapes.values():
            shape[0] = size
        if any(shape.is_dynamic for shape in shapes.values()):
            return None
        model.reshape(shapes)
    options = {
        "INFERENCE_NUM_THREADS": info["threads"],
        "INFERENCE_PRECISION_HINT": "PRECISION",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # else two processes pin their threads to the same cores
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    infer = super(ov.InferRequest, request).infer  # without the wrapper's checks
    nothing = {}
    places = []  # of the inputs that the model reads
    for i, port in enumerate(model.inputs):
        dtype = port.get_element_type().to_dtype()
        held = request.get_input_tensor(i).data if size else None
        place = info["input_names"].index(port.get_any_name())
        places.append((i, place, dtype, held, held is not None and held.nbytes <= COPIED))

    def call(arrays):
        alive = []  # a shared tensor holds no reference to its array
        for i, place, dtype, held, small in places:
            a = arrays[place]
            if size and a.shape != held.shape:
                return None
            if small:
                held[...] = a
            else:
                alive.append(np.require(a, dtype, "CW"))
                request.set_input_tensor(i, ov.Tensor(alive[-1], shared_memory=True))
        return tuple(infer(nothing, False, False).values())

    return call
'''


def unavailable(context: Context) -> str | None:
    """Needs the openvino extra."""
    del context
    return _artifact.missing(_NEEDS, "openvino")


def dims(context: Context) -> tuple[Dim, ...]:
    """None."""
    del context
    return ()


def write(form: Form, out: Path, settings: RuntimeSettings) -> None:
    """Write ``model.xml``, ``model.bin`` and a loader.

    Raises:
        JobError: unsupported: layers to be kept in fp32 of a model in bf16.
    """
    if form.about.exact:
        raise JobError(
            "unsupported",
            f"OpenVINO computes all layers in {form.about.precision}, those of --keep-fp32 too: "
            "eager and compiled keep them",
        )
    loader = _artifact.for_batch_size(_LOADER, form)
    loader = loader.replace('"PRECISION"', f'"{_PRECISION[form.about.precision]}"')
    _artifact.write(form, out, settings, runtime="openvino", loader=loader)
