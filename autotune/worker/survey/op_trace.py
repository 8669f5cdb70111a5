"""One call of a model as the list of operators that PyTorch dispatches, with their shapes.

    record(model, inputs) -> Tape: Played(operator, operands' shapes, FLOPs, who made what)
                               |-> work_bounds   what no runtime can leave out
                               `-> opbench       each distinct operator timed alone

What this does not know: a model whose control flow depends on the values of its input.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from autotune.worker.survey import flops as survey_flops
from autotune.worker.survey.model_stats import still, tensors


class Spec(NamedTuple):
    """A tensor's place in an operator's arguments.  ``most`` is an integer tensor's maximum."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    parameter: bool
    serial: int
    most: int | None = None

    @property
    def bytes(self) -> int:
        """Bytes behind it; an expanded dimension holds one element."""
        seen = (n for n, step in zip(self.shape, self.stride, strict=True) if step or n == 1)
        return prod(seen) * self.dtype.itemsize


class Played(NamedTuple):
    """One operator call.  ``args`` and ``kwargs`` hold `Spec` in the places of tensors."""

    op: Any
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    made: tuple[Spec, ...]
    flops: float
    mutates: bool

    @property
    def operands(self) -> tuple[Spec, ...]:
        leaves = tree_leaves((self.args, dict(self.kwargs)), is_leaf=_is_spec)
        return tuple(leaf for leaf in leaves if isinstance(leaf, Spec))


class Cell(NamedTuple):
    """A recurrent layer in one direction, and the operators ``played[start:stop]`` that it is.

    ``shape`` is its input's.
    """

    kind: str
    shape: tuple[int, ...]
    hidden: int
    layers: int
    batch_first: bool
    start: int
    stop: int


class Tape(NamedTuple):
    """``inputs`` and ``outputs`` are serial numbers of storages."""

    played: tuple[Played, ...]
    inputs: frozenset[int]
    outputs: frozenset[int]
    trainable: Mapping[int, int]
    """Bytes of each storage that gets a gradient."""
    cells: tuple[Cell, ...] = ()


def record(
    model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> Tape:
    """Run the model once, in eval mode without gradients, and note every operator."""
    recorder = _Recorder(model)
    given = frozenset(recorder.serial(t) for t in tensors((args, kwargs)))
    with still(model), recorder.cells_of(model) as cells, recorder:
        result = model(*args, **(kwargs or {}))
    trainable = {
        recorder.serial(p): p.numel() * p.element_size()
        for p in model.parameters()
        if p.requires_grad
    }
    reached = frozenset(recorder.serial(t) for t in _output_tensors(result))
    return Tape(tuple(recorder.played), given, reached, trainable, tuple(cells))


def _output_tensors(result: Any) -> list[Tensor]:
    """Tensors of an output; a dataclass or object of tensors counts by its attributes."""
    found = tensors(result)
    return found or tensors(dict(getattr(result, "__dict__", {})))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's is untyped
    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.played: list[Played] = []
        self._serials: dict[int, int] = {}
        self._count = 0
        held = [*model.parameters(), *model.buffers()]
        self._parameters = {self.serial(tensor) for tensor in held}

    def serial(self, tensor: Tensor, *, new: bool = False) -> int:
        """A number for a storage; freed memory that is used again gets a new one."""
        place = tensor.untyped_storage()._cdata
        if new or place not in self._serials:
            self._count += 1
            self._serials[place] = self._count
        return self._serials[place]

    @contextmanager
    def cells_of(self, model: nn.Module) -> Iterator[list[Cell]]:
        """Notes the recurrent layers while the model is called."""
        found: list[Cell] = []
        starts: dict[nn.Module, int] = {}

        def entered(layer: nn.Module, _: Any) -> None:
            starts[layer] = len(self.played)

        def left(layer: Any, given: Any, _: Any) -> None:
            if layer.bidirectional or getattr(layer, "proj_size", 0):
                return
            shape, span = tuple(given[0].shape), (starts[layer], len(self.played))
            sizes = (layer.hidden_size, layer.num_layers, layer.batch_first)
            found.append(Cell(layer.mode, shape, *sizes, *span))

        layers = [m for m in model.modules() if isinstance(m, nn.RNNBase)]
        handles = [layer.register_forward_pre_hook(entered) for layer in layers]
        handles += [layer.register_forward_hook(left) for layer in layers]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = tensors((args, kwargs))
        held = {t.untyped_storage()._cdata for t in given}
        new = [t for t in tensors(result) if t.untyped_storage()._cdata not in held]
        mutates = bool(func._schema.is_mutable)
        if new or mutates:
            placed, named = tree_map(self._spec, (args, kwargs))
            for tensor in {t.untyped_storage()._cdata: t for t in new}.values():
                self.serial(tensor, new=True)
            made = tuple(self._spec(t) for t in new)
            name = str(func.overloadpacket).removeprefix("aten.")
            flops = survey_flops.flops(func, args, kwargs, result)
            self.played.append(Played(func, name, placed, named, made, flops, mutates))
        return result

    def _spec(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        serial = self.serial(leaf)
        small = not leaf.is_floating_point() and leaf.numel() and leaf.dtype != torch.bool
        most = int(leaf.max()) if small and leaf.device.type == "cpu" else None
        return Spec(
            tuple(leaf.shape),
            tuple(leaf.stride()),
            leaf.dtype,
            serial in self._parameters,
            serial,
            most,
        )


def written(played: Played) -> tuple[Spec, ...]:
    """What it makes, and what it changes in place."""
    return (*played.made, *played.operands[:1]) if played.mutates else played.made


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, Spec)
