"""NVIDIA boards by NVML: limits, clocks, MIG, NVLink and PCIe.

What this does not know: a MIG slice's share of its board's power and links.
"""

from importlib import import_module
from typing import Any

from autotune.worker.machine.boards import Facts, Sources, bare, pcie

TORCH_CUDA = True
_LINKS = 18
# nvmlNvlinkVersion_t -> bytes per second one way of one link: 1.0, 2.0, 2.2, 3.0, 3.1, 4.0, 5.0
_LINK_RATE = {1: 20e9, 2: 25e9, 3: 25e9, 4: 25e9, 5: 25e9, 6: 25e9, 7: 50e9}
_HOPPER = 9
"""Some drivers call this generation's links 5.0, too; they are 4.0."""
_SWITCH = 20
"""NVML_TOPOLOGY_MULTIPLE: up to here the path crosses PCIe switches only."""
_SM, _MEMORY = 1, 2
_P2P_NVLINK = 2


class Nvidia:
    """All boards that NVML shows to this process."""

    def __init__(self, sources: Sources) -> None:
        self._nvml: Any = sources.nvml
        self._handles: list[Any] = []
        self._reason: str | None = None
        try:
            self._nvml = self._nvml or import_module("pynvml")
            self._nvml.nvmlInit()
            count = self._nvml.nvmlDeviceGetCount()
            self._handles = [self._nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        except ImportError:
            self._reason = "no NVML binding: pip install nvidia-ml-py"
        except self._nvml.NVMLError as error:
            self._reason = (
                f"NVML answers {error}: install the NVIDIA driver, or let this user at it"
            )

    def unavailable(self) -> str | None:
        """The binding, the driver or the boards that are missing."""
        return self._reason or (None if self._handles else "NVML shows no board to this process")

    def found(self) -> tuple[Facts, ...]:
        """Every board, and every MIG slice of those that are split."""
        boards = [(handle, self._facts(handle)) for handle in self._handles]
        slices = [part for handle, board in boards for part in self._slices(handle, board)]
        return (*(board for _, board in boards), *slices)

    def _facts(self, handle: Any) -> Facts:
        ask = self._ask
        mode, limit = ask("GetMigMode", handle), ask("GetEnforcedPowerLimit", handle)
        clocks = [ask("GetMaxClockInfo", handle, kind) for kind in (_SM, _MEMORY)]
        lanes = ask("GetMaxPcieLinkGeneration", handle), ask("GetMaxPcieLinkWidth", handle)
        return Facts(
            name=_string(ask("GetName", handle)) or "NVIDIA GPU",
            keys=self._keys(handle),
            memory_bytes=self._memory(handle),
            power_limit_w=limit * 1e-3 if limit else None,
            mig=None if mode is None else bool(mode[0]),
            max_clock_hz=clocks[0] * 1e6 if clocks[0] else None,
            memory_clock_hz=clocks[1] * 1e6 if clocks[1] else None,
            link_bytes_per_s=self._links(handle),
            pcie_bytes_per_s=pcie(*lanes),
            topology=self._topology(handle),
        )

    def _slices(self, handle: Any, board: Facts) -> list[Facts]:
        """MIG slices have UUIDs of their own; what is the whole board's is not theirs."""
        most = self._ask("GetMaxMigDeviceCount", handle) if board.mig else 0
        parts = [
            self._ask("GetMigDeviceHandleByIndex", handle, index) for index in range(most or 0)
        ]
        return [
            Facts(board.name, self._keys(part), self._memory(part), mig=True)
            for part in parts
            if part is not None
        ]

    def _keys(self, handle: Any) -> tuple[str, ...]:
        uuid = _string(self._ask("GetUUID", handle))
        return (bare(uuid),) if uuid else ()

    def _memory(self, handle: Any) -> int | None:
        memory = self._ask("GetMemoryInfo", handle)
        return int(memory.total) if memory is not None else None

    def _links(self, handle: Any) -> float | None:
        """All active links together; None where there is none."""
        active = [link for link in range(_LINKS) if self._ask("GetNvLinkState", handle, link)]
        versions = [self._ask("GetNvLinkVersion", handle, link) for link in active]
        most = _LINK_RATE[6 if self._generation(handle) == _HOPPER else 7]
        return sum(min(most, _LINK_RATE.get(version or 0, 0.0)) for version in versions) or None

    def _generation(self, handle: Any) -> int | None:
        capability = self._ask("GetCudaComputeCapability", handle)
        return int(capability[0]) if capability else None

    def _topology(self, handle: Any) -> dict[str, int]:
        others = [other for other in self._handles if other is not handle]
        ways = [self._way(handle, other) for other in others]
        return {way: ways.count(way) for way in dict.fromkeys(ways) if way is not None}

    def _way(self, a: Any, b: Any) -> str | None:
        if self._ask("GetP2PStatus", a, b, _P2P_NVLINK) == 0:
            return "nvlink"
        level = self._ask("GetTopologyCommonAncestor", a, b)
        if level is None:
            return None
        return "pcie_switch" if level <= _SWITCH else "processor"

    def _ask(self, what: str, *about: Any) -> Any:
        """One answer; None where the board or the binding does not know it."""
        try:
            return getattr(self._nvml, f"nvmlDevice{what}")(*about)
        except (self._nvml.NVMLError, AttributeError):
            return None


def open(sources: Sources) -> Nvidia:
    """NVIDIA's boards; never raises."""
    return Nvidia(sources)


def _string(value: str | bytes | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""
