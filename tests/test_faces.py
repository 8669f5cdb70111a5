"""Every package has a face: a few names, loaded lazily, and modules that only the package imports.

The linter holds what is behind a face (`.importlinter`); this holds the faces themselves.
"""

import configparser
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import autotune

ROOT = Path(autotune.__file__).parent
PLUGINS = {"compress", "runtimes", "parallel", "meters", "forms", "worker.machine.boards"}
"""Their face is the Protocol in the package's ``__init__``."""
EXEMPT = {"records", "worker"} | PLUGINS
MOST_NAMES, MOST_FILES = 10, 15
"""The two packages whose stages the pipeline calls one by one, training and deployment, have 10 and
9 names; all others have 8 at most, but for the task's contract."""


def _packages() -> list[str]:
    folders = (path.parent for path in ROOT.rglob("__init__.py") if path.parent != ROOT)
    names = (".".join(folder.relative_to(ROOT).parts) for folder in folders)
    return sorted(name for name in names if not name.rpartition(".")[2].startswith("_"))


def _modules(package: str) -> set[str]:
    folder = ROOT / package.replace(".", "/")
    below = {path.parent.name for path in folder.glob("*/__init__.py")}
    return below | {path.stem for path in folder.glob("*.py")} - {"__init__"}


FACES = [name for name in _packages() if name not in EXEMPT]


@pytest.mark.parametrize("package", FACES)
def test_a_face_is_a_few_sorted_names_that_are_there(package: str) -> None:
    face = import_module(f"autotune.{package}")
    names = getattr(face, "__all__", [])
    assert 0 < len(names) <= MOST_NAMES
    assert list(names) == sorted(names)
    assert face.__doc__
    for name in set(names) - _modules(package):
        assert getattr(face, name) is not None
    with pytest.raises((AttributeError, ImportError)):
        _ = face.no_such_name


def test_importing_the_faces_imports_nothing_behind_them() -> None:
    code = "import sys\n" + "".join(f"import autotune.{name}\n" for name in FACES)
    code += "print(*(m for m in sys.modules if m.startswith('autotune.') or m == 'torch'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    parents = {name.rpartition(".")[0] for name in FACES} - {""}
    assert set(done.stdout.split()) == {f"autotune.{name}" for name in (*FACES, *parents, "faces")}


def test_the_linter_protects_every_module_that_no_face_names() -> None:
    found = configparser.ConfigParser()
    found.read(ROOT.parent / ".importlinter")
    protected = {
        module
        for section in found.sections()
        for module in found[section].get("protected_modules", "").split()
    }
    behind = {
        f"autotune.{package}.{module}"
        for package in FACES
        for module in _modules(package) - set(import_module(f"autotune.{package}").__all__)
    }
    assert protected == behind


def test_the_python_api_has_no_name_that_a_module_hides() -> None:
    assert not set(autotune.__all__) & (_modules("") - {"task"})
    assert all(callable(getattr(autotune, name)) for name in autotune.__all__)


def test_no_package_is_crowded() -> None:
    for package in ["", *(name for name in _packages() if name not in EXEMPT)]:
        files = list((ROOT / package.replace(".", "/")).glob("*.py"))
        assert len(files) - 1 <= MOST_FILES, package
