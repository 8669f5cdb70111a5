"""Every section of a report in reading order; here trials, options and costs become tables."""

from autotune import units
from autotune.records.report import DeployTrial, Report, TrainTrial
from autotune.records.task import Option
from autotune.report.describe import describe
from autotune.report.view import NONE, Section, Table, comparison, distance, recipe, tail, verdicts


def sections(report: Report) -> tuple[Section, ...]:
    """All sections in reading order, without the empty ones."""
    found = (
        verdicts(report),
        distance(report),
        comparison(report),
        Section("why", "Why this plan", report.why.text),
        _deploy_trials(report),
        _train_trials(report),
        _layouts(report),
        _execution(report),
        _energy_sources(report),
        _survey(report),
        _options(report),
        _failures(report),
        _cost(report),
        _software(report),
        Section("messages", "Messages", report.messages, fold=True),
    )
    return tuple(s for s in found if s.lines or any(table.rows for table in s.tables))


# -- trials --------------------------------------------------------------------------------


def _constraints(values: dict[str, float]) -> str:
    budgets = {name: value for name, value in values.items() if name not in ("failed", "bound")}
    return ", ".join(
        f"{name} {'+' if value > 0 else ''}{100 * value:.1f} %" for name, value in budgets.items()
    )


def _cell(value: float | None, unit: str) -> str:
    """A cell of a wide table: a dash for what is missing."""
    return NONE if value is None else units.show(value, unit)


def _rate_cell(value: float | None) -> str:
    return NONE if value is None else units.per_second(value)


def _energy_cell(trial: DeployTrial) -> str:
    """Measured joules per sample, or the modelled ones, labelled as not measured."""
    if trial.energy_j_per_sample is not None:
        return units.show(trial.energy_j_per_sample, "J")
    if trial.energy_modelled is None:
        return NONE
    return f"{units.NOT_MEASURED} (modelled {units.show(trial.energy_modelled.value, 'J')})"


def _metric_cell(value: float | None) -> str:
    return NONE if value is None else units.metric(value)


def _quality_cell(trial: TrainTrial) -> str:
    """A finalist's is the mean over its seeds, with its interval."""
    text = _metric_cell(trial.quality_mean)
    if not trial.repeats:
        return text
    text += f" ({1 + len(trial.repeats)} seeds"
    if trial.quality_interval is not None:
        low, high = trial.quality_interval
        text += f", {units.metric(low)} to {units.metric(high)}"
    return text + ")"


def outcome(trial: DeployTrial | TrainTrial) -> str:
    """How a trial ended, and why."""
    if trial.failure is not None:
        return f"{trial.state}: {trial.failure.kind}: {trial.failure.message}"
    if isinstance(trial, DeployTrial) and trial.launches > 1:
        return f"{trial.state}, {trial.launches} launches"
    reason = trial.bound or getattr(trial, "stopped", None)
    return f"{trial.state}: {reason}" if reason else trial.state


def _deploy_trials(report: Report) -> Section:
    percentile = report.budget.percentile
    head = (
        "#", "Plan", "Outcome", "p50", f"p{percentile:g}", "Quality (validation)", "Energy/sample",
        "Memory", "Against the limits", "From",
    )  # fmt: skip
    front = set(report.pareto)
    rows = tuple(
        (
            f"{t.number}{' *' if t.number in front else ''}",
            describe(t.deployment),
            outcome(t),
            _cell(t.latency_s.p50 if t.latency_s else None, "s"),
            _cell(tail(t.latency_s, percentile), "s"),
            _metric_cell(t.quality),
            _energy_cell(t),
            _cell(t.memory_bytes, "B"),
            _constraints(t.constraints),
            t.why,
        )
        for t in report.deploy_trials
    )
    lines = ("Trials marked * are on the Pareto front.",) if front and rows else ()
    return Section("deploy", "Deployments tried", lines, (Table(head, rows),))


