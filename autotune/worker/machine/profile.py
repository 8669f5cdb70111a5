"""Profile this machine: what it has (read) and how fast it is (measured), in about 4 seconds.

    host readers         -> Cpu, memory            never the host's name, serials, addresses, paths
    interconnect         -> leaves                 two processes, all devices: alpha and beta
    kernel_paths.cpu     -> leaves                 GEMM, copy and operator overhead on the CPU
    gpus.cuda            -> Gpu and its leaves     only where there is a device; before the CPU
    power_draw           -> watts, idle and loaded only where there is a meter process

A leaf's value is the median of its samples, low and high are their extremes; the anchors are
measured again at the end, so that their interval holds the machine's drift.  The foreign load
meanwhile is a leaf too (`noise`).  Samples that foreign load disturbed are taken again, twice; what
is still disturbed then stays, with its wide interval and a warning.

What this does not know: the machine when it is busy, and behaviour beyond the probed sizes.
"""

import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from autotune.errors import DISTRIBUTION
from autotune.records import profiles
from autotune.records.hardware import Cpu, Gpu, Leaf, Profile
from autotune.records.job import Probe, Probed
from autotune.worker.channel import Channel
from autotune.worker.host import linux, topology
from autotune.worker.machine import (
    boards,
    interconnect,
    kernel_paths,
    microbenchmarks,
    noise,
    power_draw,
)
from autotune.worker.machine import (
    gpus as machine_gpus,
)

