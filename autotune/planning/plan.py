"""Plans for machines that one does not have: what `autotune plan` does.

    model.py -> Outline (no weights are made) -> traits
    profiles + traits + limits -> machine_outlook, compare_machines -> Outlook

Nothing is run on the target; every figure is labelled as predicted.
"""

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from autotune.bridge import ProcessBridge
from autotune.context import ask
from autotune.errors import UsageError
from autotune.planning import compare_machines, machine_outlook, machines, validation
from autotune.planning.machine_outlook import PlanRequest
from autotune.records import job as jobs
from autotune.records.budget import Budget
from autotune.records.hardware import Profile
from autotune.records.outlook import Outlook
from autotune.records.task import TaskInfo
from autotune.task import Task

_OUTLINE_S = 300.0


def plan(
    task: Task,
    profiles: Sequence[Profile],
    budget: Budget | None = None,
    *,
    devices: int | None = None,
    nodes: int | None = None,
    prices: Mapping[str, float] | None = None,
    batches: tuple[int, ...] = (),
    precisions: tuple[str, ...] = (),
    epochs: int | None = None,
    measured: Path | None = None,
) -> Outlook:
    """Predict a task's plans on other machines.

    Args:
        task: what to plan; no weight of its model is made where that can be avoided.
        profiles: the machines; each is compared with the next.
        budget: limits in absolute numbers; a limit on latency, energy or memory, or a goal,
            plans deployment, else training is planned.
        devices: number of devices of each profile.
        nodes: number of nodes of each.
        prices: per hour, of one machine as its profile describes it, by the profile's name.
        batches: batch sizes of training; by default 1, 4 and 16 samples a device.
        precisions: of training; by default those that cost no quality.
        epochs: of the final training; by default the task's own, or 1.
        measured: a CSV table to check the predictions against.

    Raises:
        UsageError: a limit that is relative, a price for a machine that is not planned, devices
            that a machine does not have.
        ContractError: the task cannot be looked at.
    """
    budget, prices = budget or Budget(), dict(prices or {})
    _check(budget, profiles, prices, devices, nodes)
    found = outlined(task)
    asked = PlanRequest(budget, _samples(found.info, epochs), batches, precisions)
    outlooks, best_plans = [], []
    for profile in profiles:
        target = machines.machine(profile, devices=devices, nodes=nodes)
        price = prices.get(profile.name)
        if price is not None:
            whole = machines.machine(profile).devices
            price *= target.devices / whole
        target = machines.priced(target, price)
        one, best = machine_outlook.outlook(found.traits, target, asked)
        outlooks.append(one)
        best_plans.append(best)
    pairs = [(a, b) for a, b in itertools.pairwise(best_plans) if a is not None and b is not None]
    by_name = {profile.name: profile for profile in profiles}
    return Outlook(
        name=task.name,
        traits=found.traits,
        machines=tuple(outlooks),
        comparisons=tuple(compare_machines.compare(a, b) for a, b in pairs),
        checks=validation.check(measured, found.traits, by_name) if measured else (),
        notes=found.notes + _notes(found.info, asked, epochs),
    )


def outlined(task: Task) -> jobs.Outlined:
    """The task's traits, by a worker that makes no weights."""
    with (
        tempfile.TemporaryDirectory(prefix="autotune-plan-") as folder,
        task.spec(seed=0) as spec,
    ):
        bridge = ProcessBridge(Path(folder))
        try:
            answer = ask(bridge, jobs.Outline(task=spec), _OUTLINE_S)
        finally:
            bridge.close()
    assert isinstance(answer, jobs.Outlined)
    return answer


def exit_code(found: Outlook) -> int:
    """3 where no machine can hold the plans and keep every limit, by bound; else 0."""
    impossible = [
        any(j.word == "CANNOT" for j in one.judgements) or not (one.training or one.serving)
        for one in found.machines
    ]
    return 3 if all(impossible) else 0


def _check(
    budget: Budget,
    profiles: Sequence[Profile],
    prices: Mapping[str, float],
    devices: int | None,
    nodes: int | None,
) -> None:
    relative = [limit for limit in (budget.latency, budget.energy, budget.memory) if limit]
    if any(limit.relative for limit in relative):
        raise UsageError(
            "a limit such as 0.6x is relative to a baseline that was not measured on the "
            "target: give an absolute one, such as 5ms"
        )
    names = [profile.name for profile in profiles]
    if len(set(names)) < len(names):
        raise UsageError(f"the profiles {', '.join(names)} are not all different: name each once")
    for name in prices:
        if name not in names:
            raise UsageError(f"--price {name}=...: no such --profile; there are {', '.join(names)}")
    if devices is not None and nodes is not None:
        raise UsageError("--devices and --nodes exclude each other: give one of the two")


def _samples(info: TaskInfo, epochs: int | None) -> int:
    return max(1, info.train_rows) * (epochs or info.epochs or 1)


def _notes(info: TaskInfo, asked: PlanRequest, epochs: int | None) -> tuple[str, ...]:
    notes = []
    budget = asked.budget
    if asked.training and (budget.train_time_s or budget.train_energy_j):
        count = epochs or info.epochs or 1
        default = "" if epochs or info.epochs else " (set it with --epochs N)"
        notes.append(f"The final training sees {info.train_rows} rows x {count} epochs{default}.")
    if asked.training and not asked.batches:
        notes.append(
            "Batch sizes of 1, 4 and 16 samples a device were tried; --train-batch N fixes it. "
            "A larger batch may also change the quality that is reached."
        )
    if asked.serving:
        notes.append("int8 and fp8 may cost quality; only a run there measures how much.")
    if asked.serving and budget.latency is not None:
        notes.append("Latency is that of a typical warm call; the tail is not predicted.")
    if budget.max_drop is not None or budget.min_quality is not None:
        notes.append("--max-drop and --min-quality are judged by `autotune run` on the machine.")
    return tuple(notes)
