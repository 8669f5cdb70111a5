"""What a machine is: the hardware profile (``autotune.profile/1``).

Every measured or looked-up number is a `Leaf`: it carries its unit, where it came
from and its interval.  ``None`` means unknown.  Nothing here identifies a person or
one machine: no host name, serial, UUID, PCI address, user or path.
"""

from typing import Literal

from autotune.records.base import Record

Source = Literal["datasheet", "probed", "measured", "derived", "transferred"]


class Leaf(Record, frozen=True, kw_only=True):
    """One number about a machine.

    ``low`` and ``high`` bound it (for a measured leaf the smallest and largest of
    ``samples`` repeated measurements); ``reference`` names a public source.
    """

    value: float | None
    unit: str
    source: Source
    low: float | None = None
    high: float | None = None
    samples: int | None = None
    reference: str | None = None


class Cpu(Record, frozen=True, kw_only=True):
    """The processor as this process may use it.

    ``usable_cores`` is a float: the smallest of affinity, cpuset and the cgroup quota
    of every ancestor (1.5 CPUs is 1.5).
    """

    vendor: str | None
    model: str | None
    architecture: str
    logical_cores: int
    physical_cores: int | None
    usable_cores: float
    isa: tuple[str, ...] = ()
    l1d_bytes: int | None = None
    l2_bytes: int | None = None
    l3_bytes: int | None = None
    numa_nodes: int | None = None
    virtualised: bool | None = None


class Gpu(Record, frozen=True, kw_only=True):
    """``count`` accelerators alike; ``index`` is the first one's, torch's and not NVML's."""

    index: int
    count: int = 1
    name: str
    memory_bytes: int
    compute_capability: str | None = None
    multiprocessors: int | None = None
    power_limit_w: float | None = None
    mig: bool | None = None
    figures: dict[str, Leaf] = {}


class Profile(Record, frozen=True, kw_only=True):
    """A machine, reusable on the same machine without probing it again.

    ``figures`` maps a name such as ``gemm_fp32_2t_flop_per_s`` to its leaf.
    ``fingerprint`` hashes what must agree for the profile to fit a machine.
    """

    schema: str = "autotune.profile/1"
    name: str
    created_utc: str
    fingerprint: str
    cpu: Cpu
    memory_bytes: int
    usable_memory_bytes: int
    gpus: tuple[Gpu, ...] = ()
    figures: dict[str, Leaf] = {}
    software: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    probe_s: float | None = None
