"""What is taken from a profile, and what is assumed and said."""

import math

import msgspec
import pytest

from autotune.errors import UsageError
from autotune.planning.machines import machine
from autotune.records.hardware import Gpu, Leaf
from tests.support import made, planned


def leaf(value, unit="FLOP/s", source="datasheet"):
    return Leaf(value=value, unit=unit, source=source)


def test_a_node_of_the_library():
    found = machine(planned.profile("h100-sxm-x8"))
    assert (found.devices, found.per_node, found.nodes) == (8, 8, 1)
    assert found.rates["bf16"].best == 794.5e12
    assert found.rates["bf16"].most == pytest.approx(1.05 * 989e12)
    assert found.rates["bf16"].measured
    # no fp8 product was measured: the share that bf16 reaches is taken
    assert found.rates["fp8"].best == pytest.approx(794.5 / 989 * 1979e12)
    assert (found.link, found.network, found.bandwidth) == (450e9, 400e9, 3350e9)
    assert found.assumed == ()


def test_more_nodes_and_fewer_devices():
    assert machine(planned.profile("h100-sxm-x8"), nodes=128).devices == 1024
    half = machine(planned.profile("h100-sxm-x8"), devices=4)
    assert (half.devices, half.per_node) == (4, 4)
    with pytest.raises(UsageError, match="--devices 12: h100-sxm-x8 has 8 a node"):
        machine(planned.profile("h100-sxm-x8"), devices=12)


def test_what_the_profile_does_not_tell_is_assumed_and_said():
    profile = planned.profile("h100-sxm-x8")
    gpu = msgspec.structs.replace(
        profile.gpus[0], figures={"peak_bf16_flop_per_s": leaf(1e15)}, power_limit_w=None
    )
    bare = msgspec.structs.replace(profile, gpus=(gpu,), figures={})
    found = machine(bare, nodes=2)
    assert found.power_limit_w is None
    assert not found.rates["bf16"].measured
    assert found.rates["bf16"].best < 1e15 < found.rates["bf16"].most
    assert set(found.rates) == {"bf16"}
    said = " ".join(found.assumed)
    assert "link" in said
    assert "memory bandwidth" in said
    assert "network" in said
    assert found.bandwidth_most is None


def test_a_processor_is_one_device():
    figures = {
        "gemm_fp32_1t_flop_per_s": leaf(5e10, source="measured"),
        "gemm_fp32_2t_flop_per_s": leaf(9e10, source="measured"),
        "gemm_int8_1t_op_per_s": leaf(1e12, "op/s", "measured"),
    }
    found = machine(made.profile(measured=figures))
    assert (found.kind, found.devices) == ("cpu", 1)
    assert found.rates["fp32"].best == 9e10
    # what one of two cores does bounds half of what both do
    assert found.rates["int8"].most == pytest.approx(1.05 * 2e12)
    sized = figures | {"gemm_fp32_1024_2t_flop_per_s": leaf(9.5e10, source="measured")}
    assert machine(made.profile(measured=sized)).rates["fp32"].best == 9.5e10
    with pytest.raises(UsageError, match="only one node"):
        machine(made.profile(measured=figures), devices=4)


def test_a_processor_without_memory_is_taken_to_have_enough():
    figures = {"peak_fp32_flop_per_s": leaf(1e12)}
    bare = msgspec.structs.replace(
        made.profile(measured=figures), memory_bytes=0, usable_memory_bytes=0
    )
    assert machine(bare).memory_bytes == math.inf
    assert "enough memory (none in the profile)" in machine(bare).assumed


def test_a_profile_without_any_rate_is_refused():
    with pytest.raises(UsageError, match="neither a peak nor a measured rate"):
        machine(made.profile())


def test_several_entries_of_one_device_count_together():
    gpus = tuple(
        Gpu(index=i, name="A", memory_bytes=8, figures={"peak_fp32_flop_per_s": leaf(1e12)})
        for i in range(2)
    )
    both = msgspec.structs.replace(made.profile(), gpus=gpus)
    assert machine(both).devices == 2
