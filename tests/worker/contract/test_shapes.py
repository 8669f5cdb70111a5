"""Models with several outputs, states, optional inputs, tied weights and free sizes, shipped."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotune.errors import ContractError, JobError
from autotune.forms import module
from autotune.records.job import Inspect, Score
from autotune.records.task import TaskSpec
from autotune.worker.channel import NullChannel
from autotune.worker.contract import task
from autotune.worker.data import rows
from autotune.worker.evaluation import evaluate as evaluation
from autotune.worker.evaluation.evaluate import evaluate
from autotune.worker.measure import outputs
from autotune.worker.survey import inspect
from tests.support import tasks

HEAD = """
import torch
from torch import nn
g = torch.Generator().manual_seed(0)
pretrained = False
def data(n):
    return [SAMPLE(i) for i in range(n)]
def train_data():
    return data(80)
def eval_data():
    return data(60)
"""
STATE = (
    HEAD
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)
    def forward(self, x, h, c):
        y, state = self.lstm(x, (h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous()))
        return self.head(y[:, -1]), state
def SAMPLE(i):
    x = torch.randn(4, 3, generator=g)
    return (x, torch.zeros(1, 5), torch.zeros(1, 5)), i % 2
def make_model():
    return Net()
"""
)
SEVERAL = (
    HEAD
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 3)
        self.head = nn.Linear(3, 3)
        self.head.weight = self.body.weight
    def forward(self, x, mask=None, scale=None):
        y = self.body(x)
        if mask is not None:
            y = y * mask
        return {"logits": self.head(y), "parts": (y, y.sum(1)), "name": "net"}
def SAMPLE(i):
    x = torch.randn(3, generator=g)
    return {"x": x, "mask": torch.ones(3), "scale": None}, i % 3
def make_model():
    return Net()
"""
)
TEXT = (
    HEAD
    + """
dynamic = {"input": {1: (2, 12)}}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.o = nn.Embedding(9, 4), nn.Linear(4, 9)
    def forward(self, x):
        return self.o(self.e(x) + self.e(x).mean(1, keepdim=True))
def SAMPLE(i):
    x = torch.randint(0, 9, (6,), generator=g)
    return x, x
def make_model():
    return Net()
"""
)


def inspected(root: Path, text: str) -> Any:
    spec = tasks.write(root, text)
    return spec, inspect.run(Inspect(task=spec, pretrained=True), root, NullChannel()).info


def shipped(root: Path, spec: TaskSpec, runtime: str) -> Any:
    """The artifact's ``predict``."""
    tasks.built(root, spec, runtime=runtime, out=f"out-{runtime}")
    return tasks.predict(root / f"out-{runtime}")


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
@pytest.mark.parametrize("text", [STATE, SEVERAL])
def test_what_is_shipped_answers_as_the_model_does(tmp_path: Path, text: str, runtime: str) -> None:
    spec, _ = inspected(tmp_path, text)
    predict = shipped(tmp_path, spec, runtime)
    inputs = rows.load(tmp_path / "data" / "test.npz")
    outputs.record(predict, inputs, tmp_path / "o.npz", fixed=None)
    found = evaluation.run(Score(task=spec, part="test", outputs="o.npz"), tmp_path, NullChannel())
    loaded = task.load(spec, pretrained=True)
    model = loaded.make_model()
    module.load_weights(model, tmp_path / "weights.safetensors")
    direct = evaluate(model, loaded, "test")
    assert found.scores.per_sample == direct.per_sample


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
def test_a_state_comes_out_and_goes_in_again(tmp_path: Path, runtime: str) -> None:
    spec, info = inspected(tmp_path, STATE)
    assert info.input_names == ("input_0", "input_1", "input_2")
    predict = shipped(tmp_path, spec, runtime)
    x = np.random.default_rng(0).normal(size=(1, 8, 3)).astype(np.float32)
    zero = np.zeros((1, 1, 5), np.float32)
    loaded = task.load(spec, pretrained=True)
    model = loaded.make_model()
    module.load_weights(model, tmp_path / "weights.safetensors")
    with torch.no_grad():
        whole, _ = model(*map(torch.from_numpy, (x, zero, zero)))
    _, h, c = predict(x[:, :4], zero, zero)
    assert h.shape == (1, 1, 5)
    again, _, _ = predict(x[:, 4:], h.swapaxes(0, 1), c.swapaxes(0, 1))
    assert np.allclose(whole.numpy(), again, atol=1e-5)


def test_optional_inputs_that_are_not_given_are_not_there(tmp_path: Path) -> None:
    spec, info = inspected(tmp_path, SEVERAL)
    assert info.input_names == ("x", "mask")
    predict = shipped(tmp_path, spec, "eager")
    found = predict(x=np.ones((2, 3), np.float32), mask=np.ones((2, 3), np.float32))
    assert list(found) == ["logits", "parts_0", "parts_1"]


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
def test_every_promised_size_is_taken(tmp_path: Path, runtime: str) -> None:
    spec, info = inspected(tmp_path, TEXT)
    assert [(d.input, d.dim, d.low, d.high) for d in info.dynamic] == [("input", 1, 2, 12)]
    predict = shipped(tmp_path, spec, runtime)
    for length in (2, 7, 12):
        assert predict(np.ones((3, length), np.int64)).shape == (3, length, 9)


def test_a_size_that_the_model_does_not_take_is_refused_early(tmp_path: Path) -> None:
    text = TEXT.replace("return self.o(", "assert x.shape[1] < 10\n        return self.o(")
    with pytest.raises(ContractError) as caught:
        inspected(tmp_path, text)
    assert "forward at (input [1, 12]) raised AssertionError" in str(caught.value)
    assert "narrow its ranges" in str(caught.value)


def test_a_size_that_cannot_be_exported_is_unsupported(tmp_path: Path) -> None:
    """The model runs at every size, but one trace cannot stand for all of them."""
    text = TEXT.replace(
        "return self.o(", "x = x * 2 // (2 if x.shape[1] > 6 else 1) % 9\n        return self.o("
    )
    spec, _ = inspected(tmp_path, text)
    with pytest.raises(JobError, match=r"ONNX export|exported model"):
        shipped(tmp_path, spec, "onnxruntime")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[1]", "a dict with some of the inputs input"),
        ("{'other': {1: (2, 12)}}", "a dict with some of the inputs input"),
        ("{'input': 12}", "for input a dict from dimension"),
        ("{'input': {0: (2, 12)}}", r"dimensions 1 to 1 \(0 is the batch"),
        ("{'input': {1: (12, 2)}}", "1 <= low < high"),
        ("{'input': {1: 12}}", "1 <= low < high"),
        ("{'input': {1: (7, 12)}}", "the data's own size 6"),
    ],
)
def test_a_wrong_dynamic_is_named(tmp_path: Path, value: str, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        inspected(tmp_path, TEXT.replace('{"input": {1: (2, 12)}}', value))


def test_nested_inputs_are_refused_with_the_remedy(tmp_path: Path) -> None:
    text = STATE.replace("torch.zeros(1, 5), torch.zeros(1, 5))", "(torch.zeros(1, 5),) * 2)")
    with pytest.raises(
        ContractError, match=r"may not be nested(.|\n)*def forward\(self, x, h, c\)"
    ):
        inspected(tmp_path, text)
    assert torch.get_default_dtype() == torch.float32
