"""Plans, trials and verdicts in words.  Pure: text from records."""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from autotune import units
from autotune.records.measurement import Verdict
from autotune.records.plan import Deployment, Step, Value
from autotune.records.report import DeployTrial
from autotune.records.task import Option

Rank = Callable[[Sequence[DeployTrial]], tuple[DeployTrial, ...]]
_ABSOLUTE_SLACK = 1e-12


def describe(deployment: Deployment) -> str:
    """One readable line: ``prune ratio=0.5 + int8 static, onnxruntime, 2 threads, batch 1``."""
    steps = " + ".join(_step(step) for step in deployment.compress) or "dense fp32"
    runtime = _step(Step(name=deployment.runtime, params=deployment.runtime_params))
    threads = f"{deployment.threads} thread{'' if deployment.threads == 1 else 's'}"
    return f"{steps}, {runtime}, {threads}, batch {deployment.batch_size}"


def _step(step: Step) -> str:
    given = sorted(step.params.items())
    # a parameter that is off (False, 0) is left out
    shown = " ".join(f"{name}={_value(value)}" for name, value in given if value)
    name = step.name.replace("_", " ")
    return f"{name} {shown}" if shown else name


def _value(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def latency_of(trial: DeployTrial) -> float | None:
    """Seconds per call at the budget's percentile, else p95."""
    found = trial.latency_s
    if found is None:
        return None
    return found.value if found.value is not None else found.p95


def brief(trial: DeployTrial) -> str:
    """A plan with its latency and quality."""
    return f"{describe(trial.deployment)} ({figures(trial)})"


def figures(trial: DeployTrial) -> str:
    """Latency and quality of a trial on *validation*."""
    found = trial.latency_s
    tail = f"p{found.percentile:g}" if found and found.percentile is not None else "p95"
    latency = units.show(latency_of(trial), "s")
    return f"{tail} {latency}, quality {units.metric(trial.quality)}"


def slack(verdict: Verdict) -> float | None:
    """Unused share of the limit, by the deciding bound; negative where the limit is broken."""
    decides = deciding(verdict)
    if decides is None or abs(verdict.limit) < _ABSOLUTE_SLACK:
        return None
    spare = verdict.limit - decides
    return (-spare if verdict.at_least else spare) / abs(verdict.limit)


def deciding(verdict: Verdict) -> float | None:
    """The bound on the limit's side, else the estimate."""
    bound = verdict.lower if verdict.at_least else verdict.upper
    return bound if bound is not None else verdict.estimate


def binding(verdicts: Sequence[Verdict]) -> str | None:
    """The budget with the least slack, in a sentence."""
    known = [(s, v) for v in verdicts if (s := slack(v)) is not None]
    if not known:
        return None
    least, verdict = min(known, key=lambda pair: pair[0])
    share = units.percent(round(abs(least), 2) if abs(least) >= 0.1 else abs(least))
    slackness = f"missed by {share}" if least < 0 else f"{share} to spare"
    name = verdict.name.replace("_", " ")
    return f"The nearest limit is that on {name}: {_sides(verdict)}, {slackness}."


def broken(verdicts: Sequence[Verdict]) -> str:
    """The limits that are broken or undecided, each with the deciding value."""
    open_ = (v for v in verdicts if v.verdict in ("NOT_MET", "UNDECIDED"))
    return ", ".join(f"{v.name.replace('_', ' ')} {_sides(v)}" for v in open_)


def _sides(verdict: Verdict) -> str:
    """The deciding value beside its limit."""
    decides = deciding(verdict)
    side = "lower" if verdict.at_least else "upper"
    kind = f" ({side} bound)" if decides != verdict.estimate else ""
    what = "required" if verdict.at_least else "allowed"
    return f"{quantity(decides, verdict)}{kind} of {quantity(verdict.limit, verdict)} {what}"


def quantity(value: float | None, verdict: Verdict) -> str:
    """A value in the verdict's unit; quality has none."""
    if verdict.unit in ("s", "J", "B", "W"):
        return units.show(value, verdict.unit)
    return units.metric(value)


def margin(picked: DeployTrial, other: DeployTrial) -> str:
    """How the runner-up differs, in measured numbers."""
    parts = []
    mine, theirs = latency_of(picked), latency_of(other)
    if mine and theirs:
        if mine <= theirs:
            word, ratio = "slower", theirs / mine
        else:
            word, ratio = "faster", mine / theirs
        speed = f"{ratio:.2f}x {word}" if ratio >= 1.005 else "as fast"
        if word == "faster" and other.launches < picked.launches:
            few = "1 launch" if other.launches == 1 else f"{other.launches} launches"
            speed += f" in {few}, while the plan was measured in {picked.launches}"
        parts.append(f"{speed} ({units.show(theirs, 's')} against {units.show(mine, 's')})")
    if picked.quality is not None and other.quality is not None:
        ours, others = units.metric(picked.quality), units.metric(other.quality)
        parts.append(f"quality {others} against {ours}")
    return ", ".join(parts) or "nothing comparable was measured"


def knobs(picked: DeployTrial, ranked: Sequence[DeployTrial], rank: Rank) -> dict[str, str]:
    """For each knob of the chosen plan: the best plan measured with another setting."""
    chosen = picked.deployment
    out: dict[str, str] = {}
    for name, value, same in _settings(chosen):
        without = rank([trial for trial in ranked if not same(trial.deployment)])
        label = f"{name.replace('_', ' ')} {value}".strip()
        if not without:
            out[label] = "nothing else was measured"
        elif picked.feasible and not without[0].feasible:
            out[label] = "without it no plan measured keeps the limits"
        else:
            best = without[0]
            out[label] = f"best without it: {describe(best.deployment)}: {margin(picked, best)}"
    return out


def knob_sentences(knobs: Mapping[str, str]) -> list[str]:
    """`knobs` as sentences; settings with the same alternative share one."""
    alike: dict[str, list[str]] = {}
    for name, line in knobs.items():
        alike.setdefault(line, []).append(name)
    return [
        f"{', '.join(names)}: "
        f"{line if len(names) == 1 else line.replace('without it', 'without any one of them')}."
        for line, names in alike.items()
    ]


def _settings(
    chosen: Deployment,
) -> list[tuple[str, str, Callable[[Deployment], bool]]]:
    """Every knob of a plan, with a test for plans that share its setting."""

    def has_step(name: str) -> Callable[[Deployment], bool]:
        return lambda other: any(step.name == name for step in other.compress)

    rows = [(step.name, "", has_step(step.name)) for step in chosen.compress]
    rows.append(("runtime", chosen.runtime, lambda other: other.runtime == chosen.runtime))
    rows.append(("threads", str(chosen.threads), lambda other: other.threads == chosen.threads))
    return rows


def refused(options: Sequence[Option]) -> tuple[str, ...]:
    """Options that were not searched, with the reason: excluded by the user, or not available."""
    out = []
    for option in options:
        if option.excluded_by_user:
            out.append(f"{option.kind} {option.name}: excluded by you")
        elif not option.available:
            out.append(f"{option.kind} {option.name}: {option.reason or 'no reason given'}")
    return tuple(out)


def failures(trials: Sequence[DeployTrial]) -> tuple[str, ...]:
    """Trials that failed or were ruled out without being measured; one line for each reason."""
    found: dict[str, list[DeployTrial]] = {}
    for trial in trials:
        if trial.failure is not None:
            found.setdefault(f"{trial.failure.kind}: {trial.failure.message}", []).append(trial)
        elif trial.bound is not None:
            found.setdefault(trial.bound, []).append(trial)
    return tuple(f"{_named(alike)}: {ended}" for ended, alike in found.items())


def _named(alike: Sequence[DeployTrial]) -> str:
    """``trial 3 (the plan)``, the others by their numbers, the first few of many."""
    first = f"trial {alike[0].number} ({describe(alike[0].deployment)})"
    if len(alike) == 1:
        return first
    rest = ", ".join(str(trial.number) for trial in alike[1:6])
    more = f" and {len(alike) - 6} more" if len(alike) > 6 else ""
    return f"{first}, also {rest}{more}"


def rejected_for_quality(
    trials: Sequence[DeployTrial], picked: DeployTrial | None, limit: float | None
) -> tuple[str, ...]:
    """Kinds of compression whose every trial loses too much quality: the best trial of each.

    ``limit`` is the allowed drop.
    """
    best: dict[tuple[str, ...], DeployTrial] = {}
    fine = set()
    for trial in trials:
        kind = (*(s.name for s in trial.deployment.compress), trial.deployment.runtime)
        if trial.drop is None or not trial.deployment.compress:
            continue
        if trial.state == "complete" and trial.constraints.get("quality", 0.0) <= 0:
            fine.add(kind)
        elif kind not in best or trial.drop < (best[kind].drop or 0.0):
            best[kind] = trial
    fast = latency_of(picked) if picked is not None else None
    lines = []
    for kind, trial in best.items():
        if kind in fine or trial is picked:
            continue
        found = latency_of(trial)
        ratio = f", though {fast / found:.2f}x as fast" if fast and found and fast > found else ""
        lines.append(f"{describe(trial.deployment)}{ratio}: {_lost(trial, limit)}")
    return tuple(lines)


def _lost(trial: DeployTrial, limit: float | None) -> str:
    drop, upper = trial.drop or 0.0, trial.drop_upper
    allowed = f" of the {units.metric(limit)} allowed" if limit is not None else ""
    text = f"quality {units.metric(trial.quality)}, a drop of {units.metric(drop)}{allowed}"
    if upper is not None and (limit is None or drop <= limit):
        text += f", whose upper bound on these rows is {units.metric(upper)}"
    return text


def loosened(trial: DeployTrial, name: str, factor: float = 1.1) -> DeployTrial:
    """The trial with its constraint on ``name`` as if that limit were ``factor`` times as large."""
    if name not in trial.constraints:
        return trial
    eased = trial.constraints | {name: (trial.constraints[name] + 1) / factor - 1}
    return msgspec.structs.replace(trial, constraints=eased)
