"""What every file under compress/ must keep; a new file joins by itself."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autotune import plugins
from autotune.compress import CompressTools
from autotune.forms import ROAD, Form, Interface, flat, module, onnx_file, openvino_ir
from autotune.records.job import Context
from tests.support import made

NAMES = plugins.names("compress")
SAMPLE = torch.linspace(-1, 1, 36).reshape(1, 1, 6, 6)


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, 3),
    )


def context(**types: int) -> Context:
    return made.context(of=made.traits(module_types=types))


CONTEXT = context(Conv2d=1, BatchNorm2d=1, Linear=2, ReLU=2)


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> dict[str, Form]:
    about = Interface(
        input_kind="tensor",
        input_names=("input",),
        input_shapes=((1, 6, 6),),
        input_dtypes=("float32",),
        output_kind="tensor",
        output_names=("output",),
        parameters=module.parameters(dense()),
        flops_per_sample=flat.flops(lambda: dense().eval()(SAMPLE)),
    )
    as_module, as_onnx = tmp_path_factory.mktemp("module"), tmp_path_factory.mktemp("onnx")
    module.save(dense(), dense(), as_module)
    model = flat.Flat(dense(), "tensor", ("input",)).eval()
    names = about.input_names, about.output_names
    onnx_file.export(
        model, [SAMPLE.repeat(2, 1, 1, 1)], as_onnx / "model.onnx", names, dynamic=True
    )
    as_openvino = tmp_path_factory.mktemp("openvino")
    openvino_ir.convert(as_onnx, as_openvino)
    folders = {"module": as_module, "onnx": as_onnx, "openvino": as_openvino}
    return {kind: Form(kind, folder, about) for kind, folder in folders.items()}


def tools(workdir: Path) -> CompressTools:
    def calibration(size):
        for i in range(4):
            yield {"input": np.repeat(SAMPLE.numpy() * (1 + i), size, axis=0)}

    return CompressTools(
        seed=0,
        batch_size=1,
        workdir=workdir,
        module=lambda form: module.load(dense(), form.folder),
        fresh=dense,
        example=lambda n: (SAMPLE.repeat(n, 1, 1, 1),),
        recover=lambda model: 0.0,
        calibration=calibration,
    )


def answer(form: Form) -> np.ndarray:
    if form.kind == "module":
        with torch.no_grad():
            return module.load(dense(), form.folder)(SAMPLE).numpy()
    if form.kind == "openvino":
        with openvino_ir.silent():
            return openvino_ir.runner(form.folder / "model.xml")({"input": SAMPLE.numpy()})[0]
    import onnxruntime

    path = str(form.folder / "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": SAMPLE.numpy()})[0]


def params(plugin) -> dict[str, float | int | str | bool]:
    """The first choice, or the middle, of every dimension."""
    return {
        d.name: d.choices[0] if d.kind == "choice" else (d.low + d.high) / 2
        for d in plugin.dims(CONTEXT)
    }


@pytest.mark.parametrize("name", NAMES)
def test_it_declares_its_forms_and_its_group(name):
    plugin = plugins.load("compress", name)
    assert plugin.TAKES in ROAD
    assert plugin.GIVES in ROAD
    assert plugin.GROUP
    assert plugin.DTYPE is None or re.fullmatch(r"(fp|tf|bf|int)\d+", plugin.DTYPE)
    assert 0 < getattr(plugin, "TIME_LEFT", 0.5) < 1
    assert set(getattr(plugin, "PREPARES", ())) <= set(NAMES) - {name}
    assert getattr(plugin, "SEARCHED", True) or plugin.PREPARES
    assert plugin.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_its_dimensions_are_legal_and_named_once(name):
    dims = plugins.load("compress", name).dims(CONTEXT)
    assert len({d.name for d in dims}) == len(dims)
    for dim in dims:
        if dim.kind == "choice":
            assert dim.choices
            assert len(set(dim.choices)) == len(dim.choices)
        else:
            assert dim.low < dim.high


@pytest.mark.parametrize("name", NAMES)
def test_it_is_available_or_says_what_to_do(name, monkeypatch):
    plugin = plugins.load("compress", name)
    if getattr(plugin, "GROUP", None) == "precision":  # torch alone does it, where it pays
        assert plugin.unavailable(CONTEXT)
        return
    assert plugin.unavailable(CONTEXT) is None
    monkeypatch.setattr(plugin, "find_spec", lambda module: None)
    assert "pip install autotune-torch[" in plugin.unavailable(CONTEXT)


@pytest.mark.parametrize("name", NAMES)
def test_it_gives_a_smaller_form_of_the_same_outputs_in_the_same_bytes(name, forms, tmp_path):
    plugin = plugins.load("compress", name)
    given = forms[plugin.TAKES]
    before = {p: p.read_bytes() for p in given.folder.iterdir()}
    made = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        made.append(plugin.apply(given, params(plugin), tools(folder)))
    assert made[0].kind == plugin.GIVES
    assert made[0].folder == tmp_path / "a"
    assert answer(made[0]).shape == answer(given).shape
    assert np.isfinite(answer(made[0])).all()
    if getattr(plugin, "SEARCHED", True):  # else it only prepares for a step that does
        size = _size(given.folder)
        assert _size(made[0].folder) <= size if name == "tf32" else _size(made[0].folder) < size
    assert {p: p.read_bytes() for p in given.folder.iterdir()} == before
    for path in made[0].folder.iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_importing_a_compressor_imports_nothing_heavy():
    names = ", ".join(f"autotune.compress.{name}" for name in NAMES)
    heavy = "{'torch', 'numpy', 'onnx', 'onnxruntime', 'openvino', 'nncf', 'torch_pruning'}"
    code = f"import sys, {names}; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
