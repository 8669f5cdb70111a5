"""Deployment plans: one call's latency, memory and energy.

    latency = max(FLOPs / rate, weights / bandwidth) + activations / bandwidth + all-reduces,
              or what it takes to launch the operators, where that is longer

Runtime classes differ in launches and in element-wise traffic: ``eager`` launches every
operator, ``compiled`` fuses and replays, an ``engine`` has narrow kernels as well.  Kernels at
small batches reach very different shares of a peak, hence the wide intervals: no published row
has tested these; one measured call narrows them.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from autotune.planning import parallel_cost, training_time
from autotune.planning.machines import Machine
from autotune.records.outlook import Predicted, RuntimeClass, ServingPlan
from autotune.records.task import Traits

_SHARED_SD, _PLAIN_SD, _OWN_SD = 0.35, 0.6, 0.20
_PLAIN_SHARE = 0.4  # of the best matrix product, in other models' convolutions and products
_FORWARD = 1 / 3  # of a block's element-wise traffic in training
_NARROW = ("fp8", "int8")


@dataclass(frozen=True)
class _Runtime:
    """``launches`` and ``traffic`` as shares of eager's."""

    launches: float
    traffic: float


_RUNTIMES: dict[RuntimeClass, _Runtime] = {
    "eager": _Runtime(1.0, 1.0),
    "compiled": _Runtime(0.3, 0.6),
    "engine": _Runtime(0.25, 0.5),
}


@dataclass(frozen=True)
class ServingForecast(training_time.PlanForecast):
    """Of one call; ``parts`` are seconds by name."""

    plan: ServingPlan
    parts: dict[str, float]


def plans(traits: Traits, machine: Machine, batches: Iterable[int]) -> Iterator[ServingPlan]:
    """Every batch, precision and runtime class that the profile has rates for.

    Narrow types need an engine's kernels.  Only transformers are split over devices.
    """
    layouts = [1]
    shape = traits.transformer
    if shape is not None and machine.kind == "gpu":
        layouts = [n for n in (1, 2, 4, 8) if n <= machine.per_node and not (shape.heads or 1) % n]
    for batch, precision, runtime, tp in product(batches, machine.rates, _RUNTIMES, layouts):
        if precision in _NARROW and runtime != "engine":
            continue
        if precision == "fp16" and "bf16" in machine.rates:  # the same bytes and rates
            continue
        yield ServingPlan(batch_size=batch, precision=precision, runtime=runtime, tp=tp)


def rank(
    traits: Traits, machine: Machine, batches: Iterable[int], goal: str
) -> tuple[list[ServingForecast], list[ServingForecast]]:
    """Calls that are likely to fit, best for the goal first; and the others, least first."""
    fitting: list[ServingForecast] = []
    others: list[ServingForecast] = []
    for plan in plans(traits, machine, batches):
        call = forecast(traits, machine, plan)
        likely = training_time.fits(call.memory_bytes, machine) >= 0.5
        (fitting if likely else others).append(call)

    def order(call: ServingForecast) -> float:
        if goal == "throughput":
            return -call.samples_per_s / call.plan.tp
        if goal == "memory":
            return call.memory_bytes
        if goal == "energy":
            return call.time_s * call.plan.tp / call.plan.batch_size
        return call.time_s

    return sorted(fitting, key=order), sorted(others, key=lambda call: call.memory_bytes)


