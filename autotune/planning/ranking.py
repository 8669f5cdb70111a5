"""All legal training plans of a machine, best first.

    precision x tp x pp x dp x micro-batch x recomputation x ZeRO -> those that fit, by samples/s

tp stays inside a node, where the links are; it divides the heads.  pp divides the layers.
Within two per cent the simpler plan comes first: the model is not that accurate.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import product

from autotune.planning import training_time
from autotune.planning.machines import Machine
from autotune.planning.training_time import TrainingForecast
from autotune.records.outlook import Recompute, TrainingPlan
from autotune.records.task import Traits

_LARGEST_MICRO_BATCH = 64
_ALIKE = 0.02
_LIGHTER = 0.9
_LIKELY_TO_FIT = 0.5
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")


def plans(
    traits: Traits, machine: Machine, batches: Iterable[int], precisions: Iterable[str]
) -> Iterator[TrainingPlan]:
    """Every legal plan that keeps all devices of the machine at work."""
    layouts = tuple(_layouts(traits, machine))
    for batch, precision, (dp, tp, pp) in product(batches, precisions, layouts):
        if batch % dp:
            continue
        per_replica = batch // dp
        for micro, recompute, zero in product(
            _micro_batches(traits, per_replica), _recompute(traits), _zero(dp, pp)
        ):
            yield TrainingPlan(
                batch_size=batch,
                precision=precision,
                dp=dp,
                tp=tp,
                pp=pp,
                micro_batch=micro,
                micro_batches=per_replica // micro,
                recompute=recompute,
                zero=zero,
            )


def rank(
    traits: Traits, machine: Machine, batches: Iterable[int], precisions: Iterable[str]
) -> tuple[list[TrainingForecast], list[TrainingForecast], int]:
    """Forecasts that are likely to fit, best first; the others, least memory first; how many.

    Where no batch can be spread over the devices both lists are empty.
    """
    fitting: list[TrainingForecast] = []
    others: list[TrainingForecast] = []
    count = 0
    for plan in plans(traits, machine, batches, precisions):
        found = training_time.forecast(traits, machine, plan)
        count += 1
        likely = training_time.fits(found.memory_bytes, machine) >= _LIKELY_TO_FIT
        (fitting if likely else others).append(found)
    fitting.sort(key=_order)
    others.sort(key=lambda found: found.memory_bytes)
    return fitting, others, count


def distinct(ranked: list[TrainingForecast], most: int) -> list[TrainingForecast]:
    """The best of each dp x tp x pp and precision, then slower ones that need clearly less
    memory than all before them; ``most`` in all.
    """
    seen: set[tuple[object, ...]] = set()
    first: list[TrainingForecast] = []
    lighter: list[TrainingForecast] = []
    least = math.inf
    for found in ranked:
        plan = found.plan
        key = (plan.dp, plan.tp, plan.pp, plan.precision)
        if key not in seen:
            first.append(found)
        elif found.memory_bytes < _LIGHTER * least:
            lighter.append(found)
        seen.add(key)
        least = min(least, found.memory_bytes)
    return sorted((first + lighter)[:most], key=_order)


def _order(found: TrainingForecast) -> tuple[float, ...]:
    plan = found.plan
    step = round(math.log(found.samples_per_s) / _ALIKE)
    simple = (plan.batch_size, plan.pp, plan.tp, RECOMPUTE.index(plan.recompute), plan.zero)
    return (-step, *simple, -plan.micro_batch)


def _layouts(traits: Traits, machine: Machine) -> Iterator[tuple[int, int, int]]:
    """(dp, tp, pp) whose product is the number of devices."""
    shape = traits.transformer
    count = machine.devices
    for tp in _divisors(machine.per_node):
        if tp > 1 and (shape is None or (shape.heads or 1) % tp):
            continue
        for pp in _divisors(count // tp) if count % tp == 0 else ():
            if pp > 1 and (shape is None or shape.layers % pp):
                continue
            yield count // tp // pp, tp, pp


def _micro_batches(traits: Traits, per_replica: int) -> list[int]:
    """Powers of two that divide a replica's share; all of it where the model is no transformer,
    whose batch norm would see the difference.
    """
    if traits.transformer is None:
        return [per_replica]
    found = [2**k for k in range(7) if 2**k <= _LARGEST_MICRO_BATCH]
    return [micro for micro in found if per_replica % micro == 0]


def _recompute(traits: Traits) -> tuple[Recompute, ...]:
    shape = traits.transformer
    if shape is None or shape.fused_attention:
        return ("none", "full")
    return RECOMPUTE


def _zero(dp: int, pp: int) -> tuple[int, ...]:
    """Stages 2 and 3 would exchange every micro-batch of a pipeline: they are not used with it."""
    if dp == 1:
        return (0,)
    return (0, 1, 2, 3) if pp == 1 else (0, 1)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
