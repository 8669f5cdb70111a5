"""The loader of the runtimes that run the module in PyTorch, on a CPU or a GPU.

The templates below make an artifact's ``load.py``: the model comes from its source (``model.py``),
or from an exported program where the source does not run outside the user's folder.
"""

import inspect
from typing import Literal

from autotune.errors import JobError
from autotune.forms import Form
from autotune.runtimes import _heap

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
    """Runs model.py with the arguments that it was tuned with."""
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
    """The model with its pruned shapes and its weights."""
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
    model.load_state_dict(weights, strict=False)  # tied weights are stored once
    return model.eval()


def load():
    """predict(*arrays, **arrays) -> array, or tuple or dict of arrays."""
    info = json.loads((HERE / "artifact.json").read_text())
    torch.set_num_threads(info["threads"])
    model = _restored(info["args"])
{moved}{compile}
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
    """Tensors as arrays, those in nested tuples too."""
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
    program = torch.export.load(HERE / "model.pt2")
{moved}    model = program.module(check_guards=False)
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

_COMPILE = """\
    torch._inductor.config.freezing = True  # weights become constants of the generated code
    model = torch.compile(model)
"""

_REDUCE = """\
    torch._inductor.config.freezing = True  # weights become constants of the generated code
    model = torch.compile(model, mode="reduce-overhead")  # a call is one CUDA graph
"""

_CAPTURE = """\
    model = _captured(model)
"""
_CAPTURED = '''

def _captured(model):
    """Each of the first shapes becomes a CUDA graph: a call is one launch instead of hundreds."""
    kept = {}

    def call(*tensors, **named):
        given = (*tensors, *named.values())
        key = (len(tensors), *named, *((tensor.shape, tensor.dtype) for tensor in given))
        if key not in kept and len(kept) < 16:
            kept[key] = _capture(model, len(tensors), tuple(named), given)
        if key not in kept:
            moved = [tensor.to("cuda") for tensor in given]
            return model(*moved[: len(tensors)], **dict(zip(named, moved[len(tensors) :])))
        graph, held, output = kept[key]
        for there, here in zip(held, given):
            there.copy_(here)
        graph.replay()
        return output

    return call


def _capture(model, count, names, given):
    held = [tensor.to("cuda") for tensor in given]
    tensors, named = held[:count], dict(zip(names, held[count:]))
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):  # lazy initialization must not be captured
        for _ in range(3):
            model(*tensors, **named)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = model(*tensors, **named)
    return graph, held, output
'''
"""A CUDA graph has fixed input and output buffers; outputs are copied before the next call."""

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
_NO_FAST_PATH = """\
    torch.backends.mha.set_fastpath_enabled(False)  # its kernel is unknown to autocast
"""
_TWO_OF_FOUR = '''

def _two_of_four(weight):
    """Whether the GPU's 2:4 sparse kernels support it."""
    if weight.dtype != torch.float16 or weight.shape[0] % 32 or weight.shape[1] % 64:
        return False
    return bool(((weight.reshape(-1, 4) != 0).sum(1) <= 2).all())
'''
_IN_FULL = '''

def _in_full(forward):
    """Computes in fp32 whatever its inputs are, also within autocast."""

    def full(value):
        return value.float() if torch.is_tensor(value) and value.is_floating_point() else value

    def call(*arrays, **named):
        with torch.autocast("{where}", enabled=False):
            return forward(*map(full, arrays), **{{n: full(v) for n, v in named.items()}})

    return call
'''
_TF32 = """\
    torch.set_float32_matmul_precision("high")  # matrix products in tf32
    torch.backends.cudnn.allow_tf32 = True
"""
_MOVED = """\
    model = model.to("cuda")
"""
_MOVED_PROGRAM = """\
    from torch.export.passes import move_to_device_pass  # constants and created tensors too

    program = move_to_device_pass(program, "cuda")
"""
_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
_CHANNELS_LAST = """\
    model = model.to(memory_format=torch.channels_last)  # a convolution's input follows it
"""

Way = Literal["eager", "compiled", "graphs"]


