"""The task contract: from the user's file to one object that every torch job uses.

    model.py ── user_file.run ── names ─┬─ make_model / model ── weights
                                        ├─ train_data, eval_data, test_data ── datasets
                                        └─ loss, score, quality, ... ── functions (or defaults)

What this does not do: run a forward (that is ``worker.survey.inspect``), or train.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from autotune.errors import ContractError
from autotune.records.task import TaskInfo, TaskSpec
from autotune.worker.contract import agreement, dynamic_shapes, frameworks
from autotune.worker.contract.functions import RATES, Functions
from autotune.worker.contract.model_factory import ModelFactory
from autotune.worker.data import samples
from autotune.worker.data.batch_tree import as_array, fields, kind_of
from autotune.worker.data.datasets import Datasets, collect
from autotune.worker.data.rows import Array
from autotune.worker.data.samples import LABELS, Pair, seeded
from autotune.worker.data.streams import Stream
from autotune.worker.user_file import names, run
from autotune.worker.user_file.errors import contract_error, guard
from autotune.worker.user_file.names import no_model
from autotune.worker.user_file.search_space import UserSpace

_INSPECTED = "data/about.json"
_ROWS_LOOKED_AT = 64  # to find shapes that differ; few, as each job loads the task anew


class LoadedTask:
    """A task, ready to be used.

    Attributes:
        info: what was found (``module_names`` and the final ``binary`` come from Inspect).
        train, validation, test, calibration: map-style datasets of ``(input, target)``;
            ``train`` is None where only evaluation data was given, and a `Stream` where it can
            only be iterated; ``calibration`` is None where there are too few rows for it.
        functions: loss and quality of outputs.
        source: text that makes the model by itself, or None for a pickled Task.
        root: the folder that the user's imports start from.
        notes: what `trained_model` found and stripped in a checkpoint.
    """

    def __init__(self, spec: TaskSpec, origin: run.Source, pretrained: bool) -> None:
        self.spec = spec
        self._origin = origin
        self._names = origin.names
        self._pretrained = pretrained
        self._factory = ModelFactory(origin)
        self.source, self.root = origin.text, origin.root
        self.notes: tuple[str, ...] = ()
        self.functions = Functions(origin)
        data = collect(origin, spec.seed, binary=self.functions.threshold is not None)
        self.train: Dataset[Pair] | None = data.train
        self.validation: Dataset[Pair] = data.validation
        self.test: Dataset[Pair] = data.test
        self.calibration: Dataset[Pair] | None = data.calibration
        parts = (data.train, data.validation, data.test)
        self.functions.unlabelled = agreement.is_quality(parts, self.where, pretrained=pretrained)
        self._collate = names.function(origin, "collate")
        self.own_train = names.function(origin, "train")
        self.train_loader = names.function(origin, "train_loader")
        self.has_own_collate = self._collate is not None
        self.info = self._describe(data)

    @property
    def higher_is_better(self) -> bool:
        """The direction of quality."""
        return self.functions.higher_is_better

    @property
    def says_pretrained(self) -> bool:
        """Whether the file itself says that the model is, or is not, trained."""
        return self._names.get("pretrained") is not None

    @property
    def has_own_loss(self) -> bool:
        return self.functions.own_loss is not None

    @property
    def has_own_score(self) -> bool:
        return not self.functions.plain

    @property
    def where(self) -> str:
        """The name of the user's file, for messages."""
        return self._origin.where

    @property
    def params(self) -> Mapping[str, Any]:
        """The user's own hyperparameters, as chosen for this job."""
        return self._origin.params

    @property
    def path(self) -> str | None:
        """The user's file as tracebacks name it."""
        return self._origin.path

    def part(self, name: str) -> Dataset[Pair]:
        """The dataset called ``train``, ``validation``, ``test`` or ``calibration``.

        Raises:
            ContractError: the task has no such part.
        """
        part: Dataset[Pair] | None = getattr(self, name)
        if part is None:
            raise ContractError(f"{self.where}: this task has no {name} data")
        return part

    def training_data(self) -> Any:
        """*train*, or *calibration* where there is none.

        Raises:
            ContractError: there is neither.
        """
        data = self.calibration if self.train is None else self.train
        if data is None:
            raise ContractError(
                f"{self.info.name} has no training data: define train_data(), or set "
                "pretrained = True to keep the weights as they are"
            )
        return data

    def rows(self, name: str) -> int:
        """How many rows a part has; of a stream, how many make an epoch."""
        return _length(self.part(name))

    def write_inspected(self, root: Path) -> None:
        """Keep what jobs that make no model need to know of it."""
        about = {"shifted": self.functions.shifted}
        (root / _INSPECTED).write_text(json.dumps(about))

    def read_inspected(self, root: Path) -> "LoadedTask":
        """Read what Inspect wrote, where it did; returns the task itself."""
        path = root / _INSPECTED
        if path.is_file():
            self.functions.shifted = bool(json.loads(path.read_text()).get("shifted"))
        self.functions.answers = agreement.read(root) if self.functions.unlabelled else None
        return self

    def make_model(self) -> nn.Module:
        """A fresh model; the caller seeds.

        A module-level ``model`` is copied, and re-initialised where its modules can do that,
        unless it came trained.

        Raises:
            ContractError: no model, it raises, or it is no `torch.nn.Module`.
        """
        return self._adapted(self._factory.model(fresh=not self._pretrained))

    def given_model(self) -> nn.Module:
        """The model with whatever weights the user's code gives it."""
        return self._adapted(self._factory.model(fresh=False))

    def trained_model(self) -> nn.Module:
        """The model with its trained weights, of a task that came pretrained: those of the
        checkpoint where there is one.  A plain script is run as a whole, its training included.
        """
        if self.spec.weights is not None:
            from autotune.worker.contract import weights_file

            model = self.given_model()
            self.notes = weights_file.load_into(model, Path(self.spec.weights))
            return model
        if self._origin.form != "script":
            return self.make_model()
        left = run.run_whole(self.spec).get("model")
        if not isinstance(left, nn.Module):
            raise no_model(self._origin, f"the script left model as a {type(left).__name__}")
        return self._adapted(left)

    def collate(self, items: Sequence[Pair]) -> Pair:
        """A batch ``(input, target)`` from samples of this task's parts."""
        raw = [i[0] for i in items] if _labelled(items[0]) else list(items)
        if self._collate is None:
            try:
                batch = samples.default_collate(raw)
            except (RuntimeError, TypeError, KeyError, ValueError) as error:
                raise self._uncollated(items, error) from error
        else:
            with guard(self.where, "collate()", self._origin.path):
                batch = self._collate(raw)
        inputs, target = samples.pair(batch)
        return (tuple(inputs) if isinstance(inputs, list) else inputs), target

    def batches(self, part: str, batch_size: int = 256, every: int = 1) -> Iterator[Pair]:
        """All rows of a part in order (or every ``every``-th), in batches; one by one where
        their shapes differ.
        """
        dataset: Any = self.part(part)
        size = 1 if self.info.ragged and self._collate is None else batch_size
        chosen = range(0, len(dataset), every)
        for start in range(0, len(chosen), size):
            rows = chosen[start : start + size]
            yield self.collate([self.sample(part, row) for row in rows])

    def sample(self, part: str, row: int) -> Pair:
        """One sample; an error of the user's dataset names its line."""
        dataset: Any = self.part(part)
        with guard(self.where, f"reading row {row} of the {part} data", self._origin.path):
            item: Pair = dataset[row]
        return item

    def call(self, model: nn.Module, inputs: Any) -> Any:
        """``model(x)``, ``model(*x)`` or ``model(**x)``, by the kind of input."""
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)

    def stepped(self, model: nn.Module) -> nn.Module:
        """The module that training calls: the model, or its own training step around it."""
        own = frameworks.has_training_step(model)
        return frameworks.TrainingStep(model) if own else model

    def training_loss(
        self, module: Any, inputs: Any, target: Any, number: int = 0, smoothing: float = 0.0
    ) -> Tensor:
        """The loss of one batch; ``module`` is what `stepped` gave, wrapped or not.

        Raises:
            ContractError: labels cannot be smoothed (see `Functions.loss`).
        """
        inner = getattr(module, "module", module)
        inner = getattr(inner, "_orig_mod", inner)  # of a compiled one
        if isinstance(inner, frameworks.TrainingStep):
            if smoothing:
                raise self.functions.unsmoothable(smoothing)
            loss: Tensor = module(inputs, target, number)
            return loss
        return self.functions.loss(self.call(module, inputs), target, smoothing)

    def loss(self, output: Any, target: Any) -> Tensor:
        """The training loss: a scalar, mean over the batch (see `Functions.loss`)."""
        return self.functions.loss(output, target)

    def score(self, output: Any, target: Any) -> Tensor | None:
        """Quality per sample, or None (see `Functions.score`)."""
        return self.functions.score(output, target)

    def quality(self, output: Any, target: Any) -> float:
        """One number over a whole set (see `Functions.quality`)."""
        return self.functions.quality(output, target)

    def input_arrays(self, inputs: Any) -> list[Array]:
        """A batched input as arrays, in the order of ``info.input_names``."""
        return [as_array(tensor) for _, tensor in fields(inputs)]

    def model_inputs(self, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A batched input as ``(args, kwargs)`` for inference, without labels."""
        if isinstance(inputs, Mapping):
            return (), {name: value for name, value in inputs.items() if name != LABELS}
        return (inputs if isinstance(inputs, tuple) else (inputs,)), {}

    def _describe(self, data: Datasets) -> TaskInfo:
        """All that can be known without making a model."""
        first = self.collate([self.sample("validation", 0)])
        self._refuse_nested(first[0])
        named = [(name, as_array(value)) for name, value in fields(first[0])]
        functions = self.functions
        functions.balance(data.rare, first[1])
        metric = functions.name(first[1])
        return TaskInfo(
            name=self._origin.title,
            form=self._origin.form,
            source_sha256=self._origin.sha256,
            input_kind=kind_of(first[0]),
            input_names=tuple(name for name, _ in named),
            input_shapes=tuple(a.shape[1:] for _, a in named),
            input_dtypes=tuple(str(a.dtype) for _, a in named),
            ragged=self._ragged(),
            train_rows=_length(data.train),
            validation_rows=len(data.validation),
            test_rows=len(data.test),
            calibration_rows=_length(data.calibration),
            classes=None if data.labels is None else int(data.labels.max()) + 1,
            metric=metric,
            higher_is_better=self.higher_is_better,
            per_sample=functions.plain or functions.own_score is not None,
            binary=functions.plain and metric == "accuracy",
            rate=functions.plain and metric in RATES,
            pretrained=self._pretrained,
            has_loss=self.has_own_loss or isinstance(first[1], Tensor),
            epochs=names.positive(self._origin, "epochs"),
            steps=names.positive(self._origin, "steps"),
            recipe=names.recipe(self._origin),
            warnings=data.warnings,
            own_train=self.own_train is not None,
            own_loader=self.train_loader is not None or isinstance(self.train, Stream),
            tunes=names.tunes(self._origin),
            dynamic=dynamic_shapes.read(self._origin, [(name, a.shape) for name, a in named]),
            **UserSpace(self._names, self.where, self.path).fields(),
        )

    def _refuse_nested(self, inputs: Any) -> None:
        deep = [name for name, value in fields(inputs) if isinstance(value, tuple | list | dict)]
        if deep:
            raise contract_error(
                self.where,
                "inputs may not be nested: a deployed model takes arrays",
                found=samples.describe(inputs),
                missing="a tensor, a tuple or a dict of tensors",
                fix="def forward(self, x, h, c):  # instead of forward(self, x, state)\n"
                "    y, (h, c) = self.lstm(x, (h, c))",
            )

    def _ragged(self) -> bool:
        """Whether the first rows of any part differ in shape."""
        shapes = set()
        for part in (self.train, self.validation, self.test):
            rows = 1 if isinstance(part, Stream) else min(_ROWS_LOOKED_AT, _length(part))
            shapes |= {samples.describe(part[row][0]) for row in range(rows)}  # type: ignore[index]
        return len(shapes) > 1

    def _adapted(self, model: nn.Module) -> nn.Module:
        self.functions.shifted = frameworks.shifts_labels(model)
        return frameworks.prepared(model)

    def _uncollated(self, items: Sequence[Pair], error: Exception) -> ContractError:
        shapes = sorted({samples.describe(item[0]) for item in items[:64]})
        several = f"inputs {' and '.join(shapes[:3])}" if len(shapes) > 1 else str(error)
        return contract_error(
            self.where,
            "the samples cannot be stacked into a batch",
            found=several,
            missing="collate(samples) that pads them, or samples of one shape",
            fix="def collate(samples):\n"
            "    X, y = zip(*samples)\n"
            "    return nn.utils.rnn.pad_sequence(X, batch_first=True), torch.tensor(y)",
        )


_preloaded: list[LoadedTask] = []


def preload(spec: TaskSpec) -> None:
    """Load a task once for all forks of this process: `load` then gives them what was loaded.

    Raises:
        ContractError: as `load` does.
    """
    _preloaded[:] = [load(spec)]


def load(spec: TaskSpec, *, pretrained: bool | None = None) -> LoadedTask:
    """Load a task, or take the one that this process was forked with (`preload`).

    Args:
        spec: where it is.
        pretrained: overrides the file's own ``pretrained``; it changes neither parts nor rows.

    Raises:
        ContractError: the file breaks the contract; the message says how to fix it.
    """
    if pretrained is None and _preloaded and _preloaded[0].spec == spec:
        return _preloaded.pop()
    with seeded(spec.seed):
        origin = run.load(spec)
    if origin.names.get("make_model") is None and origin.names.get("model") is None:
        raise no_model(origin, None)
    own = names.flag(origin, "pretrained", False)
    return LoadedTask(spec, origin, _comes_trained(spec, pretrained, own))


def _comes_trained(spec: TaskSpec, asked: bool | None, own: bool) -> bool:
    """Whether the weights are kept: as asked, else by the checkpoint, else as the file says.

    Raises:
        ContractError: both kept and trained over were asked for.
    """
    if spec.retrain and (spec.weights is not None or spec.pretrained):
        other = "a checkpoint counts as pretrained" if spec.weights else "--pretrained keeps them"
        raise ContractError(f"--retrain trains over the weights, but {other}: give one of the two")
    if asked is not None:
        return asked
    if spec.weights is not None:
        return True
    if spec.retrain:
        return False
    return own if spec.pretrained is None else spec.pretrained


def _length(value: Any) -> int:
    return 0 if value is None else len(value)


def _labelled(item: Pair) -> bool:
    """Whether a pair stands for one dict that holds its own labels."""
    return isinstance(item[0], Mapping) and LABELS in item[0]
