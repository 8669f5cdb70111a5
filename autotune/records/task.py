"""What the user brought: how to load it, and what was found in it."""

from typing import Literal

from autotune.records.base import Record


class TaskSpec(Record, frozen=True, kw_only=True):
    """How a worker loads the user's task.

    ``kind`` is ``file`` (``path`` is a Python file), or ``pickle`` (``path`` is a
    private temporary file that a notebook's `autotune.Task` was written to).
    ``args`` reach the file as ``sys.argv[1:]``.
    """

    kind: Literal["file", "pickle"]
    path: str
    args: tuple[str, ...] = ()
    seed: int = 0


class TaskInfo(Record, frozen=True, kw_only=True):
    """What the contract found.  Row counts are of *train*, *select*, *confirm*, *adapt*.

    ``form`` is ``contract``, ``script`` or ``object``.  ``input_kind`` is ``tensor``,
    ``tuple`` or ``dict``.  ``per_sample`` says that quality is a mean of per-sample
    scores; ``binary`` that those are all 0 or 1 (exact paired test).
    """

    name: str
    form: Literal["contract", "script", "object"]
    source_sha256: str | None
    input_kind: Literal["tensor", "tuple", "dict"]
    input_names: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    input_dtypes: tuple[str, ...]
    ragged: bool
    train_rows: int
    select_rows: int
    confirm_rows: int
    adapt_rows: int
    classes: int | None
    metric: str
    higher_is_better: bool
    per_sample: bool
    binary: bool
    pretrained: bool
    has_loss: bool
    epochs: int | None = None
    recipe: dict[str, float | int | str | bool] | None = None
    module_names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Traits(Record, frozen=True, kw_only=True):
    """What a model costs at least: parameters, FLOPs (attention counted), bytes.

    ``flops_per_sample`` counts a multiply-add as two.  ``op_flops`` and ``op_calls`` are
    per operator class for one sample.  ``largest_op_bytes`` is the operand size of the
    largest operator at batch 1.
    """

    parameters: int
    parameter_bytes: int
    buffer_bytes: int
    flops_per_sample: float
    activation_bytes_per_sample: float
    largest_op_bytes: int
    op_flops: dict[str, float] = {}
    op_calls: dict[str, int] = {}
    module_types: dict[str, int] = {}
    has_batch_norm: bool = False
    has_dropout: bool = False


class Dim(Record, frozen=True, kw_only=True):
    """One dimension of a search space: ``choices`` if categorical, else ``low``..``high``."""

    name: str
    kind: Literal["float", "int", "choice"]
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    choices: tuple[float | int | str | bool, ...] = ()


class Option(Record, frozen=True, kw_only=True):
    """One legal or refused choice.

    ``kind`` is ``runtime``, ``compress``, ``parallel`` or ``precision``.  A refused one
    carries a reason that a person can act on.  ``takes`` and ``gives`` are forms
    (``module``, ``onnx``); compressors of one ``group`` exclude each other; ``dims`` are a
    compressor's own parameters.
    """

    kind: str
    name: str
    available: bool
    reason: str | None = None
    excluded_by_user: bool = False
    takes: str | None = None
    gives: str | None = None
    group: str | None = None
    dims: tuple[Dim, ...] = ()


class Split(Record, frozen=True, kw_only=True):
    """Measured training throughput of one parallelism split (no quality involved)."""

    parallel: str
    ranks: int
    threads: int
    batch_size: int
    precision: str
    samples_per_s: float | None
    startup_s: float | None = None
    peak_memory_bytes: int | None = None
    failure: str | None = None


class Survey(Record, frozen=True, kw_only=True):
    """Everything known before the first trial."""

    task: TaskInfo
    traits: Traits
    options: tuple[Option, ...]
    splits: tuple[Split, ...] = ()
    certifiable_drop: float | None = None
    notes: tuple[str, ...] = ()
