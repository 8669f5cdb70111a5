"""Data without labels: quality is agreement with the model as it came."""

from pathlib import Path

import numpy as np
import pytest
import torch

from autotune.errors import ContractError
from autotune.records.job import Inspect, Score
from autotune.records.task import TaskSpec
from autotune.worker.channel import NullChannel
from autotune.worker.contract import agreement
from autotune.worker.contract.task import load
from autotune.worker.data import rows
from autotune.worker.data.batch_tree import AttrDict
from autotune.worker.evaluation import evaluate as evaluation
from autotune.worker.survey import inspect
from tests.support import tasks

SOURCE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

pretrained = {pretrained}

def make_model():
    torch.manual_seed(3)
    return nn.Linear(4, 5)

def eval_data():
    return {data}
"""


def spec(
    tmp_path: Path, data: str = "TensorDataset(torch.randn(200, 4))", **more: object
) -> TaskSpec:
    text = SOURCE.format(pretrained=more.get("pretrained", True), data=data)
    return tasks.write(tmp_path, text + str(more.get("extra", "")))


def scored(task: TaskSpec, root: Path, noise: float) -> float:
    """Score the model's own outputs with some noise on them."""
    loaded = load(task)
    model = loaded.make_model().eval()
    generator = torch.Generator().manual_seed(0)
    found = []
    for row in range(loaded.rows("test")):
        inputs, _ = loaded.collate([loaded.sample("test", row)])
        with torch.no_grad():
            output = model(inputs if not isinstance(inputs, dict) else inputs["x"])[0]
        found.append([(output + noise * torch.randn(5, generator=generator)).numpy()])
    rows.save(root / "outputs.npz", rows.from_samples("tensor", ("",), found))
    job = Score(task=task, part="test", outputs="outputs.npz", seed=0)
    return evaluation.run(job, root, NullChannel()).scores.quality


@pytest.mark.parametrize(
    "data", ["TensorDataset(torch.randn(200, 4))", "list(torch.randn(200, 4))"]
)
def test_inputs_alone_are_scored_by_agreement(tmp_path: Path, data: str) -> None:
    task, root = spec(tmp_path, data), tmp_path / "run"
    found = inspect.run(Inspect(task=task), root, NullChannel())
    info = found.info
    assert (info.metric, info.rate, info.per_sample, info.binary) == (
        "agreement",
        True,
        True,
        False,
    )
    assert info.classes is None
    assert found.weights is not None
    assert scored(task, root, 0.0) == pytest.approx(1)
    assert 0.9 < scored(task, root, 0.1) < 0.999
    assert scored(task, root, 3.0) < 0.5


def test_a_score_of_ones_own_gets_the_answer_as_its_target(tmp_path: Path) -> None:
    extra = (
        "\ndef score(output, target):\n    return (output.argmax(1) == target.argmax(1)).float()\n"
    )
    task, root = spec(tmp_path, extra=extra), tmp_path / "run"
    found = inspect.run(Inspect(task=task), root, NullChannel())
    assert found.info.metric == "score"
    assert scored(task, root, 0.001) >= 0.99


LABELLED = """
def train_data():
    return TensorDataset(torch.randn(60, 4), torch.arange(60) % 5)
"""


@pytest.mark.parametrize("more", [{"pretrained": False}, {"extra": LABELLED}])
def test_without_labels_a_model_must_come_trained_and_no_row_may_have_one(
    tmp_path: Path, more: dict[str, object]
) -> None:
    with pytest.raises(ContractError) as error:
        load(spec(tmp_path, **more))  # type: ignore[arg-type]
    assert "some of the data has no targets" in str(error.value)
    assert "pretrained = True" in str(error.value)


def test_classes_are_compared_only_where_they_are_classes_for_sure() -> None:
    answer = torch.tensor([[0.6, 0.4], [0.2, 0.8]])
    other = torch.tensor([[0.9, 0.1], [0.6, 0.4]])
    assert agreement.score(other, answer).tolist() == [1, 0]  # probabilities
    logits = AttrDict(logits=other * 7 - 3)
    assert agreement.score(logits, answer * 7 - 3).tolist() == [1, 0]
    plain = agreement.score(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 5.0]]))
    assert plain.tolist() == [pytest.approx(1 - 1 / 34)]
    tokens = AttrDict(logits=torch.eye(3)[None])
    assert agreement.score(tokens, torch.eye(3)[None].flip(1)).tolist() == [pytest.approx(1 / 3)]


def test_recovery_lowers_the_distance_to_the_answers(tmp_path: Path) -> None:
    task, root = spec(tmp_path), tmp_path / "run"
    inspect.run(Inspect(task=task), root, NullChannel())
    loaded = load(task).read_inspected(root)
    inputs, target = loaded.collate([loaded.sample("validation", row) for row in range(8)])
    model = loaded.make_model()
    assert float(loaded.loss(model(inputs), target).detach()) == pytest.approx(0, abs=1e-9)
    worse = torch.nn.Linear(4, 5)
    loss = loaded.loss(worse(inputs), target)
    loss.backward()
    assert float(loss.detach()) > 0.1
    assert worse.weight.grad is not None
    assert np.isfinite(worse.weight.grad.numpy()).all()
