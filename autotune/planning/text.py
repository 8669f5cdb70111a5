"""`Outlook` -> the text that `autotune plan` prints, in at most 80 columns.

model -> each machine: its plans, where the best one's time goes, limits -> comparisons
"""

import math
from collections.abc import Iterator

from autotune import units
from autotune.planning import bounds
from autotune.records.outlook import (
    Check,
    Comparison,
    Estimate,
    Judgement,
    MachineOutlook,
    Outlook,
    Predicted,
    ServingPlan,
    TrainingPlan,
)
from autotune.records.task import Traits
from autotune.report.plain_text import wrap

_WIDTH = 80
_RECOMPUTE = {"none": "none", "selective": "sel", "full": "full"}
_LEAST_SHARE = 0.005
_SURE_TO_FIT = 0.9


def text(found: Outlook) -> str:
    """Everything, as plain text."""
    lines = [*_wrapped(_model(found.name, found.traits))]
    lines += _wrapped(f"All figures are {found.statement}. Quality is {found.quality}.")
    for note in found.notes:
        lines += _wrapped(note)
    for one in found.machines:
        lines += ["", *_machine(one, found.traits)]
    for pair in found.comparisons:
        lines += ["", *_wrapped(_comparison(pair, found))]
    if found.checks:
        lines += ["", *_checks(found.checks)]
    return "\n".join(lines) + "\n"


def _model(name: str, traits: Traits) -> str:
    line = f"{name}: {bounds.billions(traits.parameters)} parameters, "
    line += f"{units.show(traits.flops_per_sample, 'FLOP')} forward a sample"
    shape = traits.transformer
    if shape is None:
        return f"{line}. No transformer: planned with data parallelism alone."
    fused = "fused" if shape.fused_attention else "not fused"
    heads = f", {shape.heads} heads" if shape.heads else ""
    return (
        f"{line}; {shape.layers} layers of width {shape.hidden}{heads}, sequence "
        f"{shape.sequence}, attention {fused}."
    )


def _machine(one: MachineOutlook, traits: Traits) -> Iterator[str]:
    nodes = f" in {one.nodes} nodes" if one.nodes > 1 else ""
    devices = "1 device" if one.devices == 1 else f"{one.devices} devices"
    yield f"{one.name}: {devices}{nodes}, {one.considered} plans considered"
    for why in one.why_not:
        yield from _wrapped(why, indent="  ")
    for what in one.assumed:
        yield from _wrapped(f"Assumed: {what}.", indent="  ")
    if one.training:
        yield from _training(one.training)
        yield from _doubtful(one.training)
        yield from _detail(one.training[0], one, traits)
    if one.serving:
        yield from _serving(one.serving)
        yield from _doubtful(one.serving)
        yield from _detail(one.serving[0], one, traits)
    for judgement in one.judgements:
        yield from _wrapped(_judgement(judgement), indent="  ", hanging="    ")


def _training(plans: tuple[Predicted, ...]) -> Iterator[str]:
    yield _row("", "dp/tp/pp", "micro", "type", "rec.", "Z", "batch", "step, 90 %", "/s", "memory")
    for number, found in enumerate(plans, start=1):
        plan = found.plan
        assert isinstance(plan, TrainingPlan)
        yield _row(
            str(number),
            f"{plan.dp}/{plan.tp}/{plan.pp}",
            f"{plan.micro_batches}x{plan.micro_batch}",
            plan.precision,
            _RECOMPUTE[plan.recompute],
            str(plan.zero),
            str(plan.batch_size),
            _time(found.time_s),
            _rate(found),
            _memory(found),
        )
    yield from _wrapped(
        "micro: micro-batches x samples; rec.: activations recomputed; Z: ZeRO stage.",
        indent="  ",
    )


def _row(*cells: str) -> str:
    n, layout, micro, kind, again, zero, batch, step, rate, memory = cells
    return (
        f"{n:>2} {layout:9} {micro:7} {kind:4} {again:4} {zero:1} {batch:>5} {step:>25} {rate:>6} "
        f"{memory:>7}"
    )


def _serving(plans: tuple[Predicted, ...]) -> Iterator[str]:
    yield _call("", "runtime", "type", "devices", "batch", "latency, 90 %", "/s", "memory")
    for number, found in enumerate(plans, start=1):
        plan = found.plan
        assert isinstance(plan, ServingPlan)
        yield _call(
            str(number),
            plan.runtime,
            plan.precision,
            str(plan.tp),
            str(plan.batch_size),
            _time(found.time_s),
            _rate(found),
            _memory(found),
        )


def _call(*cells: str) -> str:
    n, runtime, kind, devices, batch, latency, rate, memory = cells
    return (
        f"{n:>2} {runtime:8} {kind:4} {devices:>7} {batch:>5} {latency:>26} {rate:>9} {memory:>8}"
    )


def _rate(found: Predicted) -> str:
    return units.metric(_short(found.samples_per_s.value))


def _doubtful(plans: tuple[Predicted, ...]) -> Iterator[str]:
    if any(found.fits < _SURE_TO_FIT for found in plans):
        yield f"  ? fits with a probability under {_SURE_TO_FIT}"


