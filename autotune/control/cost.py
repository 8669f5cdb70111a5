"""Lower bounds that are provably safe, from a profile and a model's traits.

    latency >= FLOPs / F_max        F_max = 1.05 x the best measured rate x what a
                                    cleverer algorithm or a narrower type may gain
    memory  >= bytes of parameters

Bounds reject; they are never used as estimates.  What is not known bounds nothing.
"""

from autotune.records.hardware import Profile
from autotune.records.plan import Deployment, Recipe
from autotune.records.task import Traits

# Winograd convolutions need up to 4 times fewer multiplications than the direct form that
# FLOPs are counted in (Lavin and Gray, arXiv 1509.09308); int8 dot products do 4 times the
# fp32 rate on VNNI and up to 16 times on AMX.
_ALGORITHM = 4.0
_NARROW = 16.0
_MARGIN = 1.05


def peak_flop_per_s(profile: Profile) -> float | None:
    """The best measured fp32 rate over all thread counts and devices."""
    leaves = [
        leaf
        for name, leaf in profile.figures.items()
        if name.startswith(("gemm_fp32", "gemm_bf16")) and leaf.unit == "flop/s"
    ]
    leaves += [leaf for gpu in profile.gpus for n, leaf in gpu.figures.items() if "gemm" in n]
    rates = [max(x for x in (leaf.value, leaf.high) if x) for leaf in leaves if leaf.value]
    return max(rates) * _MARGIN if rates else None


def _kept(deployment: Deployment) -> float:
    """Share of the dense FLOPs that a deployment may be left with, at least."""
    kept = 1.0
    for step in deployment.compress:
        level = step.params.get("macs_kept")
        if isinstance(level, float | int):
            kept *= max(0.0, float(level) - 0.1)
    return kept


def _quantized(deployment: Deployment) -> bool:
    return any("int" in step.name for step in deployment.compress)


def latency_bound_s(deployment: Deployment, traits: Traits, profile: Profile) -> float | None:
    """No call of this deployment can be faster than this, in seconds."""
    peak = peak_flop_per_s(profile)
    if peak is None or not traits.flops_per_sample:
        return None
    peak *= _ALGORITHM * (_NARROW if _quantized(deployment) else 1.0)
    return deployment.batch_size * traits.flops_per_sample * _kept(deployment) / peak


def memory_bound_bytes(deployment: Deployment, traits: Traits) -> float:
    """The serving process holds at least its weights; at most 8 times smaller than fp32 ones."""
    narrow = 8.0 if _quantized(deployment) else 1.0
    return traits.parameter_bytes * _kept(deployment) / narrow


def train_bound_s(
    recipe: Recipe, epochs: int, rows: int, traits: Traits, profile: Profile
) -> float | None:
    """Forward and backward of every row: three forwards' worth of FLOPs."""
    peak = peak_flop_per_s(profile)
    if peak is None or not traits.flops_per_sample:
        return None
    return 3.0 * traits.flops_per_sample * rows * epochs / (peak * _ALGORITHM)


def train_memory_bound_bytes(recipe: Recipe, traits: Traits) -> float:
    """fp32 weights and gradients, and the optimizer's state (Adam keeps two moments)."""
    states = {"sgd": 2, "momentum": 3, "nesterov": 3}.get(recipe.optimizer, 4)
    return float(traits.parameter_bytes * states)
