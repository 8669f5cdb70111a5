"""The awkward models themselves: each is a good model, and awkward in the way that it says."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parent / "models" / "awkward"
LEAST = {
    "outliers": 0.9,
    "no_onnx": 0.9,
    "control_flow": 0.9,
    "autograd_function": 0.85,
    "tied": 0.9,
    "buffers": 0.9,
    "majority": 0.95,
}


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    sys.modules.pop("fitted", None)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"awkward_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def right(model: torch.nn.Module, file: ModuleType) -> torch.Tensor:
    x, y = file.eval_data().tensors
    with torch.no_grad():
        return model(x).argmax(1) == y


@pytest.mark.parametrize("name", LEAST)
def test_it_is_a_good_model_and_the_same_each_time(name: str) -> None:
    file = load(name)
    found = right(file.make_model().eval(), file)
    assert found.float().mean() >= LEAST[name]
    assert torch.equal(found, right(file.make_model().eval(), file))


def squashed(model: torch.nn.Sequential, file: ModuleType) -> torch.nn.Module:
    """The activations before the head in 256 levels over their whole range."""
    x, _ = file.train_data().tensors
    with torch.no_grad():
        scale = model[:-1](x).max() / 255

    class Rounded(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x / scale).round().clamp(0, 255) * scale

    return torch.nn.Sequential(*model[:-1], Rounded(), model[-1])


def test_eight_bits_break_the_planted_channel() -> None:
    file = load("outliers")
    assert right(squashed(file.make_model().eval(), file), file).float().mean() < 0.5


def test_eight_bits_make_the_rare_class_vanish_and_accuracy_hardly_tells() -> None:
    file = load("majority")
    _, y = file.eval_data().tensors
    assert 0.93 < float((y == 0).float().mean()) < 0.95
    dense = right(file.make_model().eval(), file)
    broken = right(squashed(file.make_model().eval(), file), file)
    assert dense[y == 1].float().mean() > 0.5
    assert broken[y == 1].float().mean() < 0.1
    assert dense.float().mean() - broken.float().mean() < 0.03


def test_the_early_exit_is_taken_by_some_batches_only() -> None:
    file = load("control_flow")
    model = file.make_model().eval()
    seen: list[int] = []
    model.second.register_forward_hook(lambda *_: seen.append(1))
    x, _ = file.eval_data().tensors
    with torch.no_grad():
        for row in x[:100].split(1):
            model(row)
    assert 0 < len(seen) < 100


def test_one_matrix_has_two_names() -> None:
    model = load("tied").make_model()
    assert model[0].encoder.weight is model[0].decoder.weight