_SOFTWARE = (
    *("torch", "numpy", "onnx", "onnxruntime", "openvino", "nncf", "torch-pruning", "optuna"),
    DISTRIBUTION,
)
_ISA = (
    *("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl"),
    *("avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "sve", "sve2", "bf16", "i8mm"),
)
"""The extensions that decide how fast a model runs, by the kernel's names."""
_WINDOWS = 3
"""Of each loaded power, in a thorough profile."""
_TORCH_NAMES = {"fma3": "fma", "avx512_f": "avx512f", "avx512_bw": "avx512bw",
                "avx512_vl": "avx512vl", "neon": "asimd"}  # fmt: skip


def run(job: Probe, root: Path, channel: Channel) -> Probed:
    """Read and measure this machine within ``job.budget_s``; torch's threads are restored."""
    started = time.monotonic()
    cpu = processor()
    memory, usable = linux.memory_bytes(), linux.usable_memory_bytes()
    timer = microbenchmarks.Timer(started + job.budget_s, threads=max(1, int(cpu.cores)))
    load = noise.ForeignLoad()
    figures, gpus, warnings = _measured(job, cpu, usable, timer)
    versions = software()
    profile = Profile(
        name=name(cpu, gpus),
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprint=profiles.hardware_fingerprint(cpu, memory, gpus),
        software_fingerprint=profiles.software_fingerprint(versions),
        cpu=cpu,
        memory_bytes=memory,
        usable_memory_bytes=usable,
        gpus=gpus,
        others=() if job.device == "cpu" else boards.others(),
        figures=figures | load.leaves() | topology.clocks(),
        software=versions,
        warnings=warnings,
        probe_s=time.monotonic() - started,
    )
    return Probed(profile=profile, lacking=boards.lacking() if job.device != "cpu" else {})


_Measured = tuple[dict[str, Leaf], tuple[Gpu, ...], tuple[str, ...]]


def _measured(job: Probe, cpu: Cpu, usable: int, timer: microbenchmarks.Timer) -> _Measured:
    """The machine's leaves, its devices with theirs, and warnings."""
    size = _buffer_bytes(cpu, usable)
    if job.anchors_only:
        with _threads():
            gpus = _devices(job, timer)
            found = timer.anchors(size)
        return found, gpus, tuple(timer.warnings)
    found = _linked(job, cpu)  # before any thread, and before a device is touched
    with _metered(job, timer) as power, _threads():
        power.idle(0 if job.device == "cpu" else machine_gpus.count())
        gpus = machine_gpus.with_power(_devices(job, timer), power)
        found |= kernel_paths.cpu(timer, size, thorough=job.thorough)
        timer.loaded(power)
    with _threads():
        found = noise.pooled(found, timer.anchors(size)) | power.figures
    return found, gpus, (*timer.warnings, *power.warnings)


def _devices(job: Probe, timer: microbenchmarks.Timer) -> tuple[Gpu, ...]:
    """The devices' rates; the deadline moves by the time that they took, as initialising CUDA takes
    seconds that the processor's probes need.
    """
    if job.device == "cpu":
        return ()
    began = time.monotonic()
    found = machine_gpus.cuda(timer, anchors_only=job.anchors_only)
    if found and not job.thorough:
        timer.extend(time.monotonic() - began)
    return found


def _linked(job: Probe, cpu: Cpu) -> dict[str, Leaf]:
    if not job.thorough:
        return {}
    between = interconnect.gloo() if cpu.cores >= 2 else {}
    return between | (interconnect.nccl() if job.device != "cpu" else {})


@contextmanager
def _metered(job: Probe, timer: microbenchmarks.Timer) -> Iterator[power_draw.PowerProbe]:
    """A power probe, which measures nothing where there is no meter process."""
    if job.meter is None:
        yield power_draw.PowerProbe(None)
        return
    from autotune.worker.energy import MeterClient

    with MeterClient(job.meter) as meter:
        yield power_draw.PowerProbe(meter, over=timer.over, windows=_WINDOWS if job.thorough else 1)


def processor(root: Path = linux.ROOT) -> Cpu:
    """The processor as this process may use it."""
    info, caches = linux.cpuinfo(root), linux.caches(root)
    fast, small = topology.core_kinds(root) or (None, None)
    return Cpu(
        vendor=info.vendor,
        model=info.model,
        architecture=platform.machine(),
        logical_cores=os.cpu_count() or 1,
        physical_cores=linux.physical_cores(),
        usable_cores=linux.usable_cores(root),
        isa=isa(info.flags),
        l1d_bytes=caches.l1d_bytes,
        l2_bytes=caches.l2_bytes,
        l3_bytes=caches.l3_bytes,
        l3_count=topology.l3_count(root),
        sockets=topology.sockets(root),
        numa_nodes=linux.numa_nodes(root),
        threads_per_core=topology.threads_per_core(root),
        performance_cores=fast or None,
        efficiency_cores=small or None,
        governor=linux.governor(root),
        virtualised=linux.virtualised(root),
    )


def isa(flags: frozenset[str]) -> tuple[str, ...]:
    """Instruction set extensions by the kernel's names: its flags and what torch detects."""
    import torch

    found = set(flags)
    ask = getattr(torch.cpu, "get_capabilities", dict)
    found |= {_TORCH_NAMES.get(key, key) for key, value in ask().items() if value is True}
    return tuple(extension for extension in _ISA if extension in found)


def name(cpu: Cpu, gpus: tuple[Gpu, ...]) -> str:
    """A slug such as ``amd-epyc-2c`` or ``amd-epyc-16c-nvidia-h100``."""
    cores = f"{cpu.cores:g}c"
    words = [
        cpu.model or cpu.vendor or cpu.architecture or "cpu",
        cores,
        *(gpu.name for gpu in gpus[:1]),
    ]
    text = re.sub(r"\((r|tm)\)|\b(cpu|processor)\b|@.*", "", " ".join(words[:1]).lower())
    slug = " ".join([text, *words[1:]]).lower()
    return re.sub(r"[^a-z0-9.]+", "-", slug).strip("-")


def software() -> dict[str, str]:
    """Versions that change what a probe measures."""
    found = {package: version for package in _SOFTWARE if (version := _version(package))}
    return {"python": platform.python_version(), **found}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _buffer_bytes(cpu: Cpu, usable_memory: int) -> int:
    """Copy buffers that no cache holds, within a sixteenth of the memory."""
    wanted = min(512 << 20, max(64 << 20, 4 * (cpu.l3_bytes or 0)))
    return max(1 << 20, min(wanted, usable_memory // 16))


@contextmanager
def _threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
