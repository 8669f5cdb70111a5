"""The menu: one option per plug-in and precision, refused ones with a reason."""

from pathlib import Path

import pytest

from autotune import plugins
from autotune.records.hardware import Cpu, Leaf, Profile
from autotune.records.job import Context, Menu
from autotune.records.task import TaskInfo, Traits
from autotune.worker import menu
from autotune.worker.channel import NullChannel


def context(measured: dict[str, float | None], **types: int) -> Context:
    leaves = {
        name: Leaf(value=value, unit="FLOP/s", source="measured")
        for name, value in measured.items()
    }
    cpu = Cpu(
        vendor=None,
        model=None,
        architecture="x86_64",
        logical_cores=2,
        physical_cores=2,
        usable_cores=2.0,
        isa=("avx2",),
    )
    profile = Profile(
        name="p",
        created_utc="",
        fingerprint="f",
        cpu=cpu,
        memory_bytes=1 << 30,
        usable_memory_bytes=1 << 30,
        measured=leaves,
    )
    info = TaskInfo(
        name="t",
        form="contract",
        source_sha256=None,
        input_kind="tensor",
        input_names=("input",),
        input_shapes=((4,),),
        input_dtypes=("float32",),
        ragged=False,
        train_rows=100,
        select_rows=50,
        confirm_rows=50,
        adapt_rows=0,
        classes=3,
        metric="accuracy",
        higher_is_better=True,
        per_sample=True,
        binary=True,
        pretrained=False,
        has_loss=True,
    )
    traits = Traits(
        parameters=1,
        parameter_bytes=4,
        buffer_bytes=0,
        flops_per_sample=1.0,
        activation_bytes_per_sample=1.0,
        largest_op_bytes=1,
        module_types=types or {"Linear": 3},
    )
    return Context(info=info, traits=traits, profile=profile)


def options(**types: int):
    answer = menu.run(Menu(context=context({}, **types)), Path(), NullChannel())
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
    (level,) = found["compress", "prune"].dims
    assert (level.name, level.low, level.high, level.step) == ("macs_kept", 0.1, 0.9, 0.1)


def test_what_does_not_fit_the_model_is_refused_with_the_reason():
    found = options(Conv2d=1)
    assert "nothing to prune" in found["compress", "prune"].reason
    assert "Linear" in found["compress", "int8_dynamic"].reason


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
    fp32, bf16 = menu.precisions(context(measured).profile)
    assert fp32.available
    assert (bf16.available, bf16.reason) == (reason is None, reason)
