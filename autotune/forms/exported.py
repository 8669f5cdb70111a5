"""Through ``torch.export``: the ``program`` form (``model.pt2``) and what ONNX export starts from.

A program is for a model whose source cannot stand alone, as a Task from a notebook: eager
code is faster (a ``.pt2`` run eagerly took 45 % longer here), so it is the second choice.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autotune.errors import JobError
from autotune.forms.flat import Flat, plain_attention
from autotune.records.task import Dynamic

PROGRAM = "model.pt2"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters print, log and warn about what is theirs to mend, not the user's."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    sink = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def dynamic_shapes(
    inputs: Sequence[Tensor],
    names: Sequence[str] = (),
    *,
    batch: bool = True,
    ragged: bool = False,
    free: Sequence[Dynamic] = (),
) -> tuple[tuple[Any, ...], ...] | None:
    """What of the inputs is free, as torch.export takes it; None where nothing is.

    Args:
        inputs: positional tensors.
        names: their names; needed with ``free``.
        batch: the first dimension of every input is one and the same free batch.
        ragged: the others are free too, as far as the model lets them.
        free: those that the user named, which must be free.
    """
    if not batch and not free:
        return None
    dim = torch.export.Dim
    sizes = {d.size: dim(d.size, min=d.low, max=d.high) for d in free}
    first = dim("batch", min=1, max=2**20) if batch else dim.STATIC
    rest = dim.AUTO if ragged and batch and not free else dim.STATIC
    found: list[dict[int, Any]] = []
    for name, value in zip(names or [""] * len(inputs), inputs, strict=True):
        named = {d.dim: sizes[d.size] for d in free if d.input == name}
        found.append({0: first, **dict.fromkeys(range(1, value.dim()), rest), **named})
    return (tuple(found),)


def last_line(error: BaseException) -> str:
    """One line that says what an exporter could not do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("#", "(", "File ", "From user"))]
    return f"{type(error).__name__}: {(telling or lines or [''])[-1]}"[:300]


def trace(
    model: Flat,
    inputs: Sequence[Tensor],
    *,
    dynamic: bool,
    ragged: bool = False,
    free: Sequence[Dynamic] = (),
) -> Any:
    """An ``ExportedProgram`` of a model in eval mode.

    Raises:
        JobError: unsupported, with torch.export's last line.
    """
    shapes = dynamic_shapes(inputs, model.names, batch=dynamic, ragged=ragged, free=free)
    try:
        with quiet(), plain_attention(), torch.no_grad():
            return torch.export.export(model, tuple(inputs), dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise JobError(
            "unsupported", f"torch.export cannot trace this model: {last_line(error)}"
        ) from error


def save(program: Any, path: Path) -> None:
    """Write a ``.pt2``."""
    with quiet():
        torch.export.save(program, path)
