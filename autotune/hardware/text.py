"""Profiles as plain text: one machine, the list, a difference, a check.

Every line fits ``width`` columns where the names do: numbers stand in columns, notes wrap.
"""

from collections.abc import Sequence

from autotune import units
from autotune.hardware import profiles
from autotune.hardware.profiles import Difference, ProfileFit, StoredProfile
from autotune.records.figure_units import NONE, UNITS
from autotune.records.hardware import Cpu, Gpu, Leaf, Profile
from autotune.report.plain_text import columns, cut, one_line, wrap

WIDTH = 100
_UNKNOWN = "unknown"
_STATES = {"fits": "ok", "off": "OFF", "unknown": "?"}
_VERDICTS = {
    "fits": "still fits this machine",
    "off": "does NOT fit this machine",
    "unknown": "cannot be checked now",
}


def profile(found: Profile, width: int = WIDTH) -> str:
    """A machine: its parts, every figure with its range and source, then the warnings."""
    lines = [f"{found.name}  ({profiles.short_hash(found)})", *_machine(found)]
    lines += _table(found.figures, width)
    for gpu in (*found.gpus, *found.others):
        lines += ["", f"{_device(gpu)}", *_table(gpu.figures, width)]
    cited = {leaf.reference: leaf.source for leaf in _all(found) if leaf.reference}
    sources = sorted({r for r, source in cited.items() if source != "derived"})
    sources += [r for r in sorted(set(found.references.values())) if r not in sources]
    formulas = [r for r, source in cited.items() if source == "derived"]
    for title, texts in (("derived as", formulas), ("sources", sources)):
        lines += ["", title] if texts else []
        lines += [line for text in texts for line in wrap(text, width, "    ", "  ")]
    lines += [line for text in found.warnings for line in wrap(text, width, "    ", "  ! ")]
    return "\n".join(lines)


def listing(entries: Sequence[StoredProfile], width: int = WIDTH) -> str:
    """One line a stored profile."""
    rows = [("name", "", "made from", "what")]
    for entry in entries:
        what = _what(entry.profile) if entry.profile else f"unreadable: {entry.fault}"
        made = _made(entry.profile) if entry.profile else "-"
        rows.append((entry.name, entry.place, made, one_line(what)))
    return "\n".join(cut(line, width) for line in columns(rows))


def difference(first: Profile, second: Profile, found: Sequence[Difference]) -> str:
    """Path, both values, and how many times the second is the first."""
    if not found:
        return f"{first.name} and {second.name} describe the same machine."
    head = ("", first.name, second.name, "")
    rows = [head, *((d.path, _side(d.first), _side(d.second), _ratio(d)) for d in found)]
    return "\n".join(columns(rows))


def check(saved: Profile, found: ProfileFit, width: int = WIDTH) -> str:
    """The result, each anchor then and now, and the reasons against."""
    lines = [f"{saved.name} {_VERDICTS[found.state]}"]
    rows = [
        (
            f"  {_STATES[a.state]:<3} {a.name}",
            units.show(a.now.value, a.now.unit) if a.now.value else _UNKNOWN,
            f"was {_value(a.then)}",
            "" if a.ratio is None else f"{a.ratio:.2f}x",
        )
        for a in found.anchors
    ]
    lines += columns(rows)
    lines += [line for text in found.reasons for line in wrap(text, width, "    ", "  ! ")]
    return "\n".join(lines)


# -- parts ---------------------------------------------------------------------------------


def _machine(found: Profile) -> list[str]:
    cpu = found.cpu
    lines = []
    if cpu.usable_cores is not None or cpu.model is not None:
        lines += [f"  {one_line(cpu.model or cpu.architecture or _UNKNOWN)}: {_cores(cpu)}"]
        details = [text for text in (_caches(cpu), _layout(cpu)) if text]
        lines += [f"  {text}" for text in details]
    else:
        lines += ["  a device without a host"]
    if found.usable_memory_bytes is not None:
        total = "" if found.memory_bytes is None else f" of {units.show(found.memory_bytes, 'B')}"
        lines += [f"  {units.show(found.usable_memory_bytes, 'B')} usable{total} memory"]
    elif found.memory_bytes is not None:
        lines += [f"  {units.show(found.memory_bytes, 'B')} memory"]
    return lines


