"""From what is legal here to what is searched, and from sampled values to a plan.

    Survey --train_space/deploy_space--> Space --sample--> values --recipe/deployment--> plan

A `Space` is plain data: nodes in order, some only there when an earlier one has a certain
value.  Its hash names the study, so that changed ranges never mix in one study.
Values that mean the same plan are made equal (`deployment`, `recipe`), so that a repeat can
be recognised.
"""

import json
import math
import random
from collections.abc import Callable, Mapping
from hashlib import sha256

from autotune.errors import UsageError
from autotune.records import codec
from autotune.records.base import Record
from autotune.records.budget import Effort
from autotune.records.hardware import Profile
from autotune.records.plan import Deployment, Recipe, Step, Value
from autotune.records.task import Dim, Option, Split, Survey

Values = Mapping[str, Value]

OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw")
_KINDS = ("runtime", "compress", "parallel", "precision", "optimizer")


class Node(Record, frozen=True, kw_only=True):
    """A dimension that exists when ``parent`` has one of ``values`` (always, without one)."""

    dim: Dim
    parent: str | None = None
    values: tuple[Value, ...] = ()

    def active(self, chosen: Values) -> bool:
        return self.parent is None or chosen.get(self.parent) in self.values


class Space(Record, frozen=True, kw_only=True):
    """An ordered, conditional search space."""

    name: str
    nodes: tuple[Node, ...]

    @property
    def hash(self) -> str:
        return sha256(codec.encode(self)).hexdigest()[:12]

    def sample(self, suggest: Callable[[Dim], Value]) -> dict[str, Value]:
        """Values for every active node, asked in order."""
        chosen: dict[str, Value] = {}
        for node in self.nodes:
            if node.active(chosen):
                chosen[node.dim.name] = suggest(node.dim)
        return chosen


def choice(name: str, choices: tuple[Value, ...]) -> Dim:
    """A categorical dimension."""
    return Dim(name=name, kind="choice", choices=choices)


# -- what the user restricts ---------------------------------------------------------------


def restrict(options: tuple[Option, ...], effort: Effort) -> tuple[Option, ...]:
    """Mark what ``--only`` and ``--without`` exclude.

    ``--only runtime=eager`` keeps, of that kind, what is named (several ``--only`` of one kind
    add up); ``--without NAME`` drops.  A name may stand with or without its kind.

    Raises:
        UsageError: a kind or name that does not exist; the message lists those that do.
    """
    known = {(o.kind, o.name) for o in options} | {("optimizer", o) for o in OPTIMIZERS}
    only = [pair for text in effort.only for pair in _named(text, known, "--only")]
    without = {pair for text in effort.without for pair in _named(text, known, "--without")}
    kinds = {kind for kind, _ in only}
    out = []
    for option in options:
        pair = (option.kind, option.name)
        excluded = pair in without or (option.kind in kinds and pair not in only)
        out.append(_exclude(option) if excluded else option)
    return tuple(out)


def _exclude(option: Option) -> Option:
    import msgspec

    return msgspec.structs.replace(option, available=False, excluded_by_user=True)


def _named(text: str, known: set[tuple[str, str]], flag: str) -> list[tuple[str, str]]:
    pairs = []
    kind, given, rest = text.partition("=")
    for name in (rest if given else text).split(","):
        found = [p for p in known if p[1] == name.strip() and (not given or p[0] == kind)]
        if not found:
            names = sorted(f"{k}={n}" for k, n in known if not given or k == kind)
            names = names or sorted(f"{k}={n}" for k, n in known)
            raise UsageError(f"{flag} {text}: no such choice; there are: {', '.join(names)}")
        pairs += found
    return pairs


def optimizers(effort: Effort) -> tuple[str, ...]:
    """Optimizers left after ``--only`` and ``--without``."""
    known = {("optimizer", o) for o in OPTIMIZERS}
    only, without = set(), set()
    for text in effort.only:
        if text.startswith("optimizer=") or text.split("=")[0] in OPTIMIZERS:
            only |= {n for _, n in _named(text, known, "--only")}
    for text in effort.without:
        names = text.removeprefix("optimizer=").split(",")
        without |= {n for n in names if n in OPTIMIZERS}
    left = tuple(o for o in OPTIMIZERS if (not only or o in only) and o not in without)
    if not left:
        raise UsageError("--only and --without leave no optimizer")
    return left


# -- training ------------------------------------------------------------------------------


