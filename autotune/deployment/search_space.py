"""The space of deployments: its dimensions, and between sampled values and a deployment.

Different values may mean one deployment: it comes out the same, so that a repeat is recognised.
"""

import msgspec

from autotune.errors import UsageError
from autotune.forms import ROAD
from autotune.forms import reaches as becomes
from autotune.records.budget import Effort
from autotune.records.plan import RECOVERY, Deployment, Recovery, Step, Value
from autotune.records.task import Dim, Node, Option, Survey
from autotune.search.space import Space, Values, choice, complete, fix, located, middle

_RECOVERY: dict[str, tuple[float, ...]] = {
    "lr": (1.0, 0.3, 0.1, 3.0),
    "epochs": (1.0, 0.5, 0.25),
    "teacher": (0.7, 0.3, 0.95),
    "temperature": (2.0, 1.0, 4.0),
}
"""The usual value (that of `Recovery`) first."""


def deploy_space(
    survey: Survey, threads: tuple[int, ...], batches: tuple[int, ...], effort: Effort
) -> Space:
    """Runtime with its own parameters, compression by group, threads, batch.

    The runtime comes first: a group offers what can be served by it.  Where that differs from
    runtime to runtime, the group is one dimension for each kind of offer (``openvino.quantize``).
    """
    usable = [o for o in survey.options if o.available]
    runtimes = [o for o in usable if o.kind == "runtime"]
    if not runtimes:
        refused = [f"{o.name}: {_why_not(o)}" for o in survey.options if o.kind == "runtime"]
        raise UsageError(f"no runtime is left ({'; '.join(refused)})")
    nodes = [Node(dim=choice("runtime", tuple(o.name for o in runtimes)))]
    nodes += [_own(o, dim, "runtime") for o in runtimes for dim in o.dims]
    steps = [o for o in usable if o.kind == "compress" and o.searched]
    more = {o.name: _recovery_dims(o, survey, effort) for o in steps}
    for group in dict.fromkeys(_group(o) for o in steps):
        nodes += _offers(group, [o for o in steps if _group(o) == group], runtimes, more)
    slow = tuple(o.name for o in runtimes if o.device == "cpu")
    if len(slow) == len(runtimes):
        nodes.append(Node(dim=choice("threads", threads)))
    elif slow:  # a GPU is fed by one thread
        nodes.append(Node(dim=choice("threads", threads), parent="runtime", values=slow))
    if len(batches) > 1:
        nodes.append(Node(dim=choice("batch_size", batches)))
    return fix(Space(name="deploy", nodes=tuple(nodes)), effort.fix)


# -- ``--joint``: the recipe of the training after a step that trains -------------------------
#
#     prune.macs_kept, prune.importance      a step that trains, and beside its own dimensions
#     prune.recovery_lr, prune.recovery_...  those of the training after it, the usual value first
#
# A step without these parameters recovers as it does without ``--joint``, and a sampled value that
# is the usual one is left out of the step: plans, and the stages built for them, are the same.


def _recovery_dims(step: Option, survey: Survey, effort: Effort) -> tuple[Dim, ...]:
    """The dimensions of a step's recovery; none where it does not train, or has no rows to."""
    task = survey.task
    if not effort.joint or not step.trains or not (task.train_rows or task.calibration_rows):
        return ()
    names = ["lr", "epochs"]
    if task.has_loss:  # else the dense model is all that there is to learn from
        names.append("teacher")
    if task.classes is not None:
        names.append("temperature")
    return tuple(choice(RECOVERY + name, _RECOVERY[name]) for name in names)


def _without_usual(params: dict[str, Value]) -> dict[str, Value]:
    """A step's parameters without what its recovery does anyhow."""
    return {name: value for name, value in params.items() if _usual_recovery(name) != value}


def _usual_recovery(name: str) -> Value | None:
    """What a step without this parameter of its recovery does; None for any other parameter."""
    field = name.removeprefix(RECOVERY)
    if not name.startswith(RECOVERY) or field not in Recovery.__struct_fields__:
        return None
    found: Value = getattr(Recovery(), field)
    return found


