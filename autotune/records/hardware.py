"""The hardware profile of a machine (``autotune.profile/1``).

Every measured or looked-up number is a `Leaf`: it carries its unit, where it came
from and its interval.  ``None`` means unknown.  Nothing here identifies a person or
one machine: no host name, serial, UUID, PCI address, user or path.

`figure_units` has the units of leaves' names; `profiles` the strict reader of profile files, their
hashes and fingerprints.
"""

from typing import Annotated, Literal

from msgspec import Meta

from autotune.records.base import Record

Source = Literal["datasheet", "probed", "measured", "derived", "transferred"]
Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]


class Leaf(Record, frozen=True, kw_only=True):
    """One number about a machine.

    ``low`` and ``high`` bound it (for a measured leaf the smallest and largest of
    ``samples`` repeated measurements); ``reference`` names a public source, or the formula
    of a derived one.
    """

    value: float | None
    unit: str
    source: Source
    low: float | None = None
    high: float | None = None
    samples: Count | None = None
    reference: str | None = None


class Cpu(Record, frozen=True, kw_only=True):
    """The processor as this process may use it.

    ``usable_cores`` is a float: the smallest of affinity, cpuset and the cgroup quota
    of every ancestor (1.5 CPUs is 1.5).  ``l1d_bytes`` and ``l2_bytes`` are one core's,
    ``l3_bytes`` is one of ``l3_count`` caches.  ``performance_cores`` and
    ``efficiency_cores`` are physical cores, known only where the processor has both kinds.
    In the datasheet of a single device there is no processor: its cores are None.
    """

    vendor: str | None
    model: str | None
    architecture: str | None
    logical_cores: Count | None
    physical_cores: Count | None
    usable_cores: Positive | None
    isa: tuple[str, ...] = ()
    l1d_bytes: Count | None = None
    l2_bytes: Count | None = None
    l3_bytes: Count | None = None
    l3_count: Count | None = None
    sockets: Count | None = None
    numa_nodes: Count | None = None
    threads_per_core: Count | None = None
    performance_cores: Count | None = None
    efficiency_cores: Count | None = None
    governor: str | None = None
    virtualised: bool | None = None

    @property
    def cores(self) -> float:
        """Usable cores; 1 where they are not known."""
        return 1.0 if self.usable_cores is None else self.usable_cores


class Gpu(Record, frozen=True, kw_only=True):
    """``count`` equal accelerators; ``index`` is torch's (not NVML's) of the first one.

    ``topology`` counts the machine's other ones by how this one reaches them: over the maker's
    links, over one PCIe switch, or only through the processor.
    """

    index: Annotated[int, Meta(ge=0)]
    count: Count = 1
    name: str
    memory_bytes: Count
    compute_capability: str | None = None
    multiprocessors: Count | None = None
    power_limit_w: Positive | None = None
    power_mode: str | None = None
    mig: bool | None = None
    topology: dict[str, Count] = {}
    figures: dict[str, Leaf] = {}


class Profile(Record, frozen=True, kw_only=True):
    """A machine, reusable on the same machine without probing it again.

    ``figures`` maps a name such as ``gemm_fp32_2t_flop_per_s`` to its leaf.
    ``fingerprint`` hashes the hardware facts that must agree for the profile to fit a machine,
    ``software_fingerprint`` the versions that change what a probe measures (None in a
    datasheet).  ``references`` names the public source of facts that are no leaves, by their
    path (``cpu``).  ``others`` are accelerators that torch sees through neither CUDA nor ROCm;
    no plan uses them.
    """

    schema: str = "autotune.profile/1"
    name: str
    created_utc: str
    fingerprint: str
    software_fingerprint: str | None = None
    cpu: Cpu
    memory_bytes: Count | None
    usable_memory_bytes: Count | None
    gpus: tuple[Gpu, ...] = ()
    others: tuple[Gpu, ...] = ()
    figures: dict[str, Leaf] = {}
    references: dict[str, str] = {}
    software: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    probe_s: float | None = None