def _cores(cpu: Cpu) -> str:
    if cpu.usable_cores is None:
        return "cores unknown"
    return f"{cpu.usable_cores:g} of {cpu.logical_cores or '?'} logical cores usable"


def _caches(cpu: Cpu) -> str:
    sizes = {"L1d": cpu.l1d_bytes, "L2": cpu.l2_bytes, "L3": cpu.l3_bytes}
    parts = [f"{name} {_binary(size)}" for name, size in sizes.items() if size]
    if parts and cpu.l3_bytes and cpu.l3_count and cpu.l3_count > 1:
        parts[-1] = f"{cpu.l3_count} x {parts[-1]}"
    return ", ".join(parts)


def _layout(cpu: Cpu) -> str:
    parts = [f"{cpu.physical_cores} physical cores"] if cpu.physical_cores else []
    if cpu.performance_cores and cpu.efficiency_cores:
        parts.append(f"{cpu.performance_cores} performance and {cpu.efficiency_cores} efficiency")
    if cpu.numa_nodes and cpu.numa_nodes > 1:
        parts.append(f"{cpu.numa_nodes} NUMA nodes")
    if cpu.threads_per_core:
        parts.append(f"SMT {'on' if cpu.threads_per_core > 1 else 'off'}")
    if cpu.governor:
        parts.append(f"governor {cpu.governor}")
    if cpu.virtualised is not None:
        parts.append("virtual machine" if cpu.virtualised else "bare metal")
    return ", ".join(parts)


def _device(gpu: Gpu) -> str:
    count = f"{gpu.count} x " if gpu.count > 1 else ""
    parts = [f"  {count}{one_line(gpu.name)}: {units.show(gpu.memory_bytes, 'B')}"]
    parts += [f"{gpu.power_limit_w:.0f} W"] if gpu.power_limit_w else []
    parts += [f"mode {gpu.power_mode}"] if gpu.power_mode else []
    parts += ["split by MIG"] if gpu.mig else []
    parts += [f"{n} by {way}" for way, n in sorted(gpu.topology.items())]
    return ", ".join(parts)


def _table(figures: dict[str, Leaf], width: int) -> list[str]:
    """Names without their unit, since the value shows it."""
    rows = [
        (f"  {_label(name)}", _value(leaf), _range(leaf), leaf.source)
        for name, leaf in sorted(figures.items())
    ]
    return [cut(line, width) for line in columns(rows)]


def _label(name: str) -> str:
    ending = next((end for end, _ in UNITS if name.endswith(end)), "")
    return name.removesuffix(ending).replace("_", " ")


def _value(leaf: Leaf) -> str:
    if leaf.value is None:
        return _UNKNOWN
    return units.show(leaf.value, "" if leaf.unit == NONE else leaf.unit)


def _range(leaf: Leaf) -> str:
    unit = "" if leaf.unit == NONE else leaf.unit
    if leaf.low is not None and leaf.high is not None:
        return units.span(leaf.low, leaf.high, unit)
    if leaf.low is not None:
        return f"at least {units.show(leaf.low, unit)}"
    return "" if leaf.high is None else f"at most {units.show(leaf.high, unit)}"


def _side(value: Leaf | str | None) -> str:
    if value is None:
        return "-"
    return _value(value) if isinstance(value, Leaf) else cut(one_line(value), 36)


def _ratio(found: Difference) -> str:
    a, b = found.first, found.second
    if isinstance(a, Leaf) and isinstance(b, Leaf) and a.value and b.value:
        return f"{b.value / a.value:.2f}x"
    return ""


def _what(found: Profile) -> str:
    parts = [f"{gpu.count} x {gpu.name}" if gpu.count > 1 else gpu.name for gpu in found.gpus]
    if found.cpu.usable_cores is not None:
        model = found.cpu.model or found.cpu.architecture or "processor"
        parts.insert(0 if not parts else 1, f"{model}, {found.cpu.usable_cores:g} cores")
    return "; ".join(parts)


def _made(found: Profile) -> str:
    return "measurement" if found.software_fingerprint is not None else "datasheet"


def _all(found: Profile) -> list[Leaf]:
    return [*found.figures.values(), *(x for g in found.gpus for x in g.figures.values())]


def _binary(size: int) -> str:
    return f"{size >> 20} MiB" if size % (1 << 20) == 0 else f"{size / 1024:g} KiB"
