"""A training plan's step time, memory and energy, each with an interval.

    step = (m + p - 1) x (products + attention + memory traffic + tensor-parallel all-reduces)
           + what of the gradients' exchange is not hidden + optimizer

Median rates are shares of the best measured matrix product.  The shares and the errors were set
once on the calibration rows of ``benchmarks.published`` (which names them) and are tested on
all others.  An error has a part that all machines share (the software, this model) and a part
of the machine's own; only the latter remains in the ratio of two machines.

What this does not know: data loading, stragglers, congestion, clocks that fall under load,
interleaved pipeline schedules, kernels that a compiler would fuse.
"""

import math
from dataclasses import dataclass

from autotune.planning import parallel_cost
from autotune.planning.machines import Machine
from autotune.records.outlook import Estimate, Predicted, ServingPlan, TrainingPlan
from autotune.records.task import Traits, Transformer

# Least squared log errors on the calibration rows of benchmarks.published, over a coarse grid.
PRODUCTS = 0.86  # of the best measured matrix product, in the products of a block
ATTENTION = 0.60  # fused attention, counted without the causal half
TRAFFIC_BYTES = 350.0  # element-wise traffic of a block, forward and backward, at 2 bytes a number
LOGIT_BYTES = 24.0  # traffic of one logit through loss and gradient
BANDWIDTH = 0.85  # of the datasheet's, as copies reach it
LINK = 0.75  # of the datasheet's, as collectives reach it
_HIDDEN = 0.8  # share of the gradients' exchange that runs beside the backward pass
_OPTIMIZER_BYTES = 30.0  # read and written a parameter by mixed-precision Adam
SHARED_SD, OWN_SD = 0.13, 0.10
_PLAIN_SD = 0.35  # models that are no transformer: no published row has tested those
_LINK_SD, _LAUNCH_SD = 0.45, 0.4
CPU_LAUNCH = 3.0  # what a module's operator costs a processor, over the element-wise one profiled
_STEP_LAUNCHES = 200  # of an optimizer's step and the start of a backward pass
MEMORY_SD = 0.10
# Accelerators draw 0.6 to 1 of their limit while they train, and a tenth to a quarter idle.
_BUSY, _IDLE, _POWER_SD = 0.85, 0.2, 0.15
Z90 = 1.6448536269514722


@dataclass(frozen=True)
class PlanForecast:
    """A plan's predicted numbers: medians, and sd of their logarithms.

    ``shared_sd`` is the error that all machines share, ``own_sd`` this machine's.
    """

    plan: TrainingPlan | ServingPlan
    time_s: float
    memory_bytes: float
    shared_sd: float
    own_sd: float

    @property
    def time_sd(self) -> float:
        return math.hypot(self.shared_sd, self.own_sd)

    @property
    def samples_per_s(self) -> float:
        return self.plan.batch_size / self.time_s


@dataclass(frozen=True)
class TrainingForecast(PlanForecast):
    """Of a training step; ``parts`` are the seconds of `PARTS`."""

    plan: TrainingPlan
    parts: tuple[float, ...]


PARTS = (
    "matrix products",
    "attention",
    "memory traffic",
    "waiting for launches",
    "tensor parallel",
    "pipeline bubble",
    "data parallel",
    "optimizer",
)


