"""Whether a narrower type is faster than fp32 on this machine, by the profile's measurements.

A CPU without instructions for bf16 or int8 still runs them, many times slower than fp32, so a type
is used only where its matrix product was measured to be faster.
"""

from collections.abc import Mapping

from autotune.records.hardware import Leaf, Profile

FP32 = "gemm_fp32_1t_flop_per_s"
BF16 = "gemm_bf16_1t_flop_per_s"
INT8_ONNXRUNTIME = "gemm_int8_onnxruntime_1t_op_per_s"


def slower(profile: Profile, name: str, what: str) -> str | None:
    """Why the product measured as ``name`` is not used: no faster than fp32; else None."""
    narrow, full = _measured(profile, name), _measured(profile, FP32)
    if narrow is None or full is None or narrow > full:
        return None
    return _words(what, narrow, full)


def bf16(profile: Profile) -> str | None:
    """Why bf16 is not used on the CPU: no faster than fp32, or not measured."""
    if _measured(profile, BF16) is None or _measured(profile, FP32) is None:
        return "not measured here: profile this machine again (`autotune profile`)"
    return slower(profile, BF16, "bf16 GEMM")


def fp16(profile: Profile) -> str | None:
    """Why fp16 is not used: no GPU, or no faster than fp32 on it."""
    if not profile.gpus:
        return "needs a GPU: PyTorch converts fp16 to fp32 on a CPU"
    return on_gpu(profile, "fp16")


def on_gpu(profile: Profile, kind: str) -> str | None:
    """Why a type is not used on the GPU: no faster than fp32, or not measured."""
    if not profile.gpus:
        return f"needs a GPU on which {kind} is faster than fp32"
    figures = profile.gpus[0].figures
    narrow, full = (_value(figures, f"gemm_{name}_flop_per_s") for name in (kind, "fp32"))
    if narrow is None or full is None:
        return "not measured here: profile this machine again (`autotune profile`)"
    return _words(f"{kind} GEMM", narrow, full) if narrow <= full else None


def _words(what: str, narrow: float, full: float) -> str:
    return (
        f"slower here: {what} {narrow / 1e9:.3g} GFLOP/s against fp32 {full / 1e9:.3g} "
        f"({narrow / full:.2g}x)"
    )


def _measured(profile: Profile, name: str) -> float | None:
    return _value(profile.figures, name)


def _value(figures: Mapping[str, Leaf], name: str) -> float | None:
    leaf = figures.get(name)
    return leaf.value if leaf is not None else None
