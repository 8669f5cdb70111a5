"""What the 16-bit steps share: weights stored in 16 bits, and the precision to compute in.

Weights of two or more dimensions are stored in 16 bits, which halves the file; biases, norms and
statistics stay in fp32.  The loader and the runtime read `Interface.precision`.
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
    """The same module, stored and computed in ``precision``; modules named by ``keep_fp32`` stay
    in fp32.

    Raises:
        JobError: unsupported: a weight overflows fp16.
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
        JobError: unsupported: a weight overflows fp16.
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
                raise JobError(
                    "unsupported", f"{name} holds values outside the range of {precision}"
                )
    module.save(model, tools.fresh(), tools.workdir)
    return Form("module", tools.workdir, changed(form.about, precision=precision, exact=exact))


def outermost(model: Any, kept: str) -> tuple[str, ...]:
    """Names of the modules that ``kept`` matches (comma-separated), without their submodules."""
    wanted = kept.split(",") if kept else []
    found = [name for name, _ in model.named_modules() if patterns.matches(name, wanted)]
    return tuple(name for name in found if not patterns.matches(name.rpartition(".")[0], wanted))


def within(model: Any, names: tuple[str, ...]) -> set[Any]:
    """The modules of these names and their submodules."""
    return {layer for name in names for layer in model.get_submodule(name).modules()}
