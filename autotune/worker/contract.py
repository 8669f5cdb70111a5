"""The task contract: from the user's file to one object that every torch job uses.

    model.py ── script.load ── names ─┬─ make_model / model
                                      ├─ train_data, eval_data, confirm_data ── splits ── parts
                                      └─ loss, score, quality, ... (or worker.defaults)

What this does not do: run a forward (that is ``worker.inspect``), or train.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from autotune.errors import ContractError
from autotune.records.task import TaskInfo, TaskSpec
from autotune.worker import defaults, names, samples, script
from autotune.worker.blame import broken, guard
from autotune.worker.names import no_model
from autotune.worker.parts import Parts, collect
from autotune.worker.samples import LABELS, Pair, seeded

Array = NDArray[Any]
_ROWS_LOOKED_AT = 64  # to know whether shapes differ; each job loads the task anew
Kind = Literal["tensor", "tuple", "dict"]


class Loaded:
    """A task, ready to be used.  See the module's picture.

    Attributes:
        info: what was found (``module_names`` and the final ``binary`` come from Inspect).
        train, select, confirm, adapt: map-style datasets of ``(input, target)``; ``train`` is
            None where only evaluation data was given, ``adapt`` None where there are too few
            rows for it.
        higher_is_better: direction of `quality`.
        source: text that makes the model by itself, or None for a pickled Task.
    """

    def __init__(self, spec: TaskSpec, origin: script.Source, pretrained: bool) -> None:
        self.spec = spec
        self._origin = origin
        self._names = origin.names
        self._pretrained = pretrained
        self._prototype: nn.Module | None = None
        self.source = origin.text
        data = collect(origin, spec.seed)
        self.train: Dataset[Pair] | None = data.train
        self.select: Dataset[Pair] = data.select
        self.confirm: Dataset[Pair] = data.confirm
        self.adapt: Dataset[Pair] | None = data.adapt
        self.higher_is_better = names.flag(origin, "higher_is_better", True)
        losses = script.LOSSES if origin.form == "script" else ("loss",)
        self._collate = names.function(origin, "collate")
        self._loss = names.function(origin, *losses)
        self._score = names.function(origin, "score")
        self._quality = names.quality(origin)
        self.has_own_loss = self._loss is not None
        self.has_own_score = self._score is not None or self._quality is not None
        self.has_own_collate = self._collate is not None
        self.info = self._describe(data)

    @property
    def where(self) -> str:
        """The name of the user's file, for messages."""
        return self._origin.where

    @property
    def path(self) -> str | None:
        """The user's file as tracebacks name it."""
        return self._origin.path

    def part(self, name: str) -> Dataset[Pair]:
        """The dataset called ``train``, ``select``, ``confirm`` or ``adapt``.

        Raises:
            ContractError: the task has no such part.
        """
        part: Dataset[Pair] | None = getattr(self, name)
        if part is None:
            raise ContractError(f"{self.where}: this task has no {name} data")
        return part

    def make_model(self) -> nn.Module:
        """A fresh model; the caller seeds.

        A module-level ``model`` is copied, and re-initialised where its modules can do that,
        unless it came trained.

        Raises:
            ContractError: no model, it raises, or it is no `torch.nn.Module`.
        """
        make = self._names.get("make_model")
        if make is None:
            return self._copy_of(self._names.get("model"))
        if not callable(make):
            raise no_model(self._origin, f"make_model is a {type(make).__name__}")
        with guard(self.where, "make_model()", self._origin.path):
            model = make()
        if not isinstance(model, nn.Module):
            raise no_model(self._origin, f"make_model() returned a {type(model).__name__}")
        return model

    def trained_model(self) -> nn.Module:
        """The model with its trained weights, of a task that came pretrained.

        For a plain script this runs the whole of it once, its own training included.
        """
        if self._origin.form != "script":
            return self.make_model()
        model = script.run_whole(self.spec).get("model")
        if not isinstance(model, nn.Module):
            raise no_model(self._origin, f"the script left model as a {type(model).__name__}")
        return model

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

    def batches(self, part: str, batch_size: int = 256) -> Iterator[Pair]:
        """All rows of a part in order, in batches; one by one where their shapes differ."""
        dataset: Any = self.part(part)
        size = 1 if self.info.ragged and self._collate is None else batch_size
        for start in range(0, len(dataset), size):
            rows = range(start, min(start + size, len(dataset)))
            yield self.collate([self.sample(part, row) for row in rows])

    def sample(self, part: str, row: int) -> Pair:
        """One sample; what the user's dataset raises blames its line."""
        dataset: Any = self.part(part)
        with guard(self.where, f"reading row {row} of the {part} data", self._origin.path):
            item: Pair = dataset[row]
        return item

    def call(self, model: nn.Module, inputs: Any) -> Any:
        """``model(x)``, ``model(*x)`` or ``model(**x)``, by the kind of input."""
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)

    def loss(self, output: Any, target: Any) -> Tensor:
        """The training loss: a scalar, mean over the batch.

        Raises:
            ContractError: the user's function returns no scalar, or no default fits.
        """
        if self._loss is None:
            return self._located(defaults.loss, output, target)
        with guard(self.where, "loss(output, target)", self._origin.path):
            value = self._loss(output, target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise broken(
                self.where,
                "loss(output, target) must return one number, the mean over the batch",
                found=samples.describe(value),
                mend="def loss(output, target):\n    per_sample = ...\n"
                "    return per_sample.mean()",
            )
        return value.reshape(())

    def score(self, output: Any, target: Any) -> Tensor | None:
        """Quality per sample ``[batch]``, float32, or None where only `quality` exists.

        Raises:
            ContractError: the user's function returns another shape, or no default fits.
        """
        if self._quality is not None and self._score is None:
            return None
        if self._score is None:
            threshold = defaults.threshold_of(self._loss)
            return self._located(defaults.score, output, target, threshold).float()
        with guard(self.where, "score(output, target)", self._origin.path):
            value = self._score(output, target)
        rows = _length(target if isinstance(target, Tensor) else defaults.main_output(output))
        if not isinstance(value, Tensor) or tuple(value.shape) != (rows,):
            raise broken(
                self.where,
                f"score(output, target) must return one number per sample, shape [{rows}] here",
                found=samples.describe(value),
                mend="def score(output, target):\n"
                "    right = output.argmax(1) == target\n"
                "    return right.float()  # or: def quality(output, target) -> float",
            )
        return value.float()

    def quality(self, output: Any, target: Any) -> float:
        """One number over a whole set: the user's `quality`, else the mean of `score`."""
        if self._quality is None or self._score is not None:
            score = self.score(output, target)
            assert score is not None
            return float(score.double().mean())
        with guard(self.where, f"{self.info.metric}(output, target)", self._origin.path):
            value = self._quality(output, target)
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            raise broken(
                self.where,
                f"{self.info.metric}(output, target) must return one number over the whole set",
                found=samples.describe(value),
                mend="def quality(output, target):\n"
                "    per_sample = ...\n"
                "    return float(per_sample.mean())",
            ) from None

    def input_arrays(self, inputs: Any) -> list[Array]:
        """A batched input as arrays, in the order of ``info.input_names``."""
        return [_array(tensor) for _, tensor in fields(inputs)]

    def model_inputs(self, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A batched input as ``(args, kwargs)`` for inference, without labels."""
        if isinstance(inputs, Mapping):
            return (), {name: value for name, value in inputs.items() if name != LABELS}
        return (inputs if isinstance(inputs, tuple) else (inputs,)), {}

    def _describe(self, data: Parts) -> TaskInfo:
        """All that can be said without making a model."""
        first = self.collate([self.sample("select", 0)])
        named = [(name, _array(value)) for name, value in fields(first[0])]
        plain = self._score is None and self._quality is None
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
            select_rows=len(data.select),
            confirm_rows=len(data.confirm),
            adapt_rows=_length(data.adapt),
            classes=None if data.labels is None else int(data.labels.max()) + 1,
            metric=self._metric(first[1]),
            higher_is_better=self.higher_is_better,
            per_sample=plain or self._score is not None,
            binary=plain and self._metric(first[1]) == "accuracy",
            pretrained=self._pretrained,
            has_loss=self._loss is not None or isinstance(first[1], Tensor),
            epochs=names.epochs(self._origin),
            recipe=names.recipe(self._origin),
            warnings=data.warnings,
        )

    def _metric(self, target: Any) -> str:
        own = self._score or self._quality
        if own is not None:
            return str(getattr(own, "__name__", "score" if self._score else "quality"))
        return defaults.metric(target, self._loss)

    def _ragged(self) -> bool:
        """Whether the first rows of any part differ in shape."""
        shapes = set()
        for part in (self.train, self.select, self.confirm):
            rows = min(_ROWS_LOOKED_AT, _length(part))
            shapes |= {samples.describe(part[row][0]) for row in range(rows)}  # type: ignore[index]
        return len(shapes) > 1

    def _copy_of(self, model: Any) -> nn.Module:
        if not isinstance(model, nn.Module):
            found = None if model is None else f"model is a {type(model).__name__}"
            raise no_model(self._origin, found)
        if self._prototype is None:
            self._prototype = model
        fresh = copy.deepcopy(self._prototype)
        if not self._pretrained:
            reinitialise(fresh)
        return fresh

    def _located(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        try:
            return function(*arguments)
        except ContractError as error:
            raise ContractError(f"{self.where}: {error}") from None

    def _uncollated(self, items: Sequence[Pair], error: Exception) -> ContractError:
        shapes = sorted({samples.describe(item[0]) for item in items[:64]})
        several = f"inputs {' and '.join(shapes[:3])}" if len(shapes) > 1 else str(error)
        return broken(
            self.where,
            "the samples cannot be stacked into a batch",
            found=several,
            missing="collate(samples) that pads them, or samples of one shape",
            mend="def collate(samples):\n"
            "    X, y = zip(*samples)\n"
            "    return nn.utils.rnn.pad_sequence(X, batch_first=True), torch.tensor(y)",
        )


def load(spec: TaskSpec, *, pretrained: bool | None = None) -> Loaded:
    """Load a task.

    Args:
        spec: where it is.
        pretrained: overrides the file's own ``pretrained``; it changes neither parts nor rows.

    Raises:
        ContractError: the file breaks the contract; the message says how to mend it.
    """
    with seeded(spec.seed):
        origin = script.load(spec)
    if origin.names.get("make_model") is None and origin.names.get("model") is None:
        raise no_model(origin, None)
    own = names.flag(origin, "pretrained", False)
    return Loaded(spec, origin, own if pretrained is None else pretrained)


def fields(inputs: Any) -> list[tuple[str, Any]]:
    """The named fields of an input: ``input``, ``input_0`` ..., or a dict's keys but ``labels``."""
    if isinstance(inputs, Mapping):
        return [(str(name), value) for name, value in inputs.items() if name != LABELS]
    if isinstance(inputs, tuple | list):
        return [(f"input_{i}", value) for i, value in enumerate(inputs)]
    return [("input", inputs)]


def reinitialise(model: nn.Module) -> None:
    """Draw new weights wherever a module knows how to."""
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None) or getattr(
            module, "_reset_parameters", None
        )
        if callable(reset):
            reset()


def kind_of(inputs: Any) -> Kind:
    """How the model is called with an input."""
    if isinstance(inputs, Mapping):
        return "dict"
    return "tuple" if isinstance(inputs, tuple | list) else "tensor"


def _array(value: Any) -> Array:
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    array: Array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return array


def _length(value: Any) -> int:
    return 0 if value is None else len(value)


def _labelled(item: Pair) -> bool:
    """Whether a pair stands for one dict that holds its own labels."""
    return isinstance(item[0], Mapping) and LABELS in item[0]
