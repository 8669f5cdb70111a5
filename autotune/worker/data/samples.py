"""The samples of the user's datasets: their form, labels and collation.

A sample is ``(input, target)``, or one dict with ``labels`` (transformers), which stands for
``(the dict, its labels)``.  NumPy float64 and Python floats become float32, as torch
models expect; torch tensors stay as the user made them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)
from torch.utils.data import default_collate as torch_collate

from autotune.worker.user_file.errors import contract_error, guard

MOST_LABELS_READ = 20_000  # rows read one by one to know their classes
LABELS = "labels"
_SOURCES = ("eval_data", "test_data")  # their samples may be without targets

Pair = tuple[Any, Any]


class Part(Dataset[Pair]):
    """Some rows of a dataset of the user's, as ``(input, target)`` pairs."""

    def __init__(self, base: Any, rows: NDArray[np.int64] | None = None) -> None:
        self.base = base
        self.rows = rows

    def __len__(self) -> int:
        return len(self.base) if self.rows is None else len(self.rows)

    def __getitem__(self, index: int) -> Pair:
        return pair(self.base[index if self.rows is None else int(self.rows[index])])

    def take(self, rows: NDArray[np.int64]) -> "Part":
        """Rows of this part, as a part."""
        return Part(self.base, rows if self.rows is None else self.rows[rows])


class Unlabelled(Dataset[Pair]):
    """Inputs without targets, as pairs of an input and its row's number ``[source, row]``, by which
    the model's own answer is found (`contract.agreement`); ``source`` is an index of `_SOURCES`.
    """

    def __init__(self, base: Any, source: int) -> None:
        self.base = base
        self.source = source

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> Pair:
        sample = self.base[index]
        return sample[0] if isinstance(sample, tuple | list) else sample, torch.tensor(
            [self.source, index], dtype=torch.float64
        )


def unlabelled(dataset: Any) -> bool:
    """Whether a part's rows are inputs alone."""
    while isinstance(dataset, Part):
        dataset = dataset.base
    return isinstance(dataset, Unlabelled)


def pair(sample: Any) -> Pair:
    """One sample or one batch as ``(input, target)``."""
    if isinstance(sample, Mapping) and LABELS in sample:
        return dict(sample), sample[LABELS]
    first, second = sample
    return first, second


def is_stream(dataset: Any) -> bool:
    """Whether it can only be iterated over."""
    if isinstance(dataset, DataLoader | TensorDataset):
        return False
    return isinstance(dataset, IterableDataset) or (
        hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__")
    )


def check(dataset: Any, name: str, where: str, path: str | None) -> Any:
    """Refuse what is not map-style with ``(input, target)`` samples; rows to evaluate on may be
    inputs alone, and come back as `Unlabelled`.

    Raises:
        ContractError: not map-style, empty, or its first sample has another form.
    """
    wrong = _not_map_style(dataset, name)
    if wrong is not None:
        raise contract_error(
            where, f"{name}() returned {wrong[0]}", **{"fix": _fix(name), **wrong[1]}
        )
    with guard(where, f"len({name}())", path):
        rows = len(dataset)
    if rows == 0:
        raise contract_error(
            where, f"{name}() is empty", found="0 rows", missing="rows", fix=_fix(name)
        )
    with guard(where, f"{name}()[0]", path):
        sample = dataset[0]
    if name in _SOURCES and _is_bare(sample):
        return Unlabelled(dataset, _SOURCES.index(name))
    if not _is_pair(sample):
        raise contract_error(
            where,
            f"{name}() yields samples of the wrong form",
            found=describe(sample),
            missing="(input, target); input is a tensor, a tuple or a dict of tensors",
            fix=_fix(name),
        )
    return dataset


def _not_map_style(dataset: Any, name: str) -> tuple[str, dict[str, str]] | None:
    """What the dataset is instead, and arguments of `contract_error`; None where map-style."""
    kind = type(dataset).__name__
    if isinstance(dataset, DataLoader):
        fix = f"def {name}():\n    loader = ...\n    return loader.dataset"
        return "a DataLoader; autotune chooses the batch size itself", {
            "missing": "the dataset inside it",
            "fix": fix,
        }
    few = isinstance(dataset, tuple | list) and 0 < len(dataset) < 4
    if few and isinstance(dataset[0], Tensor | np.ndarray):
        missing = "a map-style dataset that yields (input, target)"
        return f"a {kind} of arrays, not a dataset", {"missing": missing}
    iterable = isinstance(dataset, IterableDataset)
    if not iterable and hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return None
    methods = ("__iter__", "__len__") if iterable else ("__iter__", "__len__", "__getitem__")
    has = [m for m in methods if callable(getattr(type(dataset), m, None))]
    said = {
        "found": ", ".join(has) or "no dataset methods",
        "missing": "__len__ and __getitem__ (rows are split, shuffled and drawn by number)",
    }
    if name == "train_data" and "__iter__" in has:
        said["missing"] += "; or train_steps, and eval_data() for what is held back"
        said["fix"] = (
            "train_steps = 1000  # optimizer steps that make one epoch\n"
            "def eval_data():\n"
            "    X, y = ...\n"
            "    return torch.utils.data.TensorDataset(X, y)"
        )
    return f"a {kind}, which is not map-style", said


