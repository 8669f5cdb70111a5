"""Lower bounds that are provably safe, from a profile and a model's traits.

    latency >= max(sum over kinds of FLOPs / F_max,  (bytes of weights - cache) / B_max)
                                       each step of a recurrence reads its weights again; a
                                       pruned model's weights: FLOPs left / most FLOPs a byte
    energy  >= idle W x latency bound          memory >= weights
    training >= FLOPs of forward passes and weight gradients / F_max

F_max is the most that these cores can do, by any library that the runtime calls: the largest of the
datasheet's peak, 1.15 x the best measured rate of any path, and what the narrower types' rates
imply (a core's vector units do bf16 at least 2 times and int8 at least 4 times as fast as fp32;
matrix units (AMX) tell nothing about fp32, which they cannot do).  Eager matrix products go one
path, whose own rate is measured, also that of few rows; ONNX Runtime's int8 products go theirs.  A
runtime that is not known to keep fp32 as it is (OpenVINO multiplies in bf16 where there are matrix
units), and a model that allows less precision, may be as fast as narrow types are.  FLOPs are those
of `Floor`: what no runtime can leave out.

Bounds reject; they are never used as estimates.  What is not known bounds nothing.

What this does not know: libraries whose algorithms save multiplications beyond Winograd's
(FFT convolutions are met by counting no convolution on a GPU), and a profile that was measured
while other work ran: `contradicted` tells one measured candidate that proves it wrong.
"""

import math
import re
from collections.abc import Iterator, Mapping

import msgspec

from autotune.records.hardware import Leaf, Profile
from autotune.records.plan import Deployment, Device, Recipe
from autotune.records.task import Floor, Traits

_MARGIN = 1.15
"""A core's clock moves: by a seventh, between a profile and what was measured later, was seen."""
_SHAPE_MARGIN = 1.4
"""Products of few rows, and int8 ones, differ more by their shape than others."""
_NNPACK_GAIN = 324 / 64
"""F(6x6, 3x3) takes 64 products where the direct form takes 324 (Lavin and Gray, arXiv
1509.09308); PyTorch's NNPACK path uses it for small inputs."""
_INT8_GAIN = {"amx_int8": 16.0, "i8mm": 8.0}
_INT8_USUAL = 4.0
_NARROW_GAIN = 16.0
_PRUNE_SLACK = 0.1
_READ_MARGIN = 1.25
"""Readers differ more than multipliers do: another library may prefetch better."""
_COPY_READS = 2.0
"""Where no reader was measured: one that only reads may do what a copy reads and writes, and
what it fetches to write over.
"""
_EAGER_PATH = "gemm_fp32"
_PATHS = ("gemm_fp32", "conv_fp32", "linear_fp32")
_ONNX_PATH = "gemm_fp32_onnxruntime"
_TORCH = ("eager", "compiled")
_UNPROBED = 1.6
"""ONNX Runtime's fp32 products where a profile does not know them, beside PyTorch's: 1.4 times as
fast were the fastest that were met (Zen 3).
"""
_KEEP_FP32 = ("eager", "compiled", "onnxruntime")
"""Runtimes that multiply in fp32 unless the model's own settings allow less (`Floor.narrow`)."""


def _best(leaf: Leaf | None) -> float:
    """The largest value that a leaf speaks for; 0 for none."""
    return max((x for x in (leaf.value, leaf.high) if x), default=0.0) if leaf else 0.0


def _rate(figures: Mapping[str, Leaf], path: str, threads: int, unit: str = "flop_per_s") -> float:
    """The best rate of a path at any size: that of a core, measured alone or beside others, times
    the threads.
    """
    core = 0.0
    for name, leaf in figures.items():
        found = re.fullmatch(rf"{path}(?:_n\d+)?_(\d+)t_{unit}", name)
        if found:  # alone, a core does at least what each of several does
            core = max(core, _best(leaf) / int(found[1]))
    return core * threads


