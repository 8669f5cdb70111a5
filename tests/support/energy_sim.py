"""Made-up sources of energy: a clock, a powercap tree, NVML as a Python object and as a library.

`Tree` and `Nvml` are moved by hand; `record` runs a sampled meter through a trace of power
with a known integral; `nvml_library` compiles a stub ``libnvidia-ml.so.1`` that the genuine
pynvml loads.
"""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from autotune import meters
from autotune.meters import MeterTools, Reading, _sampling, nvml, rapl
from autotune.records.measurement import Domain, EnergyWindow

RANGE = 262_143_328_850


class Clock:
    """Seconds that only the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Tree:
    """A powercap tree and a clock, both moved by hand."""

    def __init__(self, root: Path, origin: meters.Origin = "host") -> None:
        self.root = root
        self.clock = Clock()
        self._tools = MeterTools(powercap=root, origin=origin, clock=self.clock)

    def zone(self, path: str, name: str, energy: object = 1_000_000, limit: object = RANGE) -> Path:
        folder = self.root / path
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{energy}\n")
        if limit is not None:
            (folder / "max_energy_range_uj").write_text(f"{limit}\n")
        return folder

    def put(self, path: str, energy: object) -> None:
        (self.root / path / "energy_uj").write_text(f"{energy}\n")

    def meter(self, period_s: float = 0.001, **changes: Any) -> rapl.Rapl:
        meter = rapl.open(self._tools._replace(**changes))
        meter.periods_s = dict.fromkeys(meter.read().counters, period_s)
        return meter

    def after(self, meter: rapl.Rapl, seconds: float = 1.0, **counters: object) -> EnergyWindow:
        """The window from now until ``seconds`` later, when the counters (``z0`` is
        ``intel-rapl:0``, ``z0_1`` its subzone 1, ``m0`` the mmio zone) show these values.
        """
        before = meter.read()
        self.clock.now += seconds
        for short, value in counters.items():
            self.put(_folder(short), value)
        return meters.window(seconds, meter.difference(before, meter.read()))


def _folder(short: str) -> str:
    kind = "intel-rapl-mmio" if short[0] == "m" else "intel-rapl"
    top, _, sub = short[1:].partition("_")
    return f"{kind}:{top}" + (f"/{kind}:{top}:{sub}" if sub else "")


class NVMLError(Exception):
    """As pynvml's: a number and a text."""

    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


class Nvml(SimpleNamespace):
    """pynvml's names over a dict of boards by UUID: millijoules, watts, MIG mode, errors."""

    NVMLError = NVMLError
    NVML_ERROR_NO_PERMISSION = 4

    def __init__(self, **boards: int) -> None:
        super().__init__()
        self.energy = {f"GPU-{name}": mj for name, mj in boards.items()}
        self.watts: dict[str, float] = {}
        self.mig: dict[str, int] = {}
        self.errors: dict[str, int] = {}
        self.tenants = 1

    def _may(self, name: str) -> None:
        if name in self.errors:
            raise NVMLError(self.errors[name])

    def nvmlInit(self) -> None:  # noqa: N802
        self._may("init")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.energy)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return sorted(self.energy)[index]

    def nvmlDeviceGetUUID(self, handle: str) -> str:  # noqa: N802
        return handle

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self._may("handle")
        if uuid not in self.energy:
            raise NVMLError(6)
        return uuid

    def nvmlDeviceGetMigMode(self, handle: str) -> tuple[int, int]:  # noqa: N802
        if handle not in self.mig:
            raise NVMLError(3)
        return self.mig[handle], self.mig[handle]

    def nvmlDeviceGetPowerManagementLimitConstraints(  # noqa: N802
        self, handle: str
    ) -> tuple[int, int]:
        self._may("limit")
        return 100_000, 700_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        self._may("energy")
        return self.energy[handle]

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        self._may("power")
        if handle not in self.watts:
            raise NVMLError(3)
        return round(self.watts[handle] * 1000)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[int]:  # noqa: N802
        return list(range(self.tenants))


def nvml_meter(fake: Any, clock: Callable[[], float] | None = None, *uuids: str) -> nvml.Nvml:
    """NVML's meter over ``fake``, samples taken by hand, the counters' period 20 ms."""
    tools = MeterTools(nvml=fake, clock=clock or Clock(), devices=uuids or None, background=False)
    found = nvml.open(tools)
    found.periods_s |= dict.fromkeys(found.read().counters, 0.02)
    return found


def record(
    meter: Any,
    sampler: _sampling.Sampler,
    clock: Clock,
    seconds: float,
    step: Callable[[float], None] = lambda at_s: None,
    *,
    every_s: float = 0.05,
    silent: tuple[float, float] | None = None,
) -> tuple[Reading, Reading]:
    """A window of a sampled meter: ``step`` sets the sensor to what it shows at a time.

    ``silent``: no sample is taken between these two times.
    """
    began = clock.now
    step(0.0)
    first = meter.read()
    for tick in range(1, round(seconds / every_s)):
        clock.now = began + tick * every_s
        step(clock.now - began)
        if silent is None or not silent[0] <= clock.now - began < silent[1]:
            sampler.sample()
    clock.now = began + seconds
    step(seconds)
    return first, meter.read()


def only(domains: tuple[Domain, ...]) -> Domain:
    (found,) = domains
    return found


STUB = """
#include <stdlib.h>
static int fails(const char *name) { const char *v = getenv(name); return v ? atoi(v) : 0; }
static unsigned long long energy = 5000;
int nvmlInitWithFlags(unsigned flags) { return fails("STUB_INIT"); }
const char *nvmlErrorString(int code) { return "stub error"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    *handle = &energy; return fails("STUB_HANDLE"); }
int nvmlDeviceGetMigMode(void *handle, unsigned *now, unsigned *next) {
    *now = *next = fails("STUB_MIG"); return 0; }
int nvmlDeviceGetPowerManagementLimitConstraints(void *handle, unsigned *low, unsigned *high) {
    *low = 100000; *high = 700000; return 0; }
int nvmlDeviceGetPowerUsage(void *handle, unsigned *mw) {
    *mw = 100000; return getenv("STUB_POWER") ? fails("STUB_POWER") : 3; }
int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *mj) {
    energy += getenv("STUB_BACK") ? -1000 : 100000; *mj = energy; return fails("STUB_ENERGY"); }
"""


def nvml_library(folder: Path) -> Path:
    """Compile the stub; the folder goes into LD_LIBRARY_PATH.

    It fails calls by number: STUB_INIT, STUB_HANDLE, STUB_ENERGY; STUB_POWER=0 gives 100 W
    of power, otherwise not supported; STUB_MIG=1; STUB_BACK=1 counts backwards.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler is not None, "the fault suite compiles a stub: install gcc"
    (folder / "stub.c").write_text(STUB)
    command = [compiler, "-shared", "-fPIC", "-o", "libnvidia-ml.so.1", "stub.c"]
    subprocess.run(command, cwd=folder, check=True)
    return folder