def _train_trials(report: Report) -> Section:
    head = (
        "#", "Recipe", "Outcome", "Last loss", "Epochs", "Quality (validation)", "Training",
        "Samples", "Memory", "Energy", "Against the limits",
    )  # fmt: skip
    trials = list(report.train_trials)
    base = report.train_baseline
    if base is not None and all(t.number != base.number for t in trials):
        trials.insert(0, base)
    rows = tuple(
        (
            f"{t.number}{' (baseline)' if base and t.number == base.number else ''}",
            recipe(t.recipe),
            outcome(t),
            _metric_cell(t.values[-1] if t.values else None),
            f"{t.rungs[: len(t.values)][-1]:g}" if t.rungs and t.values else NONE,
            _quality_cell(t),
            _cell(t.train_s, "s"),
            _rate_cell(t.samples_per_s),
            _cell(t.peak_memory_bytes, "B"),
            _cell(t.energy_j, "J"),
            _constraints(t.constraints),
        )
        for t in trials
    )
    return Section("train", "Recipes tried", (), (Table(head, rows),))


def _layouts(report: Report) -> Section:
    head = (
        "Layout", "Ranks", "Threads per rank", "Batch", "Precision", "Throughput", "Start-up",
        "Memory", "Outcome",
    )  # fmt: skip
    rows = tuple(
        (
            s.parallel,
            str(s.ranks),
            str(s.threads),
            str(s.batch_size),
            s.precision,
            _rate_cell(s.samples_per_s),
            _cell(s.startup_s, "s"),
            _cell(s.peak_memory_bytes, "B"),
            s.failure or "",
        )
        for s in report.survey.layouts
    )
    return Section(
        "layouts", "Parallel layouts (training samples per second)", (), (Table(head, rows),)
    )


# -- the rest ------------------------------------------------------------------------------


def _pairs(*pairs: tuple[str, str | None]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in pairs if value)


def _execution(report: Report) -> Section:
    done, made = report.execution, report.artifact
    losses = done.train_losses
    rows = _pairs(
        ("training time", units.show(done.train_s, "s") if done.train_s is not None else None),
        ("training energy", units.show(done.train_energy_j, "J")),
        ("energy label", done.train_energy_label),
        ("training memory", units.show(done.train_memory_bytes, "B")),
        ("training throughput", units.per_second(done.samples_per_s)),
        ("last training loss", units.metric(losses[-1]) if losses else None),
        ("quality on validation", units.metric(done.validation_quality)),
        ("recovery training", units.show(done.recovery_s, "s")),
        ("build", units.show(done.build_s, "s")),
        ("artifact", made.folder if made else None),
        ("artifact runtime", made.runtime if made else None),
        ("artifact size", units.show(made.size_bytes, "B") if made else None),
        ("artifact sha256", made.sha256 if made else None),
    )
    known = tuple(
        row for row in rows if row[1] != units.NOT_MEASURED or row[0] == "training energy"
    )
    if len(known) < 2:
        known = ()
    return Section("execution", "Training and artifact", (), (Table(("", ""), known),))


def _energy_sources(report: Report) -> Section:
    head = ("Source", "Domains", "Label", "Origin", "Update period", "Reason", "Remedy")
    rows = tuple(
        (
            s.name,
            ", ".join(s.domains) or NONE,
            s.label,
            s.origin,
            units.show(s.update_period_s, "s") if s.update_period_s is not None else NONE,
            s.reason or "",
            s.remedy or "",
        )
        for s in report.energy_sources
    )
    return Section("energy", "Energy sources", (), (Table(head, rows),))


def budget_text(report: Report) -> str:
    """The limits as they were given."""
    b = report.budget
    parts = []
    for name, limit, unit in (
        (f"latency p{b.percentile:g}", b.latency, "s"),
        ("energy per sample", b.energy, "J"),
        ("memory", b.memory, "B"),
    ):
        if limit is not None:
            shown = (
                f"{limit.value:g}x baseline" if limit.relative else units.show(limit.value, unit)
            )
            parts.append(f"{name} at most {shown}")
    for name, value, unit in (
        ("training time", b.train_time_s, "s"),
        ("training energy", b.train_energy_j, "J"),
        ("training memory", b.train_memory_bytes, "B"),
    ):
        if value is not None:
            parts.append(f"{name} at most {units.show(value, unit)}")
    if b.max_drop is not None:
        parts.append(f"quality drop at most {units.metric(b.max_drop)}")
    return "; ".join(parts) or "none"


