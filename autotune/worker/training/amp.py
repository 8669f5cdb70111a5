"""The precisions of training; weights stay fp32.

fp32   torch's default
tf32   matrix products and convolutions of fp32 numbers with 10 bits of mantissa (from Ampere on)
bf16   autocast
fp16   autocast, with the loss scaled so that small gradients do not underflow
"""

import contextlib
from typing import Any

import torch


def context(name: str, device: str) -> contextlib.AbstractContextManager[Any]:
    """Within, a forward pass runs in precision ``name``."""
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
    """For fp16 it scales losses and skips steps whose gradients overflow; else it does nothing."""
    return torch.amp.GradScaler(device.partition(":")[0], enabled=name == "fp16")
