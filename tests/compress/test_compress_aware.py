"""Quantization-aware recovery: rounding within, straight-through gradients, nothing left behind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autotune.compress import CompressTools, int8_aware
from autotune.compress._int8 import Rounding
from autotune.errors import JobError
from autotune.forms import Form, module
from autotune.worker.training import optimizers
from tests.support import made, stages

ROWS = torch.linspace(-1, 3, 32 * 6).reshape(32, 6)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def test_within_layers_see_rounded_values_and_gradients_pass_where_nothing_was_clipped() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.27, 0.634, -0.003], [127.0, 1.4, -1.6]]))
        layer.bias.zero_()
    raw = layer.weight
    x = torch.tensor([[0.5, 0.501, 9.0]], requires_grad=True)
    with int8_aware.rounding([layer], {id(layer): (0.0, 2.55)}, Rounding()):
        expected = torch.tensor([[1.27, 0.63, 0.0], [127.0, 1.0, -2.0]])
        torch.testing.assert_close(layer.weight, expected)
        rounded = torch.tensor([[0.5, 0.5, 2.55]])  # the last is clipped
        out = layer(x)
        torch.testing.assert_close(out, rounded @ expected.T)
        out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[128.27, 1.63, 0.0]]))
    assert raw.grad is not None
    torch.testing.assert_close(raw.grad, rounded.expand(2, 3).clone())
    assert layer.weight is raw
    torch.testing.assert_close(layer(x.detach()), x.detach() @ raw.T)
    assert sorted(layer.state_dict()) == ["bias", "weight"]


def test_one_scale_for_a_weight_rounds_small_channels_by_the_largest() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.27, 0.634, -0.003], [127.0, 1.4, -1.6]]))
    with int8_aware.rounding([layer], {}, Rounding(per_channel=False)):
        expected = torch.tensor([[1.0, 1.0, 0.0], [127.0, 1.0, -2.0]])
        torch.testing.assert_close(layer.weight, expected)


def test_muon_finds_the_same_matrices_within() -> None:
    network = model()
    raw = network.get_parameter("0.weight")
    with int8_aware.rounding([network.get_submodule(n) for n in ("0", "2")], {}, Rounding()):
        assert [id(p) for p in optimizers.hidden_matrices(network)] == [id(raw)]


def tools(workdir: Path, seen: list[torch.Tensor]) -> CompressTools:
    def recover(network: nn.Module) -> float:
        (first, *_) = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
        seen.append(first.weight.detach().clone())  # as it computes: rounded
        rule = torch.optim.SGD(network.parameters(), lr=0.1)
        network(ROWS).square().mean().backward()
        rule.step()
        return 1.5

    def calibration(size: int) -> Iterator[dict[str, Any]]:
        yield {"input": ROWS.numpy()[:size]}

    return stages.tools(workdir, model, recover, calibration)


@pytest.fixture
def form(tmp_path: Path) -> Form:
    return stages.form(tmp_path / "given", model, 6, recovery_s=1.0)


def test_it_trains_rounded_and_gives_the_module_back_in_fp32(form: Form, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []
    done = int8_aware.apply(form, {"reduce_range": True}, tools(tmp_path / "done", seen))
    assert done.about.recovery_s == 2.5
    steps = seen[0] / (seen[0].abs().amax(1, keepdim=True) / 64)
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    weight = module.load(model(), done.folder).get_parameter("0.weight")
    given = model().get_parameter("0.weight")
    assert not torch.equal(weight, given)
    assert np.abs((weight - given).detach().numpy()).max() < 0.5
    assert len(np.unique(weight.detach().numpy())) == 48  # not rounded: that is the next step's


def test_what_is_kept_in_fp32_is_not_rounded(form: Form, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []
    int8_aware.apply(form, {"keep_fp32": "0"}, tools(tmp_path / "part", seen))
    assert torch.equal(seen[0], model().get_parameter("0.weight"))
    with pytest.raises(JobError, match="no linear or convolutional layer is left"):
        int8_aware.apply(form, {"keep_fp32": "*"}, tools(tmp_path / "none", seen))


def test_it_needs_rows_and_layers() -> None:
    layers = made.traits(module_types={"Linear": 1})
    assert int8_aware.unavailable(made.context(of=layers)) is None
    assert "no linear" in str(int8_aware.unavailable(made.context()))
    bare = made.info(train_rows=0, calibration_rows=0)
    assert "train_data" in str(int8_aware.unavailable(made.context(task=bare, of=layers)))
