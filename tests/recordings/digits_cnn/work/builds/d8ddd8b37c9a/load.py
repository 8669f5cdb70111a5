"""Loads this model by itself: ``predict = load()``, then ``y = predict(x)``.

NumPy arrays in (positional, or by name), NumPy out.  Needs onnxruntime; not autotune, not PyTorch.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort

HERE = Path(__file__).resolve().parent
FREE = 'batch'  # the batch's name in the model, which takes any; None: nothing is fixed
LEFT_OUT = []


def load():
    """predict(*arrays, **arrays) -> array, or tuple or dict of arrays."""
    info = json.loads((HERE / "artifact.json").read_text())
    names, kind, keys = info["input_names"], info["output_kind"], info["output_names"]
    size = info["batch_size"] if FREE else None
    session = _session(info, size)
    used = {i.name for i in session.get_inputs()}  # an input the model ignores is not there
    results = [o.name for o in session.get_outputs()]
    run, others = _run(session), []

    def other():
        """Another batch than the plan's: made on first need."""
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
        predict = single  # the same, with less to do around the model
    return predict


def _session(info, size):
    """The model for exactly ``size`` rows, whose shapes are then known beforehand, or for any."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = info["threads"]
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    if size:
        options.add_free_dimension_override_by_name(FREE, size)
    session = ort.InferenceSession(
        str(HERE / "model.onnx"),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=LEFT_OUT,
    )
    return session


def _run(session):
    """Its run(): what that checks in Python takes as long as a small model does."""
    return getattr(session, "_sess", session).run
