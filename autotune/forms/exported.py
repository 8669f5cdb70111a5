"""Through ``torch.export``: the ``program`` form (``model.pt2``) and what ONNX export starts from.

A program is for a model whose source cannot be shipped, such as a Task from a notebook.  It is the
second choice, as a ``.pt2`` run eagerly took 45 % longer than eager code.
"""

import contextlib
import io
import logging
import re
import sysconfig
import traceback
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
    """Within, exporters neither print, log nor warn: their messages are not for the user."""
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
    """The inputs' dynamic dimensions, as torch.export takes them; None where there are none.

    Args:
        inputs: positional tensors.
        names: their names; needed with ``free``.
        batch: the first dimension of every input is one shared dynamic batch dimension.
        ragged: the others are dynamic too where the model allows it (``Dim.AUTO``).
        free: dimensions that the user named; export fails if one cannot be dynamic.
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
    """An exporter's error in one line: for a known kind the cause, the line of the user's code
    and a remedy, else the last line of the exporter's message.
    """
    causes = _causes(error)
    for cause in causes:
        for pattern, words in _PLAIN:
            if found := re.search(pattern, f"{type(cause).__name__}: {cause}", re.DOTALL):
                return words.format(*found.groups(), where=_where(causes))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("#", "(", "File ", "From user"))]
    return f"{type(error).__name__}: {(telling or lines or [''])[-1]}"[:300]


_KEEP = "keep to a runtime that runs your own code (eager or compiled)"
_PLAIN = (
    (
        r"[Dd]ata-dependent|DataDependent",
        "a branch, loop or size depends on the values of a tensor{where}, which a graph cannot "
        "express: write it with torch.where or torch.cond, or " + _KEEP,
    ),
    (
        r"No ONNX function found for .*?op='([\w.:]+)'",
        "there is no ONNX operator for {0}: write it with other operations, or use a runtime "
        "that needs no ONNX (eager, compiled, aoti)",
    ),
    (
        r"\.numpy\(\)|numpy\(\) is not supported|convert.*numpy",
        "the model converts tensors to numpy{where}, which torch.export cannot trace: use torch "
        "operations there, or a runtime that goes without (eager, compiled, onnxruntime)",
    ),
)
"""Patterns of exporters' errors, and what the user can do about them."""


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from, outermost first."""
    found: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in found:
        found.append(at)
        at = at.__cause__ or at.__context__
    return found


def _where(causes: Sequence[BaseException]) -> str:
    """`` (line 12: `if h.sum() > 0:`)``: the innermost frame of the user's own code, if any."""
    installed = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), str(_OURS))
    for cause in reversed(causes):
        frames = traceback.extract_tb(cause.__traceback__)
        own = [f for f in frames if not f.filename.startswith((*installed, "<"))]
        if own:
            code = f": `{own[-1].line}`" if own[-1].line else ""
            return f" (line {own[-1].lineno}{code})"
    return ""


_OURS = Path(__file__).resolve().parents[1]


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
