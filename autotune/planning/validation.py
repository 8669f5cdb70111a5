"""Predictions against a table of measurements (CSV).

    batch,precision,dp,tp,pp,micro_batch,recompute,zero,step_s     training, one row a run
    batch,precision,runtime,tp,latency_s                           deployment

Columns that are left out take the defaults of `_DEFAULTS`; ``machine`` names a profile where
several are given; any other column is refused, so that a mistyped one is not passed over.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

import msgspec

from autotune.errors import FormatError
from autotune.planning import serving_time, training_time
from autotune.planning.machines import Machine, machine
from autotune.records.hardware import Profile
from autotune.records.outlook import Check, ServingPlan, TrainingPlan
from autotune.records.task import Traits

_DEFAULTS = {
    "dp": "1",
    "tp": "1",
    "pp": "1",
    "recompute": "none",
    "zero": "0",
    "runtime": "eager",
}
_COLUMNS = {*_DEFAULTS, "machine", "batch", "precision", "micro_batch", "step_s", "latency_s"}


def check(path: Path, traits: Traits, profiles: Mapping[str, Profile]) -> tuple[Check, ...]:
    """Predict every row of a measured table.

    Args:
        path: the CSV file.
        traits: of the model that was measured.
        profiles: by name; rows without a machine are of the first.

    Raises:
        FormatError: the file cannot be read, a column is unknown or missing, or a value wrong;
            the message names the row.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            unknown = set(reader.fieldnames or ()) - _COLUMNS
            if unknown:
                raise FormatError(
                    f"{path}: unknown column {sorted(unknown)[0]!r}; columns are "
                    f"{', '.join(sorted(_COLUMNS))}"
                )
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path} cannot be read as CSV: {error}") from None
    if not rows:
        raise FormatError(f"{path} holds no rows")
    return tuple(_row(path, n, row, traits, profiles) for n, row in enumerate(rows, start=2))


def _row(
    path: Path,
    number: int,
    row: Mapping[str, str | None],
    traits: Traits,
    profiles: Mapping[str, Profile],
) -> Check:
    where = f"{path}, line {number}"
    given = _DEFAULTS | {name: value for name, value in row.items() if value}
    name = given.get("machine") or next(iter(profiles))
    if name not in profiles:
        raise FormatError(f"{where}: machine {name!r} is none of {', '.join(profiles)}")
    measured = given.get("step_s") or given.get("latency_s")
    if measured is None or ("step_s" in given) == ("latency_s" in given):
        raise FormatError(f"{where}: give either step_s or latency_s, in seconds")
    try:
        seconds = float(measured)
        plan = _plan(given)
    except (ValueError, KeyError, msgspec.ValidationError) as error:
        text = f"column {error} is missing" if isinstance(error, KeyError) else str(error)
        raise FormatError(f"{where}: {text}") from None
    if not 0 < seconds < float("inf"):
        raise FormatError(f"{where}: {measured} is no time greater than 0")
    devices = plan.tp if isinstance(plan, ServingPlan) else plan.dp * plan.tp * plan.pp
    target = machine(profiles[name], devices=devices)
    if plan.precision not in target.rates:
        raise FormatError(f"{where}: {name} has no rate for {plan.precision!r}")
    median, sd = _predicted(traits, target, plan)
    expected = training_time.estimate(median, sd)
    return Check(
        row=number,
        machine=name,
        plan=plan,
        measured_s=seconds,
        predicted_s=expected,
        error=median / seconds - 1,
        covered=expected.low <= seconds <= expected.high,
    )


def _predicted(
    traits: Traits, target: Machine, plan: TrainingPlan | ServingPlan
) -> tuple[float, float]:
    if isinstance(plan, ServingPlan):
        call = serving_time.forecast(traits, target, plan)
        return call.time_s, call.time_sd
    found = training_time.forecast(traits, target, plan)
    return found.time_s, found.time_sd


def _plan(given: Mapping[str, str]) -> TrainingPlan | ServingPlan:
    batch, tp = _whole(given, "batch"), _whole(given, "tp")
    if "latency_s" in given:
        fields = {"batch_size": batch, "precision": given["precision"], "tp": tp}
        return msgspec.convert(
            fields | {"runtime": given["runtime"], "type": "ServingPlan"}, ServingPlan
        )
    dp = _whole(given, "dp")
    if batch % dp:
        raise ValueError(f"a batch of {batch} cannot be spread over dp {dp}")
    micro = _whole(given, "micro_batch") if "micro_batch" in given else batch // dp
    if batch // dp % micro:
        raise ValueError(f"micro_batch {micro} does not divide a replica's {batch // dp}")
    fields = {
        "batch_size": batch,
        "precision": given["precision"],
        "dp": dp,
        "tp": tp,
        "pp": _whole(given, "pp"),
        "micro_batch": micro,
        "micro_batches": batch // dp // micro,
        "zero": int(given["zero"]),
    }
    return msgspec.convert(
        fields | {"recompute": given["recompute"], "type": "TrainingPlan"}, TrainingPlan
    )


def _whole(given: Mapping[str, str], name: str) -> int:
    value = int(given[name])
    if value < 1:
        raise ValueError(f"{name} is {value}: give a whole number greater than 0")
    return value
