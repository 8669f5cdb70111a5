"""The task's data: asks the user's functions for datasets and divides them by ``splits``."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from autotune.errors import ContractError
from autotune.worker import samples, splits
from autotune.worker.blame import broken, guard
from autotune.worker.samples import Part, seeded
from autotune.worker.script import Source

FEW_CONFIRM_ROWS = 30  # under this many a quality verdict is never MET


class Parts(NamedTuple):
    """The parts, the classes of the rows that the model learns, and what to warn of."""

    train: Part | None
    select: Part
    confirm: Part
    adapt: Part | None
    labels: NDArray[Any] | None
    warnings: tuple[str, ...]


def collect(origin: Source, seed: int) -> Parts:
    """Load the datasets and divide them.

    Raises:
        ContractError: no data, data of a wrong form, or too few rows.
    """
    train, evaluation = _train(origin, seed), _given(origin, "eval_data", seed)
    own_confirm = _given(origin, "confirm_data", seed)
    warnings = list(origin.warnings)
    fit, pool = _hold_back(origin, train, evaluation, seed, warnings)
    found = splits.divide(
        len(pool),
        seed,
        samples.labels(pool),
        own_confirm=own_confirm is not None,
        wants_adapt=train is None,
    )
    select = pool.take(found.select)
    confirm = Part(own_confirm) if found.confirm is None else pool.take(found.confirm)
    adapt = None if found.adapt is None else pool.take(found.adapt)
    _refuse_empty(origin, {"train": fit, "select": select, "confirm": confirm}, len(pool))
    if train is None and adapt is None:
        warnings.append(
            f"no train_data() and fewer than {splits.MIN_ADAPT_ROWS} rows for a part of its own: "
            "calibration uses select's inputs, and recovery training is refused"
        )
    if len(confirm) < FEW_CONFIRM_ROWS:
        warnings.append(
            f"confirm has {len(confirm)} rows; under {FEW_CONFIRM_ROWS} a quality floor is never "
            "MET"
        )
    learned = samples.labels(fit if fit is not None else pool)
    warnings += _rare_classes(learned)
    return Parts(fit, select, confirm, adapt, learned, tuple(warnings))


def _refuse_empty(origin: Source, parts: dict[str, Part | None], pool: int) -> None:
    for name, part in parts.items():
        if part is not None and len(part) == 0:
            raise broken(
                origin.where,
                f"too few rows: none is left for {name}",
                found=f"{pool} evaluation rows",
                missing="rows; 60 for evaluation are a sensible least",
            )


def _hold_back(
    origin: Source, train: Any, evaluation: Any, seed: int, warnings: list[str]
) -> tuple[Part | None, Part]:
    """What fits, and the pool that evaluation parts are taken from."""
    if evaluation is not None:
        return (None if train is None else Part(train)), Part(evaluation)
    if train is None:
        raise _no_data(origin)
    kept, held = splits.hold_back(len(train), seed, samples.labels(train))
    warnings.append(
        "no eval_data(): a fifth of the training rows is held back at random; a random split "
        "leaks groups and time, which makes quality look better than it is"
    )
    return Part(train, kept), Part(train, held)


def _train(origin: Source, seed: int) -> Any:
    if origin.form != "script":
        return _given(origin, "train_data", seed)
    x, y = (_tensor(origin.names[name]) for name in ("X", "y"))
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or len(x) != len(y):
        raise broken(
            origin.where,
            "X and y must be arrays or tensors with one row a sample",
            found=f"X is {samples.describe(x)}, y is {samples.describe(y)}",
            mend="X = torch.tensor(data, dtype=torch.float32)\ny = torch.tensor(labels)",
        )
    return samples.check(TensorDataset(x, y), "train_data", origin.where, origin.path)


def _tensor(value: Any) -> Any:
    """Arrays and data frames become tensors, floats single and labels long."""
    if hasattr(value, "to_numpy"):
        value = value.to_numpy()
    if isinstance(value, list | tuple):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        return value.detach() if isinstance(value, Tensor) else value
    kinds = {"f": np.float32, "b": np.int64}
    if value.dtype.kind in "iu" and value.ndim == 1:
        return torch.from_numpy(value.astype(np.int64))
    return torch.from_numpy(np.ascontiguousarray(value, kinds.get(value.dtype.kind)))


def _given(origin: Source, name: str, seed: int) -> Any:
    value = origin.names.get(name)
    if value is None or origin.form == "script":
        return None
    if callable(value) and not hasattr(value, "__getitem__"):
        with seeded(seed), guard(origin.where, f"{name}()", origin.path):
            value = value()
    if value is None:
        raise broken(
            origin.where,
            f"{name}() returned None",
            missing="a return statement",
            mend=f"def {name}():\n    X, y = ...\n    return torch.utils.data.TensorDataset(X, y)",
        )
    with seeded(seed):
        return samples.check(value, name, origin.where, origin.path)


def _no_data(origin: Source) -> ContractError:
    given = [name for name in ("example_input", "confirm_data", "X", "y") if name in origin.names]
    return broken(
        origin.where,
        "no data was found, and without data quality cannot be measured",
        found=", ".join(given) or "neither train_data() nor eval_data()",
        missing="train_data() (or, for a model that comes trained, eval_data())",
        mend="def train_data():\n"
        "    X, y = ...  # tensors or arrays, one row a sample\n"
        "    return torch.utils.data.TensorDataset(X, y)",
    )


def _rare_classes(labels: NDArray[Any] | None) -> list[str]:
    """Warn where a class has under half of its equal share: accuracy can hide its loss."""
    if labels is None or len(labels) == 0:
        return []
    classes, counts = np.unique(labels, return_counts=True)
    shares = counts / counts.sum()
    rare = np.flatnonzero(shares < 0.5 / len(classes))
    if len(rare) == 0:
        return []
    names = ", ".join(f"{classes[i]} ({100 * shares[i]:.1f} %)" for i in rare[:5])
    more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
    return [
        f"class {names}{more}: under half of an equal share of {100 / len(classes):.1f} %; "
        "accuracy can hide the loss of such a class, see the worst class's recall"
    ]
