"""Made-up records, for tests that need one and do not care which."""

from typing import Any

from autotune import plugins
from autotune.context import RunContext, Silent
from autotune.records.budget import Budget, Effort
from autotune.records.hardware import Cpu, Leaf, Profile
from autotune.records.job import Context, Job, Result
from autotune.records.measurement import Launch
from autotune.records.task import Layout, Option, Survey, TaskInfo, TaskSpec, Traits
from autotune.worker.survey import options as survey_options
from tests.support.bridges import FunctionBridge

DECLARED = ("prepares", "dtype", "time_left", "device", "compiles", "build_s", "ranks")


def declared(kind: str, name: str, cores: float = 2.0) -> dict[str, Any]:
    """What the plug-in of that name declares of itself, as fields of `Option`: those alone that
    the recordings under ``tests/recordings`` and most made-up options leave out.
    """
    folder = {"runtime": "runtimes"}.get(kind, kind)
    if folder not in ("runtimes", "compress", "parallel") or name not in plugins.names(folder):
        return {}
    found = survey_options.declared(plugins.load(folder, name), context(on=profile(cores=cores)))
    return {field: found[field] for field in DECLARED if field in found}


def option(**fields: Any) -> Option:
    """An available option; what the plug-in of its name declares is filled in."""
    return Option(**({"available": True} | declared(fields["kind"], fields["name"]) | fields))


def info(**changes: object) -> TaskInfo:
    """A classification task over four numbers."""
    fields: dict[str, object] = {
        "name": "made-up",
        "form": "contract",
        "source_sha256": None,
        "input_kind": "tensor",
        "input_names": ("input",),
        "input_shapes": ((4,),),
        "input_dtypes": ("float32",),
        "ragged": False,
        "train_rows": 900,
        "validation_rows": 450,
        "test_rows": 450,
        "calibration_rows": 0,
        "classes": 10,
        "metric": "accuracy",
        "higher_is_better": True,
        "per_sample": True,
        "binary": True,
        "pretrained": False,
        "has_loss": True,
        "smoothable": True,
    }
    return TaskInfo(**(fields | changes))  # type: ignore[arg-type]


def traits(**changes: object) -> Traits:
    """A thousand parameters."""
    fields: dict[str, object] = {
        "parameters": 1000,
        "parameter_bytes": 4000,
        "buffer_bytes": 0,
        "flops_per_sample": 1e6,
        "activation_bytes_per_sample": 1e4,
        "largest_op_bytes": 4000,
    }
    return Traits(**(fields | changes))  # type: ignore[arg-type]


def profile(
    *,
    cores: float = 2.0,
    isa: tuple[str, ...] = (),
    architecture: str = "x86_64",
    measured: dict[str, Leaf] | None = None,
) -> Profile:
    """8 GiB, nothing measured."""
    cpu = Cpu(
        vendor=None,
        model="Made up",
        architecture=architecture,
        logical_cores=max(1, int(cores)),
        physical_cores=None,
        usable_cores=cores,
        isa=isa,
    )
    return Profile(
        name="made-up",
        created_utc="2026-01-01T00:00:00Z",
        fingerprint="0" * 12,
        cpu=cpu,
        memory_bytes=8 << 30,
        usable_memory_bytes=7 << 30,
        figures=measured or {},
    )


def context(
    *, task: TaskInfo | None = None, of: Traits | None = None, on: Profile | None = None
) -> Context:
    """What a plug-in is asked about."""
    return Context(info=task or info(), traits=of or traits(), profile=on or profile())


def run(
    *, task: TaskInfo | None = None, layouts: tuple[Layout, ...] = (), **given: Any
) -> RunContext:
    """A run in progress whose bridge answers nothing; ``given`` are its budget and effort."""
    survey = Survey(task=task or info(), traits=traits(), options=(), layouts=layouts)
    spec = TaskSpec(kind="file", path="model.py")
    budget, effort = given.get("budget", Budget()), given.get("effort", Effort())
    return RunContext(FunctionBridge(_unasked), spec, budget, effort, Silent(), profile(), survey)


def _unasked(job: Job) -> Result:
    raise AssertionError(f"no {type(job).__name__} was expected")


def launch(seconds: float, work_s: float = 20.0) -> Launch:
    """A hundred calls that take so long each."""
    return Launch(
        latency_s=(seconds,) * 100,
        load_s=0.1,
        first_call_s=0.1,
        warmup_calls=1,
        settled=True,
        window_s=1.0,
        window_calls=100,
        cpu_s=1.0,
        peak_memory_bytes=1,
        work_s=work_s,
    )