def _detail(best: Predicted, one: MachineOutlook, traits: Traits) -> Iterator[str]:
    """Where the first plan's time goes, its rate, memory, energy and cost."""
    total = sum(best.parts_s.values())
    shares = [(s / total, name) for name, s in best.parts_s.items()]
    spent = ", ".join(f"{name} {share:.0%}" for share, name in shares if share >= _LEAST_SHARE)
    yield from _wrapped(f"First plan: {spent}.", indent="  ")
    rate = best.samples_per_s
    line = f"{_estimate(rate, '')} samples/s"
    if traits.transformer is not None:
        tokens = rate.value * traits.transformer.sequence
        line += f", {_significant(tokens)} tokens/s"
    line += f"; {_estimate(best.memory_bytes, 'B')} a device, "
    line += f"fits with probability {_chance(best.fits)}"
    if best.energy_j_per_sample is not None:
        energy = _estimate(best.energy_j_per_sample, "J")
        line += f"; {energy} a sample (accelerators alone)"
    yield from _wrapped(f"{line}.", indent="  ")
    if one.cost_per_million is not None:
        cost = one.cost_per_million
        yield from _wrapped(
            f"Cost of a million samples: {_significant(cost.value)} ({_significant(cost.low)} to "
            f"{_significant(cost.high)}) at {_significant(one.price_per_h or 0.0)} an hour.",
            indent="  ",
        )


def _judgement(found: Judgement) -> str:
    chance = "" if found.probability is None else f" (probability {_chance(found.probability)})"
    limit = units.show(found.limit, found.unit)
    return f"{found.word}{chance}: {found.name} <= {limit}: {found.why}."


def _comparison(pair: Comparison, found: Outlook) -> str:
    ratio = pair.ratio
    line = (
        f"{pair.first} faster than {pair.second} with probability {_chance(pair.faster)} "
        f"({units.show(ratio.value, '')} times as fast a sample, "
        f"{units.show(ratio.low, '')} to {units.show(ratio.high, '')})"
    )
    costs = {one.name: one.cost_per_million for one in found.machines}
    first, second = costs[pair.first], costs[pair.second]
    if first is not None and second is not None and pair.cheaper is not None:
        line += (
            f"; cost per million samples {_significant(first.value)} against "
            f"{_significant(second.value)}, cheaper with probability {_chance(pair.cheaper)}"
        )
    if pair.settling is None:
        return f"{line}; no measurement is needed to settle it."
    best = pair.settling
    price = f", about {_significant(best.cost)}" if best.cost is not None else ""
    lead = "the cheapest measurement that would settle it"
    if best.decides < 0.5:
        lead = "no measurement is likely to settle it; the likeliest is"
    return (
        f"{line}; {lead}: {best.what} ({units.show(best.device_s, 's')} of a device{price}; "
        f"settles it with probability {_chance(best.decides)})."
    )


def _checks(rows: tuple[Check, ...]) -> Iterator[str]:
    yield "  line machine              plan                  measured predicted  error in 90 %"
    for row in rows:
        covered = "yes" if row.covered else "no"
        yield (
            f"{row.row:6} {row.machine[:20]:20} {_plan(row.plan)[:20]:20} "
            f"{units.show(row.measured_s, 's'):>9} {units.show(row.predicted_s.value, 's'):>9} "
            f"{row.error:+6.0%} {covered:>7}"
        )
    errors = [abs(row.error) for row in rows]
    inside = sum(row.covered for row in rows)
    yield (
        f"  mean error {sum(errors) / len(errors):.1%}, largest {max(errors):.1%}; "
        f"{inside} of {len(rows)} within the stated 90 % interval"
    )


def _plan(plan: TrainingPlan | ServingPlan) -> str:
    if isinstance(plan, ServingPlan):
        return f"{plan.runtime} {plan.precision} b{plan.batch_size} tp{plan.tp}"
    return f"{plan.dp}x{plan.tp}x{plan.pp} {plan.precision} b{plan.batch_size} z{plan.zero}"


def _time(found: Estimate) -> str:
    """The median and its interval, the unit once."""
    shown = _estimate(found, "s")
    unit = shown.removesuffix(")").split(" ")[-1]
    return shown.removesuffix(f" {unit})") + ")"


def _estimate(found: Estimate, unit: str) -> str:
    return units.around(found.value, found.low, found.high, unit)


def _memory(found: Predicted) -> str:
    shown = units.show(found.memory_bytes.value, "B").replace(" ", "")
    return shown if found.fits >= _SURE_TO_FIT else f"{shown}?"


def _chance(probability: float) -> str:
    """Rounded down, so that 0.899 does not look LIKELY; never 0 or 1: no prediction is so sure."""
    if probability < 0.01:
        return "under 0.01"
    return "over 0.99" if probability >= 0.99 else f"{math.floor(100 * probability) / 100:.2f}"


def _significant(value: float) -> str:
    return f"{_short(value):,.10g}"


def _short(value: float) -> float:
    """Three significant digits."""
    return float(f"{value:.2e}")


def _wrapped(line: str, *, indent: str = "", hanging: str | None = None) -> list[str]:
    return wrap(line, _WIDTH, indent if hanging is None else hanging, indent)
