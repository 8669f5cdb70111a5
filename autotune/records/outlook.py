"""Predictions for machines that are not at hand (``autotune.outlook/1``).

Nothing here is measured on the target.  An `Estimate` is a median with a 90 % interval; a
`Judgement` says CANNOT only where a provable bound breaks the limit, and never MET.
"""

from typing import Literal

from autotune.records.base import Record
from autotune.records.task import Traits

Word = Literal["CANNOT", "UNLIKELY", "UNCLEAR", "LIKELY"]
RuntimeClass = Literal["eager", "compiled", "engine"]
Recompute = Literal["none", "selective", "full"]
PREDICTED = "predicted, not measured on the target"


class Estimate(Record, frozen=True, kw_only=True):
    """A predicted number: its median and the interval that holds it with probability 0.9."""

    value: float
    low: float
    high: float


class TrainingPlan(Record, frozen=True, kw_only=True, tag=True):
    """How one step of ``batch_size`` samples is distributed over ``dp * tp * pp`` devices (data,
    tensor and pipeline parallel).

    Each of ``dp`` replicas takes ``micro_batches`` times ``micro_batch`` samples a step.
    ``zero`` is the ZeRO stage (arXiv 1910.02054): 1 shards the optimizer's state over dp, 2 the
    gradients too, 3 the parameters too.
    """

    batch_size: int
    precision: str
    dp: int
    tp: int
    pp: int
    micro_batch: int
    micro_batches: int
    recompute: Recompute
    zero: int


class ServingPlan(Record, frozen=True, kw_only=True, tag=True):
    """One call on ``batch_size`` samples, tensor-parallel over ``tp`` devices.

    ``runtime`` is a class: ``eager`` (one kernel launch per operator), ``compiled`` (fused,
    replayed as a graph) or ``engine`` (an inference engine's kernels as well).
    """

    batch_size: int
    precision: str
    runtime: RuntimeClass
    tp: int


class Predicted(Record, frozen=True, kw_only=True):
    """One plan and its predicted figures.

    ``time_s`` is that of a training step, or the latency of a call.  ``memory_bytes`` is the
    peak of the fullest device and ``fits`` the probability that it stays within the device.
    ``energy_j_per_sample`` counts the accelerators alone.  ``parts_s`` splits the median time
    by cause.
    """

    plan: TrainingPlan | ServingPlan
    time_s: Estimate
    samples_per_s: Estimate
    memory_bytes: Estimate
    fits: float
    energy_j_per_sample: Estimate | None
    parts_s: dict[str, float]
    statement: str = PREDICTED


class Judgement(Record, frozen=True, kw_only=True):
    """A limit on one machine.

    ``probability`` is that of the best plan keeping it; None with CANNOT, which rests on ``bound``
    (a lower bound for all plans), and where nothing could be predicted.  ``why`` is the arithmetic.
    """

    name: str
    unit: str
    limit: float
    word: Word
    probability: float | None
    bound: float | None
    why: str


class MachineOutlook(Record, frozen=True, kw_only=True):
    """One machine: its plans, best first, and judgements of the limits.

    ``why_not`` is the arithmetic where no plan fits.  ``assumed`` lists assumptions about what the
    profile does not contain.  ``price_per_h`` is of all devices; ``cost_per_million``
    samples, in its currency, of those that the first plan uses.
    """

    name: str
    devices: int
    nodes: int
    considered: int
    training: tuple[Predicted, ...] = ()
    serving: tuple[Predicted, ...] = ()
    judgements: tuple[Judgement, ...] = ()
    why_not: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    price_per_h: float | None = None
    cost_per_million: Estimate | None = None


class Settling(Record, frozen=True, kw_only=True):
    """A measurement that would decide a comparison, and its price.

    ``decides`` is the probability that afterwards the faster machine is known with probability
    0.9 at least.
    """

    what: str
    machines: tuple[str, ...]
    device_s: float
    cost: float | None
    decides: float


class Comparison(Record, frozen=True, kw_only=True):
    """The best plans of two machines side by side.

    ``ratio`` is the second's time per sample over the first's.  The model's errors are largely
    shared, so its interval is narrower than those of the two times would suggest.
    """

    first: str
    second: str
    faster: float
    ratio: Estimate
    cheaper: float | None = None
    settling: Settling | None = None


class Check(Record, frozen=True, kw_only=True):
    """One row of a measured table: measured and predicted seconds; ``error`` is their difference
    relative to the measured ones.  ``covered``: the interval contains the measured value.
    """

    row: int
    machine: str
    plan: TrainingPlan | ServingPlan
    measured_s: float
    predicted_s: Estimate
    error: float
    covered: bool


class Outlook(Record, frozen=True, kw_only=True):
    """Everything that `autotune plan` says."""

    schema: str = "autotune.outlook/1"
    name: str
    traits: Traits
    machines: tuple[MachineOutlook, ...]
    comparisons: tuple[Comparison, ...] = ()
    checks: tuple[Check, ...] = ()
    statement: str = PREDICTED
    quality: str = "not predicted"
    notes: tuple[str, ...] = ()
