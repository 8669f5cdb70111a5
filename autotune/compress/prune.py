"""Structured pruning: removes whole channels and attention heads, the least important first.

    macs_kept, importance --global ranking of groups--> pruned model --recovery--> form

Based on the dependency graph of torch-pruning (Fang et al., DepGraph, arXiv 2301.12900).
The level is the share of multiply-adds that is kept, not a channel ratio, which says little of cost
(pruning 0.3 of the channels leaves half of a ResNet's operations).  Attention loses whole heads
where its module keeps their number in an attribute, as those of transformers do; an
``nn.MultiheadAttention``, whose width is its input's, keeps all.  Recurrent layers lose hidden
units.  Layers that produce the output are never pruned.  Does not find layers that are outside the
autograd graph.
"""

import itertools
from importlib.util import find_spec
from typing import Any

from autotune.compress import CompressTools
from autotune.errors import JobError, install_hint
from autotune.forms import Form, changed
from autotune.records.job import Context
from autotune.records.plan import Value
from autotune.records.task import Dim

TAKES = "module"
GIVES = "module"
GROUP = "prune"
DTYPE = None
TRAINS = True

_PRUNABLE = (
    "Linear",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "GRU",
    "LSTM",
    "RNN",
)

_ROWS, _BATCHES = 16, 16  # of calibration rows, for the importance of each channel


def unavailable(context: Context) -> str | None:
    """Needs torch-pruning, and a prunable layer besides the output's."""
    if find_spec("torch_pruning") is None:
        return install_hint("prune")
    types = context.traits.module_types
    layers = sum(count for name, count in types.items() if name in _PRUNABLE)
    if layers < 2:
        return "nothing to prune: no convolution, linear or recurrent layer besides the output's"
    return None


def dims(context: Context) -> tuple[Dim, ...]:
    """``macs_kept``: the share of multiply-adds that is kept, in steps of 0.05 so that all
    runtimes and quantizers share the recovered model of a level.  ``importance``: the criterion
    (`_prune.importance`).
    """
    kinds = ("taylor", "magnitude", *(("bn_scale",) if context.traits.has_batch_norm else ()))
    return (
        Dim(name="macs_kept", kind="float", low=0.05, high=0.95, step=0.05, neutral=1.0),
        Dim(name="importance", kind="choice", choices=kinds),
    )


def apply(form: Form, params: dict[str, Value], tools: CompressTools) -> Form:
    """Prune to ``macs_kept`` by ``importance``, then recover.

    Raises:
        JobError: unsupported, with the reason.
    """
    from autotune.compress._prune import channels
    from autotune.forms import module
    from autotune.forms.flat import Flat, flops

    model = tools.module(form)
    about = form.about
    flat = Flat(model, about.input_kind, about.input_names)
    inputs = tools.example(1)
    rank = _rank(flat, inputs, str(params.get("importance", "magnitude")), tools)
    pruned = channels.prune(flat, inputs, float(params.get("macs_kept", 0.5)), rank)
    seconds = tools.recover(pruned.model)
    pruned.eval()
    module.save(pruned.model, tools.fresh(), tools.workdir)
    about = changed(
        about,
        parameters=module.parameters(pruned.model),
        flops_per_sample=flops(lambda: pruned(*inputs)),
        recovery_s=about.recovery_s + seconds,
    )
    return Form("module", tools.workdir, about)


def _rank(flat: Any, inputs: tuple[Any, ...], kind: str, tools: CompressTools) -> Any:
    """The importance criterion; ``taylor`` runs the calibration rows."""
    import torch

    from autotune.compress._prune import importance

    if kind not in importance.NAMES:
        raise JobError(
            "unsupported",
            f"importance {kind!r} is unknown: choose one of {', '.join(importance.NAMES)}",
        )
    if kind != "taylor":
        return importance.Importance(kind, {})
    batches = [
        tuple(torch.as_tensor(batch[name]) for name in flat.names)
        for batch in itertools.islice(tools.calibration(_ROWS), _BATCHES)
    ]
    gates = importance.gates(flat, batches, tools.seed)
    return importance.Importance(kind, importance.costs(flat, inputs), gates)
