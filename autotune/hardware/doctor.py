"""Looks at this machine by workers: its profile, and what it can measure and run."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autotune import meters, plugins, units
from autotune.bridge import ProcessBridge, meter_arguments
from autotune.context import ask
from autotune.hardware import profiles
from autotune.records import job as jobs
from autotune.records.hardware import Profile
from autotune.records.measurement import EnergySource
from autotune.records.task import Option, TaskInfo, Traits


@contextmanager
def _bridge(meter: tuple[str, ...] = ()) -> Iterator[ProcessBridge]:
    with tempfile.TemporaryDirectory(prefix="autotune-machine-") as folder:
        bridge = ProcessBridge(Path(folder), meter=meter)
        try:
            yield bridge
        finally:
            bridge.close()


QUICK_S, THOROUGH_S = 8.0, 20.0
_SETTLE_S = 1.0


def profile(
    device: str = "auto",
    *,
    quick: bool = True,
    powercap_root: str | None = None,
    powercap_label: str = "host",
) -> Profile:
    """Probe this machine: what a run needs, or every size and path, in less than 30 seconds.

    Where others used the machine meanwhile it is probed once more, quickly; where they still
    do, the values that they disturbed are not recorded (`profiles.without_disturbed`).  Power is
    measured where the meter process can, with ``powercap_root`` by a tree of that label.
    """
    budget_s = QUICK_S if quick else THOROUGH_S
    job = jobs.Probe(device=device, thorough=not quick, budget_s=budget_s, meter="auto")
    with _bridge(meter_arguments(device, powercap_root, powercap_label)) as bridge:
        found = _probed(bridge, job)
        if profiles.busy(found) is not None:
            time.sleep(_SETTLE_S)
            brief = jobs.Probe(device=device, budget_s=QUICK_S / 2, meter="auto")
            again = _probed(bridge, brief)
            found = again if profiles.busy(again) is None else found
        return profiles.without_disturbed(found)


def datasheets(found: Profile) -> tuple[Profile, tuple[str, ...]]:
    """Lay a profile over the packaged datasheets of its models; and which those were."""
    packaged = [e.profile for e in profiles.entries() if e.place == "packaged" and e.profile]
    return profiles.merge(found, packaged)


def check(saved: Profile, device: str = "auto") -> profiles.ProfileFit:
    """Measure three quick anchors: does a stored profile still fit this machine?"""
    with _bridge() as bridge:
        return profiles.fit(saved, _probed(bridge, jobs.Probe(device=device, anchors_only=True)))


def _probed(bridge: ProcessBridge, job: jobs.Probe) -> Profile:
    return _asked(bridge, job).profile


def _asked(bridge: ProcessBridge, job: jobs.Probe) -> jobs.Probed:
    done = ask(bridge, job, 120.0)
    return done


def doctor() -> tuple[str, ...]:
    """What can be measured and run here; what cannot, with the reason and the remedy."""
    with _bridge(meter=("--all", "--cuda", "all")) as bridge:
        probed = _asked(bridge, jobs.Probe())
        machine = probed.profile
        found = ask(bridge, jobs.Sources(), 30.0)
        context = jobs.Context(info=_ANY_TASK, traits=_ANY_TRAITS, profile=machine)
        menu = ask(bridge, jobs.Menu(context=context), 60.0)
    return (
        *_described(machine, probed.lacking),
        "",
        *energy_lines(found.sources, board=_maker(machine)),
        "",
        *_time_lines(),
        "",
        "What can run here",
        *_options(menu.options),
        *(("", "Warnings", *(f"  {w}" for w in machine.warnings)) if machine.warnings else ()),
    )


def _described(machine: Profile, lacking: dict[str, str]) -> tuple[str, ...]:
    cores = machine.cpu.cores
    where = " (a virtual machine)" if machine.cpu.virtualised else ""
    return (
        f"{machine.cpu.model or machine.cpu.architecture}{where}: {cores:g} usable cores, "
        f"{units.show(machine.usable_memory_bytes, 'B')} memory",
        *(f"GPU {g.index}: {g.name}, {units.show(g.memory_bytes, 'B')}" for g in machine.gpus),
        *(f"{g.name}: seen, but no plan can use it yet" for g in machine.others),
        *(() if machine.gpus or machine.others else ("No GPU:", *_reasons(lacking))),
    )


def _reasons(lacking: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"  {maker:<7} {reason}" for maker, reason in lacking.items())


# -- energy --------------------------------------------------------------------------------


def energy_lines(sources: tuple[EnergySource, ...], *, board: str | None) -> tuple[str, ...]:
    """The energy sources: what is measured and how well, what is not and why.

    A sensor that this machine does not have is only named; the processor, and the GPU where
    there is one (``board``: the meter of its vendor), always get a reason and a remedy.
    """
    lines, lacking = ["Energy"], []
    for source in sources:
        if source.label.startswith("measured"):
            lines += _measured(source)
        elif source.label == "unavailable":
            kind = source.name.partition(":")[0]
            optional = meters.of_board(kind) or meters.declared(kind, "OPTIONAL", False)
            vital = kind == board or not optional
            if vital or source.domains or _word(source) != "no_interface":
                lines += _not_measured(source)
            else:
                lacking.append(_name(source))
    if lacking:
        lines.append(f"  Not on this machine: {', '.join(lacking)}.")
    return (*lines, *_model(any(s.label.startswith("measured") for s in sources)))


def _maker(machine: Profile) -> str | None:
    """The name of the meter for this machine's GPUs."""
    if not machine.gpus:
        return None
    words: dict[str, tuple[str, ...]]
    words = {n: meters.declared(n, "BOARDS") for n in plugins.names("meters") if meters.of_board(n)}
    others = next(name for name, own in words.items() if not own)
    found = (n for n, own in words.items() if any(word in machine.gpus[0].name for word in own))
    return next(found, others)