def peak_flop_per_s(
    profile: Profile, threads: int | None = None, *, torch_only: bool = False
) -> float | None:
    """The most fp32 FLOP/s of ``threads`` cores (all usable ones by default), and of any GPU.

    ``torch_only``: by the libraries that PyTorch calls.
    """
    figures = profile.figures
    count = threads or max(1, math.ceil(profile.cpu.cores))
    paths = _PATHS if torch_only else (*_PATHS, _ONNX_PATH)
    measured = [_rate(figures, path, count) for path in paths]
    if not torch_only and not measured[-1]:
        measured.append(_UNPROBED * max(measured))
    if not any(name.startswith("amx") for name in profile.cpu.isa):
        measured.append(_rate(figures, "gemm_bf16", count) / 2)
        int8 = ("gemm_int8",) if torch_only else ("gemm_int8", "gemm_int8_onnxruntime")
        measured += [_rate(figures, path, count, "op_per_s") / _INT8_USUAL for path in int8]
    rates = [_MARGIN * max(measured), _best(figures.get("peak_fp32_flop_per_s"))]
    for gpu in profile.gpus:
        found = [_best(leaf) for name, leaf in gpu.figures.items() if leaf.unit == "FLOP/s"]
        rates.append(_MARGIN * gpu.count * max(found, default=0.0))
        if not found:
            return None  # a device of unknown speed
    return max(rates) or None


def _eager_matmul(profile: Profile, threads: int) -> float | None:
    """The rate that eager fp32 matrix products cannot pass: their own path's."""
    measured = _rate(profile.figures, _EAGER_PATH, threads)
    return _MARGIN * measured if measured and not profile.gpus else None


def _thin_rate(profile: Profile, threads: int, rows: int) -> float | None:
    """The rate that eager products of so many rows cannot pass; None where it is as any other."""
    found = []
    for name, leaf in profile.figures.items():
        match = re.fullmatch(r"linear_rows(\d+)_fp32_(\d+)t_flop_per_s", name)
        if match and leaf.value and int(match[2]) <= threads:
            found.append((int(match[1]), int(match[2]), _best(leaf)))
    more = [n for n, count, _ in found if n >= rows and count == threads]
    if not more or profile.gpus:
        return None
    return _SHAPE_MARGIN * max(rate for n, _, rate in found if n <= min(more))


def _int8_onnx(profile: Profile, deployment: Deployment) -> float | None:
    """The rate of ONNX Runtime's int8 products, where all that was rounded is int8 in it."""
    if deployment.runtime != "onnxruntime" or _four_bits(deployment):
        return None
    rate = _rate(profile.figures, "gemm_int8_onnxruntime", deployment.threads, "op_per_s")
    return _SHAPE_MARGIN * rate if rate and not profile.gpus else None


def _four_bits(deployment: Deployment) -> bool:
    return any("int4" in step.name for step in deployment.compress)


def _read_bytes_per_s(profile: Profile) -> float | None:
    """The most bytes per second that any number of cores reads from memory."""
    figures = profile.figures
    if profile.gpus:
        return None
    read = [_best(leaf) for name, leaf in figures.items() if name.startswith(("read_", "triad_"))
            and "cached" not in name]  # fmt: skip
    copied = [_best(leaf) for name, leaf in figures.items() if name.startswith("copy_")]
    margin = _READ_MARGIN if read else _READ_MARGIN * _COPY_READS
    sheet = _best(figures.get("memory_bandwidth_bytes_per_s"))
    return max(sheet, margin * max([*read, *copied], default=0.0)) or None


def _cached_bytes_per_s(profile: Profile, threads: int) -> float | None:
    """The most bytes per second that these cores read from the cache they share."""
    rate = _rate(profile.figures, "read_cached", threads, "bytes_per_s")
    return _READ_MARGIN * rate if rate and not profile.gpus else None


def _kept(deployment: Deployment) -> float:
    """Share of the dense FLOPs that a deployment may be left with, at least."""
    kept = 1.0
    for step in deployment.compress:
        level = step.params.get("macs_kept")
        if isinstance(level, float | int):
            kept *= max(0.0, float(level) - _PRUNE_SLACK)
        elif "int8" not in step.name:
            kept = 0.0  # a step that this does not know may leave nothing
    return kept


