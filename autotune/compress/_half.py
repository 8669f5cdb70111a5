"""What the 16-bit steps share: weights stored in 16 bits, and word to the runtime.

Matrices and kernels are rounded on disk, which halves the file; biases, norms and statistics
stay as they are.  The loader brings them back, and the runtime computes in `Interface.precision`.
"""

from collections.abc import Mapping
from typing import Any, Literal

from autotune import patterns
from autotune.compress import CompressTools
from autotune.forms import Form, changed
from autotune.records.plan import Value


def halve(
    form: Form,
    tools: CompressTools,
    precision: Literal["bf16", "fp16"],
    params: Mapping[str, Value],
) -> Form:
    """The same module, its weights in 16 bits, to be computed in ``precision``; modules named by
    ``keep_fp32`` stay as they are.

    Raises:
        JobError: unsupported: a weight is too large for fp16.
    """
    model = tools.module(form)
    return store(model, form, tools, precision, outermost(model, str(params.get("keep_fp32", ""))))


def store(
    model: Any,
    form: Form,
    tools: CompressTools,
    precision: Literal["bf16", "fp16"],
    exact: tuple[str, ...] = (),
) -> Form:
    """Write ``model`` with its weights in 16 bits, but for those of the modules in ``exact``.

    Raises:
        JobError: unsupported: a weight is too large for fp16.
    """
    import torch

    from autotune.errors import JobError
    from autotune.forms import module

    spared = {id(p) for layer in within(model, exact) for p in layer.parameters(recurse=False)}
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2 or parameter.dtype != torch.float32 or id(parameter) in spared:
                continue
            parameter.data = parameter.data.to(dtype)
            if not bool(parameter.isfinite().all()):
                raise JobError("unsupported", f"{name} holds values that {precision} cannot")
    module.save(model, tools.fresh(), tools.workdir)
    return Form("module", tools.workdir, changed(form.about, precision=precision, exact=exact))


def outermost(model: Any, kept: str) -> tuple[str, ...]:
    """Names of the modules that are meant, those within them left out."""
    wanted = kept.split(",") if kept else []
    found = [name for name, _ in model.named_modules() if patterns.matches(name, wanted)]
    return tuple(name for name in found if not patterns.matches(name.rpartition(".")[0], wanted))


def within(model: Any, names: tuple[str, ...]) -> set[Any]:
    """The modules of these names, and those within them."""
    return {layer for name in names for layer in model.get_submodule(name).modules()}
