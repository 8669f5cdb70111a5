"""Lower bounds that no plan can beat, with the arithmetic in words.

    training memory  >= 16 bytes a parameter / devices        (Adam, all of it sharded)
    step time        >= FLOPs of forward and backward / (devices x the highest rate)
    latency          >= max(FLOPs / highest rate, (weights - cache) / highest bandwidth)
    serving memory   >= weights in the narrowest type / devices

A bound rejects and is never used as an estimate.  It holds for dense weights, without
offloading, with Adam; a figure that the profile lacks gives no bound.
"""

from dataclasses import dataclass

from autotune.planning.machines import Machine
from autotune.planning.parallel_cost import width
from autotune.records.task import Traits
from autotune.units import show

STATE_BYTES = 16  # fp32 weight 4, two moments 8, and 4 of weight and gradient in half precision
_WINOGRAD = 4.0  # convolutions need up to 4 times fewer products (arXiv 1509.09308)


@dataclass(frozen=True)
class Bound:
    """The least value, and the arithmetic that gives it, in words."""

    value: float
    why: str


def training_memory(traits: Traits, machine: Machine) -> Bound:
    """Bytes of the fullest device, at least."""
    total = STATE_BYTES * traits.parameters
    least = total / machine.devices
    return Bound(
        least,
        f"{billions(traits.parameters)} parameters x {STATE_BYTES} bytes (weights and gradients 4, "
        f"fp32 copy 4, Adam's moments 8) = {show(total, 'B')}, over {machine.devices} "
        f"{'device' if machine.devices == 1 else 'devices'} at least {show(least, 'B')} each",
    )


def one_device(traits: Traits, machine: Machine) -> str | None:
    """Why one device alone cannot train the model; None where it may."""
    total = STATE_BYTES * traits.parameters
    if total <= machine.memory_bytes:
        return None
    return (
        f"One device cannot train it: {billions(traits.parameters)} parameters x {STATE_BYTES} "
        f"bytes (weights and gradients 4, fp32 copy 4, Adam's moments 8) = {show(total, 'B')}, "
        f"a device holds {show(machine.memory_bytes, 'B')}: "
        f"{total / machine.memory_bytes:.1f} times too much, before any activation."
    )


def step_time(traits: Traits, machine: Machine, batch: int, precisions: tuple[str, ...]) -> Bound:
    """Seconds a step, at least: a forward, and a weight's gradient, for every product.

    The gradients of the inputs are another forward's worth, but a model's first layer needs
    none: they are left out where the model is no transformer.
    """
    rate = max(machine.rates[name].most for name in precisions)
    passes = 3 if traits.transformer else 2
    flops = passes * batch * traits.flops_per_sample / _algorithm(traits)
    value = flops / (machine.devices * rate)
    return Bound(
        value,
        f"{passes} x {batch} samples x {show(traits.flops_per_sample, 'FLOP')} / "
        f"({machine.devices} x {show(rate, 'FLOP/s')}) = {show(value, 's')}",
    )


def latency(traits: Traits, machine: Machine, batch: int) -> Bound:
    """Seconds a call on ``batch`` samples, at least, on all devices of a node."""
    rate = max(rate.most for rate in machine.rates.values())
    count = machine.per_node if traits.transformer else 1
    flops = batch * traits.flops_per_sample / _algorithm(traits)
    value = flops / (count * rate)
    why = (
        f"{batch} x {show(traits.flops_per_sample, 'FLOP')} / "
        f"({count} x {show(rate, 'FLOP/s')}) = {show(value, 's')}"
    )
    if machine.bandwidth_most is None:
        return Bound(value, why)
    weights = _read(traits) * _narrowest(machine)
    moved = max(0.0, weights - count * machine.cache_bytes)
    seconds = moved / (count * machine.bandwidth_most)
    if seconds <= value:
        return Bound(value, why)
    return Bound(
        seconds,
        f"{show(weights, 'B')} of weights less {show(count * machine.cache_bytes, 'B')} of cache / "
        f"({count} x {show(machine.bandwidth_most, 'B/s')}) = {show(seconds, 's')}",
    )


def serving_memory(traits: Traits, machine: Machine) -> Bound:
    """Bytes of the fullest device while serving, at least."""
    weights = traits.parameters * _narrowest(machine)
    count = machine.per_node if traits.transformer else 1
    return Bound(
        weights / count,
        f"{billions(traits.parameters)} parameters x {_narrowest(machine)} bytes in the narrowest "
        f"type / {count} = {show(weights / count, 'B')}",
    )


def _read(traits: Traits) -> int:
    """Parameters that every call reads in full.  An embedding is looked up, and of a model that
    is no transformer it is not known which are read.
    """
    shape = traits.transformer
    return shape.block_parameters if shape else 0


def _narrowest(machine: Machine) -> int:
    return min(width(name) if name != "fp8" else 1 for name in machine.rates)


def _algorithm(traits: Traits) -> float:
    return _WINOGRAD if any("conv" in name for name in traits.op_flops) else 1.0


def billions(count: int) -> str:
    """``69.0 billion``, ``1.24 million`` or ``110,336``."""
    if count < 1e6:
        return f"{count:,}"
    size, name = (1e9, "billion") if count >= 1e9 else (1e6, "million")
    return f"{count / size:.3g} {name}"