def _quantized(deployment: Deployment) -> bool:
    return any("int" in step.name for step in deployment.compress)


def _flops(floor: Floor, batch: int) -> dict[str, float]:
    more = floor.more_flops
    return {kind: n + (batch - 1) * more.get(kind, 0.0) for kind, n in floor.flops.items()}


def latency_bound_s(
    deployment: Deployment, traits: Traits, profile: Profile, device: Device = "cpu"
) -> float | None:
    """No call of this deployment can be faster than this, in seconds."""
    floor = traits.floor
    if device == "cpu":  # what a GPU could do is no help
        profile = msgspec.structs.replace(profile, gpus=())
    torch_only = deployment.runtime in _TORCH
    peak = peak_flop_per_s(profile, deployment.threads, torch_only=torch_only)
    if floor is None or peak is None:
        return None
    kept = _kept(deployment)
    exact = deployment.runtime in _KEEP_FP32 and not floor.narrow and not _quantized(deployment)
    narrow = 1.0 if exact else _narrow(profile)
    eager = deployment.runtime == "eager" and narrow == 1.0
    path = _eager_matmul(profile, deployment.threads) if eager else None
    fastest = peak * narrow
    if _quantized(deployment) and not floor.narrow:
        fastest = min(fastest, max(peak, _int8_onnx(profile, deployment) or fastest))
    work = _flops(floor, deployment.batch_size)
    times = list(_thin_times(floor, deployment, profile, work)) if path else []
    for kind, flops in work.items():
        rate = path if kind == "matmul" and path else fastest
        if flops:
            times.append((flops / _gain(kind, profile, deployment), rate))
    total = sum(flops / rate for flops, rate in times)
    if not deployment.lossless and times:  # which kind was cut is not known
        dense = sum(_flops(floor, deployment.batch_size).values())
        least = sum(flops for flops, _ in times)
        total = max(0.0, least - (1 - kept) * dense) / max(rate for _, rate in times)
    return max(total, _reading_s(deployment, floor, profile)) or None


def _thin_times(
    floor: Floor, deployment: Deployment, profile: Profile, work: dict[str, float]
) -> Iterator[tuple[float, float]]:
    """Eager products of few rows, (FLOPs, rate), which are taken out of ``work``."""
    for rows, flops in floor.thin:
        batch = deployment.batch_size
        rate = _thin_rate(profile, deployment.threads, rows * batch)
        if rate is not None:
            all_of_it = min(flops * batch, work["matmul"])
            work["matmul"] -= all_of_it
            yield all_of_it, rate


def _gain(kind: str, profile: Profile, deployment: Deployment) -> float:
    """How many times fewer multiplications an algorithm may need than FLOPs say.

    On x86, oneDNN (as PyTorch calls it: ``convolution_direct``) and ONNX Runtime convolve
    directly; PyTorch hands small inputs that come alone to NNPACK.  A GPU's library may use FFTs.
    """
    if kind == "conv" and not profile.gpus:
        return 1.0
    if not kind.startswith(("conv", "winograd")):
        return 1.0
    if profile.gpus:
        return math.inf
    alone = deployment.batch_size == 1 and deployment.runtime != "onnxruntime"
    if profile.cpu.architecture != "x86_64" or (alone and kind == "winograd_small"):
        return _NNPACK_GAIN
    return 1.0


def _narrow(profile: Profile) -> float:
    if profile.gpus:
        return _NARROW_GAIN
    gains = [gain for name, gain in _INT8_GAIN.items() if name in profile.cpu.isa]
    return max(gains, default=_INT8_USUAL)