def forecast(traits: Traits, machine: Machine, plan: ServingPlan) -> ServingForecast:
    """The numbers of one plan."""
    runtime, rate = _RUNTIMES[plan.runtime], machine.rates[plan.precision]
    shape, b, t = traits.transformer, plan.batch_size, plan.tp
    width = _width(plan.precision)
    attention = b * (shape.attention_flops_per_sample if shape else 0.0)
    linear = b * traits.flops_per_sample - attention
    share = training_time.PRODUCTS if shape else _PLAIN_SHARE
    products = linear / (t * rate.best * share)
    products += attention / (t * _wide(machine, plan.precision) * training_time.ATTENTION)
    bandwidth = machine.bandwidth * training_time.BANDWIDTH
    weights = traits.parameters * width / t / bandwidth
    traffic = _traffic(traits, plan) * runtime.traffic / bandwidth
    device = max(products, weights) + traffic + _all_reduce_s(traits, machine, plan)
    launches = runtime.launches * sum(traits.op_calls.values()) * machine.launch_s
    launches *= training_time.CPU_LAUNCH if machine.kind == "cpu" else 1.0
    # a processor's own launches delay it; an accelerator runs beside them
    total = max(device, launches) if machine.kind == "gpu" else device + launches
    return ServingForecast(
        plan=plan,
        time_s=total,
        memory_bytes=machine.reserve_bytes + 1.04 * _held(traits, plan),
        own_sd=math.hypot(_OWN_SD, rate.sd),
        shared_sd=_SHARED_SD if shape else _PLAIN_SD,
        parts={
            "matrix products": products,
            "reading weights": weights,
            "memory traffic": traffic,
            "launches": launches,
        },
    )


def predicted(call: ServingForecast, machine: Machine) -> Predicted:
    """The forecast as a record, with intervals."""
    busy = min(1.0, max(call.parts["matrix products"], call.parts["reading weights"]) / call.time_s)
    plan = call.plan
    return Predicted(
        plan=plan,
        time_s=training_time.estimate(call.time_s, call.time_sd),
        samples_per_s=training_time.estimate(call.samples_per_s, call.time_sd),
        memory_bytes=training_time.estimate(call.memory_bytes, training_time.MEMORY_SD),
        fits=training_time.fits(call.memory_bytes, machine),
        energy_j_per_sample=training_time.energy(
            machine, plan.tp, call.time_s, busy, plan.batch_size, call.time_sd
        ),
        parts_s=call.parts,
    )


def _width(precision: str) -> int:
    return 1 if precision in _NARROW else parallel_cost.width(precision)


def _wide(machine: Machine, precision: str) -> float:
    """Attention stays in half precision where the weights are narrower."""
    if precision not in _NARROW:
        return machine.rates[precision].best
    half = [machine.rates[name].best for name in ("bf16", "fp16") if name in machine.rates]
    return max(half, default=machine.rates[precision].best)


def _traffic(traits: Traits, plan: ServingPlan) -> float:
    """Bytes of element-wise operators in one call on one device."""
    shape, b = traits.transformer, plan.batch_size
    half = max(2, _width(plan.precision)) / 2
    if shape is None:
        return 2 * b * traits.activation_bytes_per_sample * half / 2
    tokens = shape.sequence * b * shape.layers
    moved = (
        tokens * training_time.TRAFFIC_BYTES * _FORWARD * shape.hidden * (10 + 24 / plan.tp) / 34
    )
    if not shape.fused_attention and shape.heads:
        moved += tokens * 10 * shape.heads * shape.sequence / plan.tp
    return moved * half


def _held(traits: Traits, plan: ServingPlan) -> float:
    """Bytes of weights, of one layer's activations and of the outputs, on one device."""
    shape, b = traits.transformer, plan.batch_size
    held = traits.parameters * _width(plan.precision) / plan.tp + traits.buffer_bytes
    if shape is None:
        return held + b * traits.largest_op_bytes
    kept = "fp32" if parallel_cost.width(plan.precision) == 4 else "bf16"
    held += parallel_cost.layer_activation_bytes(shape, b, plan.tp, "none", kept, dropout=False)
    return held + 4.0 * shape.sequence * b * (shape.vocabulary or 0)


def _all_reduce_s(traits: Traits, machine: Machine, plan: ServingPlan) -> float:
    shape = traits.transformer
    if shape is None or plan.tp == 1:
        return 0.0
    size = shape.sequence * plan.batch_size * shape.hidden * max(2, _width(plan.precision))
    link = machine.link * training_time.LINK
    once = parallel_cost.all_reduce_s(size, plan.tp, link, parallel_cost.ALPHA_LINK_S)
    return 2 * shape.layers * once
