"""Deployments: what is searched, and from sampled values to a deployment.

Values that mean the same deployment are made equal, so that a repeat can be recognised.
"""

import msgspec

from autotune.control.space import Space, Values, choice, complete, fix, located, middle
from autotune.errors import UsageError
from autotune.records.budget import Effort
from autotune.records.plan import Deployment, Step, Value
from autotune.records.task import Node, Option, Survey


def deploy_space(
    survey: Survey, threads: tuple[int, ...], batches: tuple[int, ...], effort: Effort
) -> Space:
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
                named = msgspec.structs.replace(dim, name=f"{member.name}.{dim.name}")
                nodes.append(Node(dim=named, parent=group, values=(member.name,)))
    if len(threads) > 1:
        nodes.append(Node(dim=choice("threads", threads)))
    if len(batches) > 1:
        nodes.append(Node(dim=choice("batch_size", batches)))
    return fix(Space(name="deploy", nodes=tuple(nodes)), effort.fix)


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
    values: Values,
    options: tuple[Option, ...],
    *,
    batch_size: int,
    recovery_epochs: int,
    keep_fp32: tuple[str, ...] = (),
) -> Deployment:
    """Sampled values as a deployment.  Recovery epochs only where something is retrained; what
    is kept in fp32 is told to every step that quantizes.
    """
    kept: dict[str, Value] = {"keep_fp32": ",".join(keep_fp32)} if keep_fp32 else {}
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
            }
            | (kept if by_name[name].group == "quantize" else {}),
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


def values_of(
    deployment: Deployment, space: Space, options: tuple[Option, ...]
) -> dict[str, Value] | None:
    """A deployment as values of the space, to enqueue it; None where it lies outside."""
    groups = {o.name: o.group or o.name for o in options if o.kind == "compress"}
    raw: dict[str, Value | None] = {
        "runtime": deployment.runtime,
        "threads": deployment.threads,
        "batch_size": deployment.batch_size,
    }
    raw |= dict.fromkeys(groups.values(), "none")
    for step in deployment.compress:
        if step.name not in groups:
            return None
        raw[groups[step.name]] = step.name
        raw |= {f"{step.name}.{name}": value for name, value in step.params.items()}
    out = located(space, raw)
    if out is None:
        return None
    steps = {name for name in groups if name in out.values()}
    return out if steps == {step.name for step in deployment.compress} else None


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
    whole = [complete(space, values | {"threads": threads}) for values in wanted]
    return [v for i, v in enumerate(whole) if v not in whole[:i]]


def _with(option: Option) -> dict[str, Value]:
    out: dict[str, Value] = {option.group or option.name: option.name}
    for dim in option.dims:
        out[f"{option.name}.{dim.name}"] = middle(dim)
    return out
