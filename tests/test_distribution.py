"""What pip installs: under a name that is ours, with everything that the code reads."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.errors import DISTRIBUTION, install_hint

ROOT = Path(__file__).parents[1]
_OLD = re.compile(r"pip install[^`\n]* autotune\b(?!-)|\bautotune\[[a-z]")
TEXTS = {".py", ".md", ".toml", ".txt", ".json", ".j2", ""}


def _texts() -> Iterator[Path]:
    for folder in ("autotune", "benchmarks", "docs", "examples", "profiles", "tests"):
        yield from (ROOT / folder).rglob("*")
    yield from ROOT.glob("*")


def test_no_text_advises_to_install_the_other_project_of_our_name() -> None:
    for path in _texts():
        if path.suffix in TEXTS and path.is_file() and "recordings" not in path.parts:
            assert not _OLD.search(path.read_text(encoding="utf-8", errors="ignore")), path
    assert install_hint("onnx") == "needs `pip install autotune-torch[onnx]`"
    assert f'name = "{DISTRIBUTION}"' in (ROOT / "pyproject.toml").read_text()


def _run(*command: object, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    clean |= {"XDG_DATA_HOME": str(cwd / "data"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_built_from_the_sdist_runs_outside_the_checkout(tmp_path: Path) -> None:
    source, built, away = (tmp_path / name for name in ("source", "built", "away"))
    for folder in (source, built, away):
        folder.mkdir()
    for name in ("autotune", "profiles", "docs"):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    make = "import sys; from setuptools import build_meta as b; b.build_{}(sys.argv[1])"
    _run(sys.executable, "-c", make.format("sdist"), built, cwd=source)
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    _run(sys.executable, "-c", make.format("wheel"), built, cwd=unpacked)
    (wheel,) = built.glob("*.whl")

    venv = tmp_path / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    pip = (sys.executable, "-m", "pip", "--python", venv / "bin" / "python")
    _run(*pip, "install", "-q", "--no-deps", "--no-index", wheel, cwd=away)
    # the dependencies are those of this interpreter: a path in a .pth, whose own .pth files (an
    # editable install of the checkout) are not read
    site = next((venv / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = "import autotune; print(autotune.__file__)"
    assert str(site) in _run(venv / "bin" / "python", "-c", where, cwd=away)

    command = venv / "bin" / "autotune"
    assert "version 0.1.0" in _run(command, "--version", cwd=away)
    listed = _run(command, "profiles", "list", cwd=away)
    assert all(path.stem in listed for path in (ROOT / "profiles").glob("*.json"))
    schemas = venv / "share" / "autotune" / "schemas"
    assert {p.name for p in (ROOT / "docs" / "schemas").glob("*.json")} == {
        p.name for p in schemas.iterdir()
    }
    shutil.copy(ROOT / "tests" / "golden" / "report.json", away)
    page = _run(command, "report", "report.json", "--format", "html", cwd=away)
    assert page.startswith("<!doctype html>")