def _survey(report: Report) -> Section:
    task, traits, profile = report.survey.task, report.survey.traits, report.profile
    shapes = ", ".join(
        f"{name} {list(shape)}"
        for name, shape in zip(task.input_names, task.input_shapes, strict=False)
    )
    drop = report.survey.certifiable_drop
    rows = _pairs(
        ("goal", report.goal),
        ("limits", budget_text(report)),
        ("time", units.show(report.effort.time_s, "s")),
        ("seed", str(report.effort.seed)),
        ("task form", f"{task.form}, {task.input_kind} input"),
        ("inputs (per sample)", shapes),
        ("rows", f"{task.train_rows} train, {task.validation_rows} validation, "
                 f"{task.test_rows} test, {task.calibration_rows} calibration"),
        ("metric", f"{task.metric}, {'higher' if task.higher_is_better else 'lower'} is better"),
        ("smallest certifiable drop", units.metric(drop) if drop is not None else None),
        ("parameters", f"{traits.parameters} ({units.show(traits.parameter_bytes, 'B')})"),
        ("work per sample", units.show(traits.flops_per_sample, "FLOP")),
        ("machine", f"{profile.name}: {profile.cpu.model or profile.cpu.architecture}, "
                    f"{profile.cpu.cores:g} usable cores, "
                    f"{units.show(profile.usable_memory_bytes, 'B')}"),
        ("accelerators", ", ".join(gpu.name for gpu in profile.gpus)),
    )  # fmt: skip
    lines = (*report.survey.notes, *task.warnings, *profile.warnings)
    measured = tuple(
        (name, units.show(leaf.value, leaf.unit), units.span(leaf.low, leaf.high, leaf.unit)
         if leaf.low is not None or leaf.high is not None else NONE, leaf.source)
        for name, leaf in sorted(profile.figures.items())
    )  # fmt: skip
    tables = (Table(("", ""), rows), Table(("Measured here", "Value", "Range", "Source"), measured))
    return Section("survey", "Task and machine", lines, tables, fold=True)


def _options(report: Report) -> Section:
    options = report.survey.options
    usable = tuple(
        (o.kind, o.name, "available") for o in options if o.available and not o.excluded_by_user
    )
    refused = tuple(
        (o.kind, o.name, o.reason or "no reason given")
        for o in options
        if not o.available and not o.excluded_by_user
    )
    excluded = tuple((o.kind, o.name, _excluded(o)) for o in options if o.excluded_by_user)
    head = ("Kind", "Name", "")
    return Section(
        "options",
        "Options",
        (),
        (
            Table(head, usable, "Searched"),
            Table(head, refused, "Not available for this machine or model"),
            Table(head, excluded, "Excluded by you"),
        ),
        fold=True,
    )


def _excluded(option: Option) -> str:
    if option.available:
        return "would be available"
    return f"would not be available either: {option.reason or 'no reason given'}"


def _failures(report: Report) -> Section:
    head = ("Trial", "Kind", "Message", "Last lines of its log")
    rows = tuple(
        (f"{what} {t.number}", t.failure.kind, t.failure.message, t.failure.log)
        for what, trials in (("train", report.train_trials), ("deploy", report.deploy_trials))
        for t in trials
        if t.failure is not None
    )
    return Section("failures", "What failed", (), (Table(head, rows),), fold=True)


def _cost(report: Report) -> Section:
    cost = report.search_cost
    rows = _pairs(
        ("wall time", units.show(cost.wall_s, "s")),
        *((f"of it {name}", units.show(value, "s")) for name, value in cost.by_phase_s.items()),
        ("trials", f"{cost.trials}, {cost.failed} failed, "
                   f"{cost.skipped_by_bound} ruled out by a bound"),
        ("energy", units.show(cost.energy_j, "J")),
        ("process overhead", units.show(cost.overhead_s, "s")),
        ("overhead per trial (median)", units.show(cost.overhead_median_s, "s")),
        ("inferences to break even", units.show(cost.break_even_inferences, "")
         if cost.break_even_inferences is not None else None),
    )  # fmt: skip
    return Section("cost", "What the search cost", (), (Table(("", ""), rows),), fold=True)


def _software(report: Report) -> Section:
    rows = tuple(sorted(report.software.items()))
    return Section("software", "Software", (), (Table(("Package", "Version"), rows),), fold=True)
