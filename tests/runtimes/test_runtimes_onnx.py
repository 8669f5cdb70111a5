"""The ONNX loader: fixed to the plan's batch, and taking any other."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from autotune.forms import Form, changed, onnx_file
from autotune.forms.flat import Flat
from autotune.runtimes import RuntimeSettings
from autotune.runtimes import onnxruntime as runtime
from tests.support import stages


class Sequence(nn.Module):
    """A recurrent model: with a free batch its first state is made call by call."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.cell(x)[0][:, -1])
        return out


@pytest.fixture
def built(tmp_path: Path) -> tuple[Any, nn.Module]:
    """The loader's module, and the model."""
    torch.manual_seed(0)
    model = Sequence().eval()
    flat = Flat(model, "tensor", ("input",)).eval()
    folder, out = tmp_path / "form", tmp_path / "artifact"
    folder.mkdir()
    out.mkdir()
    names = (("input",), ("output",))
    onnx_file.export(flat, [torch.randn(2, 5, 3)], folder / "model.onnx", names, dynamic=True)
    about = changed(stages.interface(3), input_shapes=((5, 3),), batch_size=None)
    runtime.write(Form("onnx", folder, about), out, RuntimeSettings(threads=1, batch_size=2))
    spec = importlib.util.spec_from_file_location("built_load", out / "load.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found, model


def test_it_answers_the_plans_batch_and_any_other(built: tuple[Any, nn.Module]) -> None:
    loader, model = built
    predict = loader.load()
    for rows in (2, 1, 7, 2):
        x = torch.randn(rows, 5, 3)
        with torch.no_grad():
            expected = model(x).numpy()
        assert np.allclose(predict(x.numpy()), expected, atol=1e-5)
        assert np.allclose(predict(input=x.numpy()), expected, atol=1e-5)


def test_shapes_are_known_for_the_plans_batch_and_another_session_waits(
    built: tuple[Any, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, _ = built
    made, real = [], onnxruntime.InferenceSession

    def session(*args: Any, **more: Any) -> Any:
        made.append(real(*args, **more))
        return made[-1]

    monkeypatch.setattr(loader.ort, "InferenceSession", session)
    predict = loader.load()
    predict(np.zeros((2, 5, 3), np.float32))
    assert [s.get_inputs()[0].shape for s in made] == [[2, 5, 3]]
    for _ in range(2):
        predict(np.zeros((4, 5, 3), np.float32))
    assert len(made) == 2
    assert made[1].get_inputs()[0].shape[0] == loader.FREE


def test_an_input_of_the_wrong_shape_is_still_an_error(built: tuple[Any, nn.Module]) -> None:
    loader, _ = built
    with pytest.raises(Exception, match=r"(?i)invalid|dimension"):
        loader.load()(np.zeros((2, 5, 4), np.float32))


def test_fusions_that_hide_products_from_int8_are_left_out_of_quantized_models_alone(
    built: tuple[Any, nn.Module], tmp_path: Path
) -> None:
    import onnx

    loader, _ = built
    assert loader.LEFT_OUT == []
    whole, weights = tmp_path / "form" / "model.onnx", tmp_path / "rounded.onnx"
    assert runtime._facts(whole) == (loader.FREE, ())
    model = onnx.load(whole)
    scale = onnx.helper.make_node("DequantizeLinear", ["q", "s"], ["d"])
    model.graph.node.append(scale)
    onnx.save(model, weights)
    assert runtime._facts(weights) == (loader.FREE, ("MatMulAddFusion",))
