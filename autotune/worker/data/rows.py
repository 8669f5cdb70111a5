"""Rows files: the inputs or outputs of many samples as NumPy arrays, torch-free.

A rows file is one ``.npz``.  Where every row has the same shape it holds one stacked
array ``[rows, ...]`` per field (keys ``f0``, ``f1``, ...); ragged rows are kept one array a
row (keys ``f0.0``, ``f0.1``, ...).  A file that a `Writer` made holds chunks of rows (keys
``f0.c0``, ``f0.c1``, ...), written as they came and read when asked for, so that no process
ever holds all of them.  ``names`` lists the fields ("" for positional ones),
``kind`` says whether a row is a tensor, a tuple or a dict.  Nothing is pickled.
"""

import zipfile
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CHUNK_BYTES = 32 << 20
KEPT_BYTES = 256 << 20
"""A file of chunks up to this size is read whole."""


class Chunks:
    """A field of a file of chunks, read when asked for; the last chunk read is kept."""

    def __init__(self, path: Path, field: int, shapes: Sequence[tuple[int, ...]]) -> None:
        self._path = path
        self._field = field
        self._shapes = shapes
        self._starts = [0]
        for shape in shapes:
            self._starts.append(self._starts[-1] + shape[0])
        self._held: tuple[int, Array] | None = None

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def ragged(self) -> bool:
        return len({shape[1:] for shape in self._shapes}) > 1

    def rows(self, indices: Sequence[int] | Array) -> Array:
        """Stacked rows.

        Raises:
            ValueError: they differ in shape.
        """
        found = []
        for index in indices:
            chunk = bisect_right(self._starts, int(index)) - 1
            found.append(self._chunk(chunk)[int(index) - self._starts[chunk]])
        return np.stack(found)

    def whole(self) -> "Array | list[Array]":
        """All rows: stacked, or a list where they are ragged."""
        chunks = [self._chunk(number) for number in range(len(self._shapes))]
        if self.ragged:
            return [row for chunk in chunks for row in chunk]
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)

    def _chunk(self, number: int) -> Array:
        if self._held is None or self._held[0] != number:
            self._held = None  # never two at once
            with np.load(self._path, allow_pickle=False) as data:
                self._held = (number, data[f"f{self._field}.c{number}"])
        return self._held[1]


class Rows(NamedTuple):
    """``fields[i]`` is a stacked array, a list of one array a row, or `Chunks` of a large file."""

    kind: str
    names: tuple[str, ...]
    fields: tuple[Array | list[Array] | Chunks, ...]

    def __len__(self) -> int:
        return len(self.fields[0]) if self.fields else 0

    @property
    def ragged(self) -> bool:
        return any(
            field.ragged if isinstance(field, Chunks) else isinstance(field, list)
            for field in self.fields
        )

    @property
    def row_bytes(self) -> int:
        """Bytes of the first row."""
        return sum(int(self._take(field, [0]).nbytes) for field in self.fields) if len(self) else 0

    def every(self, step: int) -> "Rows":
        """Each ``step``-th row, the first included."""
        if step == 1:
            return self
        chosen = range(0, len(self), step)
        fields = tuple(
            [self._take(field, [i])[0] for i in chosen]
            if self.ragged
            else self._take(field, chosen)
            for field in self.fields
        )
        return Rows(self.kind, self.names, fields)

    def batch(self, indices: Sequence[int] | Array) -> tuple[tuple[Array, ...], dict[str, Array]]:
        """Arguments and keyword arguments for one call, each ``[batch, ...]``, C-contiguous.

        Raises:
            ValueError: rows of different shapes in one batch.
        """
        arrays = tuple(self._take(field, indices) for field in self.fields)
        if self.kind == "dict":
            return (), dict(zip(self.names, arrays, strict=True))
        return arrays, {}

    def _take(self, field: Array | list[Array] | Chunks, indices: Sequence[int] | Array) -> Array:
        if isinstance(field, Chunks):
            return field.rows(indices)
        if isinstance(field, list):
            return np.stack([field[int(i)] for i in indices])
        return np.ascontiguousarray(field[np.asarray(indices)])