def loader(
    form: Form, way: Way = "eager", *, device: str = "cpu", channels_last: bool = False
) -> str:
    """The text of ``load.py``.

    Args:
        form: a module or a program.
        way: eager, ``torch.compile``, or captured into CUDA graphs.
        device: cpu or cuda.
        channels_last: memory format of images.

    Raises:
        JobError: unsupported: the form needs what this way cannot do.
    """
    if form.kind == "module" and not form.about.standalone:
        raise JobError(
            "unsupported", "the model's source does not run outside its folder: export it first"
        )
    if device == "cpu" and form.about.precision in ("fp16", "tf32"):
        raise JobError("unsupported", f"{form.about.precision} is computed on GPUs only")
    if way == "graphs" and form.about.ragged:
        raise JobError("unsupported", "inputs of many shapes would need a CUDA graph for each")
    body, needs = _PROGRAM, "PyTorch"
    if form.kind == "module":
        body, needs = _SOURCE, "PyTorch, safetensors and what model.py imports"
    if way == "compiled":
        needs += ", and a C++ compiler at run time"
        body = body.replace("\nimport torch\n", "\nimport torch\nimport torch._inductor.config\n")
    needs += ", and a CUDA device" if device == "cuda" else ""
    if device == "cpu":
        threads = "    torch.set_num_threads("
        body = body.replace(threads, f"    _keep_freed_memory()\n{threads}") + _heap_source()
    # Freezing works under no_grad only; inference_mode is the faster one for eager code.
    mode = "inference_mode" if way == "eager" else "no_grad"
    text = _HEAD.format(needs=needs) + body.format(
        mode=mode,
        moved=_moved(form, device),
        compile=(_CHANNELS_LAST if channels_last else "") + _way(form, way, device),
        to='.to("cuda")' if device == "cuda" and way != "graphs" else "",
        **_computed(form, way, device),
    )
    if form.about.exact:
        text += _IN_FULL.format(where=device)
    if form.about.sparse:
        text += _TWO_OF_FOUR
    return text + (_CAPTURED if way == "graphs" else "")


def _heap_source() -> str:
    """The source of the function that the loader calls."""
    source = inspect.getsource(_heap.keep_freed_memory)
    return "\n\n" + source.replace(" -> None:", ":", 1)


def _way(form: Form, way: Way, device: str) -> str:
    if way == "compiled":
        return _REDUCE if device == "cuda" and not form.about.ragged else _COMPILE
    return _CAPTURE if way == "graphs" else ""


def _moved(form: Form, device: str) -> str:
    """Code that converts the weights to the precision and moves them to the device."""
    about = form.about
    dtype = _DTYPES.get(about.precision)
    if about.exact and dtype and form.kind == "program":
        why = "layers can be kept in fp32 only if the model's source runs outside its folder"
        raise JobError("unsupported", why)
    text = _TF32 if about.precision == "tf32" else ""
    if form.kind == "program":
        return text + (_MOVED_PROGRAM if device == "cuda" else "")
    if dtype is not None:
        narrow = _SPARED if about.exact else _NARROW
        text += _NO_FAST_PATH + narrow.format(dtype=dtype, exact=list(about.exact))
    text += _MOVED if device == "cuda" else ""
    return text + (_SPARSE if about.sparse else "")


def _computed(form: Form, way: Way, device: str) -> dict[str, str]:
    """Code that a precision and a device add to a call.

    Autocast keeps norms and sums in fp32.  Outputs are returned in fp32.  Autocast's cache is off
    for CUDA graphs: a cast that was cached in the warm-up would not be captured.
    """
    dtype = _DTYPES.get(form.about.precision)
    back = ".cpu().numpy()" if device == "cuda" else ".numpy()"
    if dtype is None:
        return {"autocast": "", "array": f"tensor{back}"}
    cache = ", cache_enabled=False" if way == "graphs" else ""
    return {
        "autocast": f', torch.autocast("{device}", torch.{dtype}{cache})',
        "array": f"(tensor.float() if tensor.dtype == torch.{dtype} else tensor){back}",
    }
