"""Static int8 for OpenVINO, by NNCF: ranges from calibration rows, biases corrected.

    model.xml --NNCF--> fake quantizers --rank layers by their error--> the worst ``restored`` ones
                                                                        stay in fp32

A layer's error is the change of its output when its inputs are quantized, relative to that output,
on one calibration batch: one run for all layers, without labels.  Does not see how the errors of
several layers add up, nor those of weights (which have one range per channel).
"""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from itertools import islice
from typing import Any

from autotune import patterns
from autotune.compress import CompressTools, _int8
from autotune.errors import JobError, install_hint
from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.plan import Value
from autotune.records.task import Dim

TAKES = "openvino"
GIVES = "openvino"
GROUP = "quantize"
DTYPE = "int8"
RUNTIMES = ("openvino",)

_NEEDS = ("openvino", "nncf")
_PRODUCTS = ("Convolution", "GroupConvolution", "MatMul")
_ATTENTION, _MAX_STEPS = "ScaledDotProductAttention", 4
_ROWS = 128  # calibration rows; fewer were not tried


def unavailable(context: Context) -> str | None:
    """Needs the openvino extra."""
    del context
    missing = tuple(name for name in _NEEDS if find_spec(name) is None)
    return install_hint("openvino", missing) if missing else None


def dims(context: Context) -> tuple[Dim, ...]:
    """``preset``: ``mixed`` has asymmetric activation ranges.  ``restored``: how many of the most
    sensitive layers stay in fp32.  ``reduce_range`` has one choice, which the CPU decides.
    """
    return (
        Dim(name="preset", kind="choice", choices=("mixed", "performance")),
        Dim(name="restored", kind="choice", choices=(0, 2, 4)),
        _int8.reduce_range(context),
    )


def apply(form: Form, params: dict[str, Value], tools: CompressTools) -> Form:
    """Calibrate and quantize ``model.xml``.

    Raises:
        JobError: unsupported, or there are no calibration rows.
    """
    from autotune.forms import openvino_ir
    from autotune.forms.exported import last_line

    source = form.folder / openvino_ir.MODEL
    size = form.about.batch_size or 1
    batches = list(islice(tools.calibration(size), max(1, _ROWS // size)))
    if not batches:
        raise JobError("unsupported", "static int8 needs calibration rows, and there are none")
    try:
        with openvino_ir.silent():
            import openvino

            def float_model() -> Any:
                return openvino.Core().read_model(source)

            kept = _kept(float_model(), str(params.get("keep_fp32", "")))
            model = _quantize(float_model(), batches, params, kept)
            count = int(params.get("restored", 0))
            if count:
                kept |= set(_worst(model, batches[0], count))
                model = _quantize(float_model(), batches, params, kept)
            openvino_ir.save(model, tools.workdir / openvino_ir.MODEL)
    except JobError:
        raise
    except Exception as error:
        raise JobError("unsupported", f"int8 quantization failed: {last_line(error)}") from error
    return Form("openvino", tools.workdir, form.about)


def _kept(model: Any, modules: str) -> set[str]:
    """Names of the nodes of modules that the user keeps in fp32."""
    from autotune.forms.openvino_ir import module_of

    wanted = tuple(modules.split(",")) if modules else ()
    return {
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if wanted
        and node.get_type_name() not in ("Parameter", "Result", "Constant")
        and (
            patterns.matches(module_of(node.get_friendly_name()), wanted)
            or any(patterns.matches(owner, wanted) for owner in _owners(node))
        )
    }


def _owners(node: Any) -> Iterable[str]:
    """Names of the modules whose weights a node reads: ``head.0`` for ``model.head.0.weight``."""
    for value in node.input_values():
        source = value.get_node()
        if source.get_type_name() == "Constant":
            yield source.get_friendly_name().removeprefix("model.").rpartition(".")[0]


def _quantize(
    model: Any, batches: list[dict[str, Any]], params: Mapping[str, Value], kept: set[str]
) -> Any:
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        OverflowFix,
    )

    names = {name for port in model.inputs for name in port.get_names()}
    rows = [{n: a for n, a in batch.items() if n in names} for batch in batches]
    reduced = bool(params.get("reduce_range", True))
    return nncf.quantize(
        model,
        nncf.Dataset(rows),
        preset=nncf.QuantizationPreset(str(params.get("preset", "mixed"))),
        model_type=nncf.ModelType.TRANSFORMER if _attends(model) else None,
        subset_size=len(rows),
        fast_bias_correction=True,
        ignored_scope=nncf.IgnoredScope(names=sorted(kept), validate=False),
        advanced_parameters=AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE if reduced else OverflowFix.DISABLE
        ),
    )


def _attends(model: Any) -> bool:
    """Whether the graph has attention: a fused operator, or a softmax followed within a few nodes
    by a product of two activations.
    """
    ops = model.get_ordered_ops()
    if any(node.get_type_name() == _ATTENTION for node in ops):
        return True
    near = [node for node in ops if node.get_type_name() == "Softmax"]
    for _ in range(_MAX_STEPS):
        near = [t.get_node() for n in near for out in n.outputs() for t in out.get_target_inputs()]
        products = [n.input_values() for n in near if n.get_type_name() == "MatMul"]
        if any(not any(v.get_node().get_type_name() == "Constant" for v in p) for p in products):
            return True
    return False


def _worst(model: Any, batch: Mapping[str, Any], count: int) -> list[str]:
    """Names of the ``count`` products whose output changes most when their inputs are quantized."""
    import numpy as np
    import openvino
    from openvino.utils.node_factory import NodeFactory

    from autotune.forms.openvino_ir import runner

    names, pairs = [], []
    for node in model.get_ordered_ops():
        inputs = node.input_values()
        given = [_unrounded(value) for value in inputs]
        if node.get_type_name() in _PRODUCTS and any(raw is not None for raw in given):
            attributes = {k: v for k, v in node.get_attributes().items() if v is not None}
            whole = [raw or value for raw, value in zip(given, inputs, strict=True)]
            exact = NodeFactory().create(node.get_type_name(), whole, attributes)
            names.append(node.get_friendly_name())
            pairs += [node.output(0), exact.output(0)]
    found = runner(openvino.Model(pairs, model.get_parameters()))(batch)
    errors = {
        name: float(np.linalg.norm(rounded - exact) / max(float(np.linalg.norm(exact)), 1e-12))
        for name, rounded, exact in zip(names, found[::2], found[1::2], strict=True)
    }
    return sorted(errors, key=lambda name: (-errors[name], name))[:count]


def _unrounded(value: Any) -> Any:
    """The input of the fake quantizer that made a value; None where none did."""
    node = value.get_node()
    return node.input_value(0) if node.get_type_name() == "FakeQuantize" else None
