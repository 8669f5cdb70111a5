"""Records an artifact's outputs, batch by batch, into a rows file; torch-free.

Neither the outputs nor the file are ever in memory as a whole: a language model's logits over a few
hundred texts are gigabytes.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.errors import JobError

if TYPE_CHECKING:
    from autotune.worker.data.rows import Array, Rows
    from autotune.worker.measure.timing import Call, Predict

_BATCH = 64
_BATCH_BYTES = 32 << 20


def batch(rows: "Rows", chosen: list[int]) -> "Call":
    """The rows of these numbers as one call's arguments.

    Raises:
        JobError: unsupported: their shapes differ.
    """
    try:
        return rows.batch(chosen)
    except ValueError as error:
        raise JobError(
            "unsupported",
            f"rows of different shapes cannot share a batch of {len(chosen)} ({error}); "
            "use batch size 1",
        ) from None


def record(predict: "Predict", rows: "Rows", out: Path, *, fixed: int | None) -> None:
    """Write the outputs of every row, in order.

    Args:
        predict: the artifact's.
        rows: its inputs.
        out: the rows file to write.
        fixed: the batch size that the artifact takes, or None where it takes any.

    Raises:
        JobError: unsupported: an output whose first dimension is not the batch, or ragged
            rows in a fixed batch.
    """
    from autotune.worker.data.rows import Writer

    size = fixed or 1
    start, kept = 0, _batched(predict, rows, fixed)
    with Writer(out) as writer:
        while start < len(rows):
            chosen = list(range(start, min(start + size, len(rows))))
            # an artifact of a fixed batch gets a full one: the last row again, cut off later
            full = chosen if fixed is None else chosen + [chosen[-1]] * (size - len(chosen))
            kind, names, fields = _answer(predict, rows, full)
            some = [i for i in range(len(fields)) if kept is None or i in kept]
            writer.add(kind, [names[i] for i in some], [fields[i][: len(chosen)] for i in some])
            start += len(chosen)
            if fixed is None and not rows.ragged:
                row_bytes = max(1, sum(int(f.nbytes) for f in fields) // len(full))
                size = max(1, min(_BATCH, _BATCH_BYTES // row_bytes))


def _batched(predict: "Predict", rows: "Rows", fixed: int | None) -> set[int] | None:
    """Which outputs have the batch as first dimension, by trying two batch sizes; None: all."""
    if len(rows) < 2 or rows.ragged:
        return None
    sizes = (1, 2) if fixed is None else (fixed,)
    found = [_answer(predict, rows, [0] * size)[2] for size in sizes]
    kept = [
        {i for i, field in enumerate(fields) if field.ndim and field.shape[0] == size}
        for size, fields in zip(sizes, found, strict=True)
    ]
    return set.intersection(*kept)


def _answer(
    predict: "Predict", rows: "Rows", chosen: list[int]
) -> "tuple[str, tuple[str, ...], list[Array]]":
    args, kwargs = batch(rows, chosen)
    return _fields(predict(*args, **kwargs), len(chosen))


def _fields(output: Any, size: int) -> "tuple[str, tuple[str, ...], list[Array]]":
    """An output's kind, names and arrays; the first is ``[batch, ...]``.

    Further outputs without the batch in front, such as a recurrent state ``[layers, batch,
    width]``, are not recorded: they are inputs of the next call and no part of quality.
    """
    import numpy as np

    if isinstance(output, dict):
        kind, names, values = "dict", tuple(output), list(output.values())
    elif isinstance(output, tuple | list):
        kind, names, values = "tuple", ("",) * len(output), list(output)
    else:
        kind, names, values = "tensor", ("",), [output]
    arrays = [np.asarray(value) for value in values]
    if not arrays or arrays[0].ndim == 0 or arrays[0].shape[0] != size:
        shape = arrays[0].shape if arrays else "no shape"
        raise JobError(
            "unsupported",
            f"predict returned an array of shape {shape} for a batch of {size}; "
            "the first dimension must be the batch",
        )
    return kind, names, arrays
