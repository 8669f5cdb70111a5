"""From what a run has found so far to a `Report`: the same function for a finished run, an
interrupted one and a failed one, so that a report is valid at every moment.
"""

import platform
import statistics
import sys
from dataclasses import dataclass, field
from functools import cache

from autotune.context import RunContext
from autotune.deployment import DeploymentEvaluator, ranking
from autotune.errors import DISTRIBUTION
from autotune.records.measurement import Verdict
from autotune.records.plan import Deployment, Plan, Recipe
from autotune.records.report import (
    Artifact,
    Execution,
    PlanResult,
    Report,
    SearchCost,
    Why,
)
from autotune.report import run_folder
from autotune.stats import limit_tests
from autotune.training import TrainState


@dataclass
class RunState:
    """What a run has found out so far; filled by `pipeline` alone."""

    run: RunContext
    created_utc: str = field(default_factory=run_folder.now_utc)
    training: TrainState | None = None
    recipe: Recipe | None = None
    epochs: int | float = 0
    execution: Execution = field(default_factory=Execution)
    evaluator: DeploymentEvaluator | None = None
    baseline: PlanResult | None = None
    lossless: PlanResult | None = None
    earlier: PlanResult | None = None
    chosen: PlanResult | None = None
    verdicts: tuple[Verdict, ...] = ()
    why: Why = field(default_factory=Why)
    artifact: Artifact | None = None
    messages: list[str] = field(default_factory=list)

    def plan(self, deployment: Deployment, artifact_sha256: str | None = None) -> Plan:
        """The whole plan around one deployment."""
        run = self.run
        return Plan(
            task=run.survey.task.name,
            source_sha256=run.survey.task.source_sha256,
            args=run.spec.args,
            seed=run.effort.seed,
            recipe=self.recipe,
            epochs=self.epochs,
            deployment=deployment,
            weights_sha256=run.survey.task.weights_sha256,
            artifact_sha256=artifact_sha256,
        )


def report(state: RunState, status: str) -> Report:
    """The report of everything state.  A run that chose nothing exits with 4 (or 3 if some
    budget is known to be broken).
    """
    # what the rows can certify of real scores is known since the baseline was evaluated
    run = state.evaluator.run if state.evaluator else state.run
    training = state.training
    tried = [t.trial for t in state.evaluator.tried] if state.evaluator else []
    code = limit_tests.exit_code(state.verdicts) if state.verdicts else 4
    return Report(
        status=status,  # type: ignore[arg-type]
        created_utc=state.created_utc,
        task=run.survey.task.name,
        profile=run.profile,
        budget=run.budget,
        effort=run.effort,
        survey=run.survey,
        goal=run.budget.resolved_goal(),
        exit_code=code,
        train_trials=tuple(training.trials) if training else (),
        train_baseline=training.baseline if training else None,
        deploy_trials=tuple(tried),
        baseline=state.baseline,
        lossless=state.lossless,
        earlier=state.earlier,
        chosen=state.chosen,
        verdicts=state.verdicts,
        energy_sources=run.sources,
        pareto=ranking.pareto(tried),
        why=state.why,
        execution=state.execution,
        artifact=state.artifact,
        search_cost=_cost(state),
        software=_software(),
        messages=tuple(state.messages),
    )


def _cost(state: RunState) -> SearchCost:
    run = state.run
    train = state.training.trials if state.training else []
    deploy = [t.trial for t in state.evaluator.tried] if state.evaluator else []
    states = [str(t.state) for t in train] + [str(t.state) for t in deploy]
    energy = _search_energy(state)
    return SearchCost(
        wall_s=run.bridge.now(),
        by_phase_s=dict(run.phases),
        trials=len(states),
        failed=states.count("failed"),
        skipped_by_bound=states.count("skipped"),
        energy_j=energy,
        overhead_s=sum(run.overheads),
        overhead_median_s=statistics.median(run.overheads) if run.overheads else None,
        break_even_inferences=_break_even(state, energy),
    )


def _search_energy(state: RunState) -> float | None:
    """Metered joules of the search; None unless every completed trial was metered."""
    if state.run.meter is None or state.evaluator is None:
        return None
    train = state.training.trials if state.training else []
    parts = [t.energy_j for t in train if t.state in ("complete", "pruned")]
    for tried in state.evaluator.tried:
        if tried.launch is not None:
            window = tried.launch.energy
            parts.append(window.total_j if window else None)
    metered = [p for p in parts if p is not None]
    return sum(metered) if parts and len(metered) == len(parts) else None


def _break_even(state: RunState, energy: float | None) -> float | None:
    """Samples after which the search's energy is saved again."""
    if energy is None or state.baseline is None or state.chosen is None:
        return None
    before, after = state.baseline.energy_j_per_sample, state.chosen.energy_j_per_sample
    if before is None or after is None or after >= before:
        return None
    return energy / (before - after)


_SOFTWARE = (
    *(DISTRIBUTION, "torch", "optuna", "numpy", "onnx", "onnxruntime", "openvino", "nncf"),
    "torch-pruning",
)


@cache
def _software() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    out = {"python": platform.python_version(), "system": sys.platform}
    for name in _SOFTWARE:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out
