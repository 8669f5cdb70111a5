"""Training recipes: what is searched, and from sampled values to a recipe.

The parallelism layout is no dimension: it does not change what is learnt, so the fastest
measured one of the batch size is taken (`fastest_layout`).
"""

import json
import math
from collections.abc import Iterator

import msgspec

from autotune.context import RunContext, thread_counts
from autotune.records.budget import Effort
from autotune.records.hardware import Profile
from autotune.records.plan import Recipe, Value
from autotune.records.task import Dim, Layout, Node, Option, Survey
from autotune.search.space import (
    LR,
    Space,
    Values,
    choice,
    complete,
    fix,
    inside,
    located,
    optimizers,
)
from autotune.training import optimizers as training_optimizers
from autotune.training import throughput
from autotune.training import width as training_width


def layouts(
    options: tuple[Option, ...], profile: Profile, effort: Effort
) -> tuple[tuple[str, int, int], ...]:
    """Legal parallelism layouts: (plug-in, ranks, threads a rank)."""
    cores = max(1, math.floor(profile.cpu.cores))
    legal = [o for o in options if o.kind == "parallel" and o.available]
    out: list[tuple[str, int, int]] = []
    for ranks, name in sorted((ranks, o.name) for o in legal for ranks in o.ranks):
        shared = (effort.threads or max(1, cores // ranks),)
        counts = thread_counts(profile, effort) if ranks == 1 else shared
        out += [(name, ranks, threads) for threads in counts]
    return tuple(out)


def train_space(survey: Survey, effort: Effort) -> Space:
    """Optimizer and its hyperparameters, schedule, regularisation, batch size, precision.

    The first choice of each is to do without, and the user's own value is always among them.

    The parallelism layout is no dimension of its own: it does not change what is learnt, so the
    fastest measured layout of the batch size is taken (see `fastest_layout`).
    """
    # what the user holds fast need not pay
    held = {text.partition("=")[0].strip() for text in effort.fix}
    precisions = throughput.precisions(survey, measured="precision" not in held)
    sizes = throughput.batch_sizes(survey, measured="batch_size" not in held)
    base = baseline(survey)
    nodes = [*training_optimizers.nodes(optimizers(survey.options))]
    nodes.append(Node(dim=Dim(name="weight_decay", kind="float", low=1e-6, high=1e-1, log=True)))
    nodes += _course(base, smoothable=survey.task.smoothable)
    large = throughput.recomputed_sizes(survey, effort)
    nodes.append(Node(dim=choice("batch_size", tuple(dict.fromkeys((*sizes, *large))))))
    if large:
        again = choice("recompute", (True,))
        nodes.append(Node(dim=again, parent="batch_size", values=large))
    if throughput.offered(survey, effort, "compile"):
        nodes.append(Node(dim=choice("compile", (False, True))))
    if len(precisions) > 1:
        nodes.append(Node(dim=choice("precision", precisions)))
    narrower = training_width.searched(survey, effort)
    if narrower:
        nodes.append(Node(dim=choice(training_width.NAME, narrower)))
    nodes += [_own(node) for node in survey.task.space]
    whole = Space(name="train", nodes=tuple(nodes))
    if survey.task.tunes is not None:
        whole = _honoured(whole, survey.task.tunes, base)
    return fix(whole, effort.fix)


def _course(base: Recipe, *, smoothable: bool) -> Iterator[Node]:
    """The schedule, and what keeps a training steady or its result general."""

    def first_none(name: str, *others: float) -> Dim:
        return choice(name, tuple(dict.fromkeys((0.0, *others, getattr(base, name) or 0.0))))

    yield Node(dim=choice("schedule", ("constant", "cosine", "one_cycle")))
    warm = first_none("warmup", 0.05)
    yield Node(dim=warm, parent="schedule", values=("constant", "cosine"))
    yield Node(dim=first_none("clip_norm", 1.0))
    if smoothable:
        yield Node(dim=first_none("label_smoothing", 0.1))
    yield Node(dim=first_none("ema", 0.99))


_OWN = "params."
_LAST = ("warmup", "compile", "recompute")
_HYPER = ("momentum", "beta1", "beta2")


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


_FINE_LR = 3e-4


def fine_tuning(survey: Survey) -> Recipe:
    """How a model that came trained learns again after pruning: the user's recipe; without one the
    baseline at a lower learning rate, as no search has found one for these weights.
    """
    found = baseline(survey)
    given = survey.task.recipe and "lr" in survey.task.recipe
    return found if given else msgspec.structs.replace(found, lr=_FINE_LR)


def _honoured(whole: Space, tunes: tuple[str, ...], base: Recipe) -> Space:
    """What the user's own ``train()`` honours is searched; the rest is held at their recipe."""
    nodes = []
    for node in whole.nodes:
        if node.dim.name.startswith(_OWN) or node.dim.name == training_width.NAME:
            nodes.append(node)
            continue
        name = "lr" if node.dim.name.startswith(LR) else node.dim.name
        held = getattr(base, name)
        if name in tunes:
            nodes.append(node)
        elif held is not None:
            dim = choice(node.dim.name, (held,))
            nodes.append(Node(dim=dim, parent=node.parent, values=node.values))
    return Space(name=whole.name, nodes=tuple(nodes))


def recipe(values: Values, layout: tuple[str, int, int], space: Space | None = None) -> Recipe:
    """Sampled values and a layout as a recipe; the rates of ``space`` are for a batch of 32."""
    name = str(values["optimizer"])
    parallel, ranks, threads = layout
    batch = int(values["batch_size"])
    lr = float(values[training_optimizers.of(name).lr]) * _lr_scale(space, name, batch)
    fields = {
        "optimizer": name,
        "lr": lr,
        **{field: values.get(field) for field in _HYPER},
        "weight_decay": float(values["weight_decay"]),
        "schedule": values.get("schedule", "constant"),
        "warmup": values.get("warmup", 0.0),
        "clip_norm": values.get("clip_norm") or None,
        "label_smoothing": values.get("label_smoothing", 0.0),
        "ema": values.get("ema") or None,
        "batch_size": batch,
        "precision": values.get("precision", "fp32"),
        "compile": values.get("compile", False) and ranks == 1 and not values.get("recompute"),
        "recompute": values.get("recompute", False),
        "parallel": parallel,
        "ranks": ranks,
        "threads": threads,
        "params": {n.removeprefix(_OWN): v for n, v in values.items() if n.startswith(_OWN)}
        | training_width.params(values),
    }
    return msgspec.convert(fields, Recipe)


def _lr_scale(space: Space | None, rule: str, batch: int) -> float:
    """What a learning rate of the space is multiplied with at a batch size; 1 where it is held."""
    if space is None:
        return 1.0
    name = training_optimizers.of(rule).lr
    free = any(n.dim.name == name and n.dim.kind == "float" for n in space.nodes)
    return training_optimizers.scale(rule, batch) if free else 1.0


def values_of(rec: Recipe, space: Space) -> dict[str, Value] | None:
    """A recipe as values of the space, to enqueue it; None where it lies outside."""
    raw = _raw(rec, space)
    out = located(space, raw)
    if out is None:
        return None
    lost = [name for name in (*_HYPER, *_LAST) if getattr(rec, name) and name not in out]
    return None if lost else out


def values_near(rec: Recipe, space: Space) -> dict[str, Value] | None:
    """A recipe as values of the space, what lies outside replaced by what is nearest to it or
    does without; None where its optimizer is not in the space.
    """
    raw = _raw(rec, space)
    dims = {node.dim.name: node.dim for node in space.nodes}
    if not inside(dims["optimizer"], rec.optimizer):
        return None
    sizes = [int(size) for size in dims["batch_size"].choices]
    raw["batch_size"] = min(sizes, key=lambda size: abs(math.log(size / rec.batch_size)))
    lr = dims[training_optimizers.of(rec.optimizer).lr]
    if lr.kind == "float":
        at_32 = rec.lr / _lr_scale(space, rec.optimizer, rec.batch_size)
        raw[lr.name] = min(max(at_32, lr.low or 0.0), lr.high or math.inf)
    return complete(space, {name: value for name, value in raw.items() if value is not None})


def _raw(rec: Recipe, space: Space) -> dict[str, Value | None]:
    lr = rec.lr / _lr_scale(space, rec.optimizer, rec.batch_size)
    return {
        "optimizer": rec.optimizer,
        training_optimizers.of(rec.optimizer).lr: lr,
        "beta1": rec.beta1 if rec.beta1 is not None else 0.9,
        "beta2": rec.beta2 if rec.beta2 is not None else 0.999,
        "momentum": rec.momentum if rec.momentum is not None else 0.9,
        "weight_decay": rec.weight_decay or 1e-6,
        "schedule": rec.schedule,
        "warmup": rec.warmup,
        "clip_norm": rec.clip_norm or 0.0,
        "label_smoothing": rec.label_smoothing,
        "ema": rec.ema or 0.0,
        "batch_size": rec.batch_size,
        "precision": rec.precision,
        "compile": rec.compile,
        "recompute": rec.recompute,
        training_width.NAME: training_width.of(rec),
        **{_OWN + name: value for name, value in rec.params.items()},
    }


def initial(
    space: Space, default: Recipe, *, times: int = 4
) -> tuple[tuple[dict[str, Value], str], ...]:
    """Where a search begins (`optimizers.initial`), as different values of the space.

    Recipes are those in use, at batch sizes that this machine is fast with, in the precision
    that it is fastest in, compiled where that pays.
    """
    found: dict[str, tuple[dict[str, Value], str]] = {}
    choices = {n.dim.name: n.dim.choices for n in space.nodes}
    fast = max(int(size) for size in choices["batch_size"])
    quick = str(choices.get("precision", (default.precision,))[-1])
    for rec, why in training_optimizers.initial(default, fast, quick, times=times):
        values = values_near(rec, space)
        if values is not None:
            values |= {"compile": True} if True in choices.get("compile", ()) else {}
            found.setdefault(json.dumps(values, sort_keys=True), (values, why))
    first, rest = list(found.values())[:1], list(found.values())[1:]
    narrow = [
        made for each in first for made in _narrower(each, choices.get(training_width.NAME, ()))
    ]
    return (*first, *narrow, *rest)


def _narrower(
    whole: tuple[dict[str, Value], str], among: tuple[Value, ...]
) -> Iterator[tuple[dict[str, Value], str]]:
    """An initial recipe at each narrower width."""
    values, why = whole
    for width in among[1:]:
        yield {**values, training_width.NAME: width}, f"{why}, width {width:g}"


def fastest_layout(
    measured: tuple[Layout, ...],
    batch_size: int,
    precision: str,
    legal: tuple[tuple[str, int, int], ...],
) -> tuple[str, int, int]:
    """The layout with the highest measured throughput at the nearest measured batch size.

    Ties within 5 % go to fewer ranks, then fewer threads (less energy, less memory).
    """
    usual = [s for s in measured if s.samples_per_s and s.plain_step]
    known = [s for s in usual if (s.parallel, s.ranks, s.threads) in legal]
    if not known:
        return legal[0]
    same = [s for s in known if s.precision == precision] or known
    nearest = min((abs(math.log2(s.batch_size / batch_size)), s.batch_size) for s in same)[1]
    here = [s for s in same if s.batch_size == nearest]
    best = max(s.samples_per_s or 0.0 for s in here)
    close = [s for s in here if (s.samples_per_s or 0.0) >= 0.95 * best]
    first = min(close, key=lambda s: (s.ranks, s.threads))
    return first.parallel, first.ranks, first.threads


def on_fastest_layout(run: RunContext, recipe: Recipe) -> Recipe:
    """The recipe on the layout that was measured fastest at its batch size and precision."""
    legal = layouts(run.survey.options, run.profile, run.effort)
    layout = fastest_layout(run.survey.layouts, recipe.batch_size, recipe.precision, legal)
    parallel, ranks, threads = layout
    return msgspec.structs.replace(recipe, parallel=parallel, ranks=ranks, threads=threads)
