"""Int8 by NNCF: near the float model, kept modules stay, the layer with outliers is restored."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autotune.compress import CompressTools, int8_openvino
from autotune.errors import JobError
from autotune.forms import Form, Interface, flat, onnx_file, openvino_ir

ROWS = np.random.default_rng(0).standard_normal((32, 20)).astype(np.float32)
NAMES = (("input",), ("output",))


@pytest.fixture(scope="module")
def form(tmp_path_factory) -> Form:
    """Its second layer's inputs have one outlier channel, which 8 bits cannot hold."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 64), nn.Linear(64, 3)).eval()
    with torch.no_grad():
        model[2].bias[0] = 3000.0
        model[3].weight[:, 0] = 0.0
    folder = tmp_path_factory.mktemp("int8")
    wrapped = flat.Flat(model, "tensor", NAMES[0]).eval()
    onnx_file.export(wrapped, [torch.randn(2, 20)], folder / "model.onnx", NAMES, dynamic=True)
    openvino_ir.convert(folder, folder)
    about = Interface(
        input_kind="tensor",
        input_names=NAMES[0],
        input_shapes=((20,),),
        input_dtypes=("float32",),
        output_kind="tensor",
        output_names=NAMES[1],
        parameters=1,
    )
    return Form("openvino", folder, about)


def apply(form: Form, workdir: Path, rows: np.ndarray = ROWS, **params) -> dict[str, object]:
    """The quantized model's outputs, and the modules whose inputs are rounded."""

    def refuse(*_: object) -> None:
        raise AssertionError("an OpenVINO step needs no module")

    def calibration(size):
        for start in range(0, len(rows), size):
            yield {"input": rows[start : start + size]}

    tools = CompressTools(
        seed=0,
        batch_size=1,
        workdir=workdir,
        module=refuse,
        fresh=refuse,
        example=refuse,
        recover=refuse,
        calibration=calibration,
    )
    given = {"preset": "mixed", "reduce_range": False} | params
    made_form = int8_openvino.apply(form, given, tools)
    return {"outputs": outputs(made_form), "rounded": rounded(made_form)}


def outputs(form: Form) -> np.ndarray:
    with openvino_ir.silent():
        return openvino_ir.runner(form.folder / "model.xml")({"input": ROWS})[0]


def rounded(form: Form) -> set[str]:
    import openvino

    return {
        openvino_ir.module_of(node.get_friendly_name())
        for node in openvino.Core().read_model(form.folder / "model.xml").get_ordered_ops()
        if node.get_type_name() == "MatMul"
        and node.input_value(0).get_node().get_type_name() == "FakeQuantize"
    }


def test_the_layer_that_int8_breaks_is_the_one_restored(form, tmp_path, capfd):
    exact = outputs(form)
    worst = apply(form, tmp_path, restored=0)
    mended = apply(form, tmp_path, restored=1)
    assert worst["rounded"] == {"0", "2", "3"}
    assert mended["rounded"] == {"0", "2"}
    errors = [np.abs(found["outputs"] - exact).max() for found in (worst, mended)]
    assert errors[1] < 0.3 * errors[0]
    assert capfd.readouterr().out == ""


def test_kept_modules_stay_in_fp32(form, tmp_path):
    assert apply(form, tmp_path, keep_fp32="0, 3", reduce_range=True)["rounded"] == {"2"}


def test_no_calibration_rows_is_unsupported(form, tmp_path):
    with pytest.raises(JobError, match="calibration rows"):
        apply(form, tmp_path, ROWS[:0])


class Attends(nn.Module):
    """Attention by hand, in a module of no telling name."""

    def forward(self, x):
        weights = torch.softmax(x @ x.transpose(1, 2), -1)
        return weights @ x


def test_attention_is_found_by_operations_and_a_softmax_at_the_end_is_none(tmp_path):
    import openvino

    head = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1))
    models = {
        "attends": (Attends(), True),
        "head": (head, False),
        "follows": (nn.Sequential(head, nn.Linear(4, 2)), False),
    }
    for name, (model, expected) in models.items():
        path = tmp_path / f"{name}.onnx"
        wrapped = flat.Flat(model, "tensor", ("input",)).eval()
        onnx_file.export(wrapped, [torch.randn(2, 4, 4)], path, NAMES, dynamic=True)
        assert int8_openvino._attends(openvino.Core().read_model(path)) == expected, name
