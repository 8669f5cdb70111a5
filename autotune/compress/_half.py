"""What the 16-bit steps share: weights stored in 16 bits, and word to the runtime.

Matrices and kernels are rounded on disk, which halves the file; biases, norms and statistics
stay as they are.  The loader brings them back, and the runtime computes in `Interface.precision`.
"""

from typing import Literal

from autotune.compress import Tools
from autotune.forms import Form, changed


def halve(form: Form, tools: Tools, precision: Literal["bf16", "fp16"]) -> Form:
    """The same module, its weights in 16 bits, to be computed in ``precision``.

    Raises:
        JobError: unsupported: a weight is too large for fp16.
    """
    import torch

    from autotune.errors import JobError
    from autotune.forms import module

    model = tools.module(form)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2 or parameter.dtype != torch.float32:
                continue
            parameter.data = parameter.data.to(dtype)
            if not bool(parameter.isfinite().all()):
                raise JobError("unsupported", f"{name} holds values that {precision} cannot")
    module.save(model, tools.fresh(), tools.workdir)
    return Form("module", tools.workdir, changed(form.about, precision=precision))
