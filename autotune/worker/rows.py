"""Rows files: the inputs or outputs of many samples as NumPy arrays, torch-free.

A rows file is one ``.npz``.  Where every row has the same shape it holds one stacked
array ``[rows, ...]`` per field (keys ``f0``, ``f1``, ...); ragged rows are kept one array a
row (keys ``f0.0``, ``f0.1``, ...).  ``names`` lists the fields ("" for positional ones),
``kind`` says whether a row is a tensor, a tuple or a dict.  Nothing is pickled.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Rows(NamedTuple):
    """``fields[i]`` is a stacked array or a list of one array a row."""

    kind: str
    names: tuple[str, ...]
    fields: tuple[Array | list[Array], ...]

    def __len__(self) -> int:
        return len(self.fields[0]) if self.fields else 0

    @property
    def ragged(self) -> bool:
        return any(isinstance(field, list) for field in self.fields)

    def batch(self, indices: Sequence[int] | Array) -> tuple[tuple[Array, ...], dict[str, Array]]:
        """Arguments and keyword arguments for one call, each ``[batch, ...]``, C-contiguous.

        Raises:
            ValueError: rows of different shapes in one batch.
        """
        arrays = tuple(self._take(field, indices) for field in self.fields)
        if self.kind == "dict":
            return (), dict(zip(self.names, arrays, strict=True))
        return arrays, {}

    def _take(self, field: Array | list[Array], indices: Sequence[int] | Array) -> Array:
        if isinstance(field, list):
            return np.stack([field[int(i)] for i in indices])
        return np.ascontiguousarray(field[np.asarray(indices)])


def from_samples(kind: str, names: Sequence[str], samples: Sequence[Sequence[Array]]) -> Rows:
    """Rows from one sequence of field arrays a sample; stacked where the shapes agree."""
    columns = list(zip(*samples, strict=True))
    fields = tuple(_stack(column) for column in columns)
    return Rows(kind, tuple(names), fields)


def _stack(column: Sequence[Array]) -> Array | list[Array]:
    if len({a.shape for a in column}) == 1:
        return np.stack(column)
    return list(column)


def save(path: Path, rows: Rows) -> None:
    """Write atomically."""
    data: dict[str, Array] = {"kind": np.array(rows.kind), "names": np.array(rows.names, dtype=str)}
    for i, field in enumerate(rows.fields):
        if isinstance(field, list):
            data |= {f"f{i}.{row}": array for row, array in enumerate(field)}
            data[f"n{i}"] = np.array(len(field))
        else:
            data[f"f{i}"] = field
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".part.npz")
    with scratch.open("wb") as file:
        np.savez(file, **data)  # type: ignore[arg-type]
    scratch.replace(path)


def load(path: Path) -> Rows:
    """Read a rows file; never unpickles."""
    with np.load(path, allow_pickle=False) as data:
        names = tuple(str(name) for name in data["names"])
        fields: list[Array | list[Array]] = []
        for i in range(len(names)):
            if f"f{i}" in data:
                fields.append(data[f"f{i}"])
            else:
                fields.append([data[f"f{i}.{row}"] for row in range(int(data[f"n{i}"]))])
        return Rows(str(data["kind"]), names, tuple(fields))
