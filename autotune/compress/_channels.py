"""Which channels go: torch-pruning, asked for a share of operations instead of channels.

Channels are ranked over the whole model by the norm of their group, divided by the layer's
mean (on the digits CNN and MLP better than an even share a layer below 30 % of the operations,
equal above).  A level is found by bisection on copies.  Widths are rounded to multiples of 8 or
4, which the kernels like, where the level can still be met to 3 points; small layers are too
coarse for it.
"""

import copy
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autotune.compress._importance import Importance
from autotune.errors import JobError
from autotune.forms.flat import Flat, flops
from autotune.forms.module import tie, ties

_STEPS = 9  # bisections: 1/512 of the ratio
_CLOSE = 0.03  # of the dense operations
TOLERANCE = 0.1
"""A level further off is refused: bounds on pruned plans rest on it (control.cost)."""
_MOST = 0.95  # of a layer's channels
_ODD = (0.29, 0.37)  # leave widths that no fixed head width or head count divides
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.LSTM, nn.Embedding)


def prune(
    model: Flat, inputs: Sequence[Tensor], kept: float, importance: Importance | None = None
) -> Flat:
    """A pruned copy that keeps the share ``kept`` of the FLOPs of one call.

    ``importance`` decides which channels go first; without it the magnitude of their weights.

    Raises:
        JobError: unsupported: torch-pruning cannot follow the model, nothing in it can be
            pruned, or the level is out of reach.
    """
    with torch.no_grad():
        shapes = [output.shape for output in model(*inputs)]
    ignored = _ignored(model, inputs)
    error = _trial(model, inputs, ignored, shapes)
    if error is not None:
        ignored = _probe(model, inputs, ignored, shapes, error)
    best: tuple[float, Flat] | None = None
    dense = flops(lambda: model(*inputs))
    for rounded in (8, 4, 1):
        try:
            share, pruned = _search(model, inputs, ignored, (kept, dense, rounded), importance)
        except (RuntimeError, ValueError, AssertionError) as broken:
            raise _unsupported(broken) from broken
        if best is None or abs(share - kept) < abs(best[0] - kept):
            best = share, pruned
        if abs(best[0] - kept) <= _CLOSE:
            break
    assert best is not None
    if abs(best[0] - kept) > TOLERANCE or best[0] > 0.999:
        end = "least it leaves" if best[0] > kept else "nearest it comes"
        raise JobError(
            "unsupported",
            f"pruning cannot reach macs_kept {kept:g}: {best[0]:.2f} is the {end} "
            "(the rest is in layers that make the output or that cannot be pruned)",
            least={"prune.macs_kept": best[0] - TOLERANCE} if best[0] > kept else None,
        )
    return _checked(best[1], inputs, shapes)


def _search(
    model: Flat,
    inputs: Sequence[Tensor],
    ignored: set[str],
    goal: tuple[float, float, int],
    importance: Importance | None,
) -> tuple[float, Flat]:
    """Bisect the channel ratio; returns the share reached and the nearest copy."""
    kept, dense, rounded = goal
    low, high = 0.0, _MOST
    best: tuple[float, Flat] | None = None
    for _ in range(_STEPS):
        ratio = (low + high) / 2
        pruned = _pruned(model, inputs, ignored, ratio, rounded, importance)
        share = flops(functools.partial(pruned, *inputs)) / dense if dense else 1.0
        if best is None or abs(share - kept) < abs(best[0] - kept):
            best = share, pruned
        if abs(share - kept) < 0.005:
            break
        low, high = (ratio, high) if share > kept else (low, ratio)
    assert best is not None
    return best


