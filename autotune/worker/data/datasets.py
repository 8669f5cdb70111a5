"""The task's datasets: the user's functions are called, and their rows divided by `splits`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from autotune.errors import ContractError
from autotune.worker.data import samples, splits
from autotune.worker.data.samples import Part, seeded
from autotune.worker.data.streams import Stream, unbatched
from autotune.worker.user_file import names
from autotune.worker.user_file.errors import contract_error, guard
from autotune.worker.user_file.run import Source

FEW_TEST_ROWS = 30  # under this many a quality verdict is never MET
_BATCH = 32  # of a recipe that names none


class Datasets(NamedTuple):
    """``labels`` are the classes of the rows that are trained on (evaluated, without any);
    ``rare``: one of them has under half of an equal share.
    """

    train: Part | Stream | None
    validation: Part
    test: Part
    calibration: Part | None
    labels: NDArray[Any] | None
    rare: bool
    warnings: tuple[str, ...]


def collect(origin: Source, seed: int, *, binary: bool = False) -> Datasets:
    """Load the datasets and divide them.

    Args:
        origin: the user's names.
        seed: of the division, and of the user's functions.
        binary: float targets that are all 0 or 1 are classes, as the loss is a binary one.

    Raises:
        ContractError: no data, data of a wrong form, or too few rows.
    """
    evaluation = _given(origin, "eval_data", seed)
    train = _train(origin, seed, evaluation is not None)

    def classes(rows: Any) -> NDArray[Any] | None:
        found = samples.labels(rows)
        return samples.binary_labels(rows) if found is None and binary else found

    own_test = _given(origin, "test_data", seed)
    warnings = list(origin.warnings)
    fit, pool = _hold_back(origin, train, evaluation, seed, warnings, classes)
    found = splits.divide(
        len(pool),
        seed,
        classes(pool),
        own_test=own_test is not None,
        wants_calibration=train is None,
    )
    validation = pool.take(found.validation)
    test = Part(own_test) if found.test is None else pool.take(found.test)
    calibration = None if found.calibration is None else pool.take(found.calibration)
    _refuse_empty(origin, {"train": fit, "validation": validation, "test": test}, len(pool))
    if train is None and calibration is None:
        warnings.append(
            f"no train_data(), and fewer than {splits.MIN_CALIBRATION_ROWS} rows for a calibration "
            "part: calibration uses the inputs of validation, and recovery training is refused"
        )
    if len(test) < FEW_TEST_ROWS:
        warnings.append(
            f"test has {len(test)} rows; under {FEW_TEST_ROWS} a quality floor is never MET"
        )
    learnt = fit if isinstance(fit, Part) else pool
    rare = _rare_classes(classes(learnt))
    return Datasets(
        fit, validation, test, calibration, samples.labels(learnt), bool(rare), (*warnings, *rare)
    )


def _refuse_empty(origin: Source, parts: dict[str, Any], pool: int) -> None:
    for name, part in parts.items():
        if part is not None and len(part) == 0:
            raise contract_error(
                origin.where,
                f"too few rows: none is left for {name}",
                found=f"{pool} evaluation rows",
                missing="rows: give at least 60 to evaluate on",
            )


def _hold_back(
    origin: Source,
    train: Any,
    evaluation: Any,
    seed: int,
    warnings: list[str],
    classes: Callable[[Any], NDArray[Any] | None],
) -> tuple[Part | Stream | None, Part]:
    """The training data, and the rows that the evaluation parts are taken from."""
    if evaluation is not None:
        whole = train is None or isinstance(train, Stream)
        return (train if whole else Part(train)), Part(evaluation)
    if train is None:
        raise _no_data(origin)
    kept, held = splits.hold_back(len(train), seed, classes(train))
    warnings.append(
        "no eval_data(): a fifth of the training rows is held back at random; where rows belong "
        "to groups or have an order in time, a random split leaks them and quality looks too good"
    )
    return Part(train, kept), Part(train, held)


def _train(origin: Source, seed: int, has_evaluation: bool) -> Any:
    """The training dataset, as it is or as a `Stream`; None where there is none."""
    if origin.form != "script":
        loader = names.function(origin, "train_loader")
        if loader is not None:
            return _loaded(origin, loader, seed, has_evaluation)
        return _given(origin, "train_data", seed, has_evaluation)
    x, y = (_tensor(origin.names[name]) for name in ("X", "y"))
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or len(x) != len(y):
        raise contract_error(
            origin.where,
            "X and y must be arrays or tensors with one row a sample",
            found=f"X is {samples.describe(x)}, y is {samples.describe(y)}",
            fix="X = torch.tensor(data, dtype=torch.float32)\ny = torch.tensor(labels)",
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


def _loaded(origin: Source, loader: names.Function, seed: int, has_evaluation: bool) -> Stream:
    """The user's own loader, as a stream of samples."""
    if not has_evaluation:
        what = "train_loader() needs eval_data(): which rows the loader leaves out is not known"
        raise _no_eval_data(origin, what, "train_loader()")

    def make() -> Any:
        with guard(origin.where, "train_loader(batch_size, rank, world, workers)", origin.path):
            return loader(_BATCH, 0, 1, 0)

    with seeded(seed):
        made = make()
        rows = _rows_of_loader(origin, made)
    return Stream(unbatched(make), rows, origin.where)


