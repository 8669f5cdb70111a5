"""Quantization-aware training (QAT): recovery with weights and activations fake-quantized.

    calibration rows --> ranges --> layer(round(x), round(w)) --recovery--> fp32 model
                                                              `--then: int8_static, int8_openvino

The gradient of rounding is the straight-through estimator: 1 inside the clipping range, else 0
(Bengio et al., arXiv 1308.3432; Jacob et al., arXiv 1712.05877).  Weights have one scale per output
channel or per tensor, activations one range per tensor, like those of the quantizers after it.  Its
result is in fp32, so it is of no use alone: the search tries it where static int8 would be the best
plan if its quality were better (`deployment.qat_fallback`).  Does not fake-quantize the inputs of
layers whose weights are used without calling them, such as those in ``nn.MultiheadAttention``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from typing import Any

from autotune.compress import CompressTools, _half, _int8
from autotune.errors import JobError, install_hint
from autotune.forms import Form, changed
from autotune.records.job import Context
from autotune.records.plan import Value
from autotune.records.task import Dim

TAKES = "module"
GIVES = "module"
GROUP = "aware"
DTYPE = "int8"
TRAINS = True
RUNTIMES = ("onnxruntime", "openvino")
SEARCHED = False
PREPARES = ("int8_static", "int8_openvino")

_ROWS, _BATCHES = 16, 16


def unavailable(context: Context) -> str | None:
    """Needs a quantizer to prepare for, layers to quantize, and rows to train on."""
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        return install_hint("onnx")
    if not _int8.layers(context):
        return "the model has no linear or convolutional layer"
    if context.info.train_rows + context.info.calibration_rows == 0:
        return "there are no rows to train on: define train_data()"
    return None


def dims(context: Context) -> tuple[Dim, ...]:
    """``reduce_range``: 7-bit weights, as in the quantizer after it.  The plan also copies that
    quantizer's ``per_tensor``, if any (`deployment.qat_fallback`).
    """
    return (_int8.reduce_range(context),)


def apply(form: Form, params: dict[str, Value], tools: CompressTools) -> Form:
    """Train with fake quantization.

    Raises:
        JobError: unsupported: there are no calibration rows, or no layer to quantize.
    """
    from autotune.forms import module
    from autotune.forms.flat import Flat

    model = tools.module(form)
    about = form.about
    kept = _half.outermost(model, str(params.get("keep_fp32", "")))
    spared = _half.within(model, kept)
    layers = [layer for layer in model.modules() if _rounded(layer) and layer not in spared]
    if not layers:
        raise JobError("unsupported", "no linear or convolutional layer is left to quantize")
    spans = _spans(Flat(model, about.input_kind, about.input_names), layers, tools)
    with rounding(layers, spans, _int8.rounding(params)):
        seconds = tools.recover(model)
    model.eval()
    module.save(model, tools.fresh(), tools.workdir)
    return Form("module", tools.workdir, changed(about, recovery_s=about.recovery_s + seconds))


def _rounded(layer: Any) -> bool:
    from torch import nn

    return isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _spans(flat: Any, layers: list[Any], tools: CompressTools) -> dict[int, tuple[float, float]]:
    """Lowest and highest input of each layer over the calibration rows, extended to contain 0."""
    import torch

    found: dict[int, tuple[float, float]] = {}

    def see(layer: Any, given: tuple[Any, ...]) -> None:
        low, high = found.get(id(layer), (0.0, 0.0))
        x = given[0].detach()
        found[id(layer)] = min(low, float(x.min())), max(high, float(x.max()))

    hooks = [layer.register_forward_pre_hook(see) for layer in layers]
    try:
        with torch.no_grad():
            for batch in islice(tools.calibration(_ROWS), _BATCHES):
                flat(*(torch.as_tensor(batch[name]) for name in flat.names))
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def rounding(
    layers: list[Any], spans: dict[int, tuple[float, float]], how: _int8.Rounding
) -> Iterator[None]:
    """Within, weights are rounded as ``how`` says, and inputs to 8 bits of their range."""
    from torch import nn
    from torch.nn.utils import parametrize

    class Weight(nn.Module):
        def forward(self, weight: Any) -> Any:
            axes = tuple(range(1 if how.per_channel else 0, weight.dim()))
            largest = weight.detach().abs().amax(axes, keepdim=True)
            limits = (-how.levels, how.levels)
            return _straight(weight, largest.clamp(min=1e-8) / how.levels, 0, limits)

    def enter(layer: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        low, high = spans[id(layer)]
        scale = max(high - low, 1e-8) / 255
        return (_straight(given[0], scale, round(-low / scale), (0, 255)), *given[1:])

    hooks = [layer.register_forward_pre_hook(enter) for layer in layers if id(layer) in spans]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", Weight())
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            raw = layer.parametrizations.weight.original
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            assert layer.weight is raw


def _straight(value: Any, scale: Any, zero: int, limits: tuple[int, int]) -> Any:
    """Fake-quantized, with the straight-through gradient of the clipped value."""
    import torch

    exact = value / scale + zero
    clipped = exact.clamp(*limits)
    return (clipped + (torch.round(clipped) - clipped).detach() - zero) * scale
