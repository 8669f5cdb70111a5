"""Microbenchmarks of each CUDA (or ROCm) device that torch sees.

    copy_bytes_per_s, gemm_{fp32,tf32,bf16,fp16}_flop_per_s    the device alone
    host_to_device_bytes_per_s, device_to_host_...        pinned memory, one way
    launch_overhead_s                                     one small operator among many
    idle_power_w, loaded_power_w                          by the meter process (`power_draw`)

What this does not know: links between devices (`interconnect`), sparse and fp8 products.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from autotune.records.hardware import Gpu, Leaf
from autotune.worker.machine import boards, microbenchmarks, power_draw

if TYPE_CHECKING:
    import torch

_DEVICE_N = 4096
_TF32_CAPABILITY = 8
"""Major compute capability from which on a device has TF32 (Ampere)."""


def count() -> int:
    """CUDA devices that torch sees, without initialising any."""
    import torch

    return torch.cuda.device_count()


def cuda(timer: microbenchmarks.Timer, *, anchors_only: bool) -> tuple[Gpu, ...]:
    """Every CUDA device that torch sees, with its properties and, time permitting, its rates."""
    import torch

    if not torch.cuda.is_available():
        return ()
    devices = range(torch.cuda.device_count())
    return tuple(_gpu(timer, index, anchors_only) for index in devices)


def _gpu(timer: microbenchmarks.Timer, index: int, anchors_only: bool) -> Gpu:
    import torch

    facts = torch.cuda.get_device_properties(index)
    device = torch.device("cuda", index)
    measured = device_leaves(
        timer,
        device,
        lambda: torch.cuda.synchronize(device),
        copy_bytes=min(256 << 20, facts.total_memory // 16),
        kinds=("fp32",) if anchors_only else _precisions(facts.major),
    )
    gpu = Gpu(
        index=index,
        name=facts.name,
        memory_bytes=facts.total_memory,
        compute_capability=f"{facts.major}.{facts.minor}",
        multiprocessors=facts.multi_processor_count,
        figures=measured,
    )
    return boards.described(gpu, boards.of_device(str(getattr(facts, "uuid", ""))))


def device_leaves(
    timer: microbenchmarks.Timer,
    device: "torch.device",
    wait: Callable[[], None],
    *,
    copy_bytes: int,
    kinds: Sequence[str],
    size: int = _DEVICE_N,
) -> dict[str, Leaf]:
    """Copy and GEMM rates of one device; ``wait`` blocks until its work is done."""
    import torch

    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    source = torch.ones(copy_bytes // 4, device=device)
    target = torch.zeros(copy_bytes // 4, device=device)

    def copy() -> None:
        target.copy_(source)
        wait()

    found = timer.leaf("copy_bytes_per_s", "B/s", copy, 2.0 * copy_bytes, waits=True)
    if device.type == "cuda":
        found |= _host_copies(timer, source, wait)
        found |= _launches(timer, source[:1], wait)
    for kind in kinds:
        # not of ones: a GPU multiplies constant numbers up to an eighth faster than others
        matrix = torch.randn(size, size, device=device).to(dtypes.get(kind, torch.float32))
        out = torch.empty_like(matrix)

        def multiply(matrix: "torch.Tensor" = matrix, out: "torch.Tensor" = out) -> None:
            torch.mm(matrix, matrix, out=out)
            wait()

        with _matmul_precision("high" if kind == "tf32" else "highest"):
            found |= timer.leaf(
                f"gemm_{kind}_flop_per_s", "FLOP/s", multiply, 2.0 * size**3, waits=True
            )
    return found


def _precisions(major: int) -> tuple[str, ...]:
    """Precisions of matrix products to time (ROCm's larger capabilities pass too)."""
    return (
        ("fp32", "tf32", "bf16", "fp16") if major >= _TF32_CAPABILITY else ("fp32", "bf16", "fp16")
    )


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _host_copies(
    timer: microbenchmarks.Timer, tensor: "torch.Tensor", wait: Callable[[], None]
) -> dict[str, Leaf]:
    """Between pinned host memory and the device, one way each."""
    import torch

    part = tensor[: min(tensor.numel(), 16 << 20)]
    host = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
    size = float(part.numel() * part.element_size())

    def to_device() -> None:
        part.copy_(host, non_blocking=True)
        wait()

    def to_host() -> None:
        host.copy_(part, non_blocking=True)
        wait()

    return {
        **timer.leaf("host_to_device_bytes_per_s", "B/s", to_device, size, waits=True),
        **timer.leaf("device_to_host_bytes_per_s", "B/s", to_host, size, waits=True),
    }


def _launches(
    timer: microbenchmarks.Timer, one: "torch.Tensor", wait: Callable[[], None]
) -> dict[str, Leaf]:
    """``launch_overhead_s``: one operator on one element, among many that are not waited for."""
    import torch

    def launch() -> None:
        for _ in range(microbenchmarks.DISPATCHES):
            torch.add(one, one)
        wait()

    samples, unreliable = timer.rates(launch, float(microbenchmarks.DISPATCHES), waits=True)
    seconds = [1 / rate for rate in samples]
    if unreliable:
        timer.mark_uncertain("launch_overhead_s", seconds, "s")
    return {"launch_overhead_s": microbenchmarks.as_leaf(seconds, "s")}


def with_power(found: tuple[Gpu, ...], power: power_draw.PowerProbe) -> tuple[Gpu, ...]:
    """The devices with the power that they draw, idle and while all of them multiply matrices."""
    if not found:
        return ()
    import torch

    size = (_DEVICE_N, _DEVICE_N)
    matrices = [torch.randn(size, device=_device(gpu)).to(torch.float16) for gpu in found]

    def call() -> None:
        for matrix in matrices:
            torch.mm(matrix, matrix)
        for gpu in found:
            torch.cuda.synchronize(gpu.index)

    power.devices(len(found), call)
    return tuple(
        msgspec.structs.replace(gpu, figures=gpu.figures | power.boards.get(gpu.index, {}))
        for gpu in found
    )


def _device(gpu: Gpu) -> "torch.device":
    import torch

    return torch.device("cuda", gpu.index)