# -- groups and parameters -------------------------------------------------------------------


def _group(step: Option) -> str:
    return step.group or step.name


def _own(option: Option, dim: Dim, parent: str) -> Node:
    """A parameter of a step or runtime, there when that is chosen."""
    named = msgspec.structs.replace(dim, name=f"{option.name}.{dim.name}")
    return Node(dim=named, parent=parent, values=(option.name,))


def _offers(
    group: str, members: list[Option], runtimes: list[Option], more: dict[str, tuple[Dim, ...]]
) -> list[Node]:
    """A group's dimensions: one for each set of steps that some runtimes can serve, then the
    steps' own and what there is ``more`` for each.
    """
    offers: dict[tuple[str, ...], list[str]] = {}
    for runtime in runtimes:
        fitting = tuple(m.name for m in members if reaches(m, runtime))
        if fitting:
            offers.setdefault(fitting, []).append(runtime.name)
    nodes: list[Node] = []
    for fitting, served in offers.items():
        name = group if len(offers) == 1 else f"{'+'.join(served)}.{group}"
        nodes.append(
            Node(dim=choice(name, ("none", *fitting)), parent="runtime", values=tuple(served))
        )
        for member in (m for m in members if m.name in fitting):
            nodes += [_own(member, dim, name) for dim in (*member.dims, *more[member.name])]
    return nodes


def reaches(step: Option, runtime: Option) -> bool:
    """Whether the runtime can serve what the step gives."""
    if step.runtimes is not None and runtime.name not in step.runtimes:
        return False
    return becomes(step.gives or "module", runtime.takes or "module")


def _why_not(option: Option) -> str:
    return "excluded by you" if option.excluded_by_user else option.reason or "unavailable"


def deployment(
    values: Values,
    options: tuple[Option, ...],
    *,
    batch_size: int,
    recovery_epochs: float,
    keep_fp32: tuple[str, ...] = (),
) -> Deployment:
    """Sampled values as a deployment.  Recovery epochs only where something is retrained; what
    is kept in fp32 is a parameter of every step that rounds.
    """
    kept: dict[str, Value] = {"keep_fp32": ",".join(keep_fp32)} if keep_fp32 else {}
    by_name = {o.name: o for o in options if o.kind == "compress"}
    groups = {_group(o) for o in by_name.values()}
    chosen = {key: str(value) for key, value in values.items() if _short(key) in groups}
    names = [name for name in chosen.values() if name != "none"]
    names.sort(key=lambda n: (ROAD.index(by_name[n].takes or "module"), not by_name[n].trains, n))
    own = {key: value for key, value in sorted(values.items()) if key not in chosen}
    steps = tuple(
        Step(
            name=name,
            params=_without_usual(_params(name, own))
            | (kept if by_name[name].dtype is not None else {}),
        )
        for name in names
    )
    retrained = any(by_name[name].trains for name in names)
    runtime = str(values["runtime"])
    usual = _usual(runtime, options)
    params = _params(runtime, own)
    return Deployment(
        compress=steps,
        runtime=runtime,
        runtime_params={name: v for name, v in params.items() if usual.get(name) != v},
        threads=int(values.get("threads", 1)),
        batch_size=int(values.get("batch_size", batch_size)),
        recovery_epochs=recovery_epochs if retrained else 0.0,
    )


def _usual(runtime: str, options: tuple[Option, ...]) -> dict[str, Value]:
    """A runtime's default parameters: each dimension's first choice."""
    found = (o for o in options if o.kind == "runtime" and o.name == runtime)
    dims = next((o.dims for o in found), ())
    return {dim.name: dim.choices[0] for dim in dims if dim.kind == "choice"}


def _short(key: str) -> str:
    """A dimension's name without what it belongs to."""
    return key.rpartition(".")[2]


