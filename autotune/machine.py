"""The commands about this machine: its profile, and what it can measure and run."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autotune.control import units
from autotune.control.processbridge import ProcessBridge
from autotune.control.run import must
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


def profile(device: str = "auto") -> Profile:
    """Probe this machine (about ten seconds)."""
    with _bridge() as bridge:
        done = must(bridge, jobs.Probe(device=device), 120.0).answer
        assert isinstance(done, jobs.Probed)
        return done.profile


def doctor() -> tuple[str, ...]:
    """What can be measured and run here, in plain words, and the one command that mends it."""
    with _bridge() as bridge:
        probed = must(bridge, jobs.Probe(), 120.0).answer
        assert isinstance(probed, jobs.Probed)
        found = must(bridge, jobs.Sources(), 30.0).answer
        assert isinstance(found, jobs.Found)
        context = jobs.Context(info=_ANY_TASK, traits=_ANY_TRAITS, profile=probed.profile)
        menu = must(bridge, jobs.Menu(context=context), 60.0).answer
        assert isinstance(menu, jobs.Options)
    machine = probed.profile
    cores = machine.cpu.usable_cores
    lines = [
        f"{machine.cpu.model or machine.cpu.architecture}: {cores:g} usable cores, "
        f"{units.show(machine.usable_memory_bytes, 'B')} memory",
        *(f"GPU {g.index}: {g.name}, {units.show(g.memory_bytes, 'B')}" for g in machine.gpus),
        *(() if machine.gpus else ("No GPU.",)),
        "",
        "Energy",
        *(line for source in found.sources for line in _source(source)),
        "",
        "Can run here",
        *_options(menu.options),
        *(("", "Warnings", *(f"  {w}" for w in machine.warnings)) if machine.warnings else ()),
    ]
    return tuple(lines)


def _source(source: EnergySource) -> list[str]:
    if source.label.startswith("measured"):
        names = ", ".join(source.domains)
        return [f"  {source.name}: measured ({names}), origin {source.origin}"]
    if source.label.startswith("modelled"):
        return [f"  {source.name}: a model, not a measurement; it orders plans and decides nothing"]
    lines = [f"  {source.name}: cannot be measured ({source.reason})"]
    return lines + ([f"    remedy: {source.remedy}"] if source.remedy else [])


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
    select_rows=1000,
    confirm_rows=1000,
    adapt_rows=0,
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
