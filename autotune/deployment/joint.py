"""``--joint``: what recovers is searched with what it recovers from.

    prune.macs_kept, prune.importance      a step that trains, and beside its own dimensions
    prune.recovery_lr, prune.recovery_...  those of its recovery, the usual value first

A step without these parameters recovers as it does without ``--joint``, and a sampled value that
is the usual one is left out of the step: the plans, and the stages built for them, are the same.
Not known here: what recovery does with them (`worker.build.recovery`).
"""

from autotune.records.budget import Effort
from autotune.records.plan import RECOVERY, Recovery, Value
from autotune.records.task import Dim, Option, Survey
from autotune.search.space import choice

_CHOICES: dict[str, tuple[float, ...]] = {
    "lr": (1.0, 0.3, 0.1, 3.0),
    "epochs": (1.0, 0.5, 0.25),
    "teacher": (0.7, 0.3, 0.95),
    "temperature": (2.0, 1.0, 4.0),
}
"""The usual value (that of `Recovery`) first."""


def dims(step: Option, survey: Survey, effort: Effort) -> tuple[Dim, ...]:
    """The dimensions of a step's recovery; none where it does not train, or has no rows to."""
    task = survey.task
    if not effort.joint or not step.trains or not (task.train_rows or task.calibration_rows):
        return ()
    names = ["lr", "epochs"]
    if task.has_loss:  # else the dense model is all that there is to learn from
        names.append("teacher")
    if task.classes is not None:
        names.append("temperature")
    return tuple(choice(RECOVERY + name, _CHOICES[name]) for name in names)


def without_usual(params: dict[str, Value]) -> dict[str, Value]:
    """A step's parameters without what its recovery does anyhow."""
    return {name: value for name, value in params.items() if usual(name) != value}


def usual(name: str) -> Value | None:
    """What a step without this parameter of its recovery does; None for any other parameter."""
    field = name.removeprefix(RECOVERY)
    if not name.startswith(RECOVERY) or field not in Recovery.__struct_fields__:
        return None
    found: Value = getattr(Recovery(), field)
    return found