def _fix(name: str) -> str:
    return (
        f"def {name}():\n"
        "    X, y = ...  # tensors or arrays, one row a sample\n"
        "    return torch.utils.data.TensorDataset(X, y)"
    )


def describe(value: Any) -> str:
    """A sample in words: its types and shapes."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__}{list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        items = ", ".join(describe(item) for item in value[:4])
        more = ", ..." if len(value) > 4 else ""
        return f"a {type(value).__name__} of {len(value)} ({items}{more})"
    return type(value).__name__


def labels(dataset: Any) -> NDArray[Any] | None:
    """The scalar integer targets ``[rows]``; None where they are not classes.

    Read from the tensors where there are any, else row by row up to `MOST_LABELS_READ` rows.
    """
    values = targets(dataset)
    if values is not None and values.ndim > 1 and values.size == len(values):
        values = values.reshape(-1)
    if values is None or values.ndim != 1 or values.dtype.kind not in "iub":
        return None
    return values


def binary_labels(dataset: Any) -> NDArray[Any] | None:
    """Float targets that are all 0 or 1, one a row, as classes ``[rows]``; else None."""
    values = targets(dataset)
    if values is None or values.dtype.kind != "f" or values.size != len(values):
        return None
    flat = values.reshape(-1)
    return flat.astype(np.int64) if np.isin(flat, (0.0, 1.0)).all() else None


def targets(dataset: Any) -> NDArray[Any] | None:
    """All targets stacked ``[rows, ...]``, or None where they are too many or not arrays."""
    if isinstance(dataset, Part) and dataset.rows is not None:
        values = targets(dataset.base)
        return None if values is None else values[dataset.rows]
    if isinstance(dataset, Part):
        return targets(dataset.base)
    if isinstance(dataset, Unlabelled):
        return None
    if isinstance(dataset, Subset):
        values = targets(dataset.dataset)
        return None if values is None else values[np.asarray(dataset.indices)]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return dataset.tensors[1].numpy()
    if isinstance(dataset, ConcatDataset):
        pieces = [targets(piece) for piece in dataset.datasets]
        return None if any(p is None for p in pieces) else np.concatenate(pieces)  # type: ignore[arg-type]
    named = _named_targets(dataset)
    if named is not None:
        return named
    if not hasattr(dataset, "__getitem__") or len(dataset) > MOST_LABELS_READ:
        return None
    try:
        return np.stack([np.asarray(pair(dataset[i])[1]) for i in range(len(dataset))])
    except (ValueError, TypeError, RuntimeError):  # ragged or not numbers
        return None


def _named_targets(dataset: Any) -> NDArray[Any] | None:
    """``targets`` or ``labels`` of a large dataset, as torchvision's have; compared with a few
    samples, never assumed.
    """
    rows = len(dataset)
    if rows <= MOST_LABELS_READ:
        return None
    for name in ("targets", "labels"):
        held = getattr(dataset, name, None)
        if held is None or not hasattr(held, "__len__") or len(held) != rows:
            continue
        try:
            values = np.asarray(held)
            tried = np.linspace(0, rows - 1, 5).astype(int).tolist()
            if all(np.array_equal(np.asarray(pair(dataset[i])[1]), values[i]) for i in tried):
                return values
        except (ValueError, TypeError, RuntimeError):
            continue
    return None


def default_collate(samples: Sequence[Any]) -> Any:
    """torch's, but NumPy float64 and Python floats become float32, and optional inputs that are
    None (in a dict, or last in a tuple) are left out.
    """
    return torch_collate([_single(sample) for sample in samples])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, torch, NumPy and random are seeded, so that each process makes the same data; their
    states are restored afterwards.
    """
    import random

    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def _single(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return torch.as_tensor(value.astype(np.float32) if value.dtype == np.float64 else value)
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float32)
    if isinstance(value, Mapping):
        return {key: _single(item) for key, item in value.items() if item is not None}
    if isinstance(value, tuple | list):
        items = list(value)
        while len(items) > 1 and items[-1] is None:
            items.pop()
        return tuple(_single(item) for item in items)
    return value


def _is_bare(sample: Any) -> bool:
    if isinstance(sample, Mapping):
        return LABELS not in sample
    alone = isinstance(sample, tuple | list) and len(sample) == 1
    return isinstance(sample[0] if alone else sample, Tensor | np.ndarray)


def _is_pair(sample: Any) -> bool:
    if isinstance(sample, Mapping):
        return LABELS in sample
    return isinstance(sample, tuple | list) and len(sample) == 2
