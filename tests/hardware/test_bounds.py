"""Bounds: below every truth, whatever is cut, quantized or folded; nothing known, nothing bound."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.hardware import bounds
from autotune.records.hardware import Gpu, Leaf, Profile
from autotune.records.plan import Deployment, Recipe, Step
from autotune.records.task import Floor, Traits
from tests.support import made

PRUNED = Step(name="prune", params={"macs_kept": 0.5})
INT8 = Step(name="int8_static")


def leaf(value: float, unit: str, **changes: object) -> Leaf:
    return Leaf(value=value, unit=unit, source="measured", **changes)  # type: ignore[arg-type]


def machine(**figures: Leaf) -> Profile:
    found = {
        "gemm_fp32_1t_flop_per_s": leaf(50e9, "FLOP/s"),
        "gemm_fp32_2t_flop_per_s": leaf(90e9, "FLOP/s"),
        "conv_fp32_1t_flop_per_s": leaf(100e9, "FLOP/s"),
        "gemm_fp32_onnxruntime_1t_flop_per_s": leaf(100e9, "FLOP/s"),
    }
    return made.profile(measured=found | figures)


def model(**changes: object) -> Traits:
    fields: dict[str, object] = {
        "flops": {"matmul": 1e9},
        "more_flops": {"matmul": 1e9},
        "read_bytes": 4000,
        "trainable_bytes": 4000,
        "gradient_flops_per_sample": 1e9,
    }
    return made.traits(floor=Floor(**(fields | changes)))  # type: ignore[arg-type]


def test_the_peak_is_that_of_the_fastest_path_at_any_thread_count() -> None:
    assert bounds.peak_flop_per_s(machine(), 1) == pytest.approx(1.15 * 100e9)
    assert bounds.peak_flop_per_s(machine(), 2) == pytest.approx(1.15 * 200e9)


def test_a_datasheet_above_what_was_measured_counts() -> None:
    sheet = Leaf(value=1e12, unit="FLOP/s", source="datasheet")
    assert bounds.peak_flop_per_s(machine(peak_fp32_flop_per_s=sheet), 1) == 1e12


def test_narrow_types_tell_what_fp32_units_there_are() -> None:
    half = leaf(500e9, "FLOP/s")
    assert bounds.peak_flop_per_s(machine(gemm_bf16_1t_flop_per_s=half), 1) == pytest.approx(
        1.15 * 250e9
    )


def test_matrix_units_tell_nothing_about_fp32() -> None:
    half = machine(gemm_bf16_1t_flop_per_s=leaf(5e12, "FLOP/s"))
    amx = msgspec.structs.replace(
        half, cpu=msgspec.structs.replace(half.cpu, isa=("amx_int8", "amx_bf16"))
    )
    assert bounds.peak_flop_per_s(amx, 1) == pytest.approx(1.15 * 100e9)
    onnx, other = Deployment(runtime="onnxruntime"), Deployment(runtime="openvino")
    assert bounds.latency_bound_s(onnx, model(), amx) == pytest.approx(1 / 115)
    assert bounds.latency_bound_s(other, model(), amx) == pytest.approx(1 / 1840)
    assert bounds.latency_bound_s(onnx, model(narrow=True), amx) == pytest.approx(1 / 1840)


def test_eager_products_are_bound_by_their_own_path_and_others_by_the_fastest() -> None:
    eager, onnx = Deployment(), Deployment(runtime="onnxruntime")
    assert bounds.latency_bound_s(eager, model(), machine()) == pytest.approx(1 / 57.5)
    assert bounds.latency_bound_s(onnx, model(), machine()) == pytest.approx(1 / 115)


def test_kinds_add_up() -> None:
    both = model(flops={"matmul": 1e9, "conv": 2e9})
    found = bounds.latency_bound_s(Deployment(), both, machine())
    assert found == pytest.approx(1 / 57.5 + 2 / 115)


def test_what_does_not_grow_with_the_batch_is_counted_once() -> None:
    once = model(more_flops={})
    assert bounds.latency_bound_s(Deployment(batch_size=8), once, machine()) == pytest.approx(
        1 / 57.5
    )
    assert bounds.latency_bound_s(Deployment(batch_size=8), model(), machine()) == pytest.approx(
        8 / 57.5
    )


def test_winograd_may_save_products_where_a_library_has_it() -> None:
    small, large = model(flops={"winograd_small": 1e9}), model(flops={"winograd": 1e9})
    alone = Deployment()
    assert bounds.latency_bound_s(alone, large, machine()) == pytest.approx(1 / 115)
    assert bounds.latency_bound_s(alone, small, machine()) == pytest.approx(1 / 115 * 64 / 324)
    arm = msgspec.structs.replace(
        machine(), cpu=msgspec.structs.replace(machine().cpu, architecture="aarch64")
    )
    assert bounds.latency_bound_s(alone, large, arm) == pytest.approx(1 / 115 * 64 / 324)


def test_on_a_gpu_no_convolution_is_bound() -> None:
    figures = {"gemm_fp32_flop_per_s": leaf(1e12, "FLOP/s")}
    gpu = Gpu(index=0, name="a GPU", memory_bytes=1 << 30, figures=figures)
    with_gpu = msgspec.structs.replace(machine(), gpus=(gpu,))
    convolution = model(flops={"conv": 1e9})
    there = Deployment(runtime="cuda_graphs")
    assert bounds.latency_bound_s(there, convolution, with_gpu, "cuda") is None
    narrow = 16  # tensor cores
    assert bounds.latency_bound_s(there, model(), with_gpu, "cuda") == pytest.approx(
        1 / 1150 / narrow
    )
    unknown = msgspec.structs.replace(machine(), gpus=(msgspec.structs.replace(gpu, figures={}),))
    assert bounds.latency_bound_s(there, model(), unknown, "cuda") is None


def test_a_gpu_is_no_help_to_a_plan_for_the_processor() -> None:
    figures = {"gemm_fp32_flop_per_s": leaf(1e15, "FLOP/s")}
    gpu = Gpu(index=0, name="a GPU", memory_bytes=1 << 30, figures=figures)
    with_gpu = msgspec.structs.replace(machine(), gpus=(gpu,))
    alone = bounds.latency_bound_s(Deployment(), model(), machine())
    assert bounds.latency_bound_s(Deployment(), model(), with_gpu) == alone


def test_pruning_leaves_a_share_in_the_fastest_kind() -> None:
    both = model(flops={"matmul": 1e9, "conv": 1e9})
    found = bounds.latency_bound_s(Deployment(compress=(PRUNED,)), both, machine())
    assert found == pytest.approx(0.4 * 2 / 115)


def test_int8_may_be_four_times_as_fast_and_with_matrix_units_sixteen() -> None:
    plan = Deployment(compress=(INT8,), runtime="onnxruntime")
    assert bounds.latency_bound_s(plan, model(), machine()) == pytest.approx(1 / 460)
    amx = msgspec.structs.replace(
        machine(), cpu=msgspec.structs.replace(machine().cpu, isa=("amx_int8",))
    )
    assert bounds.latency_bound_s(plan, model(), amx) == pytest.approx(1 / 1840)


def test_a_step_that_is_not_known_bounds_nothing() -> None:
    plan = Deployment(compress=(Step(name="distil"),))
    assert bounds.latency_bound_s(plan, model(), machine()) is None
    assert bounds.memory_bound_bytes(plan, model()) == 0


def test_weights_beyond_the_cache_are_read() -> None:
    profile = machine(read_1t_bytes_per_s=leaf(10e9, "B/s"))
    cached = msgspec.structs.replace(
        profile, cpu=msgspec.structs.replace(profile.cpu, l3_bytes=1 << 20)
    )
    big = model(flops={"matmul": 1.0}, read_bytes=(1 << 20) + 125_000_000)
    assert bounds.latency_bound_s(Deployment(), big, cached) == pytest.approx(0.01)
    assert bounds.latency_bound_s(Deployment(), big, profile) == pytest.approx(0, abs=1e-9)


def test_a_pruned_model_reads_at_least_the_weights_that_its_work_needs() -> None:
    profile = machine(read_1t_bytes_per_s=leaf(10e9, "B/s"))
    cached = msgspec.structs.replace(
        profile, cpu=msgspec.structs.replace(profile.cpu, l3_bytes=1 << 20)
    )
    size = 4 * ((1 << 20) + 125_000_000)
    traits = model(flops={"matmul": 0.5 * size}, read_bytes=size)
    half = Deployment(compress=(Step(name="prune", params={"macs_kept": 0.35}),))
    plain = bounds.latency_bound_s(half, traits, cached)
    floor = msgspec.structs.replace(traits.floor, most_flops_per_byte=0.5)
    known = bounds.latency_bound_s(half, msgspec.structs.replace(traits, floor=floor), cached)
    assert known == pytest.approx(0.01)  # a quarter may be left
    assert plain is None or plain < known
    unknown = Deployment(compress=(Step(name="distil"),))
    assert bounds.latency_bound_s(unknown, traits, cached) is None


def test_a_recurrence_reads_what_the_cache_cannot_hold_at_every_step() -> None:
    profile = machine(read_1t_bytes_per_s=leaf(10e9, "B/s"))
    cpu = msgspec.structs.replace(profile.cpu, l3_bytes=1 << 20)
    cached = msgspec.structs.replace(profile, cpu=cpu)
    size = (1 << 20) + 12_500_000
    traits = model(flops={"matmul": 1.0}, read_bytes=size)
    floor = msgspec.structs.replace(traits.floor, repeated=((float(size), 9),))
    cell = msgspec.structs.replace(traits, floor=floor)
    assert bounds.latency_bound_s(Deployment(), cell, cached) == pytest.approx(0.01)
    halved = bounds.latency_bound_s(Deployment(runtime="openvino"), cell, cached)
    assert halved == pytest.approx(10 * (size / 2 - (1 << 20)) / 12.5e9)  # it may hold bf16


@pytest.mark.parametrize("traits", [made.traits(), model(flops={})])
def test_nothing_known_bounds_nothing(traits: Traits) -> None:
    assert bounds.latency_bound_s(Deployment(), traits, machine()) is None
    assert bounds.latency_bound_s(Deployment(), model(), made.profile()) is None


def test_energy_is_at_least_idle_power_over_the_least_time() -> None:
    profile = machine(idle_power_w=leaf(20.0, "W", low=10.5, high=30.0))
    assert bounds.energy_bound_j(Deployment(), model(), profile) == pytest.approx(10.5 / 57.5)
    assert bounds.energy_bound_j(Deployment(), model(), machine()) is None


def test_a_latency_under_its_bound_proves_the_profile_wrong() -> None:
    assert bounds.contradicted(Deployment(), 0.01, model(), machine())
    assert not bounds.contradicted(Deployment(), 0.02, model(), machine())


def test_memory_holds_the_weights_unless_pruned() -> None:
    assert bounds.memory_bound_bytes(Deployment(), model()) == 4000
    assert bounds.memory_bound_bytes(Deployment(compress=(INT8,)), model()) == 500
    assert bounds.memory_bound_bytes(Deployment(compress=(PRUNED,)), model()) == 0


def test_training_does_forward_and_weight_gradients_of_whole_batches() -> None:
    recipe = Recipe(batch_size=10)
    found = bounds.train_bound_s(recipe, 3, 105, model(), machine())
    assert found == pytest.approx(3 * 100 * 2e9 / 230e9)
    assert bounds.train_bound_s(recipe, 3, 105, made.traits(), machine()) is None


@pytest.mark.parametrize(("optimizer", "copies"), [("sgd", 2), ("momentum", 3), ("adamw", 4)])
def test_training_holds_weights_gradients_and_state(optimizer: str, copies: int) -> None:
    recipe = Recipe(optimizer=optimizer)  # type: ignore[arg-type]
    assert bounds.train_memory_bound_bytes(recipe, model()) == copies * 4000
    frozen = model(trainable_bytes=0)
    assert bounds.train_memory_bound_bytes(recipe, frozen) == 4000


@given(
    st.dictionaries(
        st.sampled_from(["matmul", "conv", "winograd", "attention"]), st.floats(1e6, 1e12)
    ),
    st.sampled_from([(), (PRUNED,), (INT8,), (PRUNED, INT8)]),
    st.sampled_from(["eager", "compiled", "onnxruntime"]),
    st.integers(1, 64),
)
def test_compression_and_other_runtimes_never_raise_a_bound_above_the_dense_work(
    flops: dict[str, float], steps: tuple[Step, ...], runtime: str, batch: int
) -> None:
    traits = model(flops=flops, more_flops=flops)
    plan = Deployment(compress=steps, runtime=runtime, batch_size=batch)
    slowest = 1.15 * 50e9
    bound = bounds.latency_bound_s(plan, traits, machine()) or 0.0
    assert 0 <= bound <= batch * sum(flops.values()) / slowest * (1 + 1e-9)


def test_onnx_runtime_has_a_path_of_its_own_faster_than_pytorchs() -> None:
    eager, onnx = Deployment(runtime="eager"), Deployment(runtime="onnxruntime")
    faster = machine(gemm_fp32_onnxruntime_1t_flop_per_s=leaf(130e9, "FLOP/s"))
    conv = model(flops={"conv": 1e9}, more_flops={})
    assert bounds.latency_bound_s(eager, conv, faster) == pytest.approx(1 / 115)
    assert bounds.latency_bound_s(onnx, conv, faster) == pytest.approx(1 / 149.5)


def test_a_profile_without_that_path_leaves_room_for_it() -> None:
    old = {k: v for k, v in machine().figures.items() if "onnxruntime" not in k}
    found = bounds.latency_bound_s(
        Deployment(runtime="onnxruntime"),
        model(),
        msgspec.structs.replace(machine(), figures=old),
    )
    assert found == pytest.approx(1 / (115 * 1.6))


def test_its_int8_products_go_their_own_path_but_not_its_four_bit_weights() -> None:
    known = machine(gemm_int8_onnxruntime_1t_op_per_s=leaf(200e9, "op/s"))
    int8 = Deployment(runtime="onnxruntime", compress=(INT8,))
    assert bounds.latency_bound_s(int8, model(), known) == pytest.approx(1 / 280)
    int4 = Deployment(runtime="onnxruntime", compress=(Step(name="int4_weights"),))
    found = bounds.latency_bound_s(int4, model(), known)
    assert found is None or found < 1 / 400


def test_eager_products_of_few_rows_are_bound_by_the_rate_of_few_rows() -> None:
    few = {
        f"linear_rows{rows}_fp32_1t_flop_per_s": leaf(rate, "FLOP/s")
        for rows, rate in ((1, 4e9), (2, 6e9), (4, 8e9), (8, 12e9))
    }
    thin = model(thin=((1, 0.75e9),))
    plan = Deployment(runtime="eager", batch_size=3)
    found = bounds.latency_bound_s(plan, thin, machine(**few))
    assert found == pytest.approx(3 * 0.75 / (1.4 * 8) + 3 * 0.25 / 57.5)
    many = msgspec.structs.replace(plan, batch_size=16)
    assert bounds.latency_bound_s(many, thin, machine(**few)) == pytest.approx(16 / 57.5)
    onnx = msgspec.structs.replace(plan, runtime="onnxruntime")
    assert bounds.latency_bound_s(onnx, thin, machine(**few)) == pytest.approx(3 / 115)