def _pruned(
    model: Flat,
    inputs: Sequence[Tensor],
    ignored: set[str],
    ratio: float,
    rounded: int = 1,
    importance: Importance | None = None,
    *,
    evenly: bool = False,
) -> Flat:
    """A copy without the share ``ratio`` of the channels of the layers that may lose some;
    ``evenly`` takes that share from each of them.
    """
    duplicate = copy.deepcopy(model).requires_grad_(True)  # the graph is autograd's
    rank = (importance or Importance("magnitude", {})).of(duplicate)
    _pruner(duplicate, inputs, ignored, (ratio, rounded, evenly), rank).step()
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    for name, parameter in duplicate.named_parameters():
        parameter.requires_grad_(trained.get(name, True))
    if not tie(duplicate, ties(model)):
        raise JobError("unsupported", "pruning would separate weights that the model ties")
    return duplicate


def _pruner(
    model: Flat,
    inputs: Sequence[Tensor],
    ignored: set[str],
    level: tuple[float, int, bool],
    importance: Importance,
) -> Any:
    import torch_pruning

    ratio, rounded, evenly = level

    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about loose parameters: the check of the output decides
        return torch_pruning.pruner.MagnitudePruner(
            model,
            tuple(inputs),
            importance=importance,
            global_pruning=not evenly,
            pruning_ratio=ratio,
            max_pruning_ratio=_MOST,
            round_to=rounded,
            ignored_layers=[model.get_submodule(name) for name in sorted(ignored)],
            output_transform=lambda outputs: [o for o in outputs if o.grad_fn is not None],
        )


def _ignored(model: Flat, inputs: Sequence[Tensor]) -> set[str]:
    """Names of layers that make the output, and attention blocks: their heads fix their width."""
    model = copy.deepcopy(model).requires_grad_(True)
    names = {module: name for name, module in model.named_modules()}
    made: dict[Any, nn.Module] = {}
    hooks = [
        module.register_forward_hook(lambda module, _, output: made.update({_root(output): module}))
        for module in names
        if isinstance(module, _LAYERS)
    ]
    try:
        with torch.enable_grad():
            outputs = model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    stack, seen, last = [o.grad_fn for o in outputs], set(), set()
    while stack:
        function = stack.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if function in made:
            last.add(names[made[function]])
        else:
            stack += [parent for parent, _ in function.next_functions]
    blocks = {n for m, n in names.items() if isinstance(m, nn.MultiheadAttention)}
    return last | blocks


def _root(output: Any) -> Any:
    first = output[0] if isinstance(output, tuple) else output
    return first.grad_fn


def _trial(
    model: Flat, inputs: Sequence[Tensor], ignored: set[str], shapes: list[torch.Size]
) -> Exception | None:
    """Prune every allowed layer of a copy and run it: what went wrong, or None."""
    try:
        for ratio in _ODD:
            _checked(_pruned(model, inputs, ignored, ratio, evenly=True), inputs, shapes)
    except Exception as error:  # torch-pruning raises whatever its graph walk meets
        return error
    return None


def _probe(
    model: Flat,
    inputs: Sequence[Tensor],
    ignored: set[str],
    shapes: list[torch.Size],
    error: Exception,
) -> set[str]:
    """Allow the layers one by one (a reshape with a fixed width forbids some) and ignore those
    with which the pruned model no longer runs.

    Raises:
        JobError: unsupported: none is left.
    """
    layers = [name for name, m in model.named_modules() if isinstance(m, _LAYERS)]
    refused = set(layers) | ignored
    for name in layers:
        # A group of layers is pruned once all of it is allowed: its last one is refused.
        if name not in ignored and _trial(model, inputs, refused - {name}, shapes) is None:
            refused.discard(name)
    if refused >= set(layers):
        raise _unsupported(error) from error
    return refused


def _unsupported(error: Exception) -> JobError:
    text = (str(error).strip().splitlines() or [""])[0]
    return JobError("unsupported", f"this model cannot be pruned: {type(error).__name__}: {text}")


def _checked(pruned: Flat, inputs: Sequence[Tensor], shapes: list[torch.Size]) -> Flat:
    """The pruned model, after one forward pass of the right shapes."""
    with torch.no_grad():
        found = [output.shape for output in pruned(*inputs)]
    if found != shapes:
        raise JobError("unsupported", f"pruning would change the output from {shapes} to {found}")
    return pruned
