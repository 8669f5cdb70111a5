"""A profile as the planner sees it: rates by precision, memory, links, and what was assumed.

    profile -> Machine(devices, per_node, rates, memory, bandwidth, link, network, power)

A rate is the best measured matrix product where the profile has one; else a share of the
datasheet's peak.  What a profile leaves out is assumed, and listed in `Machine.assumed`.
"""

import math
import re
from dataclasses import dataclass, field, replace

from autotune.errors import UsageError
from autotune.records.hardware import Leaf, Profile

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8")
# Best measured bf16 matrix products over datasheet peaks run from 0.51 (MI300X) over 0.78 (B200)
# and 0.80 (H100) to 0.87 (A100): stas00/ml-engineering, compute/accelerator, "maximum achievable
# matmul FLOPS".  The median, and the spread that covers them.
_OF_PEAK, _OF_PEAK_SD = 0.79, 0.18
_GEMM = re.compile(r"gemm_([a-z0-9]+)(?:_[a-z0-9]+?)??(_\d+t)?_(?:flop|op)_per_s")
_MARGIN = 1.05  # datasheet peaks are exceeded by a few per cent where clocks run higher
_LINK_BYTES_PER_S = 25e9  # PCIe 4.0 x16 as collectives reach it, where the profile has no link
_NETWORK_BYTES_PER_S_PER_GPU = 25e9  # one 200 Gb/s port a GPU
_CPU_BANDWIDTH_BYTES_PER_S = 20e9
_CPU_LAUNCH_S, _GPU_LAUNCH_S = 3e-6, 5e-6
_CPU_RESERVE_BYTES = 0.3e9  # an interpreter with torch (219 MB) and its libraries
_GPU_RESERVE_BYTES = 1.2e9  # CUDA context, libraries' workspaces
_GPU_CACHE_BYTES = 256e6  # the largest last-level cache of the library's devices (MI300X)


@dataclass(frozen=True)
class ComputeRate:
    """Operations per second of one precision: ``best`` as reached by a large matrix product,
    ``most`` as no kernel exceeds it, ``measured`` whether ``best`` was.
    """

    best: float
    most: float
    measured: bool

    @property
    def sd(self) -> float:
        """Of the logarithm of ``best``: none where it was measured."""
        return 0.0 if self.measured else _OF_PEAK_SD


