"""Checkpoints, trained models, rare classes, large outputs: what a user brings, end to end.

Model files of this module are written by its tests; the data are digits and breast_cancer.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autotune.errors import ContractError
from autotune.records.job import Inspect, Score, Train
from autotune.records.plan import Recipe
from autotune.records.task import TaskSpec
from autotune.stats import non_inferiority
from autotune.worker.channel import NullChannel
from autotune.worker.data import rows
from autotune.worker.evaluation import evaluate as evaluation
from autotune.worker.measure import outputs
from autotune.worker.survey import inspect
from autotune.worker.training import train
from tests.scenarios.conftest import ROOT, command
from tests.support import tasks

DIGITS = """
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

def make_model(hidden=32):
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))

def _rows(start, stop):
    x, y = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(x[start:stop] / 16).float(), torch.tensor(y[start:stop]))

def train_data():
    return _rows(0, 900)

def eval_data():
    return _rows(900, 1797)
"""


def spec_of(root: Path, text: str, **more: Any) -> TaskSpec:
    return tasks.write(root, text, **more)


def trained_on_digits(hidden: int = 32) -> nn.Module:
    """The model of `DIGITS`, trained for a second."""
    names: dict[str, Any] = {}
    exec(DIGITS, names)
    torch.manual_seed(0)
    model: nn.Module = names["make_model"](hidden)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    x, y = names["train_data"]().tensors
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return trained_on_digits()


def built(root: Path, spec: TaskSpec, runtime: str = "eager") -> Any:
    """The artifact's ``predict``."""
    tasks.built(root, spec, runtime=runtime)
    return tasks.predict(root / "out")


def scored(root: Path, spec: TaskSpec, predict: Any, part: str = "test") -> Any:
    inputs = rows.load(root / "data" / f"{part}.npz")
    outputs.record(predict, inputs, root / "outputs.npz", fixed=None)
    job = Score(task=spec, part=part, outputs="outputs.npz")
    return evaluation.run(job, root, NullChannel()).scores


def test_a_training_checkpoint_is_served(tmp_path: Path, trained: nn.Module) -> None:
    state = {f"module.{name}": value for name, value in trained.state_dict().items()}
    optimizer = torch.optim.Adam(trained.parameters()).state_dict()
    torch.save({"state_dict": state, "optimizer": optimizer, "epoch": 9}, tmp_path / "last.ckpt")
    spec = spec_of(tmp_path, DIGITS, weights=str(tmp_path / "last.ckpt"))
    found = inspect.run(Inspect(task=spec), tmp_path / "work", NullChannel())
    assert found.info.pretrained
    assert found.weights == "weights.safetensors"
    assert len(found.info.weights_sha256 or "") == 64
    said = "\n".join(found.info.warnings)
    assert "last.ckpt: the state dict under 'state_dict' was taken" in said
    assert "last.ckpt: stripped 'module.' from the names of the weights" in said
    scores = scored(tmp_path / "work", spec, built(tmp_path / "work", spec))
    assert scores.quality > 0.85


def test_a_pickled_module_is_refused(tmp_path: Path, trained: nn.Module) -> None:
    torch.save(trained, tmp_path / "net.pt")
    spec = spec_of(tmp_path, DIGITS, weights=str(tmp_path / "net.pt"))
    with pytest.raises(ContractError) as caught:
        inspect.run(Inspect(task=spec), tmp_path, NullChannel())
    assert 'model = torch.load("net.pt", weights_only=False)' in str(caught.value)
    assert 'torch.save(model.state_dict(), "net-weights.pt")' in str(caught.value)


def test_weights_and_retrain_exclude_each_other(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, DIGITS, weights="w.pt", retrain=True)
    with pytest.raises(ContractError, match="give one of the two"):
        inspect.run(Inspect(task=spec), tmp_path, NullChannel())


def test_a_model_that_comes_trained_is_never_trained_over(
    tmp_path: Path, trained: nn.Module
) -> None:
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    text = DIGITS.replace(
        "def make_model(hidden=32):\n    return",
        "from pathlib import Path\ndef make_model(hidden=32):\n    model =",
    ).replace(
        "nn.Linear(hidden, 10))\n",
        "nn.Linear(hidden, 10))\n"
        "    model.load_state_dict(torch.load(Path(__file__).parent / 'w.pt'))\n"
        "    return model\n",
    )
    (tmp_path / "model.py").write_text(text)
    before = (tmp_path / "w.pt").read_bytes()
    done = command("run", tmp_path / "model.py", "--time", "30s", "--out", tmp_path / "report")
    assert done.returncode == 2
    assert "looks trained: pass --pretrained or --retrain" in done.stderr + done.stdout
    assert (tmp_path / "w.pt").read_bytes() == before
    assert not (tmp_path / "report" / "report.json").exists()
    again = TaskSpec(kind="file", path=str(tmp_path / "model.py"), pretrained=True)
    assert inspect.run(Inspect(task=again), tmp_path / "work", NullChannel()).info.pretrained


