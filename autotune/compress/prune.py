"""Structured pruning: whole channels go, those of the least magnitude in the whole model first.

    macs_kept --bisection over the channel ratio, on copies--> pruned model --recovery--> form

Based on the dependency graph of torch-pruning (Fang et al., DepGraph, arXiv 2301.12900).  A
channel ratio is no measure of cost (0.3 leaves half of a ResNet's operations), so the level is
the share of operations that stays.  Layers that make the output are never pruned, nor the
width of an attention's heads.  Does not know layers that the model hides from autograd.
"""

from importlib.util import find_spec

from autotune.compress import Tools
from autotune.forms import Form, changed
from autotune.records.job import Context
from autotune.records.plan import Value
from autotune.records.task import Dim

TAKES = "module"
GIVES = "module"
GROUP = "prune"
TRAINS = True

_PRUNABLE = ("Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d")


def unavailable(context: Context) -> str | None:
    """Needs torch-pruning, and a layer that is not the output's."""
    if find_spec("torch_pruning") is None:
        return "needs `pip install autotune[prune]`"
    types = context.traits.module_types
    layers = sum(count for name, count in types.items() if name in _PRUNABLE)
    if layers < 2:
        return "nothing to prune: no convolution or linear layer besides the output's"
    return None


def dims(context: Context) -> tuple[Dim, ...]:
    """``macs_kept``: the share of multiply-adds that stays, on a ladder, so that each level is
    recovered once and shared by all runtimes and quantizers.
    """
    del context
    return (Dim(name="macs_kept", kind="float", low=0.1, high=0.9, step=0.1),)


def apply(form: Form, params: dict[str, Value], tools: Tools) -> Form:
    """Prune to ``macs_kept``, then recover.

    Raises:
        JobError: unsupported, with the reason.
    """
    from autotune.compress import _channels
    from autotune.forms import module
    from autotune.forms.flat import Flat, flops

    model = tools.module(form)
    about = form.about
    flat = Flat(model, about.input_kind, about.input_names)
    inputs = tools.example(1)
    pruned = _channels.prune(flat, inputs, float(params.get("macs_kept", 0.5)))
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
