"""What a model costs at least: FLOPs, parameters, bytes moved, by running it once.

    FlopCounterMode (inner)  -> operators as PyTorch dispatches them -> FLOPs by class
    _Watch (outer)           -> the same operators -> calls, output bytes, operand bytes

The model runs once in eval mode without gradients, with the fused transformer layers
switched off: those would hide their matrix products.  FlopCounterMode counts some CPU
operators as 0; `_EXTRA` adds them.

What this does not know: work inside operators that PyTorch has no formula for (element-wise
operators, norms and pooling count as 0 FLOPs; their bytes are counted).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from autotune.records.task import Traits
from autotune.worker.blocks import Spotter, is_softmax
from autotune.worker.optimizers import hidden_matrices

Shape = Sequence[int]


def count(
    model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> Traits:
    """Count one call ``model(*args, **kwargs)``; the inputs hold a batch of one sample.

    The model's mode, its buffers and the random state are as before afterwards.
    """
    spotter = Spotter(model)
    watch = _Watch(spotter)
    flops = FlopCounterMode(display=False, custom_mapping=_extra())
    with _still(model), spotter.watching(), watch, flops:
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
        transformer=spotter.shape(op_flops, _inside(flops, model, spotter.path)),
    )


def _inside(flops: FlopCounterMode, model: nn.Module, path: str | None) -> float:
    """FLOPs of the modules under a dotted name; the counter names the whole model by its class."""
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


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's is untyped
    """Counts operators that make tensors; a view makes none."""

    def __init__(self, spotter: Spotter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._spotter = spotter
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
        inputs = _tensors((args, kwargs))
        held = {_place(tensor) for tensor in inputs}
        made = [tensor for tensor in _tensors(result) if _place(tensor) not in held]
        if made or func._schema.is_mutable:
            self.calls[str(func.overloadpacket).removeprefix("aten.")] += 1
            self.output_bytes += sum(_bytes(tensor) for tensor in made)
            operands = {id(t): _bytes(t) for t in (*inputs, *made)}
            self.largest_bytes = max(self.largest_bytes, sum(operands.values()))
            if is_softmax(func):
                self._spotter.softmax(made[0].shape)
        return result


def _tensors(tree: Any) -> list[Tensor]:
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


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, no fused transformer layers; everything restored at the end."""
    modes = [(module, module.training) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, mode in modes:
            module.training = mode


def _extra() -> dict[Any, Callable[..., int]]:
    """Formulas for operators that FlopCounterMode lets pass as 0; a multiply-add is two."""
    aten = torch.ops.aten
    table: dict[str, Callable[..., int]] = {
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
        "mkldnn_rnn_layer": _rnn_layer,
        "mv": _matrix_vector,
        "addmv": _add_matrix_vector,
        "dot": _dot,
        "_trilinear": _trilinear,
    }
    return {getattr(aten, name): formula for name, formula in table.items() if hasattr(aten, name)}


def _attention(query: Shape, key: Shape, value: Shape, *rest: Any, **named: Any) -> int:
    """Query [b, h, s, d], key [b, h', t, d], value [b, h', t, e]: QK^T, then times V."""
    batch, heads, rows, width = query
    return 2 * batch * heads * rows * key[2] * (width + value[3])


def _rnn_layer(inputs: Shape, weight_ih: Shape, weight_hh: Shape, *rest: Any, **named: Any) -> int:
    """One layer and direction: [time, batch, in] against [4h, in], the state against [4h, h]."""
    return 2 * inputs[0] * inputs[1] * (prod(weight_ih) + prod(weight_hh))


def _matrix_vector(matrix: Shape, vector: Shape, *rest: Any, **named: Any) -> int:
    return 2 * prod(matrix)


def _add_matrix_vector(added: Shape, matrix: Shape, *rest: Any, **named: Any) -> int:
    return 2 * prod(matrix)


def _dot(left: Shape, right: Shape, *rest: Any, **named: Any) -> int:
    return 2 * prod(left)


def _trilinear(
    first: Shape,
    second: Shape,
    third: Shape,
    e1: Any,
    e2: Any,
    e3: Any,
    sums: Any,
    *rest: Any,
    **named: Any,
) -> int:
    """nn.Bilinear: x1 [b, i], W [o, i, j], x2 [b, j]: 2 b o i j for the larger product."""
    return 2 * first[0] * prod(second)