def thread_counts(profile: Profile) -> tuple[int, ...]:
    """1, 2, 4, ... and all usable cores."""
    cores = max(1, math.floor(profile.cpu.usable_cores))
    powers = [1 << i for i in range(cores.bit_length()) if 1 << i <= cores]
    return tuple(sorted({*powers, cores}))


def splits(options: tuple[Option, ...], profile: Profile) -> tuple[tuple[str, int, int], ...]:
    """Legal parallelism splits: (plug-in, ranks, threads a rank)."""
    cores = max(1, math.floor(profile.cpu.usable_cores))
    legal = {o.name for o in options if o.kind == "parallel" and o.available}
    out: list[tuple[str, int, int]] = []
    if "single" in legal:
        out += [("single", 1, threads) for threads in thread_counts(profile)]
    if "ddp" in legal:
        devices = len(profile.gpus) or cores
        ranks = [1 << i for i in range(1, 11) if 1 << i <= devices]
        out += [("ddp", r, max(1, cores // r)) for r in ranks]
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
    return Space(name="train", nodes=tuple(nodes))


def recipe(values: Values, split: tuple[str, int, int]) -> Recipe:
    """Sampled values and a split as a recipe."""
    name = str(values["optimizer"])
    adaptive = name in ("adam", "adamw")
    heavy = name in ("momentum", "nesterov")
    parallel, ranks, threads = split
    return Recipe(
        optimizer=name,  # type: ignore[arg-type]
        lr=float(values["lr_adaptive" if adaptive else "lr_sgd"]),
        momentum=float(values["momentum"]) if heavy else None,
        beta1=float(values["beta1"]) if adaptive else None,
        beta2=float(values["beta2"]) if adaptive else None,
        weight_decay=float(values["weight_decay"]),
        batch_size=int(values["batch_size"]),
        precision=str(values.get("precision", "fp32")),  # type: ignore[arg-type]
        parallel=parallel,
        ranks=ranks,
        threads=threads,
    )


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
    }
    out: dict[str, Value] = {}
    for node in space.nodes:
        if not node.active(out):
            continue
        value = raw.get(node.dim.name)
        if value is None or not _inside(node.dim, value):
            return None
        out[node.dim.name] = value
    return out


def _inside(dim: Dim, value: Value) -> bool:
    if dim.kind == "choice":
        return value in dim.choices
    assert dim.low is not None
    assert dim.high is not None
    return not isinstance(value, str) and dim.low <= value <= dim.high


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


# -- deployment ----------------------------------------------------------------------------


def deploy_space(survey: Survey, threads: tuple[int, ...], batches: tuple[int, ...]) -> Space:
    """Compression by group, runtime, threads, batch.

    The runtime comes first: a group whose steps need a form that the runtime does not take
    is not there for it.
    """
    usable = [o for o in survey.options if o.available]
    runtimes = [o for o in usable if o.kind == "runtime"]
    if not runtimes:
        refused = [f"{o.name}: {_why_not(o)}" for o in survey.options if o.kind == "runtime"]
        raise UsageError(f"no runtime is left ({'; '.join(refused)})")
    nodes = [Node(dim=choice("runtime", tuple(o.name for o in runtimes)))]
    steps = [o for o in usable if o.kind == "compress"]
    for group in dict.fromkeys(o.group or o.name for o in steps):
        members = [o for o in steps if (o.group or o.name) == group]
        fitting = tuple(r.name for r in runtimes if any(reaches(m, r) for m in members))
        if not fitting:
            continue
        nodes.append(
            Node(
                dim=choice(group, ("none", *(m.name for m in members))),
                parent="runtime",
                values=fitting,
            )
        )
        for member in members:
            for dim in member.dims:
                named = Dim(
                    **{f: getattr(dim, f) for f in dim.__struct_fields__}
                    | {"name": f"{member.name}.{dim.name}"}
                )
                nodes.append(Node(dim=named, parent=group, values=(member.name,)))
    if len(threads) > 1:
        nodes.append(Node(dim=choice("threads", threads)))
    if len(batches) > 1:
        nodes.append(Node(dim=choice("batch_size", batches)))
    return Space(name="deploy", nodes=tuple(nodes))


def reaches(step: Option, runtime: Option) -> bool:
    """Whether what the step gives can become what the runtime takes (module -> onnx, not back)."""
    order = ("module", "onnx")
    gives, takes = step.gives or "module", runtime.takes or "module"
    if gives not in order or takes not in order:
        return gives == takes
    return order.index(gives) <= order.index(takes)


def _why_not(option: Option) -> str:
    return "excluded by you" if option.excluded_by_user else option.reason or "unavailable"


def deployment(
    values: Values, options: tuple[Option, ...], *, batch_size: int, recovery_epochs: int
) -> Deployment:
    """Sampled values as a deployment.  Recovery epochs only where something is retrained."""
    by_name = {o.name: o for o in options if o.kind == "compress"}
    groups = dict.fromkeys(o.group or o.name for o in by_name.values())
    names = [str(values[g]) for g in groups if values.get(g, "none") != "none"]
    names.sort(key=lambda n: (by_name[n].takes != "module", n))
    steps = tuple(
        Step(
            name=name,
            params={
                key.partition(".")[2]: value
                for key, value in sorted(values.items())
                if key.startswith(f"{name}.")
            },
        )
        for name in names
    )
    retrained = any(by_name[name].takes == "module" for name in names)
    return Deployment(
        compress=steps,
        runtime=str(values["runtime"]),
        threads=int(values.get("threads", 1)),
        batch_size=int(values.get("batch_size", batch_size)),
        recovery_epochs=recovery_epochs if retrained else 0,
    )


def seeds(space: Space, options: tuple[Option, ...], threads: int) -> list[dict[str, Value]]:
    """Deployments worth trying before the sampler has seen anything: each runtime dense, then
    each quantizer, then pruning to a half alone and with each quantizer, on the runtime that
    takes them.
    """
    dims = {node.dim.name: node.dim for node in space.nodes}
    runtimes = [str(r) for r in dims["runtime"].choices]
    steps = [o for o in options if o.kind == "compress" and o.available]
    modules = [o for o in steps if o.gives == "module"]
    others = [o for o in steps if o.gives != "module"]
    late = [o.name for o in options if o.kind == "runtime" and o.takes != "module"]
    fast = [r for r in runtimes if r in late] or runtimes[-1:]
    # cheap and promising first: a compiler costs ten times what an export does
    wanted: list[dict[str, Value]] = [{"runtime": r} for r in fast]
    wanted += [{"runtime": r, **_with(q)} for r in fast for q in others]
    for pruning in modules:
        wanted += [{"runtime": r, **_with(pruning), **_with(q)} for r in fast for q in others]
        wanted += [{"runtime": r, **_with(pruning)} for r in fast]
    wanted += [{"runtime": r} for r in runtimes if r not in fast]
    return [_complete(space, values | {"threads": threads}) for values in wanted]


def neighbour(space: Space, values: Values, seed: int) -> dict[str, Value]:
    """One value of ``values`` changed: a choice to another, a number by a fifth of its range."""
    rng = random.Random(seed)
    active = {n.dim.name: n.dim for n in space.nodes if n.dim.name in values}
    free = [d for d in active.values() if d.kind != "choice" or len(d.choices) > 1]
    changed = dict(values)
    if free:
        dim = rng.choice(free)
        changed[dim.name] = _moved(dim, values[dim.name], rng)
    return _complete(space, changed)


def _moved(dim: Dim, value: Value, rng: random.Random) -> Value:
    if dim.kind == "choice":
        return rng.choice([c for c in dim.choices if c != value])
    low, high = float(dim.low or 0.0), float(dim.high or 0.0)
    step = dim.step or (1.0 if dim.kind == "int" else 0.0)
    moved = float(value) + rng.uniform(-0.2, 0.2) * (high - low)
    if step:
        moved = low + round((moved - low) / step) * step
    moved = min(high, max(low, moved))
    return round(moved, 6) if dim.kind == "float" else round(moved)


def _with(option: Option) -> dict[str, Value]:
    out: dict[str, Value] = {option.group or option.name: option.name}
    for dim in option.dims:
        out[f"{option.name}.{dim.name}"] = _middle(dim)
    return out


def _middle(dim: Dim) -> Value:
    if dim.kind == "choice":
        return dim.choices[0]
    assert dim.low is not None
    assert dim.high is not None
    middle = (dim.low + dim.high) / 2
    if dim.step:
        middle = dim.low + round((middle - dim.low) / dim.step) * dim.step
    return round(middle, 6) if dim.kind == "float" else round(middle)


def _complete(space: Space, values: dict[str, Value]) -> dict[str, Value]:
    """Fill what is not given: "none" for a group, the first choice, or the middle."""
    out: dict[str, Value] = {}
    for node in space.nodes:
        if node.active(out):
            name = node.dim.name
            out[name] = values.get(name, _middle(node.dim))
    return out


def canonical(record: Record) -> str:
    """Equal for equal plans."""
    return json.dumps(json.loads(codec.encode(record)), sort_keys=True)
