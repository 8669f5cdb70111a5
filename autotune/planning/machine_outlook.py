"""The outlook of one machine: its plans, limits and cost.

traits + machine + request -> ranking, serving_time -> limit_words -> MachineOutlook, BestPlan
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from autotune import units
from autotune.errors import UsageError
from autotune.planning import (
    bounds,
    compare_machines,
    limit_words,
    ranking,
    serving_time,
    training_time,
)
from autotune.planning.compare_machines import BestPlan
from autotune.planning.machines import Machine
from autotune.planning.serving_time import ServingForecast
from autotune.planning.training_time import PlanForecast, TrainingForecast
from autotune.records.budget import Budget
from autotune.records.outlook import Judgement, MachineOutlook, Predicted
from autotune.records.task import Traits

_SHOWN = 10
_DEFAULT_PRECISIONS = ("bf16", "fp16", "tf32", "fp32")
_BATCHES_A_DEVICE = (1, 4, 16)
_SERVED = (1, 4, 16, 64)
_POWER_SD = 0.15


T = TypeVar("T", bound=PlanForecast)
Limited = tuple[str, str, float, limit_words.Measure[T]]
"""Name, unit, limit, and how a plan is measured by it."""


@dataclass(frozen=True)
class PlanRequest:
    """What is to be planned.

    ``samples`` is what the final training sees (rows times epochs); ``batches`` and
    ``precisions`` are of training, () for the defaults.
    """

    budget: Budget
    samples: int
    batches: tuple[int, ...] = ()
    precisions: tuple[str, ...] = ()

    @property
    def serving(self) -> bool:
        """Whether deployment is planned: a limit on it, or a goal, was given."""
        b = self.budget
        return any(x is not None for x in (b.latency, b.energy, b.memory, b.goal))

    @property
    def training(self) -> bool:
        """Whether training is planned: unless deployment alone was asked for."""
        b = self.budget
        limits = (b.train_time_s, b.train_energy_j, b.train_memory_bytes)
        return not self.serving or bool(self.batches) or any(x is not None for x in limits)


def outlook(
    traits: Traits, machine: Machine, asked: PlanRequest
) -> tuple[MachineOutlook, BestPlan | None]:
    """One machine's outlook, and its best plan for a comparison (None where nothing fits).

    Raises:
        UsageError: a precision that the profile has no rate for, or a batch that cannot be
            spread over the devices.
    """
    training = _train(traits, machine, asked) if asked.training else _Planned()
    served = _serve(traits, machine, asked) if asked.serving else _Planned()
    main = training if asked.training else served
    cost = None
    if main.best is not None:
        cost = compare_machines.cost_per_million(main.best, main.sd)
    return MachineOutlook(
        name=machine.name,
        devices=machine.devices,
        nodes=machine.nodes,
        considered=training.considered + served.considered,
        training=training.plans,
        serving=served.plans,
        judgements=training.judgements + served.judgements,
        why_not=training.why_not + served.why_not,
        assumed=machine.assumed,
        price_per_h=machine.price_per_h,
        cost_per_million=cost,
    ), main.best


def _with_memory(
    limits: list[Limited[T]], machine: Machine
) -> list[tuple[float, limit_words.Measure[T]]]:
    """What a plan is chosen by: nothing without limits, else these and that it fits."""
    if not limits:
        return []

    def memory(found: T) -> tuple[float | None, float]:
        return found.memory_bytes, training_time.MEMORY_SD

    return [*((limit, by) for _, _, limit, by in limits), (machine.memory_bytes, memory)]


def _judgements(
    limits: list[Limited[T]], known: dict[str, bounds.Bound], best: T | None
) -> tuple[Judgement, ...]:
    return tuple(
        limit_words.judge(name, unit, limit, known.get(name), measure(best) if best else None)
        for name, unit, limit, measure in limits
    )


def _best_plan(machine: Machine, devices: int, best: PlanForecast | None) -> BestPlan | None:
    if best is None:
        return None
    sample_s = best.time_s / best.plan.batch_size
    return BestPlan(machine, devices, sample_s, best.time_s, best.own_sd)


@dataclass(frozen=True)
class _Planned:
    """The plans and judgements of training, or of deployment."""

    plans: tuple[Predicted, ...] = ()
    judgements: tuple[Judgement, ...] = ()
    why_not: tuple[str, ...] = ()
    considered: int = 0
    best: BestPlan | None = None
    sd: float = 0.0


# -- training ------------------------------------------------------------------------------


def _train(traits: Traits, machine: Machine, asked: PlanRequest) -> _Planned:
    precisions = _precisions(machine, asked.precisions)
    batches = asked.batches or tuple(machine.devices * n for n in _BATCHES_A_DEVICE)
    fitting, others, count = ranking.rank(traits, machine, batches, precisions)
    if not count:
        raise UsageError(
            f"a batch of {' or '.join(map(str, batches))} cannot be spread over the "
            f"{machine.devices} devices of {machine.name}: give --train-batch a multiple of what "
            "they can share, or fewer --devices"
        )
    limits = _training_limits(machine, asked)
    best = limit_words.best(fitting, _with_memory(limits, machine))
    known = _training_bounds(traits, machine, asked, precisions)
    shown = ranking.distinct(fitting, _SHOWN)
    if limits and best is not None:
        shown = [best, *(found for found in shown if found is not best)][:_SHOWN]
    return _Planned(
        plans=tuple(training_time.predicted(found, machine) for found in shown),
        judgements=_judgements(limits, known, best),
        why_not=_why_not(traits, machine, fitting, others),
        considered=count,
        best=_best_plan(machine, machine.devices, best),
        sd=best.time_sd if best else 0.0,
    )


def _precisions(machine: Machine, asked: Sequence[str]) -> tuple[str, ...]:
    """Those asked for; else the best of the half types, and those of 32 bits.

    fp8 must be asked for: it may cost quality, which is not predicted.
    """
    if asked:
        missing = [name for name in asked if name not in machine.rates]
        if missing:
            raise UsageError(
                f"--precision {missing[0]}: {machine.name} has no rate for it; it has "
                f"{', '.join(machine.rates)}"
            )
        return tuple(asked)
    found = [name for name in _DEFAULT_PRECISIONS if name in machine.rates]
    if "bf16" in found and "fp16" in found:
        found.remove("fp16")
    if not found:
        raise UsageError(
            f"{machine.name} has no rate that training can use; its profile has "
            f"{', '.join(machine.rates)}: name one with --precision"
        )
    return tuple(found)


def _training_limits(machine: Machine, asked: PlanRequest) -> list[Limited[TrainingForecast]]:
    budget, samples = asked.budget, asked.samples

    def time_s(found: TrainingForecast) -> tuple[float | None, float]:
        steps = math.ceil(samples / found.plan.batch_size)
        return steps * found.time_s, found.time_sd

    def energy_j(found: TrainingForecast) -> tuple[float | None, float]:
        energy = training_time.predicted(found, machine).energy_j_per_sample
        return (None if energy is None else energy.value * samples), math.hypot(
            found.time_sd, _POWER_SD
        )

    def memory(found: TrainingForecast) -> tuple[float | None, float]:
        return found.memory_bytes, training_time.MEMORY_SD

    limits: list[tuple[str, str, float | None, limit_words.Measure[TrainingForecast]]] = [
        ("train time", "s", budget.train_time_s, time_s),
        ("train energy", "J", budget.train_energy_j, energy_j),
        ("train memory", "B", budget.train_memory_bytes, memory),
    ]
    return [(name, unit, limit, by) for name, unit, limit, by in limits if limit is not None]


def _training_bounds(
    traits: Traits, machine: Machine, asked: PlanRequest, precisions: tuple[str, ...]
) -> dict[str, bounds.Bound]:
    return {
        "train time": bounds.step_time(traits, machine, asked.samples, precisions),
        "train memory": bounds.training_memory(traits, machine),
    }


def _why_not(
    traits: Traits,
    machine: Machine,
    fitting: list[TrainingForecast],
    others: list[TrainingForecast],
) -> tuple[str, ...]:
    """Why one device, or the whole machine, cannot hold the training."""
    alone = bounds.one_device(traits, machine)
    found = (alone,) if alone else ()
    if fitting:
        return found
    least = bounds.training_memory(traits, machine)
    if least.value > machine.memory_bytes:
        return (
            *found,
            f"CANNOT train here: {least.why}; a device has {_bytes(machine.memory_bytes)}.",
        )
    closest = others[0]
    return (
        *found,
        "No plan is likely to fit: the one that needs least, "
        f"dp {closest.plan.dp} x tp {closest.plan.tp} x pp {closest.plan.pp} with ZeRO-"
        f"{closest.plan.zero} and {closest.plan.recompute} recomputation, needs some "
        f"{_bytes(closest.memory_bytes)} a device; it has {_bytes(machine.memory_bytes)}.",
    )


# -- deployment ----------------------------------------------------------------------------


def _serve(traits: Traits, machine: Machine, asked: PlanRequest) -> _Planned:
    budget = asked.budget
    goal = budget.resolved_goal()
    many = _SERVED if goal in ("energy", "throughput") else (1,)
    batches = (budget.batch,) if budget.batch else many
    fitting, others = serving_time.rank(traits, machine, batches, goal)
    limits = _serving_limits(machine, budget)
    best = limit_words.best(fitting, _with_memory(limits, machine))
    known = {
        "latency": bounds.latency(traits, machine, min(batches)),
        "memory": bounds.serving_memory(traits, machine),
    }
    shown = [best, *(c for c in fitting if c is not best)][:_SHOWN] if best else []
    return _Planned(
        plans=tuple(serving_time.predicted(call, machine) for call in shown if call is not None),
        judgements=_judgements(limits, known, best),
        why_not=() if fitting else (_too_large(traits, machine, others),),
        considered=len(fitting) + len(others),
        best=_best_plan(machine, best.plan.tp if best else 1, best),
        sd=best.time_sd if best else 0.0,
    )


def _serving_limits(machine: Machine, budget: Budget) -> list[Limited[ServingForecast]]:
    def energy_j(call: ServingForecast) -> tuple[float | None, float]:
        energy = serving_time.predicted(call, machine).energy_j_per_sample
        return (None if energy is None else energy.value), math.hypot(call.time_sd, _POWER_SD)

    limits: list[tuple[str, str, float | None, limit_words.Measure[ServingForecast]]] = [
        (
            "latency",
            "s",
            budget.latency.value if budget.latency else None,
            lambda call: (call.time_s, call.time_sd),
        ),
        ("energy", "J", budget.energy.value if budget.energy else None, energy_j),
        (
            "memory",
            "B",
            budget.memory.value if budget.memory else None,
            lambda call: (call.memory_bytes, training_time.MEMORY_SD),
        ),
    ]
    return [(name, unit, limit, by) for name, unit, limit, by in limits if limit is not None]


def _too_large(traits: Traits, machine: Machine, others: list[ServingForecast]) -> str:
    least = bounds.serving_memory(traits, machine)
    if least.value > machine.memory_bytes:
        return f"CANNOT serve here: {least.why}; a device has {_bytes(machine.memory_bytes)}."
    needed = others[0].memory_bytes
    return (
        f"No deployment is likely to fit: the smallest needs some {_bytes(needed)} a device; "
        f"it has {_bytes(machine.memory_bytes)}."
    )


def _bytes(value: float) -> str:
    return units.show(value, "B")
