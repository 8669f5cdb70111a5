"""Recovery: what it learns from, what it keeps, and every form of task that it takes."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from autotune.records.plan import Recipe, Recovery
from autotune.worker.build import distillation_data, distillation_loss, recovery
from autotune.worker.channel import NullChannel
from autotune.worker.contract import task as contract_task
from autotune.worker.training import optimizers
from tests.support import tasks

TENSOR = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def rows(n, seed):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x.sum(1) > 0).long())

def train_data():
    return rows(240, 0)

def eval_data():
    return rows(60, 1)

def make_model():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
"""
IMAGES = (
    TENSOR.replace("torch.randn(n, 6,", "torch.randn(n, 1, 4, 4,").replace(
        "x.sum(1) > 0", "x.flatten(1).sum(1) > 0"
    )
    + """
def make_model():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)
    )
"""
)
LABELLED = """
import torch
from torch import nn
from types import SimpleNamespace

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 120

    def __getitem__(self, i):
        x = torch.randn(6, generator=torch.Generator().manual_seed(i))
        return {"x": x, "labels": (x.sum() > 0).long()}

def train_data():
    return Rows()

eval_data = train_data

class Output(dict):
    __getattr__ = dict.get

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x, labels=None):
        logits = self.net(x)
        found = Output(logits=logits)
        if labels is not None:
            found["loss"] = nn.functional.cross_entropy(logits, labels)
        return found

def make_model():
    return Model()
"""
TWO = (
    TENSOR
    + """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 2), nn.Linear(6, 3)

    def forward(self, x):
        return self.one(x), self.two(x)

def make_model():
    return Model()
"""
)
NUMBERS = TENSOR.replace("(x.sum(1) > 0).long()", "x[:, :2] * 3")
RAGGED = """
import torch
from torch import nn

class Waves(torch.utils.data.Dataset):
    def __len__(self):
        return 120

    def __getitem__(self, i):
        return torch.full((2, 9 + i % 4), float(i % 3)), torch.tensor(i % 3)

def train_data():
    return Waves()

eval_data = train_data

def make_model():
    return nn.Sequential(
        nn.Conv1d(2, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3)
    )
"""
UNLABELLED = (
    TENSOR.replace("(x.sum(1) > 0).long()", "['no', 'labels', 'here'] * (n // 3)").replace(
        "TensorDataset(x,", "Pairs(x,"
    )
    + """
class Pairs(torch.utils.data.Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]

def score(output, target):
    return output[:, 0]
"""
)
RECIPE = Recipe(lr=0.02, batch_size=24)


def task(root: Path, text: str) -> contract_task.LoadedTask:
    return contract_task.load(tasks.write(root, text))


def pair(loaded: contract_task.LoadedTask) -> tuple[nn.Module, nn.Module]:
    """A teacher and a student that begins elsewhere."""
    torch.manual_seed(0)
    teacher, student = loaded.make_model(), loaded.make_model()
    return teacher.eval(), student


@pytest.fixture(autouse=True)
def _process(monkeypatch):
    monkeypatch.setattr("sys.argv", ["pytest"])
    monkeypatch.setattr("sys.path", list(sys.path))


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        pytest.param(IMAGES, False, id="batch norm"),
        pytest.param(IMAGES, True, id="bf16"),
        pytest.param(LABELLED, False, id="labels in a dict"),
        pytest.param(TWO, False, id="two outputs"),
        pytest.param(NUMBERS, False, id="regression"),
        pytest.param(RAGGED, False, id="ragged"),
        pytest.param(UNLABELLED, False, id="no labels"),
    ],
)
def test_every_form_of_task_comes_nearer_to_its_teacher(tmp_path, monkeypatch, text, fast):
    monkeypatch.setattr(recovery, "_use_bf16", lambda *_: fast)
    settings = Recovery(teacher=0.99)  # this teacher is untrained: labels disagree
    loaded = task(tmp_path, text)
    teacher, student = pair(loaded)
    rows = range(1 if loaded.info.ragged else 100)
    inputs = distillation_data.unlabelled(loaded.collate([loaded.train[i] for i in rows])[0])

    def distance() -> float:
        student.eval()
        said = distillation_data.outputs(loaded.call(student, inputs))
        taught = distillation_data.outputs(loaded.call(teacher, inputs))
        pairs = zip(said, taught, strict=True)
        return sum(float((a - b).detach().square().mean()) for a, b in pairs)

    before, channel = distance(), NullChannel()
    seconds = recovery.recover(
        student, loaded, RECIPE, 4, 0, channel, lambda: teacher, settings=settings
    )
    assert seconds > 0
    assert channel.reports[-1][1] < channel.reports[0][1]
    assert distance() < before
    assert all(p.is_contiguous() and p.grad is None for p in student.parameters())


def test_a_model_that_is_its_teacher_is_left_as_good_as_it_was(tmp_path):
    loaded = task(tmp_path, UNLABELLED)
    teacher, _ = pair(loaded)
    student = loaded.make_model()
    student.load_state_dict(teacher.state_dict())
    channel = NullChannel()
    recovery.recover(student, loaded, RECIPE, 9, 0, channel, lambda: teacher)
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, teacher.state_dict()[name])
    assert len(channel.reports) < 9  # nothing to gain: it ends early


