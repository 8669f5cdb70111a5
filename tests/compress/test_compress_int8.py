"""Int8 steps: near the float model, smaller, silent; the reduced range follows the processor."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from autotune.compress import CompressTools, _int8, _paths, int4_weights, int8_dynamic, int8_static
from autotune.compress._int8 import bias, calibrate, sensitive
from autotune.errors import JobError
from autotune.forms import Form, onnx_file
from autotune.forms.flat import Flat
from autotune.records.hardware import Leaf
from autotune.records.job import Context
from autotune.records.plan import Value
from tests.support import made, stages

SEVEN = _int8.Rounding(levels=64)
RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((64, 20)).astype(np.float32)

ABOUT = stages.interface(20)


def context(isa: tuple[str, ...] = (), machine: str = "x86_64", **types: int) -> Context:
    return made.context(
        of=made.traits(module_types=types), on=made.profile(isa=isa, architecture=machine)
    )


@pytest.fixture(scope="module")
def form(tmp_path_factory) -> Form:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 3))
    flat = Flat(model, "tensor", ("input",)).eval()
    folder = tmp_path_factory.mktemp("onnx")
    names = (("input",), ("output",))
    onnx_file.export(flat, [torch.randn(2, 20)], folder / "model.onnx", names, dynamic=True)
    return Form("onnx", folder, ABOUT)


def tools(workdir: Path, rows: np.ndarray = ROWS) -> CompressTools:
    def refuse(*_: object) -> None:
        raise AssertionError("an ONNX step needs no module")

    def calibration(size):
        for start in range(0, len(rows), size):
            yield {"input": rows[start : start + size]}

    return CompressTools(
        seed=0,
        batch_size=1,
        workdir=workdir,
        module=refuse,
        fresh=refuse,
        example=refuse,
        recover=refuse,
        calibration=calibration,
    )


def outputs(folder: Path) -> np.ndarray:
    session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": ROWS})[0]


@pytest.mark.parametrize(
    ("step", "params"),
    [
        (int8_static, {"method": "percentile", "reduce_range": True}),
        (int8_static, {"method": "minmax"}),
        (int8_static, {"method": "mse"}),
        (int8_dynamic, {"reduce_range": True}),
        (int8_static, {"per_tensor": True}),
        (int8_dynamic, {"per_tensor": True}),
    ],
)
def test_int8_is_near_smaller_and_silent(form, tmp_path, capfd, step, params):
    made = step.apply(form, params, tools(tmp_path))
    exact, found = outputs(form.folder), outputs(made.folder)
    assert np.abs(exact - found).max() < 0.1 * np.abs(exact).max()
    small, big = ((f.folder / "model.onnx").stat().st_size for f in (made, form))
    assert small < 0.6 * big
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert capfd.readouterr().out == ""


def test_quantizing_again_gives_the_same_bytes(form, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        int8_static.apply(form, {}, tools(tmp_path / name))
    assert (tmp_path / "a/model.onnx").read_bytes() == (tmp_path / "b/model.onnx").read_bytes()


def test_no_calibration_rows_is_unsupported(form, tmp_path):
    with pytest.raises(JobError) as found:
        int8_static.apply(form, {}, tools(tmp_path, ROWS[:0]))
    assert found.value.kind == "unsupported"


def test_the_most_sensitive_layers_go_back_to_fp32_and_are_ranked_once(form, tmp_path, monkeypatch):
    errors, shared = [], tmp_path / "shared"
    shared.mkdir()
    for restored in (0, 1, 2):
        (tmp_path / str(restored)).mkdir()
        given = replace(tools(tmp_path / str(restored)), shared=shared)
        made = int8_static.apply(form, {"restored": restored}, given)
        errors.append(np.abs(outputs(form.folder) - outputs(made.folder)).max())
        if restored:  # what the first one found serves the others
            monkeypatch.setattr(sensitive, "order", lambda *_: pytest.fail("ranked again"))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-5


@pytest.mark.parametrize(("int8", "refused"), [(5e10, "(0.5x)"), (4e11, None), (None, None)])
def test_int8_is_refused_where_its_own_product_was_measured_as_slower(int8, refused):
    leaves = {_paths.FP32: 1e11, _paths.INT8_ONNXRUNTIME: int8}
    measured = {
        name: Leaf(value=value, unit="FLOP/s", source="measured")
        for name, value in leaves.items()
        if value is not None
    }
    on = made.context(
        of=made.traits(module_types={"Linear": 2}), on=made.profile(measured=measured)
    )
    for step in (int8_static, int8_dynamic):
        reason = step.unavailable(on)
        assert reason is None if refused is None else refused in reason


@pytest.mark.parametrize(
    ("isa", "machine", "reduced"),
    [
        (("avx2",), "x86_64", True),
        (("avx512_vnni",), "x86_64", False),
        (("avx_vnni",), "AMD64", False),
        (("asimd",), "aarch64", False),
    ],
)
def test_the_range_is_reduced_where_the_product_would_saturate(isa, machine, reduced):
    assert _int8.reduce_range(context(isa, machine)).choices == (reduced,)


@pytest.mark.parametrize("step", [int8_static, int8_dynamic])
def test_weights_have_a_scale_for_each_channel_or_one(form: Form, tmp_path: Path, step) -> None:
    for per_tensor, scales in ((False, [256, 3]), (True, [1, 1])):
        made = step.apply(form, {"per_tensor": per_tensor}, tools(tmp_path))
        graph = onnx.load(made.folder / "model.onnx").graph
        sizes = [
            int(np.prod(value.dims))
            for value in graph.initializer
            if "weight" in value.name and value.name.endswith("_scale")
        ]
        assert sizes == scales


@pytest.mark.parametrize("step", [int8_static, int8_dynamic])
def test_one_scale_for_a_weight_is_a_choice_where_no_layer_is_a_convolution(step) -> None:
    def choices(**types: int) -> list[tuple]:
        found = step.dims(context(**types))
        return [dim.choices for dim in found if dim.name == "per_tensor"]

    assert choices(Linear=2) == choices(Linear=2, Conv1D=2) == [(False, True)]
    assert choices(Linear=2, Conv2d=1) == choices(Linear=1, ConvTranspose1d=1) == []


@pytest.mark.parametrize("step", [int8_dynamic, int4_weights])
def test_what_reaches_matrix_products_alone_needs_a_linear_layer(step):
    assert "Linear" in (step.unavailable(context(Conv2d=3)) or "")
    assert step.unavailable(context(Linear=1)) is None


def test_int4_weights_are_an_eighth_and_near(form, tmp_path):
    made = int4_weights.apply(form, {"block": 32}, tools(tmp_path))
    exact, found = outputs(form.folder), outputs(made.folder)
    assert np.abs(exact - found).max() < 0.2 * np.abs(exact).max()
    small, big = ((f.folder / "model.onnx").stat().st_size for f in (made, form))
    assert small < 0.4 * big  # a model this small is biases and names too


def test_int4_where_every_product_is_kept_is_unsupported(form, tmp_path):
    with pytest.raises(JobError, match="no matrix product"):
        int4_weights.apply(form, {"keep_fp32": "*"}, tools(tmp_path))


@pytest.mark.parametrize(
    ("step", "kept", "quantized"),
    [
        (int8_static, "", 2),
        (int8_static, "2", 1),
        (int8_dynamic, "2", 1),
        (int8_dynamic, "0, 2", 0),
        (int8_static, "[02]", 0),
    ],
)
def test_kept_modules_stay_in_fp32(
    form: Form, tmp_path: Path, step: ModuleType, kept: str, quantized: int
) -> None:
    params: dict[str, Value] = {"reduce_range": True, "keep_fp32": kept}
    made = step.apply(form, params, tools(tmp_path))
    graph = onnx.load(made.folder / "model.onnx").graph
    stored = {value.name: value.data_type for value in graph.initializer}
    small = [name for name, kind in stored.items() if kind == onnx.TensorProto.INT8]
    weights = [n for n in small if "weight" in n and "zero" not in n and "scale" not in n]
    assert len(weights) == quantized, stored


def test_tied_weights_that_are_read_two_ways_get_a_copy_each(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(20, 48)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.encoder(x)) @ self.encoder.weight

    torch.manual_seed(0)
    given = tmp_path / "given"
    given.mkdir()
    flat = Flat(Tied(), "tensor", ("input",)).eval()
    names = (("input",), ("output",))
    onnx_file.export(flat, [torch.randn(2, 20)], given / "model.onnx", names, dynamic=True)
    form = Form("onnx", given, ABOUT)
    for step in (int8_static, int8_dynamic):
        (tmp_path / step.__name__).mkdir()
        # eight bits of both saturate where there is no VNNI
        made = step.apply(form, {"reduce_range": True}, tools(tmp_path / step.__name__))
        exact, found = outputs(given), outputs(made.folder)
        assert np.abs(exact - found).max() < 0.05 * np.abs(exact).max()


def test_biases_take_back_what_seven_bit_weights_lose_on_average(
    form: Form, tmp_path: Path
) -> None:
    shifted = np.abs(ROWS) + 0.5  # errors of weights do not average out
    source, target = form.folder / "model.onnx", tmp_path / "corrected.onnx"
    prepared = _int8._prepare(source, tmp_path / "prepared.onnx")
    assert bias.correct(str(prepared), str(target), iter([{"input": shifted}]), [], SEVEN)

    def means(corrected: bool) -> np.ndarray:
        model = onnx.load(target if corrected else prepared)
        for node in model.graph.node:
            for value in model.graph.initializer:
                if node.op_type in ("Gemm", "MatMul") and value.name == node.input[1]:
                    rounded = sensitive.rounded_weight(node, value, SEVEN)
                    value.CopyFrom(onnx.numpy_helper.from_array(rounded, value.name))
        hidden = next(n for n in model.graph.node if n.op_type == "Relu").input[0]
        model.graph.output.append(onnx.ValueInfoProto(name=hidden))
        return calibrate.session_of(model).run([hidden], {"input": shifted})[0].mean(0)

    exact = onnx.load(prepared)
    hidden = next(n for n in exact.graph.node if n.op_type == "Relu").input[0]
    exact.graph.output.append(onnx.ValueInfoProto(name=hidden))
    aim = calibrate.session_of(exact).run([hidden], {"input": shifted})[0].mean(0)
    assert np.abs(means(corrected=True) - aim).max() < 0.02 * np.abs(means(False) - aim).max()


def test_layers_that_are_kept_keep_their_bias(form: Form, tmp_path: Path) -> None:
    source = form.folder / "model.onnx"
    names = [node.name for node in onnx.load(source).graph.node]
    assert not bias.correct(str(source), str(tmp_path / "none"), iter([]), names, SEVEN)
    assert not (tmp_path / "none").exists()
