"""Runtime plug-ins: one file each, from a form to an artifact folder with its own loader.

    form --write--> model files + load.py + artifact.json

A plug-in's top-level imports are the standard library and records; `Runtime` is what it
must hold, `RuntimeSettings` what it may use.  ``load.py`` never needs autotune and never unpickles.
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
    """What the plan says about serving: CPU threads, rows a call, the runtime's own parameters."""

    threads: int
    batch_size: int
    params: dict[str, Value] = field(default_factory=dict)


class Runtime(Protocol):
    """A module under ``runtimes/``.  ``TAKES`` is the form that it serves (`forms.ROAD`): one that
    takes ``module`` also takes ``program``, and takes nothing else where it says ``TRACED = True``.
    ``DEVICE`` is where it computes.

    It may also have (`autotune.records.task.Option` holds them): ``COMPILES``, ``build`` or
    ``first_call``, where a compiler runs; ``BUILD_S``, the least seconds that a first trial of
    it is expected to take, before one was measured; ``TIME_LEFT``, a guess of the share of eager
    PyTorch's latency that the dense model takes in it.
    """

    TAKES: str
    DEVICE: Device

    def unavailable(self, context: Context) -> str | None:
        """None, or why it cannot be used, in words that a person can act on."""
        ...

    def dims(self, context: Context) -> tuple[Dim, ...]:
        """Its own parameters as dimensions of the search; the first choice is its usual one."""
        ...

    def write(self, form: Form, out: Path, settings: RuntimeSettings) -> None:
        """Write the artifact into the empty folder ``out``."""
        ...
