"""Training recipes: what is searched, and from sampled values to a recipe.

The parallelism split is no dimension: it does not change what is learnt, so the fastest
measured one of the batch size is taken (`fastest_split`).
"""

import math

import msgspec

from autotune.control.space import Space, Values, choice, fix, inside, optimizers
from autotune.records.budget import Effort
from autotune.records.hardware import Profile
from autotune.records.plan import Recipe, Value
from autotune.records.task import Dim, Node, Option, Split, Survey


def thread_counts(profile: Profile, effort: Effort) -> tuple[int, ...]:
    """``--threads``, or 1, 2, 4, ... and all usable cores."""
    if effort.threads is not None:
        return (effort.threads,)
    cores = max(1, math.floor(profile.cpu.cores))
    powers = [1 << i for i in range(cores.bit_length()) if 1 << i <= cores]
    return tuple(sorted({*powers, cores}))


def splits(
    options: tuple[Option, ...], profile: Profile, effort: Effort
) -> tuple[tuple[str, int, int], ...]:
    """Legal parallelism splits: (plug-in, ranks, threads a rank)."""
    cores = max(1, math.floor(profile.cpu.cores))
    legal = {o.name for o in options if o.kind == "parallel" and o.available}
    out: list[tuple[str, int, int]] = []
    if "single" in legal:
        out += [("single", 1, threads) for threads in thread_counts(profile, effort)]
    if "ddp" in legal:
        devices = len(profile.gpus) or cores
        ranks = [1 << i for i in range(1, 11) if 1 << i <= devices]
        out += [("ddp", r, effort.threads or max(1, cores // r)) for r in ranks]
    return tuple(out)


def batch_sizes(train_rows: int) -> tuple[int, ...]:
    """Powers of two from 16, at most an eighth of the training rows (at least 8 steps an epoch)."""
    most = max(16, train_rows // 8)
    return tuple(size for size in (16, 32, 64, 128, 256, 512, 1024) if size <= most)


def train_space(survey: Survey, effort: Effort) -> Space:
    """Optimizer and its hyperparameters, batch size, precision.

    The parallelism split is no dimension of its own: it does not change what is learnt, so the
    fastest measured split of the batch size is taken (see `fastest_split`).
    """
    names = optimizers(effort)
    precisions = tuple(o.name for o in survey.options if o.kind == "precision" and o.available) or (
        "fp32",
    )
    adaptive = tuple(o for o in ("adam", "adamw") if o in names)
    heavy = tuple(o for o in ("momentum", "nesterov") if o in names)
    plain = tuple(o for o in ("sgd", "momentum", "nesterov") if o in names)
    nodes = [Node(dim=choice("optimizer", names))]
    if adaptive:
        lr = Dim(name="lr_adaptive", kind="float", low=1e-4, high=3e-2, log=True)
        beta1 = choice("beta1", (0.8, 0.9, 0.95))
        beta2 = choice("beta2", (0.95, 0.99, 0.999))
        nodes += [Node(dim=d, parent="optimizer", values=adaptive) for d in (lr, beta1, beta2)]
    if plain:
        lr = Dim(name="lr_sgd", kind="float", low=1e-3, high=1.0, log=True)
        nodes.append(Node(dim=lr, parent="optimizer", values=plain))
    if heavy:
        momentum = Dim(name="momentum", kind="float", low=0.8, high=0.98)
        nodes.append(Node(dim=momentum, parent="optimizer", values=heavy))
    nodes.append(Node(dim=Dim(name="weight_decay", kind="float", low=1e-6, high=1e-1, log=True)))
    nodes.append(Node(dim=choice("batch_size", batch_sizes(survey.task.train_rows))))
    if len(precisions) > 1:
        nodes.append(Node(dim=choice("precision", precisions)))
    nodes += [_own(node) for node in survey.task.space]
    whole = Space(name="train", nodes=tuple(nodes))
    if survey.task.tunes is not None:
        whole = _honoured(whole, survey.task.tunes, baseline(survey))
    return fix(whole, effort.fix)


_OWN = "params."


def _own(node: Node) -> Node:
    """A dimension of the user's, under a name that none of ours has."""
    dim = msgspec.structs.replace(node.dim, name=_OWN + node.dim.name)
    parent = None if node.parent is None else _OWN + node.parent
    return msgspec.structs.replace(node, dim=dim, parent=parent)


def baseline(survey: Survey, threads: int = 1) -> Recipe:
    """The user's recipe, else Adam, lr 1e-3, batch 32, fp32, one process."""
    given = dict(survey.task.recipe or {})
    own = {"threads": threads, "params": survey.task.params}
    return msgspec.convert(own | given, Recipe)


def _honoured(whole: Space, tunes: tuple[str, ...], base: Recipe) -> Space:
    """What the user's own ``train()`` honours is searched; the rest is held at their recipe."""
    nodes = []
    for node in whole.nodes:
        if node.dim.name.startswith(_OWN):
            nodes.append(node)
            continue
        name = "lr" if node.dim.name.startswith("lr_") else node.dim.name
        held = getattr(base, name)
        if name in tunes:
            nodes.append(node)
        elif held is not None:
            dim = choice(node.dim.name, (held,))
            nodes.append(Node(dim=dim, parent=node.parent, values=node.values))
    return Space(name=whole.name, nodes=tuple(nodes))


def recipe(values: Values, split: tuple[str, int, int]) -> Recipe:
    """Sampled values and a split as a recipe."""
    name = str(values["optimizer"])
    adaptive = name in ("adam", "adamw")
    heavy = name in ("momentum", "nesterov")
    parallel, ranks, threads = split
    fields = {
        "optimizer": name,
        "lr": float(values["lr_adaptive" if adaptive else "lr_sgd"]),
        "momentum": float(values["momentum"]) if heavy and "momentum" in values else None,
        "beta1": float(values["beta1"]) if adaptive and "beta1" in values else None,
        "beta2": float(values["beta2"]) if adaptive and "beta2" in values else None,
        "weight_decay": float(values["weight_decay"]),
        "batch_size": int(values["batch_size"]),
        "precision": values.get("precision", "fp32"),
        "parallel": parallel,
        "ranks": ranks,
        "threads": threads,
        "params": {n.removeprefix(_OWN): v for n, v in values.items() if n.startswith(_OWN)},
    }
    return msgspec.convert(fields, Recipe)


def values_of(rec: Recipe, space: Space) -> dict[str, Value] | None:
    """A recipe as values of the space, to enqueue it; None where it lies outside."""
    adaptive = rec.optimizer in ("adam", "adamw")
    raw: dict[str, Value | None] = {
        "optimizer": rec.optimizer,
        "lr_adaptive" if adaptive else "lr_sgd": rec.lr,
        "beta1": rec.beta1 if rec.beta1 is not None else 0.9,
        "beta2": rec.beta2 if rec.beta2 is not None else 0.999,
        "momentum": rec.momentum if rec.momentum is not None else 0.9,
        "weight_decay": rec.weight_decay or 1e-6,
        "batch_size": rec.batch_size,
        "precision": rec.precision,
        **{_OWN + name: value for name, value in rec.params.items()},
    }
    out: dict[str, Value] = {}
    for node in space.nodes:
        if not node.active(out):
            continue
        value = raw.get(node.dim.name)
        if value is None or not inside(node.dim, value):
            return None
        out[node.dim.name] = value
    return out


def fastest_split(
    measured: tuple[Split, ...],
    batch_size: int,
    precision: str,
    legal: tuple[tuple[str, int, int], ...],
) -> tuple[str, int, int]:
    """The split with the highest measured throughput at the nearest measured batch size.

    Ties within 5 % go to fewer ranks, then fewer threads (less energy, less memory).
    """
    known = [s for s in measured if s.samples_per_s and (s.parallel, s.ranks, s.threads) in legal]
    if not known:
        return legal[0]
    same = [s for s in known if s.precision == precision] or known
    nearest = min((abs(math.log2(s.batch_size / batch_size)), s.batch_size) for s in same)[1]
    here = [s for s in same if s.batch_size == nearest]
    best = max(s.samples_per_s or 0.0 for s in here)
    close = [s for s in here if (s.samples_per_s or 0.0) >= 0.95 * best]
    first = min(close, key=lambda s: (s.ranks, s.threads))
    return first.parallel, first.ranks, first.threads
