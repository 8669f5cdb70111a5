"""Loads this model by itself: ``predict = load()``, then ``y = predict(x)``.

NumPy arrays in (positional, or by name), NumPy out.  Needs PyTorch, safetensors and what model.py imports; not autotune.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent


def _module(args):
    """Runs model.py, as it stands, with the arguments it was tuned with."""
    argv, path = sys.argv, sys.path
    sys.argv, sys.path = [str(HERE / "model.py"), *args], [str(HERE), *path]
    try:
        spec = importlib.util.spec_from_file_location("autotuned_model", HERE / "model.py")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.make_model() if hasattr(module, "make_model") else module.model
    finally:
        sys.argv, sys.path = argv, path


def _restored(args):
    """The model with the shapes that pruning left, and its weights."""
    model = _module(args)
    changes = json.loads((HERE / "structure.json").read_text())
    for name, values in changes["modules"].items():
        for key, value in values.items():
            value = tuple(value) if isinstance(value, list) else value
            setattr(model.get_submodule(name), key, value)
    tensors = dict(model.named_parameters(remove_duplicate=False))
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    for name, shape in changes["tensors"].items():
        tensors[name].data = tensors[name].new_empty(shape)
    weights = load_file(HERE / "weights.safetensors")
    model.load_state_dict(weights, strict=False)  # of tied weights one name is stored
    return model.eval()


def load():
    """predict(*arrays, **arrays) -> array, or tuple or dict of arrays."""
    info = json.loads((HERE / "artifact.json").read_text())
    _keep_freed_memory()
    torch.set_num_threads(info["threads"])
    model = _restored(info["args"])

    def predict(*arrays, **named):
        named = {name: _tensor(array) for name, array in named.items()}
        with torch.inference_mode():
            return _numpy(model(*map(_tensor, arrays), **named))

    return predict


def _tensor(array):
    return torch.from_numpy(np.require(array, requirements=("C", "W")))


def _array(tensor):
    return tensor.numpy()


def _numpy(output):
    if isinstance(output, torch.Tensor):
        return _array(output)
    if hasattr(output, "__dataclass_fields__"):
        output = {name: getattr(output, name) for name in output.__dataclass_fields__}
    if hasattr(output, "items"):
        return dict(_leaves(output.items()))
    return tuple(array for _, array in _leaves(enumerate(output)))


def _leaves(items):
    """Tensors as arrays, those of tuples within too."""
    for key, value in items:
        if isinstance(value, torch.Tensor):
            yield key, _array(value)
        elif isinstance(value, tuple):
            for inner, array in _leaves(enumerate(value)):
                yield f"{key}_{inner}", array


def _keep_freed_memory():
    """Else glibc gives activations back, and every call faults their pages in anew."""
    import ctypes
    import sys

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never trim
        mallopt(-4, 0)  # M_MMAP_MAX: no block is mapped by itself