def forecast(traits: Traits, machine: Machine, plan: TrainingPlan) -> TrainingForecast:
    """The numbers of one plan; ``plan.precision`` must be among the machine's rates."""
    products, attention, traffic = _device_s(traits, machine, plan)
    waiting = _waiting_s(traits, machine, plan, products + attention + traffic)
    tensor = _tensor_s(traits.transformer, machine, plan)
    stage = products + attention + traffic + waiting + tensor
    m, p = plan.micro_batches, plan.pp
    bubble = parallel_cost.bubble(p, m) * m * stage
    work = m * (products + attention + traffic + waiting)
    exchange = _exchange_s(traits, machine, plan)
    data = exchange * (1 - _HIDDEN) + max(0.0, exchange * _HIDDEN - 0.6 * work)
    shard = plan.dp if plan.zero else 1
    parameters = parallel_cost.stage_parameters(traits, p, plan.tp)
    optimizer = parameters / shard * _OPTIMIZER_BYTES / (machine.bandwidth * BANDWIDTH)
    optimizer = max(optimizer, _STEP_LAUNCHES * machine.launch_s)
    device = (m * products, m * attention, m * traffic, m * waiting)
    parts = (*device, m * tensor, bubble, data, optimizer)
    total = sum(parts)
    own = math.hypot(OWN_SD, machine.rates[plan.precision].sd)
    linked, hosted = (m * tensor + data) / total, m * waiting / total
    shared = SHARED_SD if traits.transformer else _PLAIN_SD
    return TrainingForecast(
        plan=plan,
        time_s=total,
        memory_bytes=memory_bytes(traits, machine, plan),
        shared_sd=shared,
        own_sd=math.hypot(own, _LINK_SD * linked, _LAUNCH_SD * hosted),
        parts=parts,
    )


def memory_bytes(traits: Traits, machine: Machine, plan: TrainingPlan) -> float:
    """Peak bytes of the fullest device, its runtime and fragmentation included."""
    return machine.reserve_bytes + 1.04 * parallel_cost.training_bytes(traits, plan)


def fits(memory: float, machine: Machine) -> float:
    """Probability that a predicted peak stays within the device."""
    return probability_below(machine.memory_bytes, memory, MEMORY_SD)


def _device_s(traits: Traits, machine: Machine, plan: TrainingPlan) -> tuple[float, float, float]:
    """One micro-batch on the slowest stage: products, attention, memory traffic, in seconds.

    A backward pass costs two forward passes; recomputation repeats one, or attention alone.
    """
    rate = machine.rates[plan.precision].best
    b, tp = plan.micro_batch, plan.tp
    scale = parallel_cost.width(plan.precision) / 2
    shape = traits.transformer
    again = 4.0 if plan.recompute == "full" else 3.0
    if shape is None:
        flops = again * b * traits.flops_per_sample
        moved = again * 2 * b * traits.activation_bytes_per_sample * scale / 2
        return flops / (rate * PRODUCTS), 0.0, moved / (machine.bandwidth * BANDWIDTH)
    outer = traits.flops_per_sample - shape.block_flops_per_sample
    linear = (
        again * (shape.block_flops_per_sample - shape.attention_flops_per_sample) / plan.pp
        + 3 * outer
    )
    repeats = 3.0 if plan.recompute == "none" else 4.0
    scored = repeats * shape.attention_flops_per_sample / plan.pp
    products = b * linear / (tp * rate * PRODUCTS)
    attention = b * scored / (tp * rate * ATTENTION)
    moved = _block_traffic(shape, plan) * scale * again / 3
    moved += LOGIT_BYTES * shape.sequence * b * (shape.vocabulary or 0) / tp
    return products, attention, moved / (machine.bandwidth * BANDWIDTH)


def _waiting_s(traits: Traits, machine: Machine, plan: TrainingPlan, work_s: float) -> float:
    """What launching a stage's operators adds to one micro-batch: an accelerator that is faster
    than its host waits for it; a processor does both, one after the other.
    """
    again = 4 if plan.recompute == "full" else 3
    launching = again * sum(traits.op_calls.values()) / plan.pp * machine.launch_s
    if machine.kind == "cpu":
        return launching * CPU_LAUNCH
    return max(0.0, launching - work_s)


def _block_traffic(shape: Transformer, plan: TrainingPlan) -> float:
    """Bytes that a stage's element-wise operators move for one micro-batch, at 2 bytes a number.

    Shared like the activations: 10 of 34 parts are repeated on every tensor-parallel device.
    Attention that is not fused writes and reads its scores five times in each direction.
    """
    tokens = shape.sequence * plan.micro_batch * shape.layers / plan.pp
    moved = TRAFFIC_BYTES * shape.hidden * (10 + 24 / plan.tp) / 34
    if not shape.fused_attention and shape.heads:
        moved += 10 * 2 * shape.heads * shape.sequence / plan.tp
    return tokens * moved


