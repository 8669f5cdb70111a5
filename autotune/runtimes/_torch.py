"""The loader of the runtimes that run the module itself in PyTorch: `eager`, `compiled`.

The text below is put together into an artifact's ``load.py``: a model from its source
(``model.py``), or from an exported program where the source cannot stand alone.
"""

from autotune.errors import JobError
from autotune.forms import Form

_HEAD = '''"""Loads this model by itself: ``predict = load()``, then ``y = predict(x)``.

NumPy arrays in (positional, or by name), NumPy out.  Needs {needs}; not autotune.
"""
'''

_SOURCE = '''
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
    torch.set_num_threads(info["threads"])
    model = _restored(info["args"])
{narrow}{compile}
    def predict(*arrays, **named):
        named = {{name: _tensor(array) for name, array in named.items()}}
        with torch.{mode}(){autocast}:
            return _numpy(model(*map(_tensor, arrays), **named))

    return predict


def _tensor(array):
    return torch.from_numpy(np.require(array, requirements=("C", "W"))){to}


def _array(tensor):
    return {array}


def _numpy(output):
    if isinstance(output, torch.Tensor):
        return _array(output)
    if hasattr(output, "__dataclass_fields__"):
        output = {{name: getattr(output, name) for name in output.__dataclass_fields__}}
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
                yield f"{{key}}_{{inner}}", array
'''

_PROGRAM = '''
import json
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent


def load():
    """predict(*arrays, **arrays) -> array, or tuple or dict of arrays."""
    info = json.loads((HERE / "artifact.json").read_text())
    torch.set_num_threads(info["threads"])
    model = torch.export.load(HERE / "model.pt2").module(check_guards=False)
{compile}    names, kind, keys = info["input_names"], info["output_kind"], info["output_names"]

    def predict(*arrays, **named):
        arrays = [_tensor(a) for a in (*arrays, *(named[n] for n in names if n in named))]
        with torch.{mode}(){autocast}:
            outputs = [_array(tensor) for tensor in model(*arrays)]
        if kind == "dict":
            return dict(zip(keys, outputs, strict=True))
        return outputs[0] if kind == "tensor" else tuple(outputs)

    return predict


def _tensor(array):
    return torch.from_numpy(np.require(array, requirements=("C", "W"))){to}


def _array(tensor):
    return {array}
'''

_HEAP = '''

def _keep_freed_memory():
    """Else glibc gives activations back, and every call faults their pages in anew."""
    import ctypes
    import sys

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never trim
        mallopt(-4, 0)  # M_MMAP_MAX: no block is mapped by itself
'''
"""As `autotune.worker.heap`; of a call at a large batch it saves a tenth to a half."""

_COMPILE = """\
    torch._inductor.config.freezing = True  # weights become constants of the generated code
    model = torch.compile(model)
"""

_GRAPHS = """\
    torch._inductor.config.freezing = True  # weights become constants of the generated code
    model = torch.compile(model, mode="reduce-overhead")  # a call is one CUDA graph
"""

_NARROW = """\
    for layer in model.modules():  # once, not at every call
        if isinstance(layer, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)):
            layer.weight.data = layer.weight.data.to(torch.{dtype})
"""
_SPARED = """\
    exact = [model.get_submodule(name) for name in {exact}]  # stay in fp32
    spared = {{id(within) for layer in exact for within in layer.modules()}}
    for layer in model.modules():  # once, not at every call
        kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
        if isinstance(layer, kinds) and id(layer) not in spared:
            layer.weight.data = layer.weight.data.to(torch.{dtype})
    for layer in exact:
        layer.forward = _in_full(layer.forward)
"""
_SPARSE = """\
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and _two_of_four(layer.weight):
            weight = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
            layer.weight = torch.nn.Parameter(weight, requires_grad=False)
"""
_TWO_OF_FOUR = '''

def _two_of_four(weight):
    """Whether the GPU's kernels for 2:4 sparsity take it."""
    if weight.dtype != torch.float16 or weight.shape[0] % 32 or weight.shape[1] % 64:
        return False
    return bool(((weight.reshape(-1, 4) != 0).sum(1) <= 2).all())
'''
_IN_FULL = '''

def _in_full(forward):
    """Computes in fp32 whatever it is fed, and whatever is computed around it."""

    def full(value):
        return value.float() if torch.is_tensor(value) and value.is_floating_point() else value

    def call(*arrays, **named):
        with torch.autocast("{where}", enabled=False):
            return forward(*map(full, arrays), **{{n: full(v) for n, v in named.items()}})

    return call
'''
_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


_CHANNELS_LAST = """\
    model = model.to(memory_format=torch.channels_last)  # a convolution's input follows it
"""


def loader(form: Form, *, compiled: bool, channels_last: bool = False) -> str:
    """The text of ``load.py``."""
    if form.kind == "module" and not form.about.standalone:
        raise JobError("unsupported", "the model's source cannot stand alone: export it first")
    body, needs = _PROGRAM, "PyTorch"
    if form.kind == "module":
        body, needs = _SOURCE, "PyTorch, safetensors and what model.py imports"
    if compiled:
        needs += ", and a C++ compiler at run time"
        body = body.replace("\nimport torch\n", "\nimport torch\nimport torch._inductor.config\n")
    # Freezing works under no_grad only; inference_mode is the faster one for eager code.
    mode = "no_grad" if compiled else "inference_mode"
    threads = "    torch.set_num_threads("
    body = body.replace(threads, f"    _keep_freed_memory()\n{threads}") + _HEAP
    graphs = form.about.precision == "fp16" and not form.about.ragged
    more = _CHANNELS_LAST if channels_last else ""
    more += (_GRAPHS if graphs else _COMPILE) if compiled else ""
    text = _HEAD.format(needs=needs) + body.format(mode=mode, compile=more, **_precision(form))
    if form.about.exact:
        text += _IN_FULL.format(where="cuda" if form.about.precision == "fp16" else "cpu")
    if form.about.sparse:
        text += _TWO_OF_FOUR
    return text


def _precision(form: Form) -> dict[str, str]:
    """What a precision other than fp32 adds to the text.

    Autocast knows which operations bear 16 bits; norms and sums stay in fp32.  Outputs come
    back in fp32.
    """
    dtype = _DTYPES.get(form.about.precision)
    if dtype is None:
        return {"narrow": "", "autocast": "", "array": "tensor.numpy()", "to": ""}
    where, exact = "cuda" if dtype == "float16" else "cpu", form.about.exact
    if exact and form.kind == "program":
        why = "layers can be kept in fp32 only of a model whose source can stand alone"
        raise JobError("unsupported", why)
    if where == "cuda" and form.kind == "program":
        raise JobError("unsupported", "fp16 takes a model whose source can stand alone")
    text = _SPARED.format(dtype=dtype, exact=list(exact)) if exact else _NARROW.format(dtype=dtype)
    narrow = text if form.kind == "module" else ""
    moved = '    model = model.to("cuda")\n' if where == "cuda" else ""
    return {
        "narrow": narrow + moved + (_SPARSE if form.about.sparse else ""),
        "to": '.to("cuda")' if where == "cuda" else "",
        "autocast": f', torch.autocast("{where}", torch.{dtype})',
        "array": f"(tensor.float() if tensor.dtype == torch.{dtype} else tensor).cpu().numpy()",
    }
