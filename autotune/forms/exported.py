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


def dynamic_shapes(inputs: Sequence[Tensor], *, ragged: bool) -> tuple[tuple[Any, ...], ...]:
    """The first dimension of every input is one and the same free batch; the others are free
    as far as the model lets them where rows differ in shape.
    """
    batch = torch.export.Dim("batch", min=1, max=2**20)
    rest = torch.export.Dim.AUTO if ragged else torch.export.Dim.STATIC
    return (tuple({0: batch, **dict.fromkeys(range(1, x.dim()), rest)} for x in inputs),)


def last_line(error: BaseException) -> str:
    """One line that says what an exporter could not do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("#", "(", "File ", "From user"))]
    return f"{type(error).__name__}: {(telling or lines or [''])[-1]}"[:300]


def trace(model: Flat, inputs: Sequence[Tensor], *, dynamic: bool, ragged: bool = False) -> Any:
    """An ``ExportedProgram`` of a model in eval mode.

    Raises:
        JobError: unsupported, with torch.export's last line.
    """
    shapes = dynamic_shapes(inputs, ragged=ragged) if dynamic else None
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
