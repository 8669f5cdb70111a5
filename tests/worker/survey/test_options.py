"""The menu: one option per plug-in, precision and optimizer, refused ones with a reason."""

from pathlib import Path
from typing import get_args

import msgspec
import pytest

from autotune import plugins
from autotune.records.hardware import Gpu, Leaf
from autotune.records.job import Context, Menu
from autotune.records.plan import Optimizer
from autotune.worker.channel import NullChannel
from autotune.worker.survey import options as survey_options
from tests.support import made


def context(measured: dict[str, float | None], **types: int) -> Context:
    leaves = {
        name: Leaf(value=value, unit="FLOP/s", source="measured")
        for name, value in measured.items()
    }
    return made.context(
        of=made.traits(module_types=types or {"Linear": 3}),
        on=made.profile(isa=("avx2",), measured=leaves),
    )


def options(**types: int):
    answer = survey_options.run(Menu(context=context({}, **types)), Path(), NullChannel())
    return {(o.kind, o.name): o for o in answer.options}


def test_every_plugin_is_on_the_menu_and_a_refusal_has_a_reason():
    found = options()
    for kind, folder in (
        ("runtime", "runtimes"),
        ("compress", "compress"),
        ("parallel", "parallel"),
    ):
        assert {name for k, name in found if k == kind} == set(plugins.names(folder))
    assert all((o.reason is None) == o.available for o in found.values())
    assert found["runtime", "eager"].takes == "module"
    assert found["compress", "prune"].group == "prune"
    assert found["compress", "int8_static"].gives == "onnx"
    level, importance = found["compress", "prune"].dims
    assert (level.name, level.low, level.high, level.step) == ("macs_kept", 0.05, 0.95, 0.05)
    assert importance.choices == ("taylor", "magnitude")


def test_what_does_not_fit_the_model_is_refused_with_the_reason():
    found = options(Conv2d=1)
    assert "nothing to prune" in found["compress", "prune"].reason
    assert "Linear" in found["compress", "int8_dynamic"].reason


@pytest.mark.parametrize(("matrices", "there"), [(None, True), (2, True), (0, False)])
def test_muon_only_where_there_are_matrices_for_it(matrices, there):
    found = {o.name: o for o in survey_options.optimizers(made.traits(hidden_matrices=matrices))}
    assert set(found) == set(get_args(Optimizer))
    assert found["muon"].available is there
    assert there or "no hidden matrix" in found["muon"].reason
    assert all(o.kind == "optimizer" for o in found.values())


@pytest.mark.parametrize(
    ("half", "full", "reason"),
    [
        (1.4e9, 94e9, "slower here: bf16 GEMM 1.4 GFLOP/s against fp32 94 (0.015x)"),
        (200e9, 94e9, None),
        (None, 94e9, "not measured here: profile this machine again (`autotune profile`)"),
    ],
)
def test_bf16_only_where_it_was_measured_to_be_faster(half, full, reason):
    measured = {"gemm_bf16_1t_flop_per_s": half, "gemm_fp32_1t_flop_per_s": full}
    fp32, bf16, *_ = survey_options.precisions(context(measured).profile)
    assert fp32.available
    assert (bf16.available, bf16.reason) == (reason is None, reason)


@pytest.mark.parametrize(
    ("capability", "there"),
    [("9.0", {"tf32", "fp16"}), ("7.5", {"fp16"}), ("6.1", set()), (None, set())],
)
def test_precisions_of_a_gpu_need_its_capability(capability, there):
    plain = context({}).profile
    gpu = Gpu(index=0, name="made up", memory_bytes=1 << 30, compute_capability=capability)
    found = survey_options.precisions(msgspec.structs.replace(plain, gpus=(gpu,)))
    assert {o.name for o in found if o.available} - {"fp32", "bf16"} == there
    assert all("capability" in o.reason for o in found[2:] if not o.available)
    assert all("GPU" in o.reason for o in survey_options.precisions(plain)[2:])
