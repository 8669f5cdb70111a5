"""Bytes that a device holds and seconds that links take, by the published forms.

    memory   16 B a parameter (fp32 copy 4, two moments 8, half-precision weight 2, gradient 2),
             sharded by tp and pp, and over dp by ZeRO          arXiv 1910.02054, section 3
             activations of a layer s b h (10 + 24/t + 5 a s/(h t))   arXiv 2205.05198, eq. 2
    links    ring all-reduce 2(n-1) alpha + 2(n-1)/n S/B         Thakur et al., 2005
             pipeline bubble (p-1)/m                             arXiv 1811.06965

s sequence, b micro-batch, h hidden, a heads, t tensor-parallel, p pipeline stages, n ranks,
S bytes, B bytes/s one way, alpha seconds a message, m micro-batches.

What this does not know: fragmentation and workspaces (a factor in `training_time.memory_bytes`
stands for them), sequence and context parallelism, interleaved schedules, offloading.
"""

from autotune.records.outlook import Recompute, TrainingPlan
from autotune.records.task import Traits, Transformer

ALPHA_LINK_S, ALPHA_NETWORK_S = 4e-6, 12e-6
_WIDTH = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 2, "int8": 1}


def width(precision: str) -> int:
    """Bytes of an activation or of a weight that takes part in a step."""
    return _WIDTH[precision]


def state_bytes_per_parameter(precision: str, zero: int, dp: int) -> float:
    """Weights, gradients and Adam's state, bytes a parameter on one of ``dp`` replicas.

    Mixed precision: 2 + 2 + 12; ZeRO-1 4 + 12/N, ZeRO-2 2 + 14/N, ZeRO-3 16/N.  fp32 alone:
    4 + 4 + 8, sharded in the same order.
    """
    weight, gradient, rest = (2, 2, 12) if width(precision) == 2 else (4, 4, 8)
    shares = [1.0 if zero < stage else 1.0 / dp for stage in (3, 2, 1)]
    return weight * shares[0] + gradient * shares[1] + rest * shares[2]


def stage_parameters(traits: Traits, pp: int, tp: int) -> float:
    """Parameters of the fullest pipeline stage on one of its ``tp`` devices.

    The blocks are spread evenly; the first stage holds the embedding, the last the head.
    """
    shape = traits.transformer
    if shape is None:
        return float(traits.parameters)
    outer = traits.parameters - shape.block_parameters
    if pp > 1:
        table = (shape.vocabulary or 0) * shape.hidden
        outer = max(table, outer - table)
    return (shape.block_parameters / pp + outer) / tp


def layer_activation_bytes(
    shape: Transformer,
    micro_batch: int,
    tp: int,
    recompute: Recompute,
    precision: str,
    *,
    dropout: bool,
) -> float:
    """What one layer keeps for its backward pass, bytes on one device (at 2 bytes a number
    34 s b h + 5 a s^2 b without tensor parallelism).

    Fused attention keeps no [s, s] scores; selective recomputation drops them; full keeps the
    layer's input alone.  Without dropout its two masks, s b h bytes each, are not there.
    """
    sbh = shape.sequence * micro_batch * shape.hidden * width(precision) / 2
    if recompute == "full":
        return 2 * sbh
    scores = 0.0
    if recompute == "none" and not shape.fused_attention and shape.heads:
        scores = 5 * shape.heads * shape.sequence / (shape.hidden * tp)
    return sbh * (10 + 24 / tp + scores) - (0 if dropout else 2 * sbh)


def activation_bytes(traits: Traits, plan: TrainingPlan) -> float:
    """What the fullest stage keeps between forward and backward, bytes on one device.

    The first stage of a 1F1B schedule holds min(p, m) micro-batches (arXiv 2205.05198, section
    4.2.3).  With full recomputation one layer's own activations are added, and always the
    logits in fp32 with their gradient, where there is a vocabulary.
    """
    shape, b, t = traits.transformer, plan.micro_batch, plan.tp
    if shape is None:
        kept = traits.activation_bytes_per_sample * width(plan.precision) / 4
        return b * kept * (0.35 if plan.recompute == "full" else 0.8)
    masks = traits.has_dropout
    layer = layer_activation_bytes(shape, b, t, plan.recompute, plan.precision, dropout=masks)
    held = min(plan.pp, plan.micro_batches) * shape.layers / plan.pp * layer
    if plan.recompute == "full":
        held += layer_activation_bytes(shape, b, t, "none", plan.precision, dropout=masks)
    logits = 8.0 * shape.sequence * b * (shape.vocabulary or 0) / t
    return held + logits if plan.pp == 1 else max(held, held / plan.pp + logits)


def training_bytes(traits: Traits, plan: TrainingPlan) -> float:
    """Peak bytes of the fullest device, without the runtime's own."""
    parameters = stage_parameters(traits, plan.pp, plan.tp)
    held = parameters * state_bytes_per_parameter(plan.precision, plan.zero, plan.dp)
    shape = traits.transformer
    if plan.zero == 3:  # two gathered layers and one's gradient, in flight
        layer = shape.block_parameters / shape.layers / plan.tp if shape else parameters
        held += 3 * layer * width(plan.precision)
    return held + activation_bytes(traits, plan)


def all_reduce_s(size: float, ranks: int, bytes_per_s: float, alpha_s: float) -> float:
    """Seconds of a ring all-reduce of ``size`` bytes; half of it gathers, or scatters."""
    if ranks == 1:
        return 0.0
    return 2 * (ranks - 1) * alpha_s + 2 * (ranks - 1) / ranks * size / bytes_per_s


def bubble(pp: int, micro_batches: int) -> float:
    """Idle time of a pipeline over its working time."""
    return (pp - 1) / micro_batches
