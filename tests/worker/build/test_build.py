"""Builds: stages found again by content, artifacts that stand alone, refusals with a reason."""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_model

from autotune.errors import JobError, PluginError
from autotune.records.job import Build, Built
from autotune.records.plan import Recipe, Step
from autotune.records.task import TaskSpec
from autotune.worker.build import build
from autotune.worker.channel import NullChannel
from autotune.worker.contract import task
from autotune.worker.data import rows

DATA = """
import torch
from torch import nn
from torch.utils.data import TensorDataset, Dataset

def _rows(n, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 4
    x = torch.randn(n, 1, 8, 8, generator=g) * 0.3 + y[:, None, None, None]
    return TensorDataset(x, y)

def train_data():
    return _rows(128, 0)

def eval_data():
    return _rows(48, 1)
"""

CNN = (
    DATA
    + """
def make_model():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3),
        nn.Flatten(), nn.Linear(32 * 16, 4),
    )
"""
)

BRANCHES = (
    DATA
    + """
class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 4)

    def forward(self, x):
        return self.head(x.flatten(1)) * (2 if x.sum() > 0 else 1)

def make_model():
    return Branches()
"""
)

WORDS = """
import torch
from torch import nn

class Words(torch.utils.data.Dataset):
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        ids = torch.arange(i, i + 6) % 20
        return {"ids": ids, "mask": torch.ones(6)}, torch.tensor(i % 3)

def train_data():
    return Words(60)

def eval_data():
    return Words(30)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.wide = nn.Embedding(20, 8), nn.Linear(8, 48)
        self.back, self.out = nn.Linear(48, 8), nn.Linear(8, 20, bias=False)
        self.out.weight = self.embed.weight
        self.head = nn.Linear(20, 3)

    def forward(self, ids, mask):
        h = (self.embed(ids) * mask[..., None]).mean(1)
        return self.head(self.out(h + self.back(torch.relu(self.wide(h)))))

def make_model():
    return Model()
"""


class Project:
    """A user's file and a run's work folder."""

    def __init__(self, folder: Path, source: str, name: str = "net.py") -> None:
        self.root = folder / "work"
        self.home = folder / "home"
        self.root.mkdir(parents=True)
        self.home.mkdir()
        (self.home / name).write_text(source)
        self.spec = TaskSpec(kind="file", path=str(self.home / name))

    def prepare(self) -> "Project":
        """Write weights and calibration rows as the worker does."""
        loaded = task.load(self.spec)
        torch.manual_seed(3)
        self.model = loaded.make_model().eval()
        save_model(self.model, str(self.root / "dense.safetensors"))
        inputs, _ = loaded.collate([loaded.train[i] for i in range(32)])
        fields = loaded.input_arrays(inputs)
        info = loaded.info
        samples = [[field[i] for field in fields] for i in range(32)]
        found = rows.from_samples(info.input_kind, info.input_names, samples)
        rows.save(self.root / "data" / "calibration.npz", found)
        self.rows = found
        return self

    def build(self, *steps: Step, runtime: str = "eager", **fields: object) -> Built:
        job = Build(
            **{
                "task": self.spec,
                "weights": "dense.safetensors",
                "compress": steps,
                "runtime": runtime,
                "threads": 1,
                "batch_size": 1,
                "seed": 0,
                "recipe": Recipe(lr=1e-2),
                "recovery_epochs": 1,
                "out": f"builds/{runtime}{len(steps)}",
            }
            | fields
        )
        return build.run(job, self.root, NullChannel())

    def predict(self, built: Built) -> dict[str, np.ndarray] | np.ndarray:
        """The artifact's answer to the calibration rows, by its own loader."""
        path = self.root / built.artifact / "load.py"
        spec = importlib.util.spec_from_file_location("artifact_load", path)
        loader = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loader)
        threads = torch.get_num_threads()
        args, named = self.rows.batch(range(8))
        answer = loader.load()(*args, **named)
        torch.set_num_threads(threads)
        return answer

    def expected(self) -> np.ndarray:
        args, named = self.rows.batch(range(8))
        with torch.no_grad():
            output = self.model(
                *map(torch.from_numpy, args), **{k: torch.from_numpy(v) for k, v in named.items()}
            )
        return output.numpy()


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cnn(tmp_path: Path) -> Project:
    return Project(tmp_path, CNN).prepare()


PRUNE = Step(name="prune", params={"macs_kept": 0.5})
INT8 = Step(name="int8_static", params={"method": "minmax", "reduce_range": True})


