"""The importance of each channel and its operations: the order in which pruning removes them.

    magnitude   norm of the group's weights / the layer's mean
    taylor      E[(d output / d gate)^2] / operations of the channel
    bn_scale    |scale| of the group's batch norms, like magnitude where there is none

``taylor`` is the first-order effect of closing a gate on the channel (Molchanov et al., arXiv
1906.10771), on the outputs (projected on random signs) rather than on the loss: it needs no labels
and does not vanish with the training loss.  As gate * d/d gate is weight * d/d weight summed over
the readers of the channel, one backward pass per batch gives all channels.  Dividing by the
operations saved makes channels of all layers comparable, so no layer needs a ratio of its own.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autotune.compress._prune import recurrent
from autotune.forms.flat import Flat

NAMES = ("taylor", "magnitude", "bn_scale")
_READS = (nn.modules.conv._ConvNd, nn.Linear)
_GROWTH = 1.5  # half of a recurrent layer's operations are quadratic in its width


class Importance:
    """What torch-pruning asks for each group of coupled channels.

    Args:
        kind: one of `NAMES`.
        model: the dense model; pruning works on copies, so modules are identified by name.
        costs: operations of each layer, by name.
        gates: for ``taylor``: by layer, the squared effect of each input channel.
    """

    def __init__(
        self, kind: str, costs: dict[str, float], gates: dict[str, Tensor] | None = None
    ) -> None:
        self.kind, self._costs, self._gates = kind, costs, gates or {}
        self.names: dict[nn.Module, str] = {}

    def of(self, model: Flat) -> "Importance":
        """The same importance for a copy of the model."""
        found = Importance(self.kind, self._costs, self._gates)
        found.names = {module: name for name, module in model.named_modules()}
        return found

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor | None:
        """One score per channel of the group's root; None where the group has no weights."""
        import torch_pruning

        if self.kind == "bn_scale":
            found = torch_pruning.importance.BNScaleImportance()(group)
            if found is not None:
                return _tensor(found)
        if self.kind == "taylor":
            effect = self._effect(group)
            if effect is not None:
                return effect
        return _tensor(torch_pruning.importance.GroupMagnitudeImportance(p=2)(group))

    def of_units(self, layer: Any, name: str, given: Sequence[recurrent.Reader]) -> Tensor:
        """One score per hidden unit of a recurrent layer, by the weights that read it."""
        size = layer.hidden_size
        total = torch.zeros(size)
        for key, weight in recurrent.reading_weights(layer, name, given):
            effect = weight.detach().square().sum(0)
            if self.kind == "taylor" and key in self._gates:
                effect = self._gates[key]
            total += effect.reshape(-1, size).sum(0)
        cost = _GROWTH * self._costs.get(name, 0.0) / size
        scale = torch.tensor(cost) if self.kind == "taylor" else total.mean()
        return total / scale.clamp(min=1e-12)

    def _effect(self, group: Any) -> Tensor | None:
        channels = 1 + max((max(roots) for roots in _roots(group) if roots), default=-1)
        effect, cost, found = torch.zeros(channels), torch.zeros(channels), False
        for (dependency, rows), roots in zip(group, _roots(group), strict=True):
            layer = dependency.layer
            name = self.names.get(layer)
            if not roots or name not in self._costs or not isinstance(layer, _READS):
                continue
            reads = dependency.pruning_fn.__name__ == "prune_in_channels"
            at = torch.as_tensor(roots)
            width = _width(layer, reads=reads)
            cost.index_add_(0, at, torch.full((len(roots),), self._costs[name] / width))
            if reads and name in self._gates and len(self._gates[name]) == width:
                effect.index_add_(0, at, self._gates[name][torch.as_tensor(list(rows))])
                found = True
        return effect / cost.clamp(min=1.0) if found else None


def _tensor(found: Any) -> Tensor | None:
    return found if isinstance(found, Tensor) else None


def _roots(group: Any) -> list[list[int]]:
    """For each member of a group, the channel of the root that each of its own is coupled to."""
    return [[r for r in item.root_idxs if r is not None] for item in group]


def _width(layer: Any, *, reads: bool) -> int:
    if isinstance(layer, nn.Linear):
        return layer.in_features if reads else layer.out_features
    return int(layer.in_channels if reads else layer.out_channels)


def costs(model: Flat, inputs: Sequence[Tensor]) -> dict[str, float]:
    """Operations of each convolution, linear and recurrent layer in one call, by name."""
    found: dict[str, float] = {}

    def note(name: str) -> Any:
        def hook(layer: Any, given: Any, output: Any) -> None:
            if isinstance(layer, nn.RNNBase):
                found[name] = found.get(name, 0.0) + recurrent.work(layer, given[0].data)
                return
            each = layer.weight[0].numel()
            if getattr(layer, "transposed", False):
                each = layer.weight.numel() // layer.out_channels
            found[name] = found.get(name, 0.0) + 2.0 * output.numel() * each

        return hook

    with _hooks(model, note), torch.no_grad():
        model(*inputs)
    return found


@contextlib.contextmanager
def _hooks(model: nn.Module, make: Any) -> Iterator[None]:
    wanted = (*_READS, nn.RNNBase)
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, wanted)]
    handles = [layer.register_forward_hook(make(name)) for name, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def gates(model: Flat, batches: Sequence[Sequence[Tensor]], seed: int) -> dict[str, Tensor]:
    """By layer, or weight of a recurrent layer, the mean squared effect on the outputs of each of
    its input channels.

    Args:
        model: in eval mode; its gradients are left as they were.
        batches: positional inputs.
        seed: of the random signs.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, _READS)}
    weights = {name: layer.weight for name, layer in layers.items()}
    weights |= {
        f"{name}.{key}": weight
        for name, layer in model.named_modules()
        if isinstance(layer, nn.RNNBase)
        for key, weight in layer.named_parameters()
        if weight.dim() == 2
    }
    flags = {name: weight.requires_grad for name, weight in weights.items()}
    found: dict[str, Tensor] = {}
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        for inputs in batches:
            with torch.enable_grad():
                total = _projected(model(*inputs), generator)
                values = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
            for (name, weight), gradient in zip(weights.items(), values, strict=True):
                if gradient is not None:
                    effect = _by_input(layers.get(name), (weight * gradient).detach()).square()
                    found[name] = found.get(name, 0.0) + effect / len(batches)
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(flags[name])
    return found


def _projected(outputs: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """The outputs over their standard deviation, summed with random signs."""
    parts = []
    for output in outputs:
        if output.is_floating_point() and output.requires_grad:
            signs = torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1.0
            parts.append((output * signs).sum() / _spread(output) / output[0].numel() ** 0.5)
    return torch.stack(parts).sum()


def _spread(output: Tensor) -> Tensor:
    if output.numel() < 2:
        return output.new_ones(())
    return output.detach().float().std().clamp(min=1e-6)


def _by_input(layer: nn.Module | None, product: Tensor) -> Tensor:
    """Sums over all but the input channels of [out, in, ...] or, for transposed convolutions,
    [in, out, ...]; of a grouped convolution one sum per input channel.
    """
    if getattr(layer, "transposed", False):
        return product.flatten(1).sum(1)
    groups = int(getattr(layer, "groups", 1))
    if groups == 1:
        return product.transpose(0, 1).flatten(1).sum(1)
    out, inside = product.shape[:2]
    per = product.reshape(groups, out // groups, inside, -1).sum((1, 3))
    return per.reshape(-1)