def _rows_of_loader(origin: Source, made: Any) -> int:
    """Rows of an epoch: those of its dataset, or its batches, or ``train_steps``."""
    steps = names.positive(origin, "train_steps")
    if steps is not None:
        return steps * _BATCH
    dataset = getattr(made, "dataset", None)
    sizes: tuple[tuple[Any, int], ...] = ((dataset, 1), (made, _BATCH))
    for sized, rows in sizes:
        try:
            return len(sized) * rows
        except TypeError:
            continue
    raise contract_error(
        origin.where,
        "train_loader() returned a loader without a length",
        found=type(made).__name__,
        missing="train_steps: how many steps make an epoch",
        fix="train_steps = 1000",
    )


def _streamed(origin: Source, dataset: Any, steps: int, has_evaluation: bool) -> Stream:
    """An iterable dataset; ``steps`` batches of the user's size are an epoch."""
    if not has_evaluation:
        what = "train_data() is iterable: no rows of it can be held back for evaluation"
        raise _no_eval_data(origin, what, "train_data()")
    batch = int((names.recipe(origin) or {}).get("batch_size", _BATCH))
    return Stream(lambda: iter(dataset), steps * batch, origin.where)


def _given(origin: Source, name: str, seed: int, has_evaluation: bool = False) -> Any:
    value = origin.names.get(name)
    if value is None or origin.form == "script":
        return None
    if callable(value) and not hasattr(value, "__getitem__"):
        with seeded(seed), guard(origin.where, f"{name}()", origin.path):
            value = value()
    if value is None:
        raise contract_error(
            origin.where,
            f"{name}() returned None",
            missing="a return statement",
            fix=f"def {name}():\n    X, y = ...\n    return torch.utils.data.TensorDataset(X, y)",
        )
    steps = names.positive(origin, "train_steps") if name == "train_data" else None
    if steps is not None and samples.is_stream(value):
        return _streamed(origin, value, steps, has_evaluation)
    with seeded(seed):
        return samples.check(value, name, origin.where, origin.path)


def _no_eval_data(origin: Source, what: str, source: str) -> ContractError:
    return contract_error(
        origin.where,
        what,
        missing="eval_data()",
        fix="def eval_data():\n"
        f"    X, y = ...  # rows that {source} never yields\n"
        "    return torch.utils.data.TensorDataset(X, y)",
    )


def _no_data(origin: Source) -> ContractError:
    given = [name for name in ("example_input", "test_data", "X", "y") if name in origin.names]
    return contract_error(
        origin.where,
        "no data was found, and without data quality cannot be measured",
        found=", ".join(given) or "neither train_data() nor eval_data()",
        missing="train_data() (or, for a model that comes trained, eval_data())",
        fix="def train_data():\n"
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
        "accuracy can hide that such a class is lost: balanced accuracy is the metric, unless you "
        "give one of your own, and the worst class's recall is reported"
    ]
