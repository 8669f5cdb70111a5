"""Shared by the worker's tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.worker.contract import task
from tests.support import tasks


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., task.LoadedTask]:
    """Writes a text as ``model.py`` and loads it; further arguments are fields of `TaskSpec`."""

    def make(text: str, *, pretrained: bool | None = None, **spec: Any) -> task.LoadedTask:
        return task.load(tasks.write(tmp_path, text, **spec), pretrained=pretrained)

    return make