RARE = """
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.utils.data import TensorDataset

def make_model():
    return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))

def train_data():
    x, y = load_breast_cancer(return_X_y=True)
    x = torch.tensor((x - x.mean(0)) / x.std(0)).float()
    sick, well = x[y == 0], x[y == 1]
    x = torch.cat([well, well + 0.05 * torch.randn(well.shape), sick[:46]])
    y = torch.cat([torch.zeros(2 * len(well)), torch.ones(46)]).long()
    return TensorDataset(x.repeat(3, 1), y.repeat(3))
"""


def test_on_94_to_6_classes_the_majority_is_no_answer(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, RARE)
    info = inspect.run(Inspect(task=spec), tmp_path, NullChannel()).info
    assert info.metric == "balanced_accuracy"
    assert info.rate
    assert not info.binary
    assert any("class 1 (6." in w for w in info.warnings)
    recipe = Recipe(lr=3e-3, batch_size=64)
    order = Train(task=spec, recipe=recipe, epochs=8, weights_out="weights.safetensors")
    train.run(order, tmp_path, NullChannel())
    good = scored(tmp_path, spec, built(tmp_path, spec))
    assert good.quality > 0.8
    assert good.worst_class_recall > 0.6

    def majority(x: Any) -> Any:
        return np.tile(np.array([1.0, 0.0], np.float32), (len(x), 1))

    lazy = scored(tmp_path, spec, majority)
    assert lazy.quality == pytest.approx(0.5)
    assert lazy.worst_class_recall == 0.0
    found = non_inferiority.quality_drop(lazy, good, 0.01, higher_is_better=True)
    assert found.verdict == "NOT_MET"
    same = non_inferiority.quality_drop(good, good, 0.01, higher_is_better=True)
    assert same.verdict in ("MET", "UNDECIDED")


LANGUAGE = """
import resource, sys
from pathlib import Path
root = Path(sys.argv[1])
import numpy as np, torch
from autotune.records.job import Score
from autotune.records.task import TaskSpec
from autotune.worker.contract import task as contract
from autotune.worker.data import rows
from autotune.worker.evaluation import evaluate as evaluation
from autotune.worker.measure import outputs as record
from autotune.worker.channel import NullChannel
from autotune.worker.evaluation.evaluate import evaluate
spec = TaskSpec(kind="file", path=str(root / "model.py"))
torch.set_num_threads(1)
step = sys.argv[2]
if step == "record":
    words, out = (np.random.default_rng(0).normal(size=s).astype(np.float32)
                  for s in ((32000, 4), (4, 32000)))
    read = np.stack([x.numpy() for x, _ in contract.load(spec).validation])
    inputs = rows.Rows("tensor", ("",), (read,))
    record.record(lambda x: words[x] @ out, inputs, root / "o.npz", fixed=None)
elif step == "score":
    job = Score(task=spec, part="validation", outputs="o.npz")
    scores = evaluation.run(job, root, NullChannel()).scores
    assert scores.rows == 200
else:
    loaded = contract.load(spec)
    evaluate(loaded.make_model(), loaded, "validation")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
WORDS = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.o = nn.Embedding(32000, 4), nn.Linear(4, 32000)
    def forward(self, x):
        return self.o(self.e(x))
def make_model():
    return Net()
def train_data():
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 32000, (ROWS, 126), generator=g)
    return torch.utils.data.TensorDataset(x[:, :-1], x[:, 1:])
def eval_data():
    return train_data()
"""


@pytest.mark.timeout(280)
@pytest.mark.slow
def test_50_000_tokens_of_32_000_words_stay_under_2_gb(tmp_path: Path) -> None:
    """In the process that evaluates a module; in the one that records an artifact's outputs and
    the one that scores them, half as many are more than 2 GB already.
    """
    for step in ("evaluate", "record", "score"):
        (tmp_path / "model.py").write_text(
            WORDS.replace("ROWS", str(800 if step == "evaluate" else 400))
        )
        done = subprocess.run(
            [sys.executable, "-c", LANGUAGE, str(tmp_path), step],
            capture_output=True,
            text=True,
            check=False,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout.split()[-1]) < 2 << 30, step
        if step == "record":
            assert (tmp_path / "o.npz").stat().st_size > 3_000_000_000
    assert not (tmp_path / "o.npz").exists()
