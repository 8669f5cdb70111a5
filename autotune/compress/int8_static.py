"""Static int8 for ONNX Runtime (QDQ): weights and activations, ranges from calibration rows.

    graph --outlying channels scaled--> graph --rows--> histograms --rule--> ranges
          --most sensitive layers left out, biases corrected for 7-bit weights--> QDQ graph

Activations are uint8, weights int8 with one scale per channel: signed activations are 2 to 4 times
slower in ONNX Runtime on x86, whose kernels multiply unsigned by signed.  Only products, and the
operators that pass values between them, are quantized.
"""

import functools
import json
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from autotune.compress import CompressTools, _int8
from autotune.errors import install_hint
from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.plan import Value
from autotune.records.task import Dim

TAKES = "onnx"
GIVES = "onnx"
GROUP = "quantize"
DTYPE = "int8"
RUNTIMES = ("onnxruntime",)

_BATCH = 16  # rows per calibration call: bounds the memory of the recorded activations
_PRODUCTS = ("MatMul", "Gemm")
_PASSING = ("MaxPool", "Relu", "Clip", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")
_RULES = ("minmax", "mse", "percentile")
_RESTORED = (0, 2, 8)


def unavailable(context: Context) -> str | None:
    """Needs the onnx extra, and a processor whose int8 products were not measured as slower."""
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        return install_hint("onnx")
    return _int8.slower(context)


def dims(context: Context) -> tuple[Dim, ...]:
    """``method``: how activation ranges are chosen.  ``restored``: how many of the most
    sensitive layers stay in fp32.  ``per_tensor``: one scale per weight tensor instead of per
    output channel, for models without convolutions.  ``reduce_range`` is set by the CPU.
    """
    layers = _int8.layers(context)
    restored = tuple(n for n in _RESTORED if n == 0 or n < layers)
    return (
        Dim(name="method", kind="choice", choices=_RULES),
        Dim(name="restored", kind="choice", choices=restored),
        *_int8.per_tensor(context),
        _int8.reduce_range(context),
    )


def apply(form: Form, params: dict[str, Value], tools: CompressTools) -> Form:
    """Calibrate and quantize ``model.onnx``.

    Raises:
        JobError: unsupported, or there are no calibration rows; nan: an activation is not finite.
    """
    method = str(params.get("method", _RULES[0]))
    rounding = _int8.rounding(params)

    def quantize(source: str, target: str, shared: dict[str, Any]) -> None:
        from autotune.compress._int8 import bias, calibrate, sensitive, smooth

        def rows() -> Iterator[dict[str, Any]]:
            return tools.calibration(form.about.batch_size or _BATCH)

        kept = set(shared.pop("nodes_to_exclude"))
        scaled = tools.workdir / "smoothed.onnx"
        if smooth.smooth(source, str(scaled), rows(), kept):
            source = str(scaled)
        seen = calibrate.collect(source, rows(), (*_int8.HEAVY, *_PASSING))
        ranges = {name: histogram.range(method) for name, histogram in seen.items()}
        restored = int(params.get("restored", 0))
        if restored:
            flops = form.about.flops_per_sample
            nodes = [name for name in _int8.weighted(source, _int8.HEAVY) if name not in kept]
            spans = {name: histogram.range(_RULES[0]) for name, histogram in seen.items()}
            ask = functools.partial(sensitive.order, source, rows(), nodes, spans, flops, rounding)
            kept |= set(_ranked(form, tools, sorted(kept), rounding, ask)[:restored])
        corrected = tools.workdir / "corrected.onnx"
        # 8-bit weights: the correction is below the other errors (docs/decisions.md, 22)
        if shared["reduce_range"] and bias.correct(source, str(corrected), rows(), kept, rounding):
            source = str(corrected)
        _quantize(source, target, ranges, sorted(kept), shared)
        for path in (scaled, corrected):
            path.unlink(missing_ok=True)

    return _int8.run(form, tools, params, quantize)


def _ranked(
    form: Form,
    tools: CompressTools,
    kept: list[str],
    rounding: _int8.Rounding,
    rank: Callable[[], list[str]],
) -> list[str]:
    """The layers by sensitivity, cached: the order depends on the rounding of weights, not on
    ``method``.
    """
    if tools.shared is None:
        return rank()
    by = f"sensitive-{rounding.levels}-{'channel' if rounding.per_channel else 'tensor'}"
    path = tools.shared / f"{form.folder.name}.{by}.json"
    if path.is_file():
        found = json.loads(path.read_text())
        if found["kept"] == kept:
            order: list[str] = found["order"]
            return order
    made = rank()
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({"kept": kept, "order": made}))
    part.replace(path)
    return made


def _quantize(
    source: str, target: str, ranges: dict[str, Any], kept: list[str], shared: dict[str, Any]
) -> None:
    import numpy as np
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    spans = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in ranges.items()
    }
    quantizer = QDQQuantizer(
        load_model_with_shape_infer(Path(source)),
        shared["per_channel"],
        shared["reduce_range"],
        QuantType.QInt8,
        QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, spans),
        [],
        kept,
        [*_int8.HEAVY, *_PASSING],
        {
            # outputs of products stay in fp32: less than half the error, and no slower
            "OpTypesToExcludeOutputQuantization": list(_PRODUCTS),
            "MatMulConstBOnly": True,  # attention's products of two activations gain nothing
        },
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(target, False)