def _reading_s(deployment: Deployment, floor: Floor, profile: Profile) -> float:
    """Each call reads every weight once, and those of a recurrence at each of its steps: at the
    shared cache's rate what the cores' own caches cannot hold, and at the memory's rate what the
    shared one cannot.
    """
    cpu = profile.cpu
    size, repeated = float(floor.read_bytes), floor.repeated
    if any(_prunes(step.name) for step in deployment.compress):
        # what work is left needs at least these weights: no byte does more of it
        left = _kept(deployment) * sum(floor.flops.values())
        size, repeated = left / floor.most_flops_per_byte if floor.most_flops_per_byte else 0.0, ()
    halved = floor.narrow or deployment.runtime not in _KEEP_FP32
    smaller = 2.0 if halved else 1.0
    if _quantized(deployment):
        smaller = 8.0 if _four_bits(deployment) else 4.0
    memory, shared = _read_bytes_per_s(profile), _cached_bytes_per_s(profile, deployment.threads)

    def reading_s(size: float) -> float:
        seconds = 0.0
        if memory and cpu.l3_bytes:
            seconds = max(0.0, size - cpu.l3_bytes) / memory
        if shared and cpu.l2_bytes and cpu.l3_bytes:
            own = deployment.threads * (cpu.l2_bytes + (cpu.l1d_bytes or 0))
            seconds = max(seconds, (size - own) / shared)
        return seconds

    again = sum(times * reading_s(each / smaller) for each, times in repeated)
    return reading_s(size / smaller) + again


def _prunes(name: str) -> bool:
    return "int8" not in name


def energy_bound_j(
    deployment: Deployment, traits: Traits, profile: Profile, device: Device = "cpu"
) -> float | None:
    """Joules per sample: the least idle power that was measured, over the least time."""
    idle = profile.figures.get("idle_power_w")
    least_s = latency_bound_s(deployment, traits, profile, device)
    if device == "cuda":  # whether the processor is counted too is not known here
        idle = profile.gpus[0].figures.get("idle_power_w") if profile.gpus else None
    if idle is None or least_s is None or idle.source != "measured":
        return None
    watts = idle.low if idle.low is not None else idle.value
    return watts * least_s / deployment.batch_size if watts else None


def memory_bound_bytes(deployment: Deployment, traits: Traits) -> float:
    """The serving process holds its weights; int8 ones may be 8 times smaller (int4 is), and of
    pruned ones nothing is known.
    """
    if any(_prunes(step.name) for step in deployment.compress):
        return 0.0
    return traits.parameter_bytes / (8.0 if _quantized(deployment) else 1.0)


def contradicted(
    deployment: Deployment,
    latency_s: float,
    traits: Traits,
    profile: Profile,
    device: Device = "cpu",
) -> bool:
    """Whether a measured latency lies under its bound: then the profile is wrong, not it."""
    bound = latency_bound_s(deployment, traits, profile, device)
    return bound is not None and latency_s < bound


def train_bound_s(
    recipe: Recipe, epochs: float, rows: int, traits: Traits, profile: Profile
) -> float | None:
    """Forward and weight gradients of every row; incomplete batches may be left out."""
    floor, peak = traits.floor, peak_flop_per_s(profile, torch_only=True)
    if floor is None or peak is None:
        return None
    first = sum(floor.flops.values())
    more = sum(floor.more_flops.values()) / first if first else 0.0
    batch = max(1, recipe.batch_size)
    convolves = any(kind.startswith(("conv", "winograd")) for kind in floor.flops)
    gain = math.inf if convolves and profile.gpus else _NNPACK_GAIN if convolves else 1.0
    if recipe.precision != "fp32" or floor.narrow:
        gain *= _NARROW_GAIN
    a_batch = (first + floor.gradient_flops_per_sample) * (1 + (batch - 1) * min(1.0, more))
    return epochs * (rows // batch) * a_batch / (peak * gain)


def train_memory_bound_bytes(recipe: Recipe, traits: Traits) -> float:
    """Weights, and of those that are trained gradients and the optimizer's state (Adam keeps two
    moments, Muon one of its matrices, Adafactor next to nothing); averaged weights are one copy
    more.
    """
    few = {"sgd": 0, "adafactor": 0, "momentum": 1, "nesterov": 1, "rmsprop": 1, "muon": 1}
    states = 1 + few.get(recipe.optimizer, 2)
    trained = traits.floor.trainable_bytes if traits.floor is not None else 0
    averaged = trained if recipe.ema is not None else 0
    return float(traits.parameter_bytes + states * trained + averaged)