def _measured(source: EnergySource) -> list[str]:
    how = "a counter" if source.label == "measured_counter" else "sampled power"
    lines = [f"  {_name(source)} energy can be measured: {how}, {', '.join(source.domains)}."]
    if source.update_period_s:
        aligned = source.update_period_s <= meters.QUICK_S
        one, ten = (
            units.show(meters.shortest_window(source.update_period_s, share, aligned=aligned), "s")
            for share in (0.01, 0.1)
        )
        every = units.show(source.update_period_s, "s")
        lines.append(
            f"    It is updated every {every}: +-10 % takes a window of {ten}, +-1 % one of {one}."
        )
    else:
        lines.append("    No update was seen while probing: windows must last at least 2 s.")
    if source.origin != "local":
        lines.append(f"    Its readings are labelled {source.origin!r}.")
    if source.scope == "rails":
        lines.append("    What these rails supply is not known: shown, never added to a total.")
    elif source.scope == "machine":
        lines.append("    It measures the whole machine: used only where no component can be read.")
    return lines + ([f"    Note: {source.note}."] if source.note else [])


def _not_measured(source: EnergySource) -> list[str]:
    word = _word(source)
    detail = (source.reason or "").partition(": ")[2]
    why = _WHY.get(word, "{detail}").format(detail=detail or word, name=_name(source))
    own: tuple[str, ...] = meters.declared(source.name, "REMEDIES", {}).get(word, ())
    mend = own or ((source.remedy,) if source.remedy else ())
    return [
        f"  {_name(source)} energy cannot be measured here.",
        f"    Why: {why}.",
        *(f"    {'What to do: ' if i == 0 else '            '}{m}" for i, m in enumerate(mend)),
    ]


def _model(measured: bool) -> tuple[str, ...]:
    if measured:
        return ()
    return (
        "  So no joules are reported as measured. A power model stands in, apart and labelled",
        "    as such: from half to twice its value; with --cpu-idle-w W --cpu-max-w W (this",
        "    machine's watts, idle and busy) within +-25 %. It orders plans but decides no",
        "    budget, unless you pass --accept-modelled-energy.",
    )


def _name(source: EnergySource) -> str:
    kind, _, rest = source.name.partition(":")
    return str(meters.declared(kind, "NOUN", kind)) + (f" {rest}" if rest else "")


def _word(source: EnergySource) -> str:
    return meters.code(source.reason) or ""


_WHY = {
    "vm_guest": "this is a virtual machine, and its host does not pass the processor's energy "
    "counters (RAPL) on",
    "permission": "the counter is there, but this user may not read it ({detail})",
    "no_interface": "{detail}",
    "mig": "the board is split by MIG, and one slice has no energy counter",
    "wrap_ambiguous": "the counter's range cannot be read, so a wrap would be missed ({detail})",
    "stale_counter": "the counter is never updated",
    "implausible": "the counter's readings are implausible ({detail})",
}


# -- the rest ------------------------------------------------------------------------------


def _time_lines() -> tuple[str, ...]:
    tick_s = time.get_clock_info("perf_counter").resolution
    return (
        "Latency, throughput and memory",
        f"  can be measured: each call by a monotonic clock ({units.show(tick_s, 's')}), memory as",
        "    the peak of the serving process. Every budget's verdict states its own confidence.",
    )


def _options(options: tuple[Option, ...]) -> list[str]:
    out = []
    for option in options:
        reason = f": {option.reason}" if option.reason else ""
        state = "yes" if option.available else "no"
        out.append(f"  {option.kind:10} {option.name:14} {state}{reason}")
    return out


# A task with everything in it, so that only the machine can be a reason for a refusal.
_ANY_TASK = TaskInfo(
    name="any",
    form="contract",
    source_sha256=None,
    input_kind="tensor",
    input_names=("",),
    input_shapes=((3, 32, 32),),
    input_dtypes=("float32",),
    ragged=False,
    train_rows=1000,
    validation_rows=1000,
    test_rows=1000,
    calibration_rows=0,
    classes=10,
    metric="accuracy",
    higher_is_better=True,
    per_sample=True,
    binary=True,
    pretrained=False,
    has_loss=True,
)
_ANY_TRAITS = Traits(
    parameters=1000,
    parameter_bytes=4000,
    buffer_bytes=0,
    flops_per_sample=1e6,
    activation_bytes_per_sample=1e4,
    largest_op_bytes=1000,
    module_types={"Conv2d": 2, "Linear": 2},
)
