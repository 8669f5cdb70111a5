"""Attention made plain: guards go where their case cannot come up, keys are turned once."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from autotune.forms import _attention, onnx_file
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
    assert _attention.drop_guards(made) == removed
    kinds = [node.op_type for node in made.node]
    assert kinds.count("IsNaN") == 1 - removed
    assert made.node[-1].input[0] == ("probabilities" if removed else "guarded")


def test_what_is_no_guard_stays() -> None:
    assert _attention.drop_guards(graph("chosen", instead=1.0)) == 0
    assert _attention.drop_guards(graph("chosen", axis=1)) == 0


def test_weights_in_a_file_of_their_own_are_not_read() -> None:
    made = graph("chosen")
    weight = TensorProto(name="k", data_type=TensorProto.FLOAT, dims=[3, 3])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="not-there.data")
    made.initializer.append(weight)
    assert _attention.drop_guards(made) == 1
    mask = graph("input")
    weight.name = "mask"
    mask.initializer.append(weight)
    assert _attention.drop_guards(mask) == 0  # what it holds is not known


def turn(back: list[int | str], flat: list[int] | None = None) -> onnx.GraphProto:
    """Keys ``[n, 2, 5, 4]`` turned by way of three dimensions; into the shape ``back``, of numbers
    and names of the keys' own.
    """
    nodes = [helper.make_node("Shape", ["k"], ["shape"])]
    numbers = {"flat": flat or [-1, 5, 4]}
    for name, start, end in (("front", 0, -2), ("rows", -2, -1), ("columns", -1, 9)):
        nodes.append(helper.make_node("Slice", ["shape", f"from{start}", f"to{end}"], [name]))
        numbers |= {f"from{start}": [start], f"to{end}": [end]}
    parts = [name if isinstance(name, str) else f"number{name}" for name in back]
    numbers |= {part: [n] for part, n in zip(parts, back, strict=True) if isinstance(n, int)}
    nodes += [
        helper.make_node("Concat", parts, ["back"], axis=0),
        helper.make_node("Reshape", ["k", "flat"], ["three"]),
        helper.make_node("Transpose", ["three"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["turned", "back"], ["keys"]),
        helper.make_node("MatMul", ["q", "keys"], ["y"]),
    ]
    held = [numpy_helper.from_array(np.array(n), name) for name, n in numbers.items()]
    given = [
        helper.make_tensor_value_info("q", TensorProto.FLOAT, ["n", 2, 5, 4]),
        helper.make_tensor_value_info("k", TensorProto.FLOAT, ["n", 2, 5, 4]),
    ]
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_graph(nodes, "g", given, [answer], held)


@pytest.mark.parametrize("back", [["front", "columns", "rows"], ["front", 4, 5]])
def test_keys_turned_by_way_of_three_dimensions_are_turned_once(back: list[int | str]) -> None:
    made = turn(back)
    assert _attention.join_turns(made) == 1
    assert [node.op_type for node in made.node] == ["Transpose", "MatMul"]
    assert list(made.node[0].input) == ["k"]
    assert list(made.node[0].attribute[0].ints) == [0, 1, 3, 2]


def test_what_mixes_numbers_is_no_turn() -> None:
    assert _attention.join_turns(turn(["front", 2, 10])) == 0
    assert _attention.join_turns(turn(["front", "rows", "columns"])) == 0
    assert _attention.join_turns(turn(["front", "columns", "rows"], flat=[-1, 10, 2])) == 0
    unknown = turn(["front", "columns", "rows"])
    unknown.input[1].type.tensor_type.ClearField("shape")
    assert _attention.join_turns(unknown) == 0


def test_what_a_graph_within_takes_is_not_dropped() -> None:
    made = turn(["front", "columns", "rows"])
    inner = helper.make_node("Identity", ["three"], ["inner"])
    answer = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    branch = helper.make_graph([inner], "within", [], [answer])
    asked = helper.make_node("If", ["sure"], ["z"], then_branch=branch, else_branch=branch)
    made.node.append(asked)
    made.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    assert _attention.join_turns(made) == 1
    assert [node.op_type for node in made.node] == ["Reshape", "Transpose", "MatMul", "If"]


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
@pytest.mark.parametrize("dynamic", [True, False])
def test_exported_attention_is_plain_and_has_the_same_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, dynamic: bool
) -> None:
    """Also where weights are too large for the graph's file."""
    monkeypatch.setattr(onnx_file, "_PROTOBUF_LIMIT", limit)
    torch.manual_seed(0)
    model = Flat(Attention(), "tuple", ("x", "seen")).eval()
    inputs = [torch.randn(3, 5, 8), torch.tensor([[1.0, 1, 1, 0, 0]]).repeat(3, 1)]
    path, names = tmp_path / "model.onnx", (("x", "seen"), ("output",))
    onnx_file.export(model, inputs, path, names, dynamic=dynamic)
    assert (tmp_path / "model.onnx.data").exists() == (limit == 0)
    nodes = onnx.load(path).graph.node
    assert "IsNaN" not in [node.op_type for node in nodes]
    turns = [list(node.attribute[0].ints) for node in nodes if node.op_type == "Transpose"]
    assert turns == [[0, 1, 3, 2]]
    others = [[inputs[0][:1], inputs[1][:1]]] if dynamic else []
    onnx_file.check(model, path, [inputs, *others], names)