@dataclass(frozen=True)
class Machine:
    """``devices`` alike, ``per_node`` of them sharing ``link``; bytes and bytes/s are each's own.

    ``network`` is that of a whole node, one way.  ``bandwidth_most`` is what no kernel exceeds,
    None where the profile has no such figure.  ``price_per_h`` is of all devices together.
    """

    name: str
    kind: str
    devices: int
    per_node: int
    memory_bytes: float
    bandwidth: float
    rates: dict[str, ComputeRate]
    link: float
    network: float
    power_limit_w: float | None
    launch_s: float
    reserve_bytes: float
    bandwidth_most: float | None = None
    cache_bytes: float = 0.0
    price_per_h: float | None = None
    assumed: tuple[str, ...] = field(default=())

    @property
    def nodes(self) -> int:
        return -(-self.devices // self.per_node)


def machine(
    profile: Profile,
    *,
    devices: int | None = None,
    nodes: int | None = None,
) -> Machine:
    """The planner's view of a profile, or of several nodes of it.

    Args:
        profile: one node.
        devices: number of its devices, beyond one node a multiple of a node's; all by default.
        nodes: number of nodes.

    Raises:
        UsageError: the profile has no rate at all, or more devices were asked for than its
            nodes can hold evenly.
    """
    found = _gpu(profile) if profile.gpus else _cpu(profile)
    if not found.rates:
        raise UsageError(
            f"profile {profile.name} has neither a peak nor a measured rate (peak_*_flop_per_s, "
            "gemm_*_flop_per_s): nothing can be predicted from it; `autotune profile` measures one"
        )
    count = devices if devices is not None else found.per_node * (nodes or 1)
    if count > found.per_node and count % found.per_node:
        raise UsageError(
            f"--devices {count}: {profile.name} has {found.per_node} a node; give a multiple of it"
        )
    if count > found.per_node and found.kind == "cpu":
        raise UsageError(f"{profile.name} has no accelerators: only one node of it is planned")
    assumed = found.assumed
    if count > found.per_node and "network_bytes_per_s" not in profile.figures:
        assumed += (f"{_gb(found.network)} of network a node (none in the profile)",)
    return replace(
        found,
        devices=count,
        per_node=min(count, found.per_node),
        assumed=assumed,
    )


def _gpu(profile: Profile) -> Machine:
    gpu, figures = profile.gpus[0], profile.gpus[0].figures
    per_node = sum(g.count for g in profile.gpus if g.name == gpu.name)
    assumed = []
    if len({g.name for g in profile.gpus}) > 1:
        assumed.append(f"only the {per_node} x {gpu.name} are planned with")
    link = _value(figures, "link_bytes_per_s")
    if link is None:
        link = _value(figures, "pcie_bytes_per_s") or _LINK_BYTES_PER_S
        if per_node > 1:
            assumed.append(f"{_gb(link)} between two devices (no link in the profile)")
    bandwidth = _value(figures, "memory_bandwidth_bytes_per_s", "copy_bytes_per_s")
    rates = _rates(figures, 1.0)
    if bandwidth is None and rates:
        # bytes per FLOP of the devices of the last ten years lie around 1/150 in bf16
        bandwidth = max(rate.best for rate in rates.values()) / 150
        assumed.append(f"{_gb(bandwidth)} of memory bandwidth (none in the profile)")
    power = gpu.power_limit_w or _value(figures, "power_limit_w")
    return Machine(
        name=profile.name,
        kind="gpu",
        devices=per_node,
        per_node=per_node,
        memory_bytes=float(gpu.memory_bytes),
        bandwidth=bandwidth or 1.0,
        rates=rates,
        link=link,
        network=_value(profile.figures, "network_bytes_per_s")
        or per_node * _NETWORK_BYTES_PER_S_PER_GPU,
        power_limit_w=power,
        launch_s=_value(figures, "launch_overhead_s", "op_overhead_s") or _GPU_LAUNCH_S,
        reserve_bytes=_GPU_RESERVE_BYTES,
        bandwidth_most=_highest_bandwidth(figures),
        cache_bytes=_GPU_CACHE_BYTES,
        assumed=tuple(assumed),
    )


def _cpu(profile: Profile) -> Machine:
    figures = profile.figures
    bandwidth = _value(figures, "memory_bandwidth_bytes_per_s") or _most(figures, "copy_")
    assumed = [] if bandwidth else [f"{_gb(_CPU_BANDWIDTH_BYTES_PER_S)} of memory bandwidth"]
    memory = profile.usable_memory_bytes or profile.memory_bytes or math.inf
    if memory == math.inf:
        assumed.append("enough memory (none in the profile)")
    launch = _value(figures, "op_overhead_s")
    if launch is None:
        assumed.append("3 us to launch an operator (a slow core may need several times that)")
    return Machine(
        name=profile.name,
        kind="cpu",
        devices=1,
        per_node=1,
        memory_bytes=float(memory),
        bandwidth=bandwidth or _CPU_BANDWIDTH_BYTES_PER_S,
        rates=_rates(figures, profile.cpu.usable_cores or 1.0),
        link=_CPU_BANDWIDTH_BYTES_PER_S,
        network=_CPU_BANDWIDTH_BYTES_PER_S,
        power_limit_w=_value(figures, "power_limit_w"),
        launch_s=launch or _CPU_LAUNCH_S,
        reserve_bytes=_CPU_RESERVE_BYTES,
        bandwidth_most=_highest_bandwidth(figures) if profile.cpu.l3_bytes else None,
        cache_bytes=float(profile.cpu.l3_bytes or 0),
        assumed=tuple(assumed),
    )


def _highest_bandwidth(figures: dict[str, Leaf]) -> float | None:
    stated = _value(figures, "memory_bandwidth_bytes_per_s")
    return stated * _MARGIN if stated else None


def _rates(figures: dict[str, Leaf], cores: float) -> dict[str, ComputeRate]:
    """By precision; a precision that the profile does not name is not planned with.

    What was measured on fewer threads than there are ``cores`` bounds nothing by itself: all
    cores may do as many times more.
    """
    measured: dict[str, float] = {}
    most: dict[str, float] = {}
    for name, leaf in figures.items():
        match = _GEMM.fullmatch(name)
        if match and leaf.value:
            kind, threads = match.group(1), match.group(2)
            measured[kind] = max(measured.get(kind, 0.0), leaf.value)
            more = max(1.0, cores / int(threads[1:-1])) if threads else 1.0
            most[kind] = max(most.get(kind, 0.0), leaf.value * more)
    peaks = {
        kind: _value(figures, f"peak_{kind}_flop_per_s", f"peak_{kind}_op_per_s")
        for kind in PRECISIONS
    }
    shares = [measured[k] / p for k, p in peaks.items() if p and k in measured]
    share = math.exp(sum(map(math.log, shares)) / len(shares)) if shares else _OF_PEAK
    rates = {}
    for kind, peak in peaks.items():
        best = measured.get(kind) or (share * peak if peak else None)
        if best is not None:
            least = _MARGIN * max(best, peak or 0.0, most.get(kind, 0.0))
            rates[kind] = ComputeRate(best, least, kind in measured or bool(shares))
    return rates


def _value(figures: dict[str, Leaf], *names: str) -> float | None:
    leaves = (figures.get(name) for name in names)
    return next((leaf.value for leaf in leaves if leaf is not None and leaf.value), None)


def _most(figures: dict[str, Leaf], start: str) -> float | None:
    found = [x.value for n, x in figures.items() if n.startswith(start) and x.value]
    return max(found, default=None)


def _gb(value: float) -> str:
    return f"{value / 1e9:.0f} GB/s"


def priced(target: Machine, price_per_h: float | None) -> Machine:
    """The machine with what all of its devices cost an hour."""
    return replace(target, price_per_h=price_per_h)
