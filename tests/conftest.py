"""Shared by all tests: where things are, and a profile of a made-up machine."""

from pathlib import Path

import pytest

from autotune.records.hardware import Cpu, Leaf, Profile

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def examples() -> Path:
    return ROOT / "examples"


@pytest.fixture
def profile() -> Profile:
    """Two cores, 8 GiB, 100 GFLOP/s."""
    return Profile(
        name="made-up",
        created_utc="2026-01-01T00:00:00Z",
        fingerprint="0" * 12,
        cpu=Cpu(
            vendor=None,
            model="Made up",
            architecture="x86_64",
            logical_cores=2,
            physical_cores=2,
            usable_cores=2.0,
        ),
        memory_bytes=8 << 30,
        usable_memory_bytes=7 << 30,
        measured={
            "gemm_fp32_1t_flop_per_s": Leaf(value=5e10, unit="flop/s", source="measured"),
            "gemm_fp32_2t_flop_per_s": Leaf(value=1e11, unit="flop/s", source="measured"),
        },
    )