def _tensor_s(shape: Transformer | None, machine: Machine, plan: TrainingPlan) -> float:
    """All-reduces of one micro-batch on one stage: two a layer in each direction (arXiv
    1909.08053), two more where the forward is repeated; and the hand-over to the next stage.
    """
    if shape is None or (plan.tp == 1 and plan.pp == 1):
        return 0.0
    size = shape.sequence * plan.micro_batch * shape.hidden * parallel_cost.width(plan.precision)
    inside = plan.tp <= machine.per_node
    link = (machine.link if inside else machine.network / machine.per_node) * LINK
    alpha = parallel_cost.ALPHA_LINK_S if inside else parallel_cost.ALPHA_NETWORK_S
    count = (6 if plan.recompute == "full" else 4) * shape.layers / plan.pp
    seconds = count * parallel_cost.all_reduce_s(size, plan.tp, link, alpha)
    if plan.pp > 1:
        port = machine.link if machine.nodes == 1 else machine.network / machine.per_node
        seconds += 2 * (parallel_cost.ALPHA_NETWORK_S + size / (port * LINK))
    return seconds


def _exchange_s(traits: Traits, machine: Machine, plan: TrainingPlan) -> float:
    """Gradients over dp (ZeRO-3: parameters twice and gradients, every micro-batch), in seconds.

    Ranks of one tensor-parallel group sit side by side, so a replica group has ``per_node / tp``
    members in a node, and the node's network is shared by ``tp`` such groups.
    """
    if plan.dp == 1:
        return 0.0
    size = parallel_cost.stage_parameters(traits, plan.pp, plan.tp) * parallel_cost.width(
        plan.precision
    )
    across = plan.dp * plan.tp > machine.per_node
    speed, alpha = machine.link, parallel_cost.ALPHA_LINK_S
    if across:
        speed = min(machine.link, machine.network / min(plan.tp, machine.per_node))
        alpha = parallel_cost.ALPHA_NETWORK_S
    whole = parallel_cost.all_reduce_s(size, plan.dp, speed * LINK, alpha)
    return 1.5 * whole * plan.micro_batches if plan.zero == 3 else whole


def power_w(machine: Machine, busy: float) -> float | None:
    """Median draw of one device that works for the share ``busy`` of the time."""
    if machine.power_limit_w is None:
        return None
    return machine.power_limit_w * (_IDLE + (_BUSY - _IDLE) * busy)


def estimate(value: float, sd: float) -> Estimate:
    """A lognormal's median and its 90 % interval."""
    spread = math.exp(Z90 * sd)
    return Estimate(value=value, low=value / spread, high=value * spread)


def probability_below(limit: float, median: float, sd: float) -> float:
    """P(X <= limit) of a lognormal."""
    if limit <= 0 or limit == math.inf:
        return float(limit > 0)
    return 0.5 * math.erfc(math.log(median / limit) / (sd * math.sqrt(2)))


def energy(
    machine: Machine, devices: int, time_s: float, busy: float, batch: int, sd: float
) -> Estimate | None:
    """Joules a sample of a plan's devices (hosts and switches are not counted)."""
    watts = power_w(machine, busy)
    if watts is None:
        return None
    joules = devices * watts * time_s / batch
    return estimate(joules, math.hypot(sd, _POWER_SD))


def predicted(found: TrainingForecast, machine: Machine) -> Predicted:
    """The forecast as a record, with intervals."""
    products, attention, traffic = found.parts[:3]
    busy = (products + attention + traffic) / found.time_s
    rate = estimate(found.samples_per_s, found.time_sd)
    return Predicted(
        plan=found.plan,
        time_s=estimate(found.time_s, found.time_sd),
        samples_per_s=rate,
        memory_bytes=estimate(found.memory_bytes, MEMORY_SD),
        fits=fits(found.memory_bytes, machine),
        energy_j_per_sample=energy(
            machine, machine.devices, found.time_s, busy, found.plan.batch_size, found.time_sd
        ),
        parts_s=dict(zip(PARTS, found.parts, strict=True)),
    )
