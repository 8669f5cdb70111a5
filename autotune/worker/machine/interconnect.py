"""Cost of exchanging tensors on this machine: T(n) = alpha + n / beta.

    fork -> two ranks, gloo over loopback   -> all-reduce of 4 B (alpha) and of 4 MB (beta)
            a rank a CUDA device, NCCL      -> all-reduce of 4 B (alpha) and of 256 MB (beta)

A ring all-reduce of n bytes over r ranks takes 2(r-1) alpha + 2(r-1)/r n/beta; with two ranks that
is 2 alpha + n/beta.  Call it before this process has used a thread pool or a CUDA device: otherwise
its forked children hang, or find no device.

What this does not know: links between machines, and single pairs of more than two devices (the
ring is as fast as its slowest link; where a switch adds up, beta is better than the link itself).
"""

import os
import signal
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

from autotune.records.hardware import Leaf
from autotune.worker.machine import microbenchmarks

if TYPE_CHECKING:
    import torch

Backend = Literal["gloo", "nccl"]
_SMALL = 1
_LARGE: dict[Backend, int] = {"gloo": 1 << 20, "nccl": 1 << 26}
"""fp32 elements; on a fast link a small tensor's time is all alpha."""
_CALLS = 15
_WARM = 3
_PATIENCE_S: dict[Backend, float] = {"gloo": 10.0, "nccl": 30.0}
"""NCCL inspects the whole machine before its first exchange."""


def gloo() -> dict[str, Leaf]:
    """``gloo_latency_s`` and ``gloo_bytes_per_s``; empty where two processes cannot connect."""
    return _between("gloo", 2)


def nccl() -> dict[str, Leaf]:
    """``nccl_latency_s`` and ``nccl_bytes_per_s`` among all CUDA devices; empty for fewer than two,
    without NCCL, or where they cannot connect.
    """
    import torch
    import torch.distributed as dist

    # counted by NVML: initialising CUDA here would bar the forked ranks from it
    devices = torch.cuda.device_count()
    touched = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if devices < 2 or touched or not dist.is_nccl_available():
        return {}
    return _between("nccl", devices)


def leaves(
    backend: Backend, ranks: int, small: Sequence[float], large: Sequence[float]
) -> dict[str, Leaf]:
    """Alpha and beta from the seconds of small and of large all-reduces."""
    alpha = [seconds / (2 * (ranks - 1)) for seconds in small]
    sent = 2 * (ranks - 1) / ranks * 4.0 * _LARGE[backend]
    beta = [sent / max(1e-9, seconds - median(small)) for seconds in large]
    return {
        f"{backend}_latency_s": microbenchmarks.as_leaf(alpha, "s"),
        f"{backend}_bytes_per_s": microbenchmarks.as_leaf(beta, "B/s"),
    }


def _between(backend: Backend, ranks: int) -> dict[str, Leaf]:
    with tempfile.TemporaryDirectory(prefix="autotune-links-") as folder:
        store, out = Path(folder) / "store", Path(folder) / "out"
        pids = [_fork(backend, rank, ranks, store, out) for rank in range(ranks)]
        if not _ended(pids, _PATIENCE_S[backend]) or not out.exists():
            return {}
        small, large = (
            [float(text) for text in line.split()] for line in out.read_text().splitlines()
        )
    return leaves(backend, ranks, small, large)


def _fork(backend: Backend, rank: int, ranks: int, store: Path, out: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        lines = _exchange(backend, rank, ranks, store)
        if rank == 0:
            scratch = out.with_suffix(".part")
            scratch.write_text("\n".join(" ".join(map(repr, line)) for line in lines))
            scratch.replace(out)
        status = 0
    finally:
        os._exit(status)  # a forked child must never return into its parent's code


def _exchange(backend: Backend, rank: int, ranks: int, store: Path) -> list[list[float]]:
    """Seconds of small and of large all-reduces."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    device = _device(backend, rank)
    dist.init_process_group(
        backend,
        init_method=f"file://{store}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=_PATIENCE_S[backend]),
    )
    out = []
    for size in (_SMALL, _LARGE[backend]):
        tensor = torch.ones(size, device=device)
        spent = []
        for _ in range(_CALLS + _WARM):
            tensor.fill_(1.0)
            _wait(device)
            started = time.perf_counter()
            dist.all_reduce(tensor)
            _wait(device)
            spent.append(time.perf_counter() - started)
        out.append(spent[_WARM:])
    dist.barrier()
    return out


def _device(backend: Backend, rank: int) -> "torch.device":
    """The device of a rank's tensors."""
    import torch

    if backend == "gloo":
        return torch.device("cpu")
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def _wait(device: "torch.device") -> None:
    """Wait for a GPU's pending work."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ended(pids: list[int], patience_s: float) -> bool:
    """Whether all ended with status 0 in time; the others are killed."""
    until = time.monotonic() + patience_s
    left, succeeded = set(pids), True
    while left and time.monotonic() < until:
        for pid in tuple(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                left.discard(pid)
                succeeded = succeeded and status == 0
        time.sleep(0.01)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return succeeded and not left
