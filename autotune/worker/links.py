"""What it costs to exchange tensors between two processes of this machine: T(n) = alpha + n / beta.

    fork -> two ranks, gloo over loopback -> all-reduce of 4 B (alpha) and of 4 MB (beta)

A ring all-reduce of n bytes over r ranks takes 2(r-1) alpha + 2(r-1)/r n/beta; with two ranks that
is 2 alpha + n/beta.  To be called before this process has used a thread pool: a forked child of
one that has hangs.
"""

import os
import signal
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from statistics import median

from autotune.records.hardware import Leaf
from autotune.worker import probes

_SMALL, _LARGE = 1, 1 << 20
_CALLS = 15
_PATIENCE_S = 10.0


def gloo() -> dict[str, Leaf]:
    """``gloo_latency_s`` and ``gloo_bytes_per_s``; empty where two processes cannot connect."""
    with tempfile.TemporaryDirectory(prefix="autotune-links-") as folder:
        store, out = Path(folder) / "store", Path(folder) / "out"
        pids = [_fork(rank, store, out) for rank in (0, 1)]
        if not _ended(pids) or not out.exists():
            return {}
        small, large = (
            [float(text) for text in line.split()] for line in out.read_text().splitlines()
        )
    alpha = [seconds / 2 for seconds in small]
    sent = 4.0 * _LARGE
    beta = [sent / max(1e-9, seconds - median(small)) for seconds in large]
    return {
        "gloo_latency_s": probes.as_leaf(alpha, "s"),
        "gloo_bytes_per_s": probes.as_leaf(beta, "B/s"),
    }


def _fork(rank: int, store: Path, out: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        lines = _exchange(rank, store)
        if rank == 0:
            scratch = out.with_suffix(".part")
            scratch.write_text("\n".join(" ".join(map(repr, line)) for line in lines))
            scratch.replace(out)
        status = 0
    finally:
        os._exit(status)  # whatever happened: a child never returns into its parent's code


def _exchange(rank: int, store: Path) -> list[list[float]]:
    """Seconds of small and of large all-reduces."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=_PATIENCE_S),
    )
    out = []
    for size in (_SMALL, _LARGE):
        tensor = torch.ones(size)
        spent = []
        for _ in range(_CALLS + 3):
            tensor.fill_(1.0)
            started = time.perf_counter()
            dist.all_reduce(tensor)
            spent.append(time.perf_counter() - started)
        out.append(spent[3:])
    dist.barrier()
    return out


def _ended(pids: list[int]) -> bool:
    """Whether both ended well; what hangs is ended."""
    until = time.monotonic() + _PATIENCE_S
    left, good = set(pids), True
    while left and time.monotonic() < until:
        for pid in tuple(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                left.discard(pid)
                good = good and status == 0
        time.sleep(0.01)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return good and not left
