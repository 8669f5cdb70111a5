"""`autotune verify`: a report's artifact measured again, in new interpreters.

Its bytes are checked against ``checksums`` first.  Without the model file quality is
NOT_MEASURED, and the recorded one is shown with its date; with it, the outputs on *test* are
computed again and tested against the baseline's recorded scores.  Relative limits hold against
the figures of the baseline in the report.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from autotune import units
from autotune.bridge import Bridge
from autotune.context import INSPECT_S, RunContext, Silent, ask
from autotune.deployment import metrics
from autotune.deployment.artifact_jobs import interleaved, measure_job
from autotune.deployment.metrics import QUALITY_ALPHA
from autotune.errors import UsageError
from autotune.records import job as jobs
from autotune.records.base import Record
from autotune.records.budget import Budget, Effort, Limit
from autotune.records.measurement import LOOKS, Scores, Verdict
from autotune.records.report import PlanResult, Quantiles, Report
from autotune.records.task import TaskSpec
from autotune.report import run_folder
from autotune.stats import limit_tests, non_inferiority
from autotune.verification import recorded_io
from autotune.verification.launches import LAUNCH_S, calls_per_launch
from autotune.verification.verdicts import Candidate, deployment_verdicts, min_quality

_FIRST_SEED = 7000  # of the order of rows: not the search's or the verification's
_RECORDED_ROWS = "data/recorded.npz"


class Reverified(Record, frozen=True, kw_only=True):
    """The verdicts now, beside those of the report."""

    folder: str
    created_utc: str
    percentile: float
    verdicts: tuple[Verdict, ...]
    recorded: tuple[Verdict, ...]
    outputs_agree: bool | None
    exit_code: int


def verify(
    folder: Path,
    make_bridge: Callable[[Path, Effort], Bridge],
    *,
    budget: Budget,
    effort: Effort | None = None,
    spec: TaskSpec | None = None,
) -> Reverified:
    """Measure ``folder/artifact`` against ``budget``.

    Raises:
        UsageError: the folder holds no finished report.
        OutputError: the artifact's bytes are not those that were verified.
    """
    report = run_folder.verified(folder)
    effort = effort or Effort()
    with tempfile.TemporaryDirectory(prefix="autotune-verify-") as scratch:
        work = Path(scratch)
        shutil.copytree(folder / "artifact", work / "builds" / "artifact")
        bridge = make_bridge(work, effort)
        try:
            return _measure(folder, report, bridge, work, budget, effort, spec)
        finally:
            bridge.close()


def _measure(
    folder: Path,
    report: Report,
    bridge: Bridge,
    work: Path,
    budget: Budget,
    effort: Effort,
    spec: TaskSpec | None,
) -> Reverified:
    assert report.chosen is not None
    assert report.artifact is not None
    budget = _absolute(budget, report.baseline)
    sources = ask(bridge, jobs.Sources(), 30.0)
    if spec is not None:
        found = ask(bridge, jobs.Inspect(task=spec), INSPECT_S)
        if found.info.source_sha256 != report.survey.task.source_sha256:
            raise UsageError(f"{spec.path} is not the model file that this report was made from")
    task = spec or TaskSpec(kind="file", path="")
    run = RunContext(
        bridge, task, budget, effort, Silent(), report.profile, report.survey, sources.sources
    )
    built = jobs.Built(
        artifact="builds/artifact",
        sha256=report.artifact.sha256,
        files={},
        size_bytes=report.artifact.size_bytes,
        stages=(),
    )
    side = Candidate(report.chosen.plan.deployment, built)
    recorded = folder / "artifact" / "recorded.npz"
    verdicts, agree = _launched(run, side, recorded, work, with_model=spec is not None)
    verdicts = (*verdicts, *_quality(report, run, side, recorded))
    return Reverified(
        folder=str(folder),
        created_utc=run_folder.now_utc(),
        percentile=budget.percentile,
        verdicts=verdicts,
        recorded=report.verdicts,
        outputs_agree=agree,
        exit_code=limit_tests.exit_code(verdicts),
    )


def _launched(
    run: RunContext, side: Candidate, recorded: Path, work: Path, *, with_model: bool
) -> tuple[tuple[Verdict, ...], bool | None]:
    """Launch up to the looks.  The first launch also writes outputs: with the model on *test*,
    which are scored; without it on the recorded inputs.

    Returns:
        The verdicts on the deployment, and whether the recorded outputs were reproduced.
    """
    agrees = recorded_io.rows_file(recorded, work / _RECORDED_ROWS)
    agree: bool | None = None
    outputs = "outputs/again.npz"

    def launch(one: Candidate, number: int) -> None:
        nonlocal agree
        first: dict[str, Any] = {}
        if number == 0:
            rows = "data/test.npz" if with_model else _RECORDED_ROWS
            first = {"score_rows": rows, "outputs": outputs}
        job = measure_job(
            run,
            one.built,
            one.deployment,
            rows="data/validation.npz" if with_model else _RECORDED_ROWS,
            seed=_FIRST_SEED + number,
            min_calls=calls_per_launch(run.budget.percentile),
            time_s=LAUNCH_S,
            **first,
        )
        one.launches.append(ask(run.bridge, job, 300.0).launch)
        if first and with_model:
            scoring = jobs.Score(task=run.spec, part="test", outputs=outputs)
            one.scores = ask(run.bridge, scoring, 120.0).scores
        elif first:
            agree = agrees(work / outputs)

    verdicts: tuple[Verdict, ...] = ()
    for launches in LOOKS:
        interleaved([side], range(len(side.launches), launches), launch)
        verdicts = deployment_verdicts(run, side, None)
        if not any(v.verdict == "UNDECIDED" for v in verdicts):
            break
    return verdicts, agree


def _absolute(budget: Budget, baseline: PlanResult | None) -> Budget:
    """Relative limits become absolute ones by the report's recorded baseline.

    Raises:
        UsageError: the report has no figure of the baseline to be relative to.
    """

    def resolved(name: str, limit: Limit | None, base: float | None) -> Limit | None:
        if limit is None or not limit.relative:
            return limit
        if base is None:
            raise UsageError(f"--{name} {limit.value:g}x: the report recorded no baseline figure")
        return Limit(value=limit.value * base)

    latency = energy = memory = None
    if baseline is not None:
        if baseline.latency_s is not None:
            latency = _at(baseline.latency_s, budget.percentile)
        energy = baseline.energy_j_per_sample
        if energy is None and baseline.energy_modelled is not None:
            energy = baseline.energy_modelled.value
        memory = baseline.memory_bytes
    return msgspec.structs.replace(
        budget,
        latency=resolved("latency", budget.latency, latency),
        energy=resolved("energy", budget.energy, energy),
        memory=resolved("memory", budget.memory, memory),
    )


def _at(found: Quantiles, percentile: float) -> float | None:
    """The recorded latency at a percentile; None where it was not recorded."""
    known = {50.0: found.p50, 95.0: found.p95, 99.0: found.p99}
    if found.percentile is not None and found.value is not None:
        known[found.percentile] = found.value
    return known.get(percentile)


def _quality(
    report: Report, run: RunContext, side: Candidate, recorded: Path
) -> tuple[Verdict, ...]:
    """Tested again against the baseline's recorded scores, or NOT_MEASURED."""
    assert report.chosen is not None
    if side.scores is None:
        old = next((v for v in report.verdicts if v.name == "quality"), None)
        drop = run.budget.max_drop if run.budget.max_drop is not None else old and old.limit
        asked = [("quality", drop or 0.0), ("min_quality", run.budget.min_quality)]
        known = units.metric(report.chosen.quality)
        note = f"recorded: {known} on {report.created_utc[:10]}; give MODEL.py to measure it"
        return tuple(
            limit_tests.figure_verdict(
                name, "", limit, alpha=0.05, source="not measured again", note=note
            )
            for name, limit in asked
            if limit is not None
        )
    baseline: Scores = recorded_io.scores(recorded, "baseline")
    allowed = metrics.max_drop(run, baseline.quality)
    higher = report.survey.task.higher_is_better
    drop_verdict = non_inferiority.quality_drop(
        side.scores, baseline, allowed, higher_is_better=higher, alpha=QUALITY_ALPHA
    )
    return (drop_verdict, *min_quality(run, side))
