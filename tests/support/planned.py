"""Models and machines to plan with: hand-sized numbers, and two library-like profiles."""

from pathlib import Path

from autotune.hardware import profiles as hardware_profiles
from autotune.planning.machines import ComputeRate, Machine
from autotune.records.hardware import Profile
from autotune.records.outlook import TrainingPlan
from autotune.records.task import Traits, Transformer
from tests.support import made

PROFILES = Path(__file__).parents[2] / "profiles"


def profile(name: str) -> Profile:
    """A profile of the library."""
    return hardware_profiles.load_profile(str(PROFILES / f"{name}.json"))


def decoder(
    *,
    layers: int = 4,
    hidden: int = 64,
    sequence: int = 128,
    heads: int = 8,
    vocabulary: int = 1000,
    fused: bool = True,
) -> Traits:
    """12 l h^2 parameters in blocks, and an embedding and a head of V h each."""
    block = 12 * layers * hidden**2
    scored = 4.0 * layers * hidden * sequence**2
    flops = 2.0 * block * sequence + scored
    parameters = block + 2 * vocabulary * hidden
    return made.traits(
        parameters=parameters,
        parameter_bytes=4 * parameters,
        flops_per_sample=flops + 2.0 * sequence * hidden * vocabulary,
        op_calls={"all": 16 * layers},
        transformer=Transformer(
            layers=layers,
            hidden=hidden,
            sequence=sequence,
            heads=heads,
            vocabulary=vocabulary,
            block_parameters=block,
            block_flops_per_sample=flops,
            attention_flops_per_sample=scored,
            fused_attention=fused,
        ),
    )


def machine(**changes: object) -> Machine:
    """Eight devices of 100 TFLOP/s, 1 TB/s and 80 GB in a node; links of 100 GB/s."""
    fields: dict[str, object] = {
        "name": "made-up",
        "kind": "gpu",
        "devices": 8,
        "per_node": 8,
        "memory_bytes": 80e9,
        "bandwidth": 1e12,
        "rates": {
            "bf16": ComputeRate(1e14, 1.05e14, True),
            "fp32": ComputeRate(1e13, 1.05e13, True),
        },
        "link": 1e11,
        "network": 1e11,
        "power_limit_w": 400.0,
        "launch_s": 5e-6,
        "reserve_bytes": 1e9,
        "bandwidth_most": 1.05e12,
        "cache_bytes": 0.0,
    }
    return Machine(**(fields | changes))  # type: ignore[arg-type]


def plan(**changes: object) -> TrainingPlan:
    """One device, one micro-batch of one sample."""
    fields: dict[str, object] = {
        "batch_size": 1,
        "precision": "bf16",
        "dp": 1,
        "tp": 1,
        "pp": 1,
        "micro_batch": 1,
        "micro_batches": 1,
        "recompute": "none",
        "zero": 0,
    }
    return TrainingPlan(**(fields | changes))  # type: ignore[arg-type]
