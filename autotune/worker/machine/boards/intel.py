"""Intel accelerators by torch.xpu; limits of the only card by the kernel's files.

What this does not know: which of several cards a device is, so several have no limits.
"""

from typing import Any

from autotune.worker.machine.boards import Facts, Sources, _drm

TORCH_CUDA = False
_VENDOR = "0x8086"


class Intel:
    """The devices of torch.xpu."""

    def __init__(self, sources: Sources) -> None:
        self._root = sources.root
        torch: Any = sources.torch
        if torch is None:
            import torch
        self._xpu: Any = getattr(torch, "xpu", None)
        self._count = self._xpu.device_count() if self._xpu and self._xpu.is_available() else 0

    def unavailable(self) -> str | None:
        """No device, or a torch that was built without them."""
        if self._count:
            return None
        if any(_drm.cards(self._root, _VENDOR)):
            return "an Intel card, but this torch has no xpu for it: install torch's XPU build"
        return "no Intel accelerator"

    def found(self) -> tuple[Facts, ...]:
        """The devices, by torch's index."""
        cards = list(_drm.cards(self._root, _VENDOR))
        card = cards[0] if len(cards) == 1 and self._count == 1 else None
        return tuple(self._facts(index, card) for index in range(self._count))

    def _facts(self, index: int, card: Any) -> Facts:
        properties = self._xpu.get_device_properties(index)
        return Facts(
            name=properties.name,
            memory_bytes=int(properties.total_memory),
            multiprocessors=getattr(properties, "gpu_subslice_count", None),
            power_limit_w=_drm.watts(card, "power1_max") if card else None,
            pcie_bytes_per_s=_drm.link(card) if card else None,
        )


def open(sources: Sources) -> Intel:
    """Intel's accelerators; never raises."""
    return Intel(sources)
