"""What every file under runtimes/ must keep; a new file joins by itself."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autotune import plugins
from autotune.forms import (
    ROAD,
    Form,
    changed,
    exported,
    flat,
    module,
    onnx_file,
    openvino_ir,
)
from autotune.runtimes import RuntimeSettings
from tests.support import made, stages

NAMES = plugins.names("runtimes")
SOURCE = """
from torch import nn

def make_model():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
"""
SAMPLE = np.linspace(-1, 1, 18, dtype=np.float32).reshape(3, 6)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).eval()


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> dict[str, Form]:
    about = stages.interface(6, standalone=True, parameters=47)
    as_module, as_onnx = tmp_path_factory.mktemp("module"), tmp_path_factory.mktemp("onnx")
    (as_module / "model.py").write_text(SOURCE)
    module.save(model(), model(), as_module)
    names = about.input_names, about.output_names
    wrapped = flat.Flat(model(), "tensor", ("input",)).eval()
    onnx_file.export(wrapped, [torch.ones(2, 6)], as_onnx / "model.onnx", names, dynamic=True)
    found = {"module": Form("module", as_module, about), "onnx": Form("onnx", as_onnx, about)}
    program = tmp_path_factory.mktemp("program")
    exported.save(
        exported.trace(wrapped, [torch.from_numpy(SAMPLE)], dynamic=False),
        program / exported.PROGRAM,
    )
    found["program"] = Form("program", program, changed(about, batch_size=3))
    found["openvino"] = Form("openvino", tmp_path_factory.mktemp("openvino"), about)
    openvino_ir.convert(as_onnx, found["openvino"].folder)
    for form in found.values():
        form.save_about()
    return found


@pytest.fixture(scope="module")
def written(request, forms, tmp_path_factory) -> Path:
    plugin = plugins.load("runtimes", request.param)
    if reason := plugin.unavailable(None):
        pytest.skip(reason)
    out = tmp_path_factory.mktemp(request.param)
    taken = "program" if getattr(plugin, "TRACED", False) else plugin.TAKES
    plugin.write(forms[taken], out, RuntimeSettings(threads=1, batch_size=4))
    return out


@pytest.mark.parametrize("name", NAMES)
def test_it_declares_its_form_and_answers_whether_it_can_be_used(name):
    plugin = plugins.load("runtimes", name)
    assert plugin.TAKES in ROAD
    assert plugin.DEVICE in ("cpu", "cuda")
    assert getattr(plugin, "COMPILES", None) in (None, "build", "first_call")
    assert getattr(plugin, "BUILD_S", 0.0) >= 0
    reason = plugin.unavailable(None)
    assert reason is None or len(reason) > 10
    assert plugin.__doc__
    for dim in plugin.dims(made.context()):
        assert dim.choices if dim.kind == "choice" else dim.low < dim.high


@pytest.mark.parametrize("written", NAMES, indirect=True)
def test_its_artifact_has_a_short_loader_that_needs_no_autotune(written):
    facts = json.loads((written / "artifact.json").read_text())
    assert facts["schema"] == "autotune.artifact/1"
    assert (facts["threads"], facts["batch_size"]) == (1, 4)
    assert facts["runtime"] in NAMES
    text = (written / "load.py").read_text()
    code = compile(text, "load.py", "exec")
    imported = {name.partition(".")[0] for name in code.co_names}
    assert not imported & {"autotune", "pickle", "cloudpickle"}
    assert "weights_only=False" not in text
    assert len(text.splitlines()) < 110
    assert not [p for p in written.rglob("*") if p.suffix in (".pkl", ".pt", ".pth")]
    assert not (written / "about.json").exists()


@pytest.mark.parametrize("written", [n for n in NAMES if n != "compiled"], indirect=True)
def test_its_loader_gives_the_models_outputs_for_any_array(written):
    # `compiled` does this in tests/runtimes, once: it takes seconds.
    spec = importlib.util.spec_from_file_location("contract_load", written / "load.py")
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    threads = torch.get_num_threads()
    predict = loader.load()
    torch.set_num_threads(threads)
    with torch.no_grad():
        expected = model()(torch.from_numpy(SAMPLE)).numpy()
    frozen = SAMPLE.copy()
    frozen.flags.writeable = False
    strided = np.ascontiguousarray(SAMPLE.T).T
    for rows in (SAMPLE, frozen, strided):
        np.testing.assert_allclose(predict(rows), expected, atol=1e-5)
    np.testing.assert_allclose(predict(SAMPLE[:2]), expected[:2], atol=1e-5)
    np.testing.assert_allclose(predict(input=SAMPLE), expected, atol=1e-5)
    with pytest.raises(Exception, match=r"(?i)expect|shape|dtype|type"):
        predict(SAMPLE[:, :5].astype(np.float64))


def test_importing_a_runtime_imports_nothing_heavy():
    names = ", ".join(f"autotune.runtimes.{name}" for name in NAMES)
    heavy = "{'torch', 'numpy', 'onnx', 'onnxruntime', 'openvino'}"
    code = f"import sys, {names}; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
