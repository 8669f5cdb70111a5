"""Makers' interfaces on fakes and hand-written trees: what is reported, what is not, and why."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import psutil
import pytest

from autotune.records.hardware import Gpu
from autotune.worker.machine import boards
from autotune.worker.machine.boards import MAKERS, Facts, Sources

UUID = "GPU-0a1b2c3d-1111-2222-3333-444455556666"
OTHER = "GPU-ffffffff-1111-2222-3333-444455556666"
SLICE = "MIG-99999999-1111-2222-3333-444455556666"


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class Nvml:
    """Boards of the kind that pynvml shows; what is not defined is not in the binding."""

    version, generation = 6, 9

    class NVMLError(Exception):
        pass

    def __init__(self, *uuids: str, mig: bool = False, links: int = 18, level: int = 40) -> None:
        self.uuids, self.mig, self.links, self.level = uuids, mig, links, level

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlDeviceGetCount": lambda: len(self.uuids),
            "nvmlDeviceGetHandleByIndex": lambda i: self.uuids[i],
            "nvmlDeviceGetUUID": lambda h: h,
            "nvmlDeviceGetName": lambda h: b"NVIDIA H100 80GB HBM3",
            "nvmlDeviceGetMemoryInfo": lambda h: SimpleNamespace(total=10 if h == SLICE else 80),
            "nvmlDeviceGetEnforcedPowerLimit": lambda h: 500_000,
            "nvmlDeviceGetMaxClockInfo": lambda h, kind: {1: 1980, 2: 2619}[kind],
            "nvmlDeviceGetMigMode": lambda h: (int(self.mig), 0),
            "nvmlDeviceGetMaxMigDeviceCount": lambda h: 2,
            "nvmlDeviceGetMigDeviceHandleByIndex": self._slice,
            "nvmlDeviceGetNvLinkState": lambda h, link: int(link < self.links),
            "nvmlDeviceGetNvLinkVersion": lambda h, link: self.version,
            "nvmlDeviceGetCudaComputeCapability": lambda h: (self.generation, 0),
            "nvmlDeviceGetMaxPcieLinkGeneration": lambda h: 5,
            "nvmlDeviceGetMaxPcieLinkWidth": lambda h: 16,
            "nvmlDeviceGetP2PStatus": lambda a, b, index: 0 if self.links else 3,
            "nvmlDeviceGetTopologyCommonAncestor": lambda a, b: self.level,
        }
        try:
            return answers[name]
        except KeyError:
            raise AttributeError(name) from None

    def _slice(self, handle: str, index: int) -> str:
        if index:
            raise self.NVMLError("not found")
        return SLICE


class Refusing(Nvml):
    def nvmlInit(self) -> None:  # noqa: N802
        raise self.NVMLError("driver not loaded")


def nowhere(root: Path, **more: Any) -> Sources:
    xpu = SimpleNamespace(is_available=lambda: False)
    facts: dict[str, Any] = {
        "root": root, "nvml": Refusing(), "torch": SimpleNamespace(xpu=xpu), "platform": "linux",
    }  # fmt: skip
    return Sources(**facts | more)


def test_every_maker_says_why_it_tells_of_none(tmp_path: Path) -> None:
    found = boards.lacking(nowhere(tmp_path))
    assert tuple(found) == MAKERS
    assert "driver" in found["nvidia"]
    assert "Jetson" in found["jetson"]
    for maker in MAKERS:
        assert boards.open(maker, nowhere(tmp_path)).found() == ()
    assert boards.of_device(UUID, nowhere(tmp_path)) is None
    assert boards.others(nowhere(tmp_path)) == ()


def test_every_maker_answers_here() -> None:
    for maker in MAKERS:
        reason = boards.open(maker, Sources()).unavailable()
        assert reason is None or len(reason) > 5


def test_nvidia_is_matched_by_uuid_not_by_index(tmp_path: Path) -> None:
    sources = nowhere(tmp_path, nvml=Nvml(OTHER, UUID))
    facts = boards.of_device(UUID.removeprefix("GPU-"), sources)
    assert facts is not None
    assert facts.keys == (boards.bare(UUID),)
    gpu = boards.described(Gpu(index=0, name="H", memory_bytes=80), facts)
    assert (gpu.power_limit_w, gpu.mig, gpu.topology) == (500.0, False, {"nvlink": 1})
    properties = {name: leaf.value for name, leaf in gpu.figures.items()}
    assert properties == {
        "link_bytes_per_s": 450e9,
        "max_clock_hz": 1980e6,
        "memory_clock_hz": 2619e6,
        "pcie_bytes_per_s": pytest.approx(63e9, rel=0.01),
        "power_limit_w": 500.0,
    }
    assert all(leaf.source == "probed" for leaf in gpu.figures.values())
    text = msgspec.json.encode(gpu).decode().lower()
    assert not any(part in text for part in UUID.lower().split("-")[1:])
    assert boards.of_device("cccc", sources) is None


@pytest.mark.parametrize(("level", "way"), [(10, "pcie_switch"), (20, "pcie_switch"),
                                            (30, "processor"), (50, "processor")])  # fmt: skip
def test_boards_without_nvlink(tmp_path: Path, level: int, way: str) -> None:
    fake = Nvml(UUID, OTHER, links=0, level=level)
    facts = boards.of_device(UUID, nowhere(tmp_path, nvml=fake))
    assert facts is not None
    assert (facts.link_bytes_per_s, facts.topology) == (None, {way: 1})


@pytest.mark.parametrize(("version", "generation", "rate"), [
    (4, 8, 450e9), (6, 9, 450e9), (7, 9, 450e9), (7, 10, 900e9), (99, 10, None),
])  # fmt: skip
def test_links_by_their_version(
    tmp_path: Path, version: int, generation: int, rate: float | None
) -> None:
    fake = Nvml(UUID)
    fake.version, fake.generation = version, generation
    facts = boards.of_device(UUID, nowhere(tmp_path, nvml=fake))
    assert facts is not None
    assert facts.link_bytes_per_s == rate


def test_a_mig_slice_has_not_its_boards_limits(tmp_path: Path) -> None:
    sources = nowhere(tmp_path, nvml=Nvml(UUID, mig=True))
    facts = boards.of_device(SLICE, sources)
    assert facts is not None
    assert (facts.mig, facts.memory_bytes, facts.power_limit_w) == (True, 10, None)
    whole = boards.of_device(UUID, sources)
    assert whole is not None
    assert whole.mig is True


def test_an_old_binding_tells_less(tmp_path: Path) -> None:
    class Old(Nvml):
        def __getattr__(self, name: str) -> Any:
            if "Link" in name or "P2P" in name or "Topology" in name or "Mig" in name:
                raise AttributeError(name)
            return super().__getattr__(name)

    facts = boards.of_device(UUID, nowhere(tmp_path, nvml=Old(UUID, OTHER)))
    assert facts is not None
    assert (facts.link_bytes_per_s, facts.pcie_bytes_per_s, facts.mig) == (None, None, None)
    assert facts.topology == {}


def amd(root: Path, card: str = "card1") -> None:
    device = f"sys/class/drm/{card}/device"
    put(root, {
        f"{device}/vendor": "0x1002\n",
        f"{device}/product_name": "AMD Instinct MI300X\n",
        f"{device}/mem_info_vram_total": "206141652992\n",
        f"{device}/unique_id": "0a1b2c3d4e5f6071\n",
        f"{device}/hwmon/hwmon3/power1_cap": "750000000\n",
        f"{device}/pp_dpm_sclk": "0: 132Mhz\n1: 2100Mhz *\n",
        f"{device}/max_link_speed": "32.0 GT/s PCIe\n",
        f"{device}/max_link_width": "16\n",
        "sys/class/drm/card1-DP-1/device/vendor": "0x1002\n",
    })  # fmt: skip


@pytest.mark.parametrize("uuid", ["0a1b2c3d4e5f6071", b"0a1b2c3d4e5f6071".hex()])
def test_amd_by_the_drivers_files(tmp_path: Path, uuid: str) -> None:
    amd(tmp_path)
    facts = boards.of_device(uuid, nowhere(tmp_path))
    assert facts is not None
    assert (facts.name, facts.memory_bytes) == ("AMD Instinct MI300X", 206141652992)
    assert (facts.power_limit_w, facts.max_clock_hz) == (750.0, 2.1e9)
    assert facts.pcie_bytes_per_s == pytest.approx(63e9, rel=0.01)
    assert facts.memory_clock_hz is None
    gpu = boards.described(Gpu(index=0, name="M", memory_bytes=1), facts)
    assert "0a1b2c3d" not in msgspec.json.encode(gpu).decode()


def test_intel_by_torch_and_its_only_card(tmp_path: Path) -> None:
    device = "sys/class/drm/card0/device"
    put(tmp_path, {
        f"{device}/vendor": "0x8086",
        f"{device}/hwmon/hwmon2/power1_max": "300000000",
        f"{device}/max_link_speed": "16.0 GT/s PCIe",
        f"{device}/max_link_width": "16",
    })  # fmt: skip
    assert "XPU build" in boards.lacking(nowhere(tmp_path))["intel"]
    properties = SimpleNamespace(
        name="Intel Max 1550", total_memory=64 << 30, gpu_subslice_count=128
    )
    xpu = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        get_device_properties=lambda index: properties,
    )
    (gpu,) = boards.others(nowhere(tmp_path, torch=SimpleNamespace(xpu=xpu)))
    assert (gpu.name, gpu.memory_bytes, gpu.multiprocessors) == ("Intel Max 1550", 64 << 30, 128)
    assert gpu.power_limit_w == 300.0
    assert gpu.figures["pcie_bytes_per_s"].value == pytest.approx(31.5e9, rel=0.01)


@pytest.mark.parametrize(("printed", "name"), [("Apple M3 Max\n", "Apple M3 Max"),
                                               (None, "Apple GPU")])  # fmt: skip
def test_apple_by_torch(tmp_path: Path, printed: str | None, name: str) -> None:
    here = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: True))
    torch = SimpleNamespace(
        backends=here,
        mps=SimpleNamespace(recommended_max_memory=lambda: 48 << 30),
        xpu=SimpleNamespace(is_available=lambda: False),
    )
    sources = nowhere(tmp_path, torch=torch, platform="darwin", command=lambda words: printed)
    (gpu,) = boards.others(sources)
    assert (gpu.name, gpu.memory_bytes, gpu.power_limit_w) == (name, 48 << 30, None)
    torch.backends.mps.is_available = lambda: False
    assert "Metal" in boards.lacking(sources)["apple"]


CONF = """
< POWER_MODEL ID=0 NAME=MAXN >
< POWER_MODEL ID=2 NAME=MODE_30W >
"""


@pytest.mark.parametrize(
    ("status", "mode", "watts"),
    [
        ("pmode:0002 fmode:quiet", "MODE_30W", 30.0),
        ("pmode:0000", "MAXN", None),
        ("pmode:0007", "mode 7", None),
        ("", None, None),
    ],
)
def test_jetson_power_modes(
    tmp_path: Path, status: str, mode: str | None, watts: float | None
) -> None:
    put(tmp_path, {
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "var/lib/nvpmodel/status": status,
        "etc/nvpmodel.conf": CONF,
        "sys/class/devfreq/17000000.gpu/max_freq": "1300500000",
    })  # fmt: skip
    facts = boards.of_device("", nowhere(tmp_path))
    assert facts is not None
    assert (facts.power_mode, facts.power_limit_w) == (mode, watts)
    assert (facts.max_clock_hz, facts.memory_bytes) == (1300500000.0, psutil.virtual_memory().total)


def test_a_device_nobody_knows_stays_as_it_is() -> None:
    gpu = Gpu(index=0, name="G", memory_bytes=1)
    assert boards.described(gpu, None) == gpu
    assert boards.described(gpu, Facts(name="G")) == gpu


@pytest.mark.parametrize(("generation", "lanes"), [(None, 16), (5, None), (9, 16), (0, 0)])
def test_an_unknown_link_is_none(generation: int | None, lanes: int | None) -> None:
    assert boards.pcie(generation, lanes) is None