def _params(owner: str, own: Values) -> dict[str, Value]:
    """The parameters among sampled values that belong to a step or runtime."""
    begin = f"{owner}."
    return {key.removeprefix(begin): v for key, v in own.items() if key.startswith(begin)}


def values_of(
    deployment: Deployment, space: Space, options: tuple[Option, ...]
) -> dict[str, Value] | None:
    """A deployment as values of the space, to enqueue it; None where it lies outside."""
    groups = {o.name: _group(o) for o in options if o.kind == "compress"}
    if any(step.name not in groups for step in deployment.compress):
        return None
    chosen = {groups[step.name]: step.name for step in deployment.compress}
    raw: dict[str, Value | None] = {
        "runtime": deployment.runtime,
        "threads": deployment.threads,
        "batch_size": deployment.batch_size,
    }
    names = {node.dim.name for node in space.nodes}
    raw |= {n: chosen.get(_short(n), "none") for n in names if _short(n) in groups.values()}
    raw |= {n: usual for n in names if (usual := _usual_recovery(_short(n))) is not None}
    owners = [(s.name, s.params) for s in deployment.compress]
    params = _usual(deployment.runtime, options) | deployment.runtime_params
    owners.append((deployment.runtime, params))
    raw |= {f"{owner}.{name}": v for owner, params in owners for name, v in params.items()}
    out = located(space, raw)
    if out is None:
        return None
    steps = {str(v) for key, v in out.items() if _short(key) in groups.values()} - {"none"}
    return out if steps == set(chosen.values()) else None


def initial_configurations(
    space: Space, options: tuple[Option, ...], threads: int
) -> list[dict[str, Value]]:
    """Values to try first: each part by itself, from which the surrogate predicts combinations.

    Each runtime dense, each compression without training where it can be served, and each that
    trains alone and under the quantizer with the best prior.  What is fast to build and promising
    comes first: a GPU before the processor, and a compiler, which takes ten times as long as an
    export, last.
    """
    usable = [o for o in options if o.available]
    runtimes = sorted((o for o in usable if o.kind == "runtime"), key=lambda r: r.device == "cpu")
    fast = [r for r in runtimes if _promising(r)] or runtimes[-1:]
    slow = [r for r in runtimes if r not in fast]
    steps = [o for o in usable if o.kind == "compress" and o.searched]
    plain = [o for o in steps if not o.trains]
    wanted: list[dict[str, Value]] = [{"runtime": r.name} for r in fast]
    alone = [(r, o) for r in (*fast, *slow) for o in plain if reaches(o, r)]
    wanted += [{"runtime": r.name, **_with(o)} for r, o in alone]
    for step in (o for o in steps if o.trains):
        first = next((r for r in fast if reaches(step, r)), None)
        if first is not None:
            quantizers = sorted((o for r, o in alone if r is first), key=lambda o: o.time_left)
            wanted.append({"runtime": first.name, **_with(step)})
            wanted += [{"runtime": first.name, **_with(step), **_with(o)} for o in quantizers[:1]]
    wanted += [{"runtime": r.name} for r in slow]
    whole = [complete(space, _every_name(space, v) | {"threads": threads}) for v in wanted]
    return [v for i, v in enumerate(whole) if v not in whole[:i]]


def _promising(runtime: Option) -> bool:
    """Whether it is expected to be fast without a compiler: an exported graph, or a GPU."""
    return runtime.takes != "module" or (runtime.device == "cuda" and not runtime.compiles)


def _every_name(space: Space, values: Values) -> dict[str, Value]:
    """A group's choice under each name that the group has in the space."""
    names = [node.dim.name for node in space.nodes]
    return {n: values[_short(n)] for n in names if _short(n) in values} | dict(values)


def _with(option: Option) -> dict[str, Value]:
    """The values that choose a compression, its parameters in the middle of their ranges."""
    out: dict[str, Value] = {_group(option): option.name}
    for dim in option.dims:
        out[f"{option.name}.{dim.name}"] = middle(dim)
    return out