def test_int8_is_trained_for_before_it_is_exported(cnn):
    aware = Step(name="int8_aware", params={"reduce_range": True})
    built = cnn.build(aware, INT8, runtime="onnxruntime", recovery_epochs=2)
    names = [stage.name for stage in built.stages]
    assert names == ["dense", "int8_aware", "export", "int8_static", "write onnxruntime"]
    assert built.recovery_s > 0
    assert np.isfinite(cnn.predict(built)).all()
    shapes = json.loads((cnn.root / "cache" / built.stages[1].key / "structure.json").read_text())
    assert shapes == {"modules": {}, "tensors": {}}  # nothing of the rounding is left


def test_a_pruning_level_is_made_once_and_everything_branches_off(cnn):
    first = cnn.build(PRUNE, runtime="eager")
    assert [(s.name, s.cached) for s in first.stages] == [
        ("dense", False),
        ("prune", False),
        ("write eager", False),
    ]
    onnx = cnn.build(PRUNE, runtime="onnxruntime")
    assert [(s.name, s.cached) for s in onnx.stages[:3]] == [
        ("dense", True),
        ("prune", True),
        ("export", False),
    ]
    small = cnn.build(PRUNE, INT8, runtime="onnxruntime", threads=2)
    assert [s.cached for s in small.stages] == [True, True, True, False, False]
    again = cnn.build(PRUNE, INT8, runtime="onnxruntime", out="builds/again", threads=2)
    assert [s.cached for s in again.stages] == [True, True, True, True, False]
    assert again.sha256 == small.sha256
    assert first.parameters == onnx.parameters
    assert small.size_bytes < onnx.size_bytes
    assert first.recovery_s > 0
    exact, found = cnn.predict(onnx), cnn.predict(small)
    assert np.abs(exact - found).max() < 0.1 * np.abs(exact).max()
    np.testing.assert_allclose(cnn.predict(first), exact, atol=1e-4)


def test_what_a_stage_depends_on_changes_its_key(cnn):
    one = cnn.build(PRUNE)
    for change in ({"seed": 1}, {"recovery_epochs": 2}, {"recipe": Recipe(lr=2e-2)}):
        assert not cnn.build(PRUNE, **change).stages[1].cached
    assert cnn.build(PRUNE, recipe=Recipe(lr=1e-2, threads=2)).stages[1].cached
    near = Step(name="prune", params={"macs_kept": 0.5 + 1e-9})
    assert cnn.build(near).stages[1].cached
    assert one.parameters < cnn.build().parameters


def test_the_same_build_elsewhere_gives_the_same_bytes(cnn, tmp_path):
    twin = Project(tmp_path / "twin", CNN).prepare()
    for steps, runtime in (((PRUNE,), "eager"), ((PRUNE, INT8), "onnxruntime")):
        assert (
            twin.build(*steps, runtime=runtime).sha256 == cnn.build(*steps, runtime=runtime).sha256
        )


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
def test_a_dense_artifact_gives_the_models_outputs(cnn, runtime):
    built = cnn.build(runtime=runtime)
    np.testing.assert_allclose(cnn.predict(built), cnn.expected(), atol=1e-5)
    folder = cnn.root / built.artifact
    lines = (folder / "checksums").read_text()
    assert hashlib.sha256(lines.encode()).hexdigest() == built.sha256
    for line in lines.splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        assert built.files[name] == digest
    assert not list(cnn.root.rglob("*.part"))


def test_a_dict_model_with_token_ids_and_tied_weights(tmp_path):
    words = Project(tmp_path, WORDS).prepare()
    for runtime in ("eager", "onnxruntime"):
        built = words.build(runtime=runtime)
        np.testing.assert_allclose(words.predict(built), words.expected(), atol=1e-5)
        facts = json.loads((words.root / built.artifact / "artifact.json").read_text())
        assert facts["input_names"] == ["ids", "mask"]
        assert facts["input_dtypes"] == ["int64", "float32"]
    pruned = words.build(Step(name="prune", params={"macs_kept": 0.6}))
    assert pruned.parameters < built.parameters
    assert words.predict(pruned).shape == (8, 3)


SCRIPT = """
import torch
from torch import nn

torch.manual_seed(0)
X = torch.randn(90, 5)
y = torch.arange(90) % 3
model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
criterion = nn.CrossEntropyLoss()
for _ in range(3):
    raise SystemExit("its own loop is not run")
"""


def test_a_plain_script_is_shipped_as_its_own_source(tmp_path):
    script = Project(tmp_path, SCRIPT).prepare()
    built = script.build(PRUNE)
    assert {"model.py", "structure.json", "weights.safetensors"} <= set(built.files)
    assert script.predict(built).shape == (8, 3)
    np.testing.assert_allclose(script.predict(script.build()), script.expected(), atol=1e-5)


RAGGED = """
import torch
from torch import nn

class Waves(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, i):
        return torch.full((2, 9 + i % 4), float(i % 3)), torch.tensor(i % 3)

def train_data():
    return Waves()

def make_model():
    return nn.Sequential(
        nn.Conv1d(2, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3)
    )
"""


