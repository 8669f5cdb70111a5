"""Each artifact in a clean interpreter, without autotune: the module's own outputs."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from autotune.forms import Form, Interface, changed, exported, flat, module, onnx_file, openvino_ir
from autotune.runtimes import (
    RuntimeSettings,
    _artifact,
    aoti,
    compiled,
    eager,
    onnxruntime,
    openvino,
)
from tests.support import made

CNN = """
import sys
import torch
from torch import nn

WIDTH = int(sys.argv[1])

def make_model():
    return nn.Sequential(
        nn.Conv2d(1, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Dropout(),
        nn.Flatten(), nn.Linear(36 * WIDTH, 3),
    )
"""

WORDS = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Output:
    logits: torch.Tensor
    pooled: torch.Tensor
    loss: torch.Tensor | None = None

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids, mask):
        pooled = (self.embed(ids) * mask[..., None]).mean(1)
        return Output(logits=self.head(pooled), pooled=pooled)

model = Words()
"""

PAIR = """
from torch import nn

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(2, 5)

    def forward(self, a, b):
        h = self.left(a) + self.right(b)
        return h, h.sum(1)

def make_model():
    return Pair()
"""

_CLEAN = """
import importlib.util, json, sys
import numpy as np

class Ban:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[3].split(","):
            raise ImportError(f"{name} must not be needed")

sys.meta_path.insert(0, Ban())
folder, rows = sys.argv[1:3]
spec = importlib.util.spec_from_file_location("load", folder + "/load.py")
load = importlib.util.module_from_spec(spec)
spec.loader.exec_module(load)
predict = load.load()
with np.load(rows) as data:
    fields = dict(data)
def answer(rows):
    named = json.loads(open(folder + "/artifact.json").read())["input_kind"] == "dict"
    return predict(**rows) if named else predict(*rows.values())

out = answer(fields)
one = answer({k: v[:1] for k, v in fields.items()}) if len(sys.argv) > 4 else out
named = out if isinstance(out, dict) else dict(
    enumerate(out)) if isinstance(out, tuple) else {"only": out}
np.savez(rows + ".out.npz", **{str(k): v for k, v in named.items()})
print(type(out).__name__, type(one).__name__, "autotune" in sys.modules)
"""


def clean(
    folder: Path, rows: dict[str, np.ndarray], banned: str, tmp_path: Path, *, twice: bool = True
):
    """Outputs by name, and the type of the whole, from an interpreter of its own; ``twice``:
    once more with a single row.
    """
    script, data = tmp_path / "clean.py", tmp_path / "rows.npz"
    script.write_text(_CLEAN)
    np.savez(data, **rows)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            str(script),
            str(folder),
            str(data),
            banned,
            *(["1"] if twice else []),
        ],
        cwd=elsewhere,
        env=os.environ | {"HOME": str(elsewhere), "CI": ""},  # without CI, openvino reports home
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not (elsewhere / "intel").exists()
    kind, one, needed = done.stdout.split()
    assert needed == "False"
    assert one == kind
    with np.load(f"{data}.out.npz") as found:
        return kind, dict(found)


def task(
    source: str, args: tuple[str, ...], kind: str, rows: dict[str, np.ndarray], tmp_path: Path
):
    """The module form of a source, its model, and its outputs by name."""
    folder = tmp_path / "form"
    folder.mkdir()
    (folder / "model.py").write_text(source)
    names: dict[str, object] = {"__name__": "made"}
    argv, sys.argv = sys.argv, ["model.py", *args]
    sys.modules["made"] = type(sys)("made")  # dataclasses look their module up
    exec(compile(source, "model.py", "exec"), names)
    sys.argv = argv
    torch.manual_seed(0)
    model = names["make_model"]() if "make_model" in names else names["model"]
    model.eval()
    module.save(model, model, folder)
    inputs = [torch.from_numpy(array) for array in rows.values()]
    with torch.no_grad():
        output = flat.call(model, kind, tuple(rows), inputs)
    output_kind, keys = flat.describe(output)
    about = Interface(
        input_kind=kind,
        input_names=tuple(rows),
        input_shapes=tuple(a.shape[1:] for a in rows.values()),
        input_dtypes=tuple(str(a.dtype) for a in rows.values()),
        output_kind=output_kind,
        output_names=keys,
        args=args,
        standalone=True,
        parameters=module.parameters(model),
    )
    expected = [tensor.numpy() for tensor in flat.tensors(output)]
    return Form("module", folder, about), model, expected


_SERVED = {
    "onnx": (onnxruntime, "autotune,torch"),
    "openvino": (openvino, "autotune,torch,onnx,onnxruntime,nncf"),
}
RNG = np.random.default_rng(0)
IMAGES = {"input": RNG.standard_normal((5, 1, 8, 8)).astype(np.float32)}
TOKENS = {
    "ids": RNG.integers(0, 20, (4, 6)),
    "mask": np.ones((4, 6), dtype=np.float32),
}
COUPLES = {
    "input_0": RNG.standard_normal((3, 4)).astype(np.float32),
    "input_1": RNG.standard_normal((3, 2)).astype(np.float32),
}
CASES = {
    "tensor": (CNN, ("6",), "tensor", IMAGES, "ndarray"),
    "tuple": (PAIR, (), "tuple", COUPLES, "tuple"),
    "dict": (WORDS, (), "dict", TOKENS, "dict"),
}