class Writer:
    """Writes a rows file batch by batch, in chunks of about `CHUNK_BYTES`; atomic.

    Use as a context manager; without an error the file is in its place at the end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._scratch = path.with_name(path.name + ".part")
        self._head: tuple[str, tuple[str, ...]] | None = None
        self._held: list[list[Array]] = []
        self._held_bytes = 0
        self._shapes: list[list[tuple[int, ...]]] = []

    def __enter__(self) -> "Writer":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = zipfile.ZipFile(self._scratch, "w", zipfile.ZIP_STORED, allowZip64=True)
        return self

    def add(self, kind: str, names: Sequence[str], arrays: Sequence[Array]) -> None:
        """One batch: ``arrays[i]`` is field i, ``[batch, ...]``.

        Raises:
            ValueError: other fields than in the batches before.
        """
        head = (kind, tuple(names))
        if self._head is None:
            self._head = head
            self._shapes = [[] for _ in arrays]
        if head != self._head:
            raise ValueError(f"a batch of {head} after batches of {self._head}")
        like = self._held[-1] if self._held else arrays
        pairs = zip(arrays, like, strict=True)
        if any(a.shape[1:] != b.shape[1:] or a.dtype != b.dtype for a, b in pairs):
            self._flush()
        self._held.append([np.asarray(array) for array in arrays])
        self._held_bytes += sum(int(array.nbytes) for array in arrays)
        if self._held_bytes >= CHUNK_BYTES:
            self._flush()

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                self._flush()
                name, names = self._head or ("tensor", ())
                self._write("kind", np.array(name))
                self._write("names", np.array(names, dtype=str))
                for i, shapes in enumerate(self._shapes):
                    text = ";".join(",".join(map(str, shape)) for shape in shapes)
                    self._write(f"s{i}", np.array(text))
        finally:
            self._file.close()
        if kind is None:
            self._scratch.replace(self._path)
        else:
            self._scratch.unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._held:
            return
        for i, column in enumerate(zip(*self._held, strict=True)):
            stacked = column[0] if len(column) == 1 else np.concatenate(column)
            self._write(f"f{i}.c{len(self._shapes[i])}", stacked)
            self._shapes[i].append(stacked.shape)
        self._held, self._held_bytes = [], 0

    def _write(self, name: str, array: Array) -> None:
        with self._file.open(f"{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


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
        whole = field.whole() if isinstance(field, Chunks) else field
        if isinstance(whole, list):
            data |= {f"f{i}.{row}": array for row, array in enumerate(whole)}
            data[f"n{i}"] = np.array(len(whole))
        else:
            data[f"f{i}"] = whole
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".part.npz")
    with scratch.open("wb") as file:
        np.savez(file, **data)  # type: ignore[arg-type]
    scratch.replace(path)


def load(path: Path) -> Rows:
    """Read a rows file; never unpickles.  Chunks of a large one stay on disk until asked for."""
    with np.load(path, allow_pickle=False) as data:
        names = tuple(str(name) for name in data["names"])
        fields: list[Array | list[Array] | Chunks] = []
        large = path.stat().st_size > KEPT_BYTES
        for i in range(len(names)):
            if f"s{i}" in data:
                chunks = Chunks(path, i, _shapes(str(data[f"s{i}"])))
                fields.append(chunks if large else chunks.whole())
            elif f"f{i}" in data:
                fields.append(data[f"f{i}"])
            else:
                fields.append([data[f"f{i}.{row}"] for row in range(int(data[f"n{i}"]))])
        return Rows(str(data["kind"]), names, tuple(fields))


def _shapes(text: str) -> list[tuple[int, ...]]:
    return [tuple(int(n) for n in shape.split(",")) for shape in text.split(";") if shape]
