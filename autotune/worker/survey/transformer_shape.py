"""Finds a transformer's shape while the model runs once.

    the container of modules of one class that has most parameters
      -> its first block's input [1, sequence, hidden]
      -> scaled_dot_product_attention or a square softmax inside: heads, fused or not

Nothing is assumed about names: any model most of which is a list of blocks of one class with
attention in them is found; other models give None.

What this does not know: parallel stacks (of an encoder and a decoder the larger one is reported),
and how blocks share weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autotune.records.task import Transformer

_BULK = 0.6  # of the parameters outside embeddings that must be in the blocks
_ATTENTION = ("bmm", "baddbmm", "_scaled_dot_product")


class ShapeFinder:
    """Observes one forward of ``model``; `shape` then reports what was found.

    Attributes:
        path: the dotted name of the container of blocks, or None.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.path, self._blocks = _stack(model)
        self._hidden: tuple[int, int] | None = None  # sequence, hidden
        self._heads: int | None = None
        self._attended = False
        self.fused = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While the model is called."""
        if not self._blocks:
            yield
            return
        handle = self._blocks[0].register_forward_pre_hook(self._entered, with_kwargs=True)
        plain = functional.scaled_dot_product_attention

        def attention(query: Tensor, *rest: Any, **named: Any) -> Tensor:
            if self._whole(query.shape[-2]):
                self._attended = self.fused = True
                self._heads = query.shape[-3] if query.dim() > 3 else self._heads
            return plain(query, *rest, **named)

        functional.scaled_dot_product_attention = attention
        try:
            yield
        finally:
            functional.scaled_dot_product_attention = plain
            handle.remove()

    def _entered(self, block: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        first = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        if first is not None and first.dim() >= 2 and self._hidden is None:
            self._hidden = first.numel() // first.shape[-1], first.shape[-1]

    def _whole(self, rows: int) -> bool:
        """Whether attention is over the whole sequence: windowed attention costs something else."""
        return self._hidden is not None and self._hidden[0] == rows

    def softmax(self, shape: Sequence[int]) -> None:
        """Called for each softmax output: [.., heads, sequence, sequence] is unfused attention."""
        if len(shape) < 3 or shape[-1] != shape[-2] or self.fused or not self._whole(shape[-1]):
            return
        self._attended = True
        self._heads = shape[-3]

    def shape(self, op_flops: dict[str, float], block_flops: float) -> Transformer | None:
        """What was found, or None where the model is no stack of attention blocks."""
        if self._hidden is None or not self._attended:
            return None
        own = {id(p): p.numel() for block in self._blocks for p in block.parameters()}
        if sum(own.values()) < _BULK * self._outside_tables():
            return None
        sequence, hidden = self._hidden
        tables = [m.num_embeddings for m in self._model.modules() if isinstance(m, nn.Embedding)]
        return Transformer(
            layers=len(self._blocks),
            hidden=hidden,
            sequence=sequence,
            heads=self._heads,
            vocabulary=max(tables, default=None),
            block_parameters=sum(own.values()),
            block_flops_per_sample=block_flops,
            attention_flops_per_sample=sum(
                n for op, n in op_flops.items() if op.startswith(_ATTENTION)
            ),
            fused_attention=self.fused,
        )

    def _outside_tables(self) -> int:
        tables = {
            id(p)
            for m in self._model.modules()
            if isinstance(m, nn.Embedding)
            for p in m.parameters()
        }
        return sum(p.numel() for p in self._model.parameters() if id(p) not in tables)


def _stack(model: nn.Module) -> tuple[str | None, list[nn.Module]]:
    """The container of children of one class that has the most parameters, and its children."""
    best: tuple[int, str | None, list[nn.Module]] = (0, None, [])
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        children = list(module.children())
        if len({type(child) for child in children}) != 1 or not list(children[0].children()):
            continue
        if isinstance(children[0], torch.jit.ScriptModule):  # takes no hooks
            continue
        size = sum(p.numel() for p in module.parameters())
        if size > best[0]:
            best = (size, name, children)
    return best[1], best[2]


def is_softmax(func: Any) -> bool:
    """Whether a dispatched operator is a softmax."""
    return func in (torch.ops.aten._softmax.default, torch.ops.aten._safe_softmax.default)
