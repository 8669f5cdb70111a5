"""Runtime ``compiled``: the module through ``torch.compile`` with frozen weights.

It compiles at the first call in every process (2.5 to 7.4 s, less with Inductor's cache).
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.task import Dim
from autotune.runtimes import RuntimeSettings, _artifact

DEVICE = "cpu"
TAKES = "module"
TIME_LEFT = 0.85  # beside eager PyTorch: 0.65 (with freezing) to 1.3 on four models
COMPILES = "first_call"
BUILD_S = 20.0  # a trial has several processes, each of which compiles


def unavailable(context: Context) -> str | None:
    """Code generation needs a C++ compiler and Python's headers."""
    del context
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return (
            f"no C++ compiler {compiler!r}: `apt-get install g++`, or set CXX to the one you have"
        )
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python's headers (Python.h) are missing: `apt-get install python3-dev`"
    return None


def dims(context: Context) -> tuple[Dim, ...]:
    """None."""
    del context
    return ()


def write(form: Form, out: Path, settings: RuntimeSettings) -> None:
    """Write source (or exported program), weights, structure and a loader that compiles."""
    from autotune.runtimes import _torch

    loader = _torch.loader(form, "compiled")
    _artifact.write(form, out, settings, runtime="compiled", loader=loader)
