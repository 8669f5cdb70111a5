"""Compiled and recomputed steps: the same training, or a refusal that says why."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autotune.errors import JobError
from autotune.records.job import Throughput, Train
from autotune.records.plan import Recipe
from autotune.records.task import TaskSpec
from autotune.worker.channel import NullChannel
from autotune.worker.training import activation_checkpoint, compile, train
from tests.support import made, tasks, texts

HEAD = (
    texts.DATA
    + """
class Block(nn.Module):
    def __init__(self, middle):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), middle, nn.Tanh())

    def forward(self, x):
        return x + self.inner(x)

def make_model():
    return nn.Sequential(MADE, nn.Linear(6, 3))
"""
)
BLOCKS = HEAD.replace("MADE", "*[Block(nn.Dropout(0.2)) for _ in range(3)]")
NORMED = HEAD.replace("MADE", "*[Block(nn.BatchNorm1d(6)) for _ in range(3)]")
FLAT = HEAD.replace("MADE", "nn.Linear(6, 6), nn.Tanh()")


def task(root: Path, text: str) -> TaskSpec:
    return tasks.write(root, text)


def fit(root: Path, text: str = BLOCKS, **recipe: Any) -> Any:
    made = Recipe(**{"lr": 0.02, "batch_size": 8, **recipe})
    job = Train(
        task=task(root, text), recipe=made, epochs=2, step_losses=99, weights_out="w.safetensors"
    )
    return train.run(job, root, NullChannel())


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each batch that the compiled step sees; nothing is compiled."""
    seen: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        def call(*args: Any) -> Any:
            seen.extend(len(a) for a in args if not isinstance(a, nn.Parameter))
            return graph(*args)

        return call

    torch._dynamo.reset()
    monkeypatch.setattr(compile, "BACKEND", backend)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")
    return seen


def test_recomputed_blocks_train_to_the_very_same_weights(tmp_path: Path) -> None:
    plain, again = fit(tmp_path), fit(tmp_path, recompute=True)
    assert again.step_losses == plain.step_losses
    assert again.weights_sha256 == plain.weights_sha256


def test_blocks_are_those_that_repeat_and_consist_of_parts() -> None:
    def block() -> nn.Module:
        return nn.TransformerEncoderLayer(8, 2, 16)

    inner = nn.Sequential(block(), block())
    model = nn.ModuleDict(
        {
            "one": nn.ModuleList([block()]),
            "many": inner,
            "flat": nn.Sequential(nn.ReLU(), nn.ReLU()),
        }
    )
    assert activation_checkpoint.blocks(model) == list(inner)
    last = nn.Sequential(block())
    assert activation_checkpoint.blocks(nn.Sequential(inner, last, nn.ReLU())) == [inner, last]


@pytest.mark.parametrize(("text", "said"), [(NORMED, "batch norm"), (FLAT, "nothing to recompute")])
def test_what_would_change_or_has_no_blocks_is_refused(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(JobError, match=said):
        fit(tmp_path, text, recompute=True)


def test_blocks_recompute_in_training_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2)])
    calls: list[int] = []
    model[0][0].register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(3, 4)
    activation_checkpoint.recomputing(model, lambda: model(x).sum())
    assert all(p.grad is None for p in model.parameters())
    calls.clear()
    model(x).sum().backward()
    assert len(calls) == 2
    calls.clear()
    with torch.no_grad():
        model(x)
    model.eval()(x).sum().backward()
    assert len(calls) == 2


def test_whole_batches_are_compiled_and_the_short_last_one_is_not(
    tmp_path: Path, traced: list[int]
) -> None:
    text = BLOCKS.replace("nn.Dropout(0.2)", "nn.Identity()")
    plain, fast = fit(tmp_path, text), fit(tmp_path, text, compile=True)
    assert traced == [8] * 8  # 33 rows are four batches of 8 and one of 1, twice
    assert fast.step_losses == pytest.approx(plain.step_losses, rel=1e-5)
    traced.clear()
    fit(tmp_path, text, compile=True, accumulate=2)
    assert traced == [4] * 16


@pytest.mark.parametrize(
    ("changes", "said"), [({"recompute": True}, "cannot be combined"), ({"ranks": 2}, "several")]
)
def test_what_is_not_compiled_says_why(changes: dict[str, Any], said: str) -> None:
    recipe = Recipe(compile=True, **changes)
    with pytest.raises(JobError, match=said):
        compile.compiled(nn.Linear(1, 1), recipe.ranks, recipe, made.info())
    with pytest.raises(JobError, match="differ in shape"):
        compile.compiled(nn.Linear(1, 1), 1, Recipe(), made.info(ragged=True))


def test_throughput_tells_the_first_step_apart(tmp_path: Path, traced: list[int]) -> None:
    recipe = Recipe(batch_size=8, compile=True)
    job = Throughput(task=task(tmp_path, BLOCKS), recipe=recipe, budget_s=0.05)
    rate = train.throughput(job, tmp_path, NullChannel())
    assert rate.first_s is not None
    assert rate.first_s > 0
    assert traced
