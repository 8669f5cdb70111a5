"""The user's task: how to load it, and its properties."""

from collections.abc import Mapping
from typing import Literal

from autotune.records.base import Record
from autotune.records.plan import Device


class TaskSpec(Record, frozen=True, kw_only=True):
    """How a worker loads the user's task.

    ``kind`` is ``file`` (``path`` is a Python file), or ``pickle`` (``path`` is a
    private temporary file that a notebook's `autotune.Task` was written to).
    ``args`` reach the file as ``sys.argv[1:]``.  ``params`` are sampled values of the user's
    ``space(trial)``; what that makes of them reaches ``make_model(**params)`` and, as
    ``trial.params``, the user's own ``train``.  ``weights`` is a checkpoint file and counts
    as pretrained.  ``pretrained`` overrides the file's own; ``retrain`` says that weights that
    look trained may be trained over.
    """

    kind: Literal["file", "pickle"]
    path: str
    args: tuple[str, ...] = ()
    seed: int = 0
    weights: str | None = None
    pretrained: bool | None = None
    retrain: bool = False
    params: dict[str, float | int | str | bool] = {}


class Dynamic(Record, frozen=True, kw_only=True):
    """One free dimension of one input: sizes from ``low`` to ``high``.

    ``dim`` counts with the batch as dimension 0.  Dimensions with one ``size`` name always
    have the same size.
    """

    input: str
    dim: int
    size: str
    low: int
    high: int


class Dim(Record, frozen=True, kw_only=True):
    """One dimension of a search space: ``choices`` if categorical, else ``low``..``high``.

    ``neutral`` is the value, inside the range or outside, at which its step changes nothing.
    """

    name: str
    kind: Literal["float", "int", "choice"]
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    choices: tuple[float | int | str | bool, ...] = ()
    neutral: float | None = None


class Node(Record, frozen=True, kw_only=True):
    """A dimension that exists when ``parent`` has one of ``values`` (always, without one)."""

    dim: Dim
    parent: str | None = None
    values: tuple[float | int | str | bool, ...] = ()

    def active(self, chosen: Mapping[str, float | int | str | bool]) -> bool:
        """Whether it exists beside these values."""
        return self.parent is None or chosen.get(self.parent) in self.values


class TaskInfo(Record, frozen=True, kw_only=True):
    """The task's properties.  Row counts are of *train*, *validation*, *test*, *calibration*.

    ``form`` is ``contract``, ``script`` or ``object``.  ``input_kind`` is ``tensor``,
    ``tuple`` or ``dict``.  ``per_sample`` says that quality is a mean of per-sample
    scores; ``binary`` that those are all 0 or 1 (exact paired test); ``rate`` that quality
    is a share between 0 and 1 (accuracy, balanced or not).

    ``own_train``: the user's ``train()`` runs instead of our loop; ``tunes`` are then the
    recipe fields that it honours, all others leave the space (None where our loop runs, which
    honours all).  ``own_loader``: batches come from the user's ``train_loader`` or stream.
    ``smoothable``: the training loss is the default cross-entropy, whose labels can be
    smoothed.  ``weights_sha256`` is that of the checkpoint file.  ``output_bytes_per_row`` is
    the size of one row's outputs.  ``width`` is the default of ``make_model(width=1.0)``, where
    the model can be made narrower; None where it cannot.
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
    validation_rows: int
    test_rows: int
    calibration_rows: int
    classes: int | None
    metric: str
    higher_is_better: bool
    per_sample: bool
    binary: bool
    pretrained: bool
    has_loss: bool
    smoothable: bool = False
    epochs: int | None = None
    steps: int | None = None
    recipe: dict[str, float | int | str | bool] | None = None
    module_names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    weights_sha256: str | None = None
    rate: bool = False
    own_train: bool = False
    own_loader: bool = False
    tunes: tuple[str, ...] | None = None
    dynamic: tuple[Dynamic, ...] = ()
    output_bytes_per_row: int | None = None
    space: tuple[Node, ...] = ()
    params: dict[str, float | int | str | bool] = {}
    width: float | None = None


class Transformer(Record, frozen=True, kw_only=True):
    """The shape of a model that is a stack of equal attention blocks.

    ``layers`` blocks take and give [batch, ``sequence``, ``hidden``].  ``block_parameters`` and
    ``block_flops_per_sample`` (forward) are of all blocks together, of which
    ``attention_flops_per_sample`` are the products of queries, keys and values.
    ``fused_attention``: attention is PyTorch's scaled_dot_product_attention, which stores no
    [sequence, sequence] scores.  ``vocabulary`` is the rows of the largest embedding.
    """

    layers: int
    hidden: int
    sequence: int
    heads: int | None
    vocabulary: int | None
    block_parameters: int
    block_flops_per_sample: float
    attention_flops_per_sample: float
    fused_attention: bool


class Traits(Record, frozen=True, kw_only=True):
    """Properties of the model: parameters, FLOPs (attention included), bytes.

    ``flops_per_sample`` counts a multiply-add as two.  ``op_flops`` and ``op_calls`` are
    per operator class for one sample.  ``largest_op_bytes`` is the operand size of the
    largest operator at batch 1.  ``transformer`` is None where the model is none;
    ``hidden_matrices`` counts the weights that Muon is made for.
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
    transformer: Transformer | None = None
    hidden_matrices: int | None = None


