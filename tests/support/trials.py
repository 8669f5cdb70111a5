"""Made-up deploy trials, and lists of them for property tests."""

import msgspec
from hypothesis import settings
from hypothesis import strategies as st

from autotune.records.budget import GoalName
from autotune.records.plan import Deployment, Step
from autotune.records.report import DeployTrial, Quantiles

NAMES: tuple[GoalName, ...] = ("quality", "latency", "energy", "throughput", "memory")
FAST = settings(deadline=None, max_examples=80)


def trial(
    number: int,
    latency: float = 0.001,
    quality: float | None = 0.9,
    *,
    runtime: str = "eager",
    threads: int = 1,
    compress: tuple[Step, ...] = (),
    energy: float | None = None,
    over: dict[str, float] | None = None,
) -> DeployTrial:
    return DeployTrial(
        number=number,
        deployment=Deployment(compress=compress, runtime=runtime, threads=threads),
        state="complete",
        latency_s=Quantiles(p50=latency / 1.1, p95=latency, p99=latency * 1.2, samples=104),
        quality=quality,
        energy_j_per_sample=energy,
        memory_bytes=1000 * (number + 1),
        throughput_per_s=1 / latency,
        constraints=over or {},
    )


@st.composite
def trial_lists(draw: st.DrawFn) -> list[DeployTrial]:
    out = []
    for number in range(draw(st.integers(0, 12))):
        state = draw(st.sampled_from(["complete", "complete", "complete", "failed", "skipped"]))
        made = trial(
            number,
            draw(st.floats(1e-4, 1e-2)),
            draw(st.none() | st.floats(0, 1)),
            runtime=draw(st.sampled_from(["eager", "onnxruntime"])),
            threads=draw(st.integers(1, 2)),
            energy=draw(st.none() | st.floats(1e-3, 1)),
            over={"latency": draw(st.floats(-0.9, 2)), "quality": draw(st.floats(-2, 2))},
        )
        made = msgspec.structs.replace(made, state=state)
        if draw(st.booleans()):
            made = msgspec.structs.replace(made, latency_s=None)
        out.append(made)
    return out
