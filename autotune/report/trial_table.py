"""The trials of both searches as one table: a pandas DataFrame, and the report's trials.csv.

One row a trial, SI units in the column names (``_s``, ``_bytes``, ``_j``).
"""

import json
from typing import TYPE_CHECKING

from autotune.records.report import DeployTrial, Report, TrainTrial
from autotune.report import view
from autotune.report.describe import describe
from autotune.report.plain_text import one_line

if TYPE_CHECKING:
    import pandas as pd

_TRAIN_COLUMNS = ("train_s", "samples_per_s", "peak_memory_bytes", "energy_j")
_DEPLOY_COLUMNS = (
    "energy_j_per_sample",
    "memory_bytes",
    "device_memory_bytes",
    "throughput_per_s",
    "size_bytes",
    "launches",
    "drop",
    "drop_upper",
    "build_s",
    "measure_s",
)
_COLUMNS = (
    *("kind", "number", "state", "plan", "quality"),
    *("latency_p50_s", "latency_p95_s", "latency_p99_s", "latency_samples"),
    *_DEPLOY_COLUMNS,
    *(
        "energy_modelled_j_per_sample",
        "energy_modelled_low_j_per_sample",
        "energy_modelled_high_j_per_sample",
    ),
    *_TRAIN_COLUMNS,
    *("rungs", "values", "constraints", "on_pareto_front"),
    *("failure_kind", "failure_message", "bound", "why", "wall_s", "overhead_s", "settings"),
)


def trials(report: Report) -> "pd.DataFrame":
    """Every trial of the train and the deploy search, in the order in which they were made.

    Columns have pandas' nullable types: a missing value is ``pandas.NA``.  ``kind`` is ``train`` or
    ``deploy``; ``settings``, ``constraints``, ``rungs`` and ``values`` are JSON.
    """
    import pandas as pd

    return pd.DataFrame(_rows(report), columns=list(_COLUMNS), dtype=object).convert_dtypes()


def csv(report: Report) -> str:
    """`trials` as CSV: an empty cell is a missing value, text is on one line."""
    import pandas as pd

    rows = [{name: _cell(value) for name, value in row.items()} for row in _rows(report)]
    # objects, so that an integer beside a missing value stays an integer
    table = pd.DataFrame(rows, columns=list(_COLUMNS), dtype=object)
    return table.to_csv(index=False, lineterminator="\n")


def _cell(value: object) -> object:
    """A text that no spreadsheet takes for a formula; all else as it is."""
    if not isinstance(value, str):
        return value
    value = one_line(value)
    return f"'{value}" if value[:1] in ("=", "+", "-", "@") else value


def _rows(report: Report) -> list[dict[str, object]]:
    front = set(report.pareto)
    deployed = (_deploy_row(trial, front) for trial in report.deploy_trials)
    return [*map(_train_row, report.train_trials), *deployed]


def _common(trial: TrainTrial | DeployTrial, settings: object) -> dict[str, object]:
    failure = trial.failure
    return {
        "number": trial.number,
        "state": trial.state,
        "quality": trial.quality,
        "constraints": json.dumps(trial.constraints),
        "failure_kind": failure.kind if failure else None,
        "failure_message": failure.message if failure else None,
        "bound": trial.bound,
        "why": trial.why,
        "wall_s": trial.wall_s,
        "overhead_s": trial.overhead_s,
        "settings": json.dumps(settings, sort_keys=True),
    }


def _train_row(trial: TrainTrial) -> dict[str, object]:
    found = trial.recipe
    row = _common(trial, {name: getattr(found, name) for name in found.__struct_fields__})
    row |= {name: getattr(trial, name) for name in _TRAIN_COLUMNS}
    rungs = [int(rung) if rung == int(rung) else rung for rung in trial.rungs]
    lists = {"rungs": json.dumps(rungs), "values": json.dumps(trial.values)}
    return row | lists | {"kind": "train", "plan": view.recipe(found)}


def _deploy_row(trial: DeployTrial, front: set[int]) -> dict[str, object]:
    plan, latency, modelled = trial.deployment, trial.latency_s, trial.energy_modelled
    steps = [{"name": step.name, **{"params": step.params}} for step in plan.compress]
    settings = {
        "compress": steps,
        "runtime": plan.runtime,
        "threads": plan.threads,
        "batch_size": plan.batch_size,
        "recovery_epochs": plan.recovery_epochs,
    }
    row = _common(trial, settings) | {name: getattr(trial, name) for name in _DEPLOY_COLUMNS}
    if latency is not None:
        row |= {f"latency_{name}_s": getattr(latency, name) for name in ("p50", "p95", "p99")}
        row["latency_samples"] = latency.samples
    if modelled is not None:
        row["energy_modelled_j_per_sample"] = modelled.value
        row |= {
            f"energy_modelled_{end}_j_per_sample": getattr(modelled, end) for end in ("low", "high")
        }
    front_text = "yes" if trial.number in front else "no"
    return row | {"kind": "deploy", "plan": describe(plan), "on_pareto_front": front_text}
