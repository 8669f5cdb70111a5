"""Runtime plug-ins: one file each, from a form to an artifact folder with its own loader.

    form --write--> model files + load.py + artifact.json

At its top level a plug-in imports only the standard library, records, errors and forms;
`Runtime` is what it must define, `RuntimeSettings` what it may use.  ``load.py`` never needs
autotune and never unpickles.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.plan import Device, Value
from autotune.records.task import Dim


@dataclass(frozen=True)
class RuntimeSettings:
    """How the plan serves: CPU threads, rows per call, the runtime's own parameters."""

    threads: int
    batch_size: int
    params: dict[str, Value] = field(default_factory=dict)


class Runtime(Protocol):
    """A module under ``runtimes/``.  ``TAKES`` is the form that it serves (`forms.ROAD`): one that
    takes ``module`` also takes ``program``, and only that with ``TRACED = True``.  ``DEVICE`` is
    where it computes.

    It may also have (`autotune.records.task.Option` holds them): ``COMPILES``, ``build`` or
    ``first_call``, when it compiles; ``BUILD_S``, the least seconds that its first trial is
    expected to take; ``TIME_LEFT``, a prior for its latency over that of eager PyTorch, for the
    dense model.
    """

    TAKES: str
    DEVICE: Device

    def unavailable(self, context: Context) -> str | None:
        """None, or why it cannot be used and what would help."""
        ...

    def dims(self, context: Context) -> tuple[Dim, ...]:
        """Its own parameters as dimensions of the search; the first choice is the default."""
        ...

    def write(self, form: Form, out: Path, settings: RuntimeSettings) -> None:
        """Write the artifact into the empty folder ``out``."""
        ...
