"""The precisions of training: in which numbers products are computed; weights stay fp32.

fp32   as torch does it
tf32   products and convolutions of fp32 numbers with ten bits of mantissa (Ampere on)
bf16   autocast
fp16   autocast, and losses scaled so that small gradients do not vanish
"""

import contextlib
from typing import Any

import torch


def context(name: str, device: str) -> contextlib.AbstractContextManager[Any]:
    """Within, a forward pass is computed in precision ``name``."""
    if name == "fp32":
        return contextlib.nullcontext()
    if name == "tf32":
        return _tf32()
    dtype = torch.bfloat16 if name == "bf16" else torch.float16
    return torch.autocast(device.partition(":")[0], dtype=dtype)


@contextlib.contextmanager
def _tf32() -> Any:
    """The setting is global and must hold for the backward pass too: it is left switched on."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield


def scaler(name: str, device: str) -> torch.amp.GradScaler:
    """Scales losses for fp16 (and skips steps whose gradients overflow); else does nothing."""
    return torch.amp.GradScaler(device.partition(":")[0], enabled=name == "fp16")
