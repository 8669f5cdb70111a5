"""Shared by all tests: where things are, and a profile of a made-up machine."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.records.hardware import Leaf, Profile
from tests.support import made

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def examples() -> Path:
    return ROOT / "examples"


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a task changes these; a job has a process of its own, a test has not."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)


@pytest.fixture
def _environment() -> Iterator[None]:
    """Environment variables are restored: measuring in this process sets thread counts."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def profile() -> Profile:
    """Two cores, 8 GiB, 100 GFLOP/s."""
    measured = {
        f"gemm_fp32_{threads}t_flop_per_s": Leaf(
            value=threads * 5e10, unit="FLOP/s", source="measured"
        )
        for threads in (1, 2)
    }
    return made.profile(measured=measured)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs first: handed out last, they would run alone while other processors idle."""
    items.sort(key=lambda item: "scenarios" not in item.path.parts)
