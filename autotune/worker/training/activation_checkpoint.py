"""Activation checkpointing: a model's repeated blocks keep their inputs alone.

    container of blocks of one class  [ b0 b1 b2 ... ]    forward: only each block's input is kept
                                                          backward: each block's forward once more

Less memory for about a third more arithmetic (Chen et al., arXiv 1604.06174), by
torch.utils.checkpoint.  Whether loss, gradients and buffers stay the same is tried on some rows
first: batch norm inside a block would count each batch twice.  Not found: a model that changes only
on later batches.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from autotune.errors import JobError

_CLOSE = 1e-4


def blocks(model: nn.Module) -> list[nn.Module]:
    """The children of every nn.Sequential or nn.ModuleList that have siblings of their class and
    children of their own; the outermost ones.
    """
    found: list[nn.Module] = []
    inside: set[int] = set()
    for module in model.modules():
        if id(module) in inside or not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        kinds = [type(child) for child in module.children()]
        for child in module.children():
            repeated = kinds.count(type(child)) > 1 and next(child.children(), None) is not None
            if repeated and not isinstance(child, torch.jit.ScriptModule):
                found.append(child)
                inside |= {id(part) for part in child.modules()}
    return found


def recomputing(model: nn.Module, step: Callable[[], Tensor]) -> None:
    """Make the model's blocks recompute their activations, if that changes nothing.

    Args:
        model: in train mode.
        step: the loss of some rows, with the same random numbers at each call.

    Raises:
        JobError: unsupported: there are no repeated blocks, or it changes loss, gradients or
            buffers.
    """
    own = blocks(model)
    if not own:
        raise JobError(
            "unsupported",
            "there is nothing to recompute: no nn.Sequential or nn.ModuleList holds two or more "
            "blocks of one class that consist of several modules",
        )
    buffers = [b.clone() for b in model.buffers()]
    before = list(_seen(model, step, buffers))
    for block in own:
        _checkpoint(block)
    for (name, one), (_, other) in zip(before, _seen(model, step, buffers), strict=True):
        if not _same(one, other):
            raise JobError(
                "unsupported",
                f"recomputing the blocks changes {name}: batch norm, or a state of its own, would "
                "see each batch twice",
            )


def _seen(
    model: nn.Module, step: Callable[[], Tensor], buffers: list[Tensor]
) -> Iterator[tuple[str, Tensor | None]]:
    """The loss, gradients and buffers of one step; gradients and buffers are reset afterwards."""
    loss = step()
    torch.autograd.backward(loss)
    yield "the loss", loss.detach()
    for name, parameter in model.named_parameters():
        yield f"the gradient of {name}", parameter.grad
        parameter.grad = None
    with torch.no_grad():
        for (name, buffer), kept in zip(model.named_buffers(), buffers, strict=True):
            yield f"the buffer {name}", buffer.clone()
            buffer.copy_(kept)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    one, other = one.double(), other.double()
    scale = float(one.abs().max()) if one.numel() else 0.0
    return bool(torch.allclose(one, other, rtol=_CLOSE, atol=_CLOSE * scale, equal_nan=True))


def _checkpoint(block: nn.Module) -> None:
    forward = block.forward

    def again(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and block.training:
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return forward(*args, **kwargs)

    block.forward = again
