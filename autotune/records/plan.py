"""A training recipe, a deployment, and the two together as a plan file."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from autotune.records.base import Record

Value = float | int | str | bool
Optimizer = Literal[
    "adam",
    "adamw",
    "sgd",
    "momentum",
    "nesterov",
    "rmsprop",
    "nadam",
    "radam",
    "adafactor",
    "muon",
]
Device = Literal["cpu", "cuda"]
BASELINE: dict[Device, str] = {"cpu": "eager", "cuda": "cuda_eager"}
"""The runtime of the deploy baseline on each device: the user's module as PyTorch runs it."""
SINGLE = "single"
"""The parallel plug-in of one process."""
Share = Annotated[float, Meta(ge=0, lt=1)]


class Recipe(Record, frozen=True, kw_only=True):
    """How to train.  ``batch_size`` is the global batch over all ranks; ``threads`` are per rank.

    ``params`` are values of the user's own ``space(trial)``, by name.  Fields that an optimizer
    does not have are ``None``: ``momentum`` is one of momentum, nesterov, rmsprop and muon,
    ``beta1`` of the Adam family, ``beta2`` and ``eps`` of adaptive optimizers (docs/algorithms.md).

    ``warmup`` is the share of the training's steps over which the learning rate rises from 0
    (one_cycle: from a 25th; 0 stands for its usual 0.3).  ``clip_norm`` is the largest norm of
    the whole gradient.  ``label_smoothing`` needs the default cross-entropy.  ``ema`` is the
    decay per step of averaged weights, which are then the ones evaluated and kept.

    ``accumulate`` is the number of micro-batches whose gradients are summed in a step: less memory,
    and the same result except for batch norm, whose statistics are each micro-batch's own.
    ``compile``: forward and backward pass are compiled by torch.compile.  ``recompute``: activation
    checkpointing of the model's blocks.  ``channels_last``: the memory format of convolutions'
    weights and outputs.  ``workers`` data loading processes per rank (0: the rank loads itself).
    ``power_limit_w`` is the GPU's power limit while it trains (None: unchanged), ``clock_hz`` the
    highest clock.
    """

    optimizer: Optimizer = "adam"
    lr: float = 1e-3
    momentum: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "one_cycle"] = "constant"
    warmup: Share = 0.0
    clip_norm: Annotated[float, Meta(gt=0)] | None = None
    label_smoothing: Share = 0.0
    ema: Annotated[float, Meta(gt=0, lt=1)] | None = None
    batch_size: int = 32
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    accumulate: Annotated[int, Meta(ge=1)] = 1
    compile: bool = False
    recompute: bool = False
    channels_last: bool = False
    parallel: str = SINGLE
    ranks: int = 1
    threads: int = 1
    workers: Annotated[int, Meta(ge=0)] = 0
    power_limit_w: Annotated[float, Meta(gt=0)] | None = None
    clock_hz: Annotated[float, Meta(gt=0)] | None = None
    params: dict[str, Value] = {}

    @property
    def rise(self) -> float:
        """Share of the training's steps over which the learning rate rises."""
        return self.warmup or (0.3 if self.schedule == "one_cycle" else 0.0)


class Recovery(Record, frozen=True, kw_only=True):
    """How a compression step that trains recovers quality; without ``--joint`` the defaults hold.

    ``lr`` is a factor of the recipe's learning rate and ``epochs`` a share of the plan's recovery
    epochs.  ``teacher`` is the weight of the distillation loss (distance to the dense model's
    outputs), 1 - ``teacher`` that of the task's own, and ``temperature`` that of the distillation.
    """

    lr: Annotated[float, Meta(gt=0, le=10)] = 1.0
    epochs: Annotated[float, Meta(gt=0, le=1)] = 1.0
    teacher: Annotated[float, Meta(ge=0, le=1)] = 0.7
    temperature: Annotated[float, Meta(gt=0, le=100)] = 2.0


RECOVERY = "recovery_"
"""Prefix of a step's parameters that belong to its recovery: ``recovery_lr``."""


class Step(Record, frozen=True, kw_only=True):
    """One compression step: a plug-in's name under ``compress/`` and its parameters."""

    name: str
    params: dict[str, Value] = {}

    @property
    def recovery(self) -> Recovery:
        """The recovery that its parameters describe.

        Raises:
            msgspec.ValidationError: a value out of range, or no such parameter.
        """
        own = {
            n.removeprefix(RECOVERY): v for n, v in self.params.items() if n.startswith(RECOVERY)
        }
        return msgspec.convert(own, Recovery)


class Deployment(Record, frozen=True, kw_only=True):
    """How to ship: compression steps in order, then a runtime under ``runtimes/`` with its own
    parameters.

    ``recovery_epochs`` is the most that a step which trains may train: whole epochs, or a fraction
    of one, which is one pass over that fraction of the rows.
    """

    compress: tuple[Step, ...] = ()
    runtime: str = BASELINE["cpu"]
    runtime_params: dict[str, Value] = {}
    threads: int = 1
    batch_size: int = 1
    recovery_epochs: float = 0.0

    @property
    def lossless(self) -> bool:
        """True when nothing was compressed."""
        return not self.compress


class Plan(Record, frozen=True, kw_only=True):
    """A plan file (``autotune.plan/1``): enough to replay train, compress, build and verify.

    ``recipe`` is None for a pretrained model.  ``source_sha256`` is that of the
    user's file; ``args`` reached it as ``sys.argv[1:]``.
    """

    schema: str = "autotune.plan/1"
    task: str
    source_sha256: str | None
    args: tuple[str, ...] = ()
    seed: int
    recipe: Recipe | None
    epochs: int | float
    deployment: Deployment
    weights_sha256: str | None = None
    artifact_sha256: str | None = None