def converted(form: Form, model, rows, kind: str, tmp_path: Path) -> Form:
    """The module form as an ``onnx``, ``openvino`` or ``program`` form."""
    folder = tmp_path / kind
    folder.mkdir()
    about = form.about
    wrapped = flat.Flat(model, about.input_kind, about.input_names).eval()
    inputs = [torch.from_numpy(array[:2]) for array in rows.values()]
    if kind == "program":
        exported.save(exported.trace(wrapped, inputs, dynamic=True), folder / "model.pt2")
    else:
        names = about.input_names, about.output_names
        source = tmp_path if kind == "openvino" else folder
        onnx_file.export(wrapped, inputs, source / "model.onnx", names, dynamic=True)
        if kind == "openvino":
            openvino_ir.convert(source, folder)
            samples = [[array[:n] for array in rows.values()] for n in (1, 3)]
            openvino_ir.check(source, folder, samples, tuple(rows))
    return Form(kind, folder, about)


@pytest.mark.parametrize(
    ("way", "case"),
    [
        ("source", "tensor"),
        ("source", "dict"),
        ("program", "dict"),
        ("onnx", "tensor"),
        ("onnx", "tuple"),
        ("onnx", "dict"),
        ("openvino", "tensor"),
        ("openvino", "tuple"),
        ("openvino", "dict"),
    ],
)
def test_a_clean_interpreter_gives_the_modules_outputs(case, way, tmp_path):
    source, args, kind, rows, whole = CASES[case]
    form, model, expected = task(source, args, kind, rows, tmp_path)
    runtime, banned = _SERVED.get(way, (eager, "autotune"))
    if way != "source":
        form = converted(form, model, rows, way, tmp_path)
    out = tmp_path / "artifact"
    out.mkdir()
    runtime.write(form, out, RuntimeSettings(threads=1, batch_size=1))
    found_kind, found = clean(out, rows, banned, tmp_path)
    assert found_kind == whole
    for a, b in zip(expected, found.values(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    if whole == "dict":
        assert list(found) == ["logits", "pooled"]


def test_compiled_gives_the_same_outputs_in_a_clean_interpreter(tmp_path):
    if reason := compiled.unavailable(None):
        pytest.skip(reason)
    source, args, kind, rows, _ = CASES["tensor"]
    form, _, expected = task(source, args, kind, rows, tmp_path)
    out = tmp_path / "artifact"
    out.mkdir()
    compiled.write(form, out, RuntimeSettings(threads=1, batch_size=1))
    _, found = clean(out, rows, "autotune", tmp_path, twice=False)
    np.testing.assert_allclose(expected[0], found["only"], atol=1e-4)


def test_channels_last_changes_the_layout_and_not_the_outputs(tmp_path, monkeypatch):
    source, args, kind, rows, _ = CASES["tensor"]
    form, _, expected = task(source, args, kind, rows, tmp_path)
    out = tmp_path / "artifact"
    out.mkdir()
    (dim,) = eager.dims(made.context(of=made.traits(module_types={"Conv2d": 1})))
    assert dim.choices[0] is False, "the deploy baseline is the user's own layout"
    eager.write(form, out, RuntimeSettings(threads=1, batch_size=1, params={dim.name: True}))
    assert "channels_last" in (out / "load.py").read_text()
    names = {"__file__": str(out / "load.py"), "__name__": "load"}
    exec(compile((out / "load.py").read_text(), "load.py", "exec"), names)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    np.testing.assert_allclose(names["load"]()(rows["input"]), expected[0], atol=1e-4)


def test_what_a_model_has_no_use_for_is_not_offered():
    assert eager.dims(made.context()) == ()
    gru = made.context(of=made.traits(module_types={"GRU": 1}))
    assert "has a GRU" in (aoti.unavailable(gru) or compiled.unavailable(gru) or "has a GRU")


def test_the_package_keeps_no_source_and_the_loader_knows_what_it_may_be_fed(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as package:
        package.writestr("m/data/model.cpp", "// g++ /somebody/home")
        package.writestr("m/data/model.so", b"code")
    aoti._without_sources(tmp_path / "a.pt2", tmp_path / "b.pt2")
    with zipfile.ZipFile(tmp_path / "b.pt2") as package:
        assert package.namelist() == ["m/data/model.so"]
        assert package.read("m/data/model.so") == b"code"
    wrapped = flat.Flat(torch.nn.Linear(3, 2), "tensor", ("x",)).eval()
    program = exported.trace(wrapped, [torch.ones(2, 3)], dynamic=True)
    assert aoti._inputs(program) == [("float32", [None, 3])]


@pytest.mark.parametrize("runtime", [onnxruntime, openvino])
def test_a_fixed_batch_is_filled_up_and_cut_off(runtime, tmp_path):
    source, args, kind, rows, _ = CASES["tuple"]
    form, model, expected = task(source, args, kind, rows, tmp_path)
    folder, out = tmp_path / "onnx", tmp_path / "artifact"
    folder.mkdir()
    out.mkdir()
    wrapped = flat.Flat(model, kind, tuple(rows)).eval()
    inputs = [torch.from_numpy(np.concatenate([a, a[:1]])) for a in rows.values()]
    names = tuple(rows), form.about.output_names
    onnx_file.export(wrapped, inputs, folder / "model.onnx", names, dynamic=False)
    if runtime is openvino:
        openvino_ir.convert(folder, folder)
        (folder / "model.onnx").unlink()
    fixed = Form(runtime.TAKES, folder, changed(form.about, batch_size=4))
    runtime.write(fixed, out, RuntimeSettings(threads=1, batch_size=4))
    _, found = clean(out, rows, "autotune,torch", tmp_path)
    for a, b in zip(expected, found.values(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert json.loads((out / "artifact.json").read_text())["dynamic_batch"] is False


def test_the_artifact_says_how_it_is_called(tmp_path):
    source, args, kind, rows, _ = CASES["tensor"]
    form, _, _ = task(source, args, kind, rows, tmp_path)
    out = tmp_path / "artifact"
    out.mkdir()
    eager.write(form, out, RuntimeSettings(threads=2, batch_size=8))
    assert json.loads((out / "artifact.json").read_text()) == {
        "schema": "autotune.artifact/1",
        "runtime": "eager",
        "threads": 2,
        "batch_size": 8,
        "input_kind": "tensor",
        "input_names": ["input"],
        "input_shapes": [[1, 8, 8]],
        "input_dtypes": ["float32"],
        "output_kind": "tensor",
        "output_names": ["output"],
        "dynamic_batch": True,
        "args": ["6"],
    }
    text = (out / "load.py").read_text()
    assert "autotune" not in text.split('"""')[2].replace("autotuned_model", "")
    assert "pickle" not in text
    assert len(text.splitlines()) < 100


@pytest.mark.parametrize("tool", ["g++", "Python.h"])
def test_compiled_says_what_to_install(monkeypatch, tool):
    if tool == "g++":
        monkeypatch.setattr("shutil.which", lambda name: None)
    else:
        monkeypatch.setattr("shutil.which", lambda name: "/bin/cc")
        monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": "/nowhere"})
    assert "apt-get install" in (compiled.unavailable(None) or "")


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Form, list[np.ndarray]]:
    source, args, kind, rows, _ = CASES["tuple"]
    folder = tmp_path_factory.mktemp("pair")
    form, model, expected = task(source, args, kind, rows, folder)
    return converted(form, model, rows, "openvino", folder), expected


def loaded(form: Form, out: Path, **tools):
    openvino.write(form, out, RuntimeSettings(**{"threads": 1, "batch_size": 3} | tools))
    names: dict[str, object] = {"__file__": str(out / "load.py"), "__name__": "load"}
    exec(compile((out / "load.py").read_text(), "load.py", "exec"), names)
    return names["load"]()


def test_openvino_answers_are_the_callers_own_at_any_batch_and_from_any_array(pair, tmp_path):
    form, expected = pair
    predict = loaded(form, tmp_path)
    a, b = COUPLES.values()
    first = predict(a, b)
    kept = [x.copy() for x in first]
    predict(-a, -b)
    for rows in (slice(0, 3), slice(0, 2), slice(0, 1)):
        found = predict(np.asfortranarray(a[rows].astype(np.float64)), input_1=b[rows])
        for one, whole in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, whole[rows], atol=1e-5)
    for x, y, whole in zip(first, kept, expected, strict=True):
        assert np.array_equal(x, y)
        np.testing.assert_allclose(x, whole, atol=1e-5)


def test_openvino_reads_large_inputs_where_they_are(pair, tmp_path):
    form, _ = pair
    a, b = (np.repeat(x, 4000, axis=0) for x in COUPLES.values())
    big = loaded(form, tmp_path, batch_size=len(a))
    a.flags.writeable = False
    out = tmp_path / "small"
    out.mkdir()
    one = loaded(form, out)(*(x[:3] for x in (a, b)))
    for x, y in zip(one, big(a, b), strict=True):
        np.testing.assert_allclose(x, y[:3], atol=1e-5)


@pytest.mark.parametrize(("precision", "hint"), [("fp32", "f32"), ("bf16", "bf16")])
def test_openvino_computes_in_what_the_form_says(pair, tmp_path, precision, hint):
    form = Form("openvino", pair[0].folder, changed(pair[0].about, precision=precision))
    openvino.write(form, tmp_path, RuntimeSettings(threads=1, batch_size=1))
    assert f'"INFERENCE_PRECISION_HINT": "{hint}"' in (tmp_path / "load.py").read_text()


def test_openvino_says_what_to_install(monkeypatch):
    monkeypatch.setattr(_artifact, "find_spec", lambda name: None)
    assert "pip install autotune-torch[openvino]" in (openvino.unavailable(None) or "")
