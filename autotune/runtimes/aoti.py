"""Runtime ``aoti``: what `compiled` does at its first call, done at build time.

    program --AOTInductor, frozen weights, C++ compiler--> model.pt2 (a library in a zip)

Its artifact needs PyTorch but neither a compiler nor the user's source, and starts as fast as eager
code.  The batch is fixed to the plan's: a dynamic one took up to 1.5 times as long.  The library is
machine code for the CPU that it was built on and does not check its inputs, so the loader does.
"""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

from autotune.errors import JobError
from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.task import Dim
from autotune.runtimes import RuntimeSettings, _artifact, compiled

DEVICE = "cpu"
TAKES = "module"
TIME_LEFT = 0.85  # as `compiled`
COMPILES = "build"
BUILD_S = 20.0
TRACED = True
"""It always takes the exported ``program``."""
_RECURRENT = ("GRU", "LSTM", "RNN")

_LOADER = '''"""Loads this model by itself: ``predict = load()``, then ``y = predict(x)``.

NumPy arrays in (positional, or by name), NumPy out.  Needs PyTorch, and a processor like the one
that it was built on; not autotune, no compiler.
"""

import json
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
EXPECTED = json.loads("""SHAPES""")  # of each input: type, and sizes (null: any)


def load():
    """predict(*arrays, **arrays) -> array, or tuple or dict of arrays."""
    info = json.loads((HERE / "artifact.json").read_text())
    torch.set_num_threads(info["threads"])
    run = _runner(str(HERE / "model.pt2"))
    names, kind, keys = info["input_names"], info["output_kind"], info["output_names"]
    expected = [(np.dtype(dtype), tuple(sizes)) for dtype, sizes in EXPECTED]

    def predict(*arrays, **named):
        arrays = (*arrays, *(named[n] for n in names if n in named))
        tensors = [_tensor(a, *e) for a, e in zip(arrays, expected, strict=True)]
        outputs = [tensor.numpy() for tensor in run(tensors)]
        if kind == "dict":
            return dict(zip(keys, outputs, strict=True))
        return outputs[0] if kind == "tensor" else tuple(outputs)

    return PREDICT


def _runner(path):
    """The package's function from a list of tensors to a list of tensors."""
    try:  # without importing PyTorch's compiler, which takes longer than all else here
        return torch._C._aoti.AOTIModelPackageLoader(path, "model", False, 1, -1).boxed_run
    except (AttributeError, TypeError):  # another version of PyTorch
        return torch._inductor.aoti_load_package(path).loader.boxed_run


def _tensor(array, dtype, sizes):
    """Compiled code does not check its inputs, so they are checked here."""
    array = np.require(array, requirements=("C", "W"))
    if array.dtype != dtype or array.ndim != len(sizes) or not all(
        size is None or size == found for size, found in zip(sizes, array.shape)
    ):
        raise ValueError(f"expected {dtype} {sizes}, got {array.dtype} {array.shape}")
    return torch.from_numpy(array)
'''


def unavailable(context: Context) -> str | None:
    """Needs what `compiled` needs, and a model without recurrent layers."""
    if reason := compiled.unavailable(context):
        return reason
    found = [n for n in _RECURRENT if context and n in context.traits.module_types]
    if found:
        return (
            f"the model has a {found[0]}, which AOTInductor unrolls step by step (50 steps took "
            "20 to 60 s to compile): compiled or onnxruntime run it as one operator"
        )
    return None


def dims(context: Context) -> tuple[Dim, ...]:
    """None: the compiler chooses layouts and tiles by itself."""
    del context
    return ()


def write(form: Form, out: Path, settings: RuntimeSettings) -> None:
    """Compile the program and write the package with a loader.

    Raises:
        JobError: unsupported, with the compiler's last line.
    """
    import torch

    from autotune.forms.exported import PROGRAM, last_line, quiet

    program = torch.export.load(form.folder / PROGRAM)
    scratch = out / "package.pt2"
    try:
        with quiet(), torch.no_grad(), torch._inductor.config.patch(_options(settings)):
            torch._inductor.aoti_compile_and_package(program, package_path=str(scratch))
    except Exception as error:
        why = f"AOTInductor cannot compile this model: {last_line(error)}"
        raise JobError("unsupported", why) from error
    loader = _artifact.for_batch_size(_LOADER, form)
    loader = loader.replace("SHAPES", json.dumps(_inputs(program)))
    _artifact.write(form, out, settings, runtime="aoti", loader=loader, without=(PROGRAM,))
    _without_sources(scratch, out / PROGRAM)
    scratch.unlink()


def _options(settings: RuntimeSettings) -> dict[str, Any]:
    """The compiler's options: weights become constants, loops are split for the plan's threads."""
    return {"freezing": True, "cpp.threads": settings.threads, "compile_threads": 1}


def _inputs(program: Any) -> list[tuple[str, list[int | None]]]:
    """Dtype and shape of each input, None for dynamic sizes."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    values = [nodes[name].meta["val"] for name in program.graph_signature.user_inputs]
    return [
        (
            str(value.dtype).removeprefix("torch."),
            [size if isinstance(size, int) else None for size in value.shape],
        )
        for value in values
    ]


def _without_sources(package: Path, out: Path) -> None:
    """Copy the package without the generated C++, which contains paths of this machine and is not
    needed to run it.
    """
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(out, "w") as new:
        for item in old.infolist():
            if item.filename.endswith(".cpp"):
                continue
            with old.open(item) as source, new.open(zipfile.ZipInfo(item.filename), "w") as target:
                shutil.copyfileobj(source, target)
