"""A model's FLOPs, parameters and bytes moved, counted by running it once.

    FlopCounterMode (inner)  -> operators as PyTorch dispatches them -> FLOPs by class
    _Counter (outer)         -> the same operators -> calls, output bytes, operand bytes

The model runs in eval mode without gradients, with the fused transformer layers switched off, as
those hide their matrix products.  FlopCounterMode counts some CPU operators as 0; `flops` has
formulas for them.

What this does not know: work inside operators that PyTorch has no formula for (element-wise
operators, norms and pooling count as 0 FLOPs; their bytes are counted).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from autotune.records.task import Traits
from autotune.worker.evaluation.evaluate import evaluating
from autotune.worker.survey import flops as survey_flops
from autotune.worker.survey.transformer_shape import ShapeFinder, is_softmax
from autotune.worker.training.optimizers import hidden_matrices


def count(
    model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> Traits:
    """Count one call ``model(*args, **kwargs)``; the inputs hold a batch of one sample.

    The model's mode, its buffers and the random state are as before afterwards.
    """
    finder = ShapeFinder(model)
    watch = _Counter(finder)
    flops = FlopCounterMode(display=False, custom_mapping=survey_flops.extra())
    with still(model), finder.watching(), watch, flops:
        model(*args, **(kwargs or {}))
    found = {str(op).removeprefix("aten."): n for op, n in _by_operator(flops).items() if n}
    op_flops = {name: float(n) for name, n in sorted(found.items())}
    parameters = list(model.parameters())
    kinds = Counter(type(m).__name__ for m in model.modules() if not list(m.children()))
    return Traits(
        parameters=sum(p.numel() for p in parameters),
        parameter_bytes=_storage_bytes(parameters),
        buffer_bytes=_storage_bytes(model.buffers()),
        flops_per_sample=float(sum(found.values())),
        activation_bytes_per_sample=float(watch.output_bytes),
        largest_op_bytes=watch.largest_bytes,
        op_flops=op_flops,
        op_calls=dict(sorted(watch.calls.items())),
        module_types=dict(sorted(kinds.items())),
        has_batch_norm=any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()),
        has_dropout=any(isinstance(m, nn.modules.dropout._DropoutNd) for m in model.modules()),
        hidden_matrices=len(hidden_matrices(model)),
        transformer=finder.shape(op_flops, _inside(flops, model, finder.path)),
    )


def _inside(flops: FlopCounterMode, model: nn.Module, path: str | None) -> float:
    """FLOPs of the modules under a dotted name; FlopCounterMode calls the model by its class."""
    if path is None:
        return 0.0
    name = type(model).__name__
    wanted = f"{name}.{path}." if path else f"{name}."
    depth = wanted.count(".")
    return float(
        sum(
            sum(by_op.values())
            for place, by_op in flops.get_flop_counts().items()
            if place.startswith(wanted) and place.count(".") == depth
        )
    )


def _by_operator(flops: FlopCounterMode) -> Mapping[Any, int]:
    return flops.get_flop_counts().get("Global", {})


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's is untyped
    """Counts operators that make tensors; a view makes none."""

    def __init__(self, finder: ShapeFinder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._finder = finder
        self.calls: Counter[str] = Counter()
        self.output_bytes = 0
        self.largest_bytes = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = tensors((args, kwargs))
        held = {_place(tensor) for tensor in inputs}
        made = [tensor for tensor in tensors(result) if _place(tensor) not in held]
        if made or func._schema.is_mutable:
            self.calls[str(func.overloadpacket).removeprefix("aten.")] += 1
            self.output_bytes += sum(_bytes(tensor) for tensor in made)
            operands = {id(t): _bytes(t) for t in (*inputs, *made)}
            self.largest_bytes = max(self.largest_bytes, sum(operands.values()))
            if is_softmax(func):
                self._finder.softmax(made[0].shape)
        return result


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, no fused transformer layers; modes and random state are restored."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def tensors(tree: Any) -> list[Tensor]:
    """The tensors among the leaves of a pytree."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _place(tensor: Tensor) -> int:
    place: int = tensor.untyped_storage()._cdata
    return place


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind some tensors, a shared one once."""
    storages = {_place(t): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
