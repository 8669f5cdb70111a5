"""Files inside packages, modules by name, arguments and parameters."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotune import module_locator
from autotune.errors import ContractError
from autotune.records.job import Inspect
from autotune.records.task import TaskSpec
from autotune.worker.channel import NullChannel
from autotune.worker.contract import task
from autotune.worker.survey import inspect
from tests.support import tasks

MODEL = """
import torch
from torch import nn
from .layers import WIDTH, Block
from ..shared import classes

def make_model(depth=1):
    return nn.Sequential(*(Block() for _ in range(depth)), nn.Linear(WIDTH, classes))

def train_data():
    g = torch.Generator().manual_seed(0)
    return torch.utils.data.TensorDataset(
        torch.randn(90, WIDTH, generator=g), torch.arange(90) % classes
    )
"""
LAYERS = """
from torch import nn
WIDTH = 4
class Block(nn.Linear):
    def __init__(self):
        super().__init__(WIDTH, WIDTH)
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] == "project_of_a_user"]:
        del sys.modules[name]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "project_of_a_user"
    (folder / "nets").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "nets" / "__init__.py").write_text("")
    (folder / "nets" / "model.py").write_text(MODEL)
    (folder / "nets" / "layers.py").write_text(LAYERS)
    (folder / "shared.py").write_text("classes = 3\n")
    return folder


def test_where_a_model_is(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = package / "nets" / "model.py"
    assert module_locator.member(path) == ("project_of_a_user.nets.model", package.parent)
    assert module_locator.member(package / "nets" / "__init__.py") == (
        "project_of_a_user.nets",
        package.parent,
    )
    assert module_locator.member(package.parent / "alone.py") is None
    assert module_locator.locate(str(path)) == path
    assert module_locator.locate("project_of_a_user.nets.model", package.parent) == path
    assert (
        module_locator.locate("project_of_a_user.nets", package.parent)
        == path.parent / "__init__.py"
    )
    assert module_locator.locate("project_of_a_user.nothing", package.parent) is None
    assert module_locator.locate("project_of_a_user.shared.deeper", package.parent) is None
    assert module_locator.locate("no such.thing") is None
    assert "project_of_a_user" not in sys.modules  # looking imports nothing
    monkeypatch.chdir(package.parent)
    assert module_locator.locate("project_of_a_user.nets.model") == path


def test_a_file_inside_a_package_is_imported_as_its_member(package: Path) -> None:
    loaded = task.load(TaskSpec(kind="file", path=str(package / "nets" / "model.py")))
    assert loaded.info.name == "model"
    assert loaded.info.classes == 3
    assert type(loaded.make_model()[0]).__module__ == "project_of_a_user.nets.layers"
    assert loaded.source == "from project_of_a_user.nets.model import make_model  # noqa: F401\n"
    assert loaded.root == package.parent
    assert not list(package.rglob("__pycache__"))


def test_a_package_that_imports_the_file_itself_runs_it_once(package: Path) -> None:
    (package / "nets" / "__init__.py").write_text("from .model import make_model\n")
    text = MODEL + "from .. import shared\nshared.runs = getattr(shared, 'runs', 0) + 1\n"
    (package / "nets" / "model.py").write_text(text)
    task.load(TaskSpec(kind="file", path=str(package / "nets" / "model.py")))
    assert sys.modules["project_of_a_user.shared"].runs == 1  # type: ignore[attr-defined]


def test_a_package_is_shipped_with_its_modules(package: Path, tmp_path: Path) -> None:
    spec = TaskSpec(kind="file", path=str(package / "nets" / "model.py"), params={"depth": 2})
    root = tmp_path / "work"
    inspect.run(Inspect(task=spec, pretrained=True), root, NullChannel())
    built = tasks.built(root, spec)
    assert "project_of_a_user/nets/layers.py" in built.files
    assert "model.pt2" not in built.files
    for name in [n for n in sys.modules if n.partition(".")[0] == "project_of_a_user"]:
        del sys.modules[name]
    sys.path[:] = [p for p in sys.path if p not in (str(package.parent), str(package / "nets"))]
    predict = tasks.predict(root / "out")
    assert predict(np.ones((1, 4), np.float32)).shape == (1, 3)


def test_parameters_reach_make_model(package: Path) -> None:
    path = str(package / "nets" / "model.py")

    def depth(**params: Any) -> int:
        return len(task.load(TaskSpec(kind="file", path=path, params=params)).make_model())

    assert (depth(), depth(depth=3)) == (2, 4)
    with pytest.raises(ContractError, match=r"make_model\(width=3\) raised TypeError"):
        depth(width=3)


def test_parameters_that_are_trains_do_not(tmp_path: Path) -> None:
    text = (
        "import torch\nfrom torch import nn\n"
        "def make_model(wide):\n    return nn.Linear(4, wide)\n"
        "def train(model, recipe, data, trial):\n    return model\n"
        "def train_data():\n"
        "    return torch.utils.data.TensorDataset(torch.ones(60, 4), torch.arange(60) % 3)\n"
    )
    (tmp_path / "model.py").write_text(text)
    params = {"wide": 5, "warmup": 2}
    loaded = task.load(TaskSpec(kind="file", path=str(tmp_path / "model.py"), params=params))
    assert loaded.make_model().out_features == 5
    names: dict[str, Any] = {}
    exec(str(loaded.source), names)
    assert names["make_model"]().out_features == 5
    assert torch.is_tensor(names["make_model"]().weight)


def test_what_a_file_imports_whatever_happens(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(
        "import a.b as c, d\nfrom e.f import g, h\nfrom . import near\nfrom .near import one\n"
        "try:\n    import fast\nexcept ImportError:\n    fast = None\n"
        "def train_data():\n    import late\n"
    )
    assert module_locator.imported(path) == ("a.b", "d", "e.f", "e.f.g", "e.f.h")
    (tmp_path / "near.py").write_text("import e.x\nimport model\nimport wave\n")
    path.write_text("import near, a.b\nfrom near import one\n")
    assert module_locator.needed(path, {"a", "e"}) == ("a.b", "e.x")
    path.write_text("import (")
    with pytest.raises(SyntaxError):
        module_locator.imported(path)
