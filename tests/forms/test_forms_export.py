"""Exports: a free batch, no trace of this machine, the same bytes again, clear refusals."""

import onnx
import pytest
import torch
from torch import nn

from autotune.errors import JobError
from autotune.forms import exported, onnx_file
from autotune.forms.flat import Flat

NAMES = (("input",), ("output",))


def cnn() -> Flat:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(144, 3),
    )
    return Flat(model, "tensor", ("input",)).eval()


def test_onnx_has_a_free_batch_and_names_no_file_of_this_machine(tmp_path):
    path = tmp_path / "model.onnx"
    x = torch.randn(2, 1, 8, 8)
    onnx_file.export(cnn(), [x], path, NAMES, dynamic=True)
    graph = onnx.load(str(path)).graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert [value.name for value in graph.output] == ["output"]
    assert b"site-packages" not in path.read_bytes()
    assert b"stack_trace" not in path.read_bytes()
    twin = tmp_path / "twin.onnx"
    onnx_file.export(cnn(), [x], twin, NAMES, dynamic=True)
    assert twin.read_bytes() == path.read_bytes()


class Branches(nn.Module):
    """Python looks at a value: torch.export cannot follow."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def test_what_cannot_be_traced_is_unsupported_in_one_line(tmp_path, capfd):
    model = Flat(Branches(), "tensor", ("input",)).eval()
    with pytest.raises(JobError) as found:
        onnx_file.export(model, [torch.ones(2, 3)], tmp_path / "m.onnx", NAMES, dynamic=True)
    assert found.value.kind == "unsupported"
    assert "\n" not in str(found.value)
    assert "ONNX" in str(found.value)
    with pytest.raises(JobError) as found:
        exported.trace(model, [torch.ones(2, 3)], dynamic=True)
    assert found.value.kind == "unsupported"
    assert capfd.readouterr().out == ""


def test_a_program_runs_at_other_batches(tmp_path):
    model = cnn()
    exported.save(
        exported.trace(model, [torch.randn(2, 1, 8, 8)], dynamic=True), tmp_path / "m.pt2"
    )
    again = torch.export.load(tmp_path / "m.pt2").module(check_guards=False)
    x = torch.randn(5, 1, 8, 8)
    assert torch.allclose(again(x)[0], model(x)[0], atol=1e-6)