class Option(Record, frozen=True, kw_only=True):
    """One legal or refused choice, and what a plug-in declares of itself.

    ``kind`` is ``runtime``, ``compress``, ``parallel``, ``precision``, ``optimizer`` or ``step``.
    A refused one has a reason that says what to do.  ``takes`` and ``gives`` are forms
    (``forms.ROAD``); ``dims`` are a compressor's or runtime's own parameters.

    Of a compressor: those of one ``group`` exclude each other.  ``runtimes`` are those that can
    serve what it gives; None: each that takes the form, or one that the form can become.  One that
    ``trains`` recovers quality by training.  One that is not ``searched`` is no dimension of the
    search; it ``prepares`` the model for the compressors named there, and is tried where one of
    them would be chosen but for its quality.  ``dtype`` is the number format that it rounds to
    (``int8``, ``bf16``, ...), None where it rounds nothing.  ``time_left`` is a prior guess of the
    share of the dense model's latency that it leaves; it only orders first trials.

    Of a runtime: it computes on ``device``, a GPU being PyTorch's ``cuda``, also AMD's.  It
    ``compiles`` when the artifact is built, or at the first call in each process; None: never.
    ``build_s`` is the least that a first trial of it is expected to take, before one was measured.

    Of a parallel plug-in: ``ranks`` are the numbers of processes to be measured.
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
    runtimes: tuple[str, ...] | None = None
    trains: bool = False
    searched: bool = True
    prepares: tuple[str, ...] = ()
    dtype: str | None = None
    time_left: float = 0.5
    device: Device = "cpu"
    compiles: Literal["build", "first_call"] | None = None
    build_s: float = 0.0
    ranks: tuple[int, ...] = ()


class Layout(Record, frozen=True, kw_only=True):
    """Measured training throughput of one parallel layout (no quality involved).

    ``workers`` loaded its batches beside it; ``waiting`` is the share of the time in which the
    next batch was waited for.  ``first_s`` is its first step's, where a compiled one is made.
    ``unsteady`` names operators that may give other results with the
    same seed.
    """

    parallel: str
    ranks: int
    threads: int
    batch_size: int
    precision: str
    samples_per_s: float | None
    startup_s: float | None = None
    peak_memory_bytes: int | None = None
    failure: str | None = None
    workers: int = 0
    compile: bool = False
    recompute: bool = False
    channels_last: bool = False
    first_s: float | None = None
    waiting: float | None = None
    power_limit_w: float | None = None
    clock_hz: float | None = None
    energy_j_per_sample: float | None = None
    unsteady: tuple[str, ...] = ()

    @property
    def plain_step(self) -> bool:
        """Whether its step was neither compiled nor recomputed."""
        return not (self.compile or self.recompute)


class Width(Record, frozen=True, kw_only=True):
    """A model of ``width`` times the full one's, untrained: seconds of one call of the dense one.

    ``refused`` is the reason why it is not searched.
    """

    width: float
    runtime: str
    latency_s: float | None = None
    refused: str | None = None


class Survey(Record, frozen=True, kw_only=True):
    """Everything known before the first trial.  ``widths`` were measured with ``--joint``."""

    task: TaskInfo
    traits: Traits
    options: tuple[Option, ...]
    layouts: tuple[Layout, ...] = ()
    widths: tuple[Width, ...] = ()
    certifiable_drop: float | None = None
    notes: tuple[str, ...] = ()

    def option(self, kind: str, name: str) -> Option:
        """The option of that kind and name; one with defaults where the survey has none."""
        found = (o for o in self.options if o.kind == kind and o.name == name)
        return next(found, Option(kind=kind, name=name, available=False))

    def device(self, runtime: str) -> Device:
        """Where the runtime of that name computes."""
        return self.option("runtime", runtime).device
