"""Errors of the user's code: as contract errors that name its line, and as `Failure` records.

    with guard(source, "make_model()"):
        model = make_model()          # raises TypeError
    ->  ContractError: model.py: make_model() raised TypeError: ... (line 12: `...`)

Out of memory, exits and interrupts pass through: the job fails, the contract is not broken.
"""

import linecache
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from autotune.errors import AutotuneError, ContractError, JobError
from autotune.records.report import Failure


def contract_error(
    where: str,
    what: str,
    *,
    found: str | None = None,
    missing: str | None = None,
    fix: str | None = None,
    hint: str | None = None,
) -> ContractError:
    """A contract error: what is wrong, what was found, what is missing, the lines that fix it."""
    lines = [f"{where}: {what}"]
    if found:
        lines.append(f"  found:   {found}")
    if missing:
        lines.append(f"  missing: {missing}")
    if hint:
        lines.append(f"  hint:    {hint}")
    if fix:
        lines += ["  fix it with:", textwrap.indent(textwrap.dedent(fix).strip("\n"), " " * 6)]
    return ContractError("\n".join(lines))


def place(error: BaseException, path: str | None) -> str:
    """``line 12: `code` `` of the innermost frame in the user's file, else the innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if path is not None and f.filename == path]
    if own:
        frame = own[-1]
        code = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
        return f"line {frame.lineno}: `{code}`" if code else f"line {frame.lineno}"
    if frames:
        return f"{Path(frames[-1].filename).name} line {frames[-1].lineno}"
    return "place unknown"


@contextmanager
def guard(
    where: str, doing: str, path: str | None = None, hints: Sequence[tuple[type, str]] = ()
) -> Iterator[None]:
    """Run the user's code; what it raises becomes a `ContractError` that names its line.

    Args:
        where: the name of the user's file in messages.
        doing: what was being done, e.g. ``make_model()``.
        path: the user's file as it appears in tracebacks.
        hints: advice by exception type.
    """
    try:
        yield
    except (AutotuneError, MemoryError):
        raise
    except Exception as error:
        if failure(error).kind == "oom":
            raise
        advice = next((text for kind, text in hints if isinstance(error, kind)), None)
        text = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise contract_error(
            where, f"{doing} raised {text}", found=place(error, path), hint=advice
        ) from error


def failure(error: BaseException) -> Failure:
    """What went wrong, as a record."""
    text = f"{type(error).__name__}: {error}".strip().removesuffix(":")
    if isinstance(error, JobError):
        return Failure(kind=error.kind, message=str(error), least=error.least, never=error.never)
    if isinstance(error, ContractError):
        return Failure(kind="contract", message=str(error))
    if isinstance(error, SystemExit):
        return Failure(kind="exit", message=f"the model's code called exit({error.code!r})")
    if _out_of_memory(error):
        return Failure(kind="oom", message=text)
    where = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(where[-1].filename).name}:{where[-1].lineno})" if where else ""
    return Failure(kind="error", message=text + place)


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in text
        or "cannot allocate memory" in text
        or "out of memory" in text
    )
