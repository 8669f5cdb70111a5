"""fp16 with 2:4 sparsity: the two smallest of each four adjacent weights become 0.

    weights x mask (two of four) --recovery with the mask--> fp16, zeros kept
           `--loader: to_sparse_semi_structured--> half the products on tensor cores

GPUs since compute capability 8.0 multiply such matrices up to twice as fast (Mishra et al., arXiv
2104.08378); CPUs gain nothing.  Only Linear layers of sizes that the kernels support
are made sparse.
"""

from typing import Any

from autotune.compress import CompressTools, _half, _paths
from autotune.errors import JobError
from autotune.forms import Form, changed
from autotune.records.job import Context
from autotune.records.plan import Value
from autotune.records.task import Dim

TAKES = "module"
GIVES = "module"
GROUP = "precision"
DTYPE = "fp16"
RUNTIMES = ("cuda_eager", "cuda_graphs", "cuda_compiled")
TRAINS = True

_LEAST = (8, 0)
_ROWS, _COLUMNS = 32, 64
"""What the sizes of a weight must be multiples of, for fp16."""


def unavailable(context: Context) -> str | None:
    """Only on a GPU with sparse tensor cores and faster fp16, for a model with Linear layers."""
    found = [gpu.compute_capability for gpu in context.profile.gpus]
    versions = [tuple(int(part) for part in text.split(".")) for text in found if text]
    if not versions or min(versions) < _LEAST:
        seen = f", this one has {min(text for text in found if text)}" if versions else ""
        return f"2:4 sparsity needs an NVIDIA GPU of compute capability 8.0{seen}"
    if not any(name.endswith("Linear") for name in context.traits.module_types):
        return "the model has no Linear layer, the only kind that 2:4 sparsity reaches"
    return _paths.fp16(context.profile)


def dims(context: Context) -> tuple[Dim, ...]:
    """None: the hardware supports this pattern only."""
    del context
    return ()


def apply(form: Form, params: dict[str, Value], tools: CompressTools) -> Form:
    """Mask, recover with the mask, and store in fp16.

    Raises:
        JobError: unsupported: no layer has supported sizes, or a weight overflows fp16.
    """
    model = tools.module(form)
    exact = _half.outermost(model, str(params.get("keep_fp32", "")))
    spared = _half.within(model, exact)
    layers = [layer for layer in _fitting(model) if layer not in spared]
    if not layers:
        raise JobError(
            "unsupported",
            f"2:4 sparsity: no Linear layer has {_ROWS}n outputs and {_COLUMNS}n inputs",
        )
    seconds = _recovered(model, layers, tools)
    made = _half.store(model, form, tools, "fp16", exact)
    about = changed(made.about, sparse=True, recovery_s=form.about.recovery_s + seconds)
    return Form("module", tools.workdir, about)


def _fitting(model: Any) -> list[Any]:
    from torch import nn

    return [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear
        and layer.out_features % _ROWS == 0
        and layer.in_features % _COLUMNS == 0
    ]


def _recovered(model: Any, layers: list[Any], tools: CompressTools) -> float:
    """Train with the masks applied, and leave their zeros in the weights; the seconds it took."""
    from torch import nn
    from torch.nn.utils import parametrize

    class Masked(nn.Module):
        def __init__(self, mask: Any) -> None:
            super().__init__()
            self.register_buffer("mask", mask, persistent=False)

        def forward(self, weight: Any) -> Any:
            return weight * self.mask

    for layer in layers:
        parametrize.register_parametrization(layer, "weight", Masked(two_of_four(layer.weight)))
    seconds = tools.recover(model)
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    model.eval()
    return seconds


def two_of_four(weight: Any) -> Any:
    """A mask of ``weight``'s shape: 1 for the two largest of each four adjacent weights, else 0."""
    import torch

    fours = weight.detach().abs().reshape(-1, 4)
    kept = torch.zeros_like(fours).scatter_(1, fours.topk(2, dim=1).indices, 1.0)
    return kept.reshape(weight.shape)
