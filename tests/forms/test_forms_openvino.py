"""OpenVINO models: the same outputs, the same bytes, the modules' names, and nothing sent."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autotune.errors import JobError
from autotune.forms import flat, onnx_file, openvino_ir

NAMES = (("input",), ("output",))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("net")
    model = flat.Flat(Net().eval(), "tensor", NAMES[0]).eval()
    onnx_file.export(model, [torch.randn(2, 1, 6, 6)], out / "model.onnx", NAMES, dynamic=True)
    return out


def test_it_gives_the_same_outputs_and_bytes_and_names_its_modules(folder, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        openvino_ir.convert(folder, tmp_path / name)
    rows = np.random.default_rng(0).standard_normal((3, 1, 6, 6)).astype(np.float32)
    openvino_ir.check(folder, tmp_path / "a", [[rows], [rows[:1]]], NAMES[0])
    texts = [(tmp_path / name / "model.xml").read_bytes() for name in ("a", "b")]
    assert texts[0] == texts[1]
    assert str(folder).encode() not in texts[0]
    with openvino_ir.silent():
        import openvino
    model = openvino.Core().read_model(tmp_path / "a/model.xml")
    found = {
        node.get_type_name(): openvino_ir.module_of(node.get_friendly_name())
        for node in model.get_ordered_ops()
    }
    assert found["MatMul"] == "head"
    assert found["Relu"] == "body.2"
    assert found["Convolution"].startswith("body.")
    assert found["Parameter"] == ""


def test_another_model_is_refused(folder, tmp_path):
    torch.manual_seed(1)
    other = flat.Flat(Net().eval(), "tensor", NAMES[0]).eval()
    onnx_file.export(other, [torch.randn(2, 1, 6, 6)], tmp_path / "model.onnx", NAMES, dynamic=True)
    openvino_ir.convert(tmp_path, tmp_path)
    rows = np.ones((2, 1, 6, 6), np.float32)
    with pytest.raises(JobError, match=r"differs from yours at input \[2, 1, 6, 6\]"):
        openvino_ir.check(folder, tmp_path, [[rows]], NAMES[0])


def test_what_cannot_be_read_is_unsupported(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(JobError, match="OpenVINO cannot convert this model"):
        openvino_ir.convert(tmp_path, tmp_path)


def test_importing_it_sends_and_writes_nothing(tmp_path):
    code = (
        "from autotune.forms import openvino_ir\n"
        "with openvino_ir.silent():\n    import openvino\n"
        "import sys; assert 'openvino_telemetry' not in sys.modules, 'sends'"
    )
    env = os.environ | {"HOME": str(tmp_path), "CI": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert not list(tmp_path.iterdir())
