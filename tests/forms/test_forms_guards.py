"""Guards of attention: gone where their case cannot come up, kept where it may."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from autotune.forms import _guards, onnx_file
from autotune.forms.flat import Flat

LOWEST = np.finfo(np.float32).min
INF = np.inf


def graph(mask: np.ndarray | str, instead: float = 0.0, axis: int = -1) -> onnx.GraphProto:
    """Guarded attention probabilities; ``mask`` is constant, or ``input``, or ``chosen`` of two."""
    constants = {"nothing": np.array(instead, np.float32), "low": np.array(LOWEST, np.float32)}
    nodes = [helper.make_node("MatMul", ["q", "k"], ["raw"])]
    if isinstance(mask, np.ndarray):
        constants["mask"] = mask.astype(np.float32)
    elif mask == "chosen":
        nodes.append(helper.make_node("Where", ["seen", "nothing", "low"], ["bare"]))
        nodes.append(helper.make_node("Unsqueeze", ["bare", "front"], ["mask"]))
        constants["front"] = np.array([0], np.int64)
    nodes += [
        helper.make_node("Add", ["raw", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["probabilities"], axis=axis),
        helper.make_node("IsNaN", ["probabilities"], ["bad"]),
        helper.make_node("Where", ["bad", "nothing", "probabilities"], ["guarded"]),
        helper.make_node("MatMul", ["guarded", "v"], ["y"]),
    ]

    def value(name: str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, None)

    inputs = [*map(value, ("q", "k", "v", "mask")), value("seen", TensorProto.BOOL)]
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    return helper.make_graph(nodes, "g", inputs, [value("y")], held)


CAUSAL = np.triu(np.full((3, 3), -INF), 1)


@pytest.mark.parametrize(
    ("mask", "removed"),
    [
        ("chosen", 1),
        ("input", 0),  # may be -inf throughout
        (np.zeros((3, 3)), 1),
        (CAUSAL, 1),
        (np.vstack([CAUSAL, np.full((1, 3), -INF)]), 0),
    ],
)
def test_a_guard_goes_where_each_row_surely_has_a_finite_number(
    mask: np.ndarray | str, removed: int
) -> None:
    made = graph(mask)
    assert _guards.remove(made) == removed
    kinds = [node.op_type for node in made.node]
    assert kinds.count("IsNaN") == 1 - removed
    assert made.node[-1].input[0] == ("probabilities" if removed else "guarded")


def test_what_is_no_guard_stays() -> None:
    assert _guards.remove(graph("chosen", instead=1.0)) == 0
    assert _guards.remove(graph("chosen", axis=1)) == 0


def test_weights_in_a_file_of_their_own_are_not_read() -> None:
    made = graph("chosen")
    weight = TensorProto(name="k", data_type=TensorProto.FLOAT, dims=[3, 3])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="not-there.data")
    made.initializer.append(weight)
    assert _guards.remove(made) == 1
    mask = graph("input")
    weight.name = "mask"
    mask.initializer.append(weight)
    assert _guards.remove(mask) == 0  # what it holds is not known


class Attention(nn.Module):
    """Attention under a mask of booleans."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unsqueeze(1) for part in self.project(x).chunk(3, -1))
        mask = (seen > 0)[:, None, None, :]
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).squeeze(1)


@pytest.mark.parametrize("limit", [onnx_file._PROTOBUF_LIMIT, 0])
def test_an_exported_boolean_mask_has_no_guard_and_the_same_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Also where weights are too large for the graph's file."""
    monkeypatch.setattr(onnx_file, "_PROTOBUF_LIMIT", limit)
    torch.manual_seed(0)
    model = Flat(Attention(), "tuple", ("x", "seen")).eval()
    inputs = [torch.randn(3, 5, 8), torch.tensor([[1.0, 1, 1, 0, 0]]).repeat(3, 1)]
    path, names = tmp_path / "model.onnx", (("x", "seen"), ("output",))
    onnx_file.export(model, inputs, path, names, dynamic=True)
    assert (tmp_path / "model.onnx.data").exists() == (limit == 0)
    assert "IsNaN" not in [node.op_type for node in onnx.load(path).graph.node]
    onnx_file.check(model, path, [inputs], names)
