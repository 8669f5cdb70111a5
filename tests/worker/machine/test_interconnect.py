"""Processes exchange tensors: in a fresh interpreter, as the server's child is."""

import json
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from autotune.worker.machine import interconnect

CODE = """
import json
from autotune.worker.machine import interconnect as links
links._PATIENCE_S.update(gloo=50.0, nccl=50.0)  # beside other tests two processes are slow
print(json.dumps({name: leaf.value for name, leaf in links.gloo().items()}))
"""
FAKE = """
import torch, torch.distributed as dist
from autotune.worker.machine import interconnect as links
join, touched, real = dist.init_process_group, [], links._device
def init(backend, **how):
    assert backend == "nccl" and touched == [how["rank"]]
    join("gloo", **how)
def device(backend, rank):
    assert real(backend, rank) == torch.device("cuda", rank)
    return torch.device("cpu")
dist.init_process_group, dist.is_nccl_available = init, lambda: True
torch.cuda.device_count, torch.cuda.set_device = lambda: 3, touched.append
links._device = device
links._LARGE["nccl"] = 1 << 18
"""


def found(code: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_gloo_between_two_processes() -> None:
    leaves = found(CODE)
    assert set(leaves) == {"gloo_latency_s", "gloo_bytes_per_s"}
    assert 0 < leaves["gloo_latency_s"] < 1
    assert leaves["gloo_bytes_per_s"] > 1e6


def test_a_rank_that_dies_gives_nothing() -> None:
    assert found(CODE.replace("print(", "links._exchange = lambda *how: 1 / 0\nprint(")) == {}


def test_nccl_among_all_devices_as_gloo_stands_in_for_it() -> None:
    """Three made-up devices: each rank takes its own, then joins by NCCL."""
    leaves = found(FAKE + CODE.replace("gloo()", "nccl()"))
    assert set(leaves) == {"nccl_latency_s", "nccl_bytes_per_s"}
    assert all(value > 0 for value in leaves.values())


@pytest.mark.parametrize(
    ("devices", "touched", "nccl"), [(1, False, True), (8, True, True), (8, False, False)]
)
def test_nccl_needs_two_devices_that_nothing_has_touched(
    devices: int, touched: bool, nccl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: touched)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: nccl)
    assert interconnect.nccl() == {}


def test_alpha_and_beta_of_a_ring() -> None:
    """T(n) = 2(r-1) alpha + 2(r-1)/r n/beta with 10 us and 100 GB/s."""
    for ranks in (2, 8):
        size, steps = 4.0 * interconnect._LARGE["nccl"], 2 * (ranks - 1)
        small = steps * 1e-5
        leaves = interconnect.leaves("nccl", ranks, [small], [small + steps / ranks * size / 1e11])
        assert leaves["nccl_latency_s"].value == pytest.approx(1e-5)
        assert leaves["nccl_bytes_per_s"].value == pytest.approx(1e11)
