"""Compression plug-ins: one file each, from one form to another.

    module --prune--> module --bf16|fp16--> module
                         `--export (worker.build)--> onnx --int8_static|int8_dynamic--> onnx
                                                       `--convert--> openvino --int8_openvino-->

At its top level a plug-in imports only the standard library, records, errors and forms;
`Compressor` is what it must define, `CompressTools` what it may use.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.plan import Value
from autotune.records.task import Dim


@dataclass(frozen=True)
class CompressTools:
    """What a step may use.  It writes its form's files into ``workdir``.

    ``module(form)`` is the ``nn.Module`` of a module form, in eval mode; ``fresh()`` a dense
    one of the same code.  ``example(n)`` is one batch of n rows as positional tensors.
    ``recover(model)`` trains a model in place for the job's recovery epochs, by distillation from
    the dense one, and returns the seconds.  ``calibration(n)`` yields batches of at most n rows,
    input name to array.  ``shared`` is a folder that caches what several builds have in common.
    """

    seed: int
    batch_size: int
    workdir: Path
    module: Callable[[Form], Any]
    fresh: Callable[[], Any]
    example: Callable[[int], tuple[Any, ...]]
    recover: Callable[[Any], float]
    calibration: Callable[[int], Iterator[dict[str, Any]]]
    shared: Path | None = None


class Compressor(Protocol):
    """A module under ``compress/``, from the form that it ``TAKES`` to the one that it ``GIVES``
    (`forms.ROAD`).  Steps of one ``GROUP`` exclude each other.  ``DTYPE`` is the number format that
    it rounds to; None where it rounds nothing.

    It may also have (`autotune.records.task.Option` holds them):

    - ``RUNTIMES``, or a function ``runtimes(context)``: names of the runtimes that can serve
      its output; without it, all that take its form or one that the form can be converted to.
    - ``TRAINS = True``: it calls ``CompressTools.recover``.
    - ``TIME_LEFT``: a prior for the compressed model's latency over the dense one's.
    - ``SEARCHED = False`` and ``PREPARES``, names of other compressors: it is not searched by
      itself, but tried ahead of one of those that would be chosen if its quality were better.
    """

    TAKES: str
    GIVES: str
    GROUP: str
    DTYPE: str | None

    def unavailable(self, context: Context) -> str | None:
        """None, or why it cannot be used and what would help."""
        ...

    def dims(self, context: Context) -> tuple[Dim, ...]:
        """Its parameters as dimensions of the search."""
        ...

    def apply(self, form: Form, params: dict[str, Value], tools: CompressTools) -> Form:
        """Write the compressed form into ``tools.workdir``.

        Raises:
            JobError: unsupported.
        """
        ...