def test_rows_of_different_lengths_reach_one_onnx_file(tmp_path):
    waves = Project(tmp_path, RAGGED)
    loaded = task.load(waves.spec)
    model = loaded.make_model().eval()
    save_model(model, str(waves.root / "dense.safetensors"))
    spec = importlib.util.spec_from_file_location(
        "waves_load", waves.root / waves.build(runtime="onnxruntime").artifact / "load.py"
    )
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    predict = loader.load()
    for length in (9, 12):
        x = torch.randn(3, 2, length)
        with torch.no_grad():
            np.testing.assert_allclose(predict(x.numpy()), model(x).numpy(), atol=1e-5)


def test_a_source_takes_the_siblings_that_it_imports(tmp_path):
    lines = CNN.partition("def make_model")
    project = Project(
        tmp_path, lines[0] + "import nets_of_mine\nmake_model = nets_of_mine.make_model\n"
    )
    text = "from torch import nn\n\n" + lines[1] + lines[2]
    (project.home / "nets_of_mine.py").write_text(text)
    project.prepare()
    built = project.build()
    assert "nets_of_mine.py" in built.files
    sys.modules.pop("nets_of_mine")
    sys.path.remove(str(project.home))
    (project.home / "nets_of_mine.py").unlink()
    np.testing.assert_allclose(project.predict(built), project.expected(), atol=1e-5)


def test_a_source_that_needs_its_folder_is_shipped_as_a_program(tmp_path):
    source = CNN.replace(
        "def make_model():",
        "from pathlib import Path\n\ndef make_model():\n"
        "    assert (Path(__file__).parent / 'here.txt').exists()",
    )
    project = Project(tmp_path, source)
    (project.home / "here.txt").write_text("x")
    project.prepare()
    built = project.build()
    assert "model.pt2" in built.files
    assert "model.py" not in built.files
    assert [s.name for s in built.stages] == ["dense", "program", "write eager"]
    np.testing.assert_allclose(project.predict(built), project.expected(), atol=1e-5)


def test_what_cannot_be_exported_is_unsupported_and_eager_still_works(tmp_path):
    project = Project(tmp_path, BRANCHES).prepare()
    with pytest.raises(JobError, match="ONNX export") as found:
        project.build(runtime="onnxruntime")
    assert found.value.kind == "unsupported"
    np.testing.assert_allclose(project.predict(project.build()), project.expected(), atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "runtime", "words"),
    [
        ((INT8,), "eager", "the runtime eager takes the module, but int8_static"),
        ((INT8, PRUNE), "onnxruntime", "put prune first"),
    ],
)
def test_a_chain_that_cannot_be_is_refused_before_any_work(cnn, steps, runtime, words):
    with pytest.raises(JobError, match=words):
        cnn.build(*steps, runtime=runtime)
    assert not (cnn.root / "cache").exists()


def test_an_unknown_runtime_lists_those_there_are(cnn):
    with pytest.raises(PluginError, match="onnxruntime"):
        cnn.build(runtime="tvm")


def test_weights_of_another_model_are_unsupported(cnn):
    save_model(torch.nn.Linear(2, 2), str(cnn.root / "dense.safetensors"))
    with pytest.raises(JobError, match="do not fit"):
        cnn.build()


def test_recovery_without_training_rows_is_refused_with_the_reason(tmp_path):
    only_eval = CNN.replace("def train_data():\n    return _rows(128, 0)\n", "pretrained = True\n")
    project = Project(tmp_path, only_eval.replace("_rows(48, 1)", "_rows(8, 1)"))
    loaded = task.load(project.spec)
    if loaded.train is not None or loaded.calibration is not None:
        pytest.skip("the task gave calibration rows")
    torch.manual_seed(3)
    save_model(loaded.make_model(), str(project.root / "dense.safetensors"))
    with pytest.raises(JobError, match="train_data"):
        project.build(PRUNE)
    assert project.build(PRUNE, recovery_epochs=0).recovery_s == 0.0


def test_recovery_learns_again(cnn):
    """Recovery brings the loss on what is held back down and reports it."""
    channel = NullChannel()
    job = Build(
        task=cnn.spec,
        weights="dense.safetensors",
        compress=(PRUNE,),
        runtime="eager",
        threads=1,
        batch_size=1,
        seed=0,
        recipe=Recipe(lr=1e-2),
        recovery_epochs=4,
        out="builds/x",
    )
    build.run(job, cnn.root, channel)
    losses = [value for _, value in channel.reports]
    assert 1 < len(losses) <= 4
    assert min(losses) < losses[0]


def test_a_recovery_that_diverges_is_nan(cnn):
    with pytest.raises(JobError) as found:
        cnn.build(PRUNE, recipe=Recipe(optimizer="sgd", lr=1e20), recovery_epochs=3)
    assert found.value.kind == "nan"