def test_a_loss_that_is_no_number_goes_back_and_on_at_a_lower_rate(tmp_path, monkeypatch):
    loaded = task(tmp_path, TENSOR)
    teacher, student = pair(loaded)
    real, calls = distillation_loss.Distillation.__call__, []

    def broken(self, *arguments):
        calls.append(1)
        return real(self, *arguments) * (float("nan") if len(calls) == 5 else 1.0)

    monkeypatch.setattr(distillation_loss.Distillation, "__call__", broken)
    channel = NullChannel()
    recovery.recover(student, loaded, RECIPE, 3, 0, channel, lambda: teacher)
    assert [step for step, _ in channel.reports] == [1, 2, 3]
    assert all(p.isfinite().all() for p in student.parameters())


def test_the_teacher_answers_once_a_row_and_is_found_again(tmp_path):
    loaded = task(tmp_path, TENSOR)
    teacher, _ = pair(loaded)
    rows = []
    teacher.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    path = tmp_path / "cache" / "teacher.safetensors"
    for _ in range(2):
        _, student = pair(loaded)
        recovery.recover(student, loaded, RECIPE, 3, 0, NullChannel(), lambda: teacher, path)
    assert sum(rows) == 240
    assert path.is_file()


def test_rows_that_change_are_answered_as_they_come(tmp_path):
    noisy = TENSOR.replace("TensorDataset(x,", "Noisy(x,") + (
        "class Noisy(TensorDataset):\n"
        "    def __getitem__(self, i):\n"
        "        x, y = super().__getitem__(i)\n"
        "        return x + torch.randn(6), y\n"
    )
    loaded = task(tmp_path, noisy)
    teacher, student = pair(loaded)
    path = tmp_path / "teacher.safetensors"
    recovery.recover(student, loaded, RECIPE, 2, 0, NullChannel(), lambda: teacher, path)
    assert not path.exists()


def test_what_is_held_back_is_never_trained_on(tmp_path):
    loaded = task(tmp_path, TENSOR)
    made = distillation_data.DistillationData(loaded, loaded.train, 24, 0)
    held = {tuple(row.tolist()) for batch in made.held() for row in batch.input}
    trained = {tuple(row.tolist()) for batch in made.epoch(1) for row in batch.input}
    assert len(held) == 24
    assert len(trained) == 216 == 24 * made.steps
    assert not held & trained


def test_frozen_layers_learn_and_are_frozen_again(tmp_path):
    loaded = task(tmp_path, TENSOR)
    teacher, student = pair(loaded)
    student[0].requires_grad_(False)
    before = student[0].weight.clone()
    recovery.recover(student, loaded, RECIPE, 2, 0, NullChannel(), lambda: teacher)
    assert not torch.equal(student[0].weight, before)
    assert [p.requires_grad for p in student.parameters()] == [False, False, True, True]


class Auxiliary(nn.Module):
    """One output in use, two in training."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x):
        return (self.one(x), self.two(x)) if self.training else self.one(x)


def test_more_outputs_in_training_do_no_harm(tmp_path):
    loaded = task(tmp_path, UNLABELLED)
    torch.manual_seed(0)
    teacher, student = Auxiliary().eval(), Auxiliary()
    channel = NullChannel()
    recovery.recover(student, loaded, RECIPE, 3, 0, channel, lambda: teacher)
    assert channel.reports[-1][1] < channel.reports[0][1]


def test_what_is_searched_changes_the_recovery(tmp_path, monkeypatch):
    loaded = task(tmp_path, TENSOR)
    teacher, _ = pair(loaded)
    rates = []
    real = optimizers.build
    monkeypatch.setattr(
        optimizers, "build", lambda recipe, model: rates.append(recipe.lr) or real(recipe, model)
    )

    def recovered(**fields) -> tuple[torch.Tensor, int]:
        _, student = pair(loaded)
        settings, channel = Recovery(**fields), NullChannel()
        recovery.recover(student, loaded, RECIPE, 4, 0, channel, lambda: teacher, None, settings)
        return student[0].weight.detach(), len(channel.reports)

    usual, epochs = recovered()
    assert torch.equal(recovered(lr=1.0, teacher=0.7, temperature=2.0)[0], usual)
    assert not torch.equal(recovered(temperature=1.0)[0], usual)
    assert not torch.equal(recovered(teacher=0.3)[0], usual)
    recovered(lr=0.1)
    assert rates[-1] == pytest.approx(0.1 * RECIPE.lr)
    assert (epochs, recovered(epochs=0.5)[1]) == (4, 2)


def test_without_a_share_the_teacher_is_never_asked(tmp_path):
    loaded = task(tmp_path, TENSOR)
    _, student = pair(loaded)

    def never():
        raise AssertionError

    settings = Recovery(teacher=0.0)
    assert recovery.recover(student, loaded, RECIPE, 1, 0, NullChannel(), never, None, settings) > 0
