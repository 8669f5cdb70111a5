"""A whole run on a simulated machine: what is chosen, and what the verdicts say."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autotune.api import Task, tune
from autotune.bridge.recording import Recorded, Recorder, ReplayBridge, key, load_recording
from autotune.errors import UsageError, WorkerError
from autotune.records import job as jobs
from autotune.records.budget import Budget, Effort, GoalName, Limit
from autotune.records.hardware import Profile
from autotune.records.measurement import LOOKS
from autotune.records.report import Failure, Report
from autotune.report.run_folder import load_plan
from tests.support import simulated
from tests.support.bridges import FunctionBridge
from tests.support.simulated import AWARE, OPTIONS, Simulation, info

Go = Callable[..., Report]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.py"
    path.write_text("raise SystemExit('never loaded here')\n")
    return path


@pytest.fixture
def go(tmp_path: Path, model: Path, profile: Profile) -> Go:
    count = 0

    def run(budget: Budget | None = None, effort: Effort | None = None, **sim: Any) -> Report:
        nonlocal count
        count += 1

        def make(work: Path) -> FunctionBridge:
            run.simulation = Simulation(work, profile, **sim)  # type: ignore[attr-defined]
            run.bridge = FunctionBridge(run.simulation.answer)  # type: ignore[attr-defined]
            return run.bridge  # type: ignore[attr-defined,no-any-return]

        report, folder = tune(
            Task.from_file(model),
            budget,
            effort or Effort(time_s=120, trials=30),
            out=tmp_path / f"out{count}",
            bridge=make,
        )
        run.folder = folder  # type: ignore[attr-defined]
        return report

    return run


def chosen(report: Report) -> Any:
    assert report.chosen is not None
    return report.chosen.plan.deployment


def verdicts(report: Report) -> dict[str, str]:
    return {v.name: v.verdict for v in report.verdicts}


def test_a_relative_latency_limit_is_met_and_verified(go: Go) -> None:
    report = go(Budget(latency=Limit(value=0.6, relative=True), goal="latency", max_drop=0.02))
    assert report.exit_code == 0
    assert verdicts(report) == {"latency": "MET", "quality": "MET"}
    assert chosen(report).runtime == "onnxruntime"
    assert any(s.name == "int8_static" for s in chosen(report).compress)
    latency = next(v for v in report.verdicts if v.name == "latency")
    assert latency.samples >= 3 * 104


def test_loose_and_tight_limits_choose_different_plans(go: Go) -> None:
    loose = go(Budget(latency=Limit(value=1.0, relative=True), max_drop=0.05))
    tight = go(Budget(latency=Limit(value=0.1, relative=True), max_drop=0.05))
    assert loose.goal == tight.goal == "quality"
    assert loose.exit_code == tight.exit_code == 0
    assert chosen(loose) != chosen(tight)


def test_a_slower_plan_takes_the_place_of_a_baseline_that_breaks_a_limit(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(simulated.RUNTIME, "onnxruntime", 1.05)
    compress = tuple(o.name for o in OPTIONS if o.kind == "compress")
    effort = Effort(time_s=120, trials=30, without=compress)
    report = go(Budget(memory=Limit(value=2e8), goal="latency"), effort)
    assert report.exit_code == 0
    assert chosen(report).runtime == "onnxruntime"
    text = " ".join(report.why.text)
    assert "It replaces the baseline, which does not keep the limit on memory." in text


def test_a_plan_whose_quality_was_luck_gives_way_to_one_that_compresses_nothing(go: Go) -> None:
    budget = Budget(latency=Limit(value=0.6, relative=True), goal="latency", max_drop=0.02)
    report = go(budget, test_lost=40)
    assert report.exit_code == 0
    assert chosen(report).lossless
    assert report.chosen is not None
    assert report.chosen.launches == LOOKS[0]
    prefix = "Verification turned down "
    turned = [line.removeprefix(prefix) for line in report.why.text if line.startswith(prefix)]
    assert turned
    assert all("(upper bound) of 0.02 allowed." in line for line in turned)
    rival = report.why.runner_up  # what verification turned down is none
    assert rival is not None
    assert not any(line.startswith(rival) for line in turned)


@pytest.mark.parametrize("goal", ["latency", "quality"])
def test_a_compressed_plan_gives_way_to_one_that_turns_out_faster_without(
    go: Go, goal: GoalName
) -> None:
    budget = Budget(latency=Limit(value=0.8, relative=True), goal=goal, max_drop=0.02)
    report = go(budget, latency_factor=_slow_when_verified(5.0))
    assert report.exit_code == 0
    assert chosen(report).runtime == "onnxruntime"
    assert chosen(report).lossless
    assert report.lossless == report.chosen
    prefix = next(line for line in report.why.text if "It compresses nothing" in line)
    assert "the time of the search's choice, prune" in prefix


def test_a_compressed_plan_that_is_slower_than_it_was_but_the_fastest_stays(go: Go) -> None:
    budget = Budget(latency=Limit(value=0.8, relative=True), goal="latency", max_drop=0.02)
    assert chosen(go(budget, latency_factor=_slow_when_verified(3.0))).compress


def _slow_when_verified(factor: float) -> Callable[[jobs.Build, jobs.Measure], float]:
    """What compresses is slower than it was in the search."""
    return lambda build, job: factor if build.compress and job.seed >= 1000 else 1.0


def test_a_finalist_that_was_left_early_is_launched_in_full_before_it_is_shipped(go: Go) -> None:
    budget = Budget(latency=Limit(value=0.3, relative=True), goal="latency", max_drop=0.02)
    report = go(budget, test_lost=8)
    assert verdicts(report) == {"latency": "MET", "quality": "UNDECIDED"}
    assert chosen(report).compress
    assert report.chosen is not None
    assert report.chosen.launches == LOOKS[0]


def test_an_impossible_limit_names_the_least_violating_plan(go: Go) -> None:
    report = go(Budget(latency=Limit(value=1e-6)))
    assert report.exit_code == 3
    assert verdicts(report)["latency"] == "NOT_MET"
    assert report.chosen is not None
    assert report.why.text


def test_energy_that_cannot_be_measured_is_never_met(go: Go) -> None:
    report = go(Budget(energy=Limit(value=1e-3)))
    assert report.exit_code == 4
    assert verdicts(report)["energy"] == "NOT_MEASURED"
    assert report.chosen is not None
    assert report.chosen.energy_j_per_sample is None
    assert report.chosen.energy_modelled is not None
    assert report.chosen.energy_modelled.low < report.chosen.energy_modelled.high


def test_a_modelled_energy_decides_only_when_asked_to(go: Go) -> None:
    report = go(Budget(energy=Limit(value=10.0), accept_modelled_energy=True))
    energy = next(v for v in report.verdicts if v.name == "energy")
    assert energy.verdict == "MET"
    assert "modelled" in energy.source


@pytest.mark.parametrize(("power_w", "meter"), [(20.0, "auto"), (None, None)])
def test_power_is_probed_where_it_can_be_measured(
    go: Go, power_w: float | None, meter: str | None
) -> None:
    go(effort=Effort(time_s=30, trials=2, search_only=True), power_w=power_w)
    probes = [j for j in go.bridge.asked if isinstance(j, jobs.Probe)]  # type: ignore[attr-defined]
    assert [probe.meter for probe in probes] == [meter]


def test_a_measured_energy_budget_steers_the_choice(go: Go) -> None:
    loose = go(Budget(energy=Limit(value=1.0), max_drop=0.05), power_w=20.0)
    tight = go(Budget(energy=Limit(value=0.0015), max_drop=0.05), power_w=20.0)
    broken = go(Budget(energy=Limit(value=0.0003), max_drop=0.05), power_w=20.0)
    assert verdicts(loose)["energy"] == verdicts(tight)["energy"] == "MET"
    assert chosen(loose) != chosen(tight)
    assert broken.exit_code == 3
    energy = next(v for v in tight.verdicts if v.name == "energy")
    assert "simulated" in energy.source


def test_a_training_energy_budget_ends_in_a_verdict(go: Go) -> None:
    assert verdicts(go(Budget(train_energy_j=1e4), power_w=20.0))["train_energy"] == "MET"
    report = go(Budget(train_energy_j=1.0), power_w=20.0)
    assert verdicts(report)["train_energy"] == "NOT_MET"
    assert report.exit_code == 3


def test_the_baseline_stays_where_nothing_beats_it(go: Go) -> None:
    only = tuple(
        o for o in OPTIONS if o.name in ("eager", "single") or o.kind in ("precision", "optimizer")
    )
    report = go(Budget(), options=only)
    assert report.why.kept_baseline
    assert chosen(report).runtime == "eager"
    assert report.exit_code == 0


def test_only_and_without_are_obeyed(go: Go) -> None:
    report = go(Budget(), Effort(time_s=120, trials=20, only=("runtime=eager",)))
    assert {t.deployment.runtime for t in report.deploy_trials} == {"eager"}
    report = go(Budget(), Effort(time_s=120, trials=20, without=("prune",)))
    assert not any(s.name == "prune" for t in report.deploy_trials for s in t.deployment.compress)
    excluded = [o for o in report.survey.options if o.excluded_by_user]
    assert [o.name for o in excluded] == ["prune"]


def test_an_unknown_name_lists_those_there_are(go: Go) -> None:
    with pytest.raises(UsageError, match="runtime=eager"):
        go(Budget(), Effort(only=("runtime=tensorrt",)))


def test_failures_are_data(go: Go) -> None:
    failures = {
        "train:4": Failure(kind="killed", message="SIGKILL"),
        "train:5": Failure(kind="hang", message="no answer"),
        "runtime:compiled": Failure(kind="oom", message="out of memory"),
    }
    report = go(Budget(), fail=failures)
    kinds = {t.failure.kind for t in report.train_trials if t.failure}
    assert kinds == {"killed", "hang"}
    assert {t.failure.kind for t in report.deploy_trials if t.failure} == {"oom"}
    tried = [*report.train_trials, *report.deploy_trials]
    assert report.search_cost.failed == sum(t.state == "failed" for t in tried) >= len(failures)
    assert report.exit_code == 0


def test_a_level_that_cannot_be_built_is_tried_once(go: Go) -> None:
    report = go(Budget(), prune_floor=0.95)
    failed = [t for t in report.deploy_trials if t.state == "failed"]
    skipped = [t for t in report.deploy_trials if t.state == "skipped"]
    assert len(failed) == 1
    assert len(skipped) > 1
    assert all(f"cannot be built: trial {failed[0].number}" in (t.bound or "") for t in skipped)
    assert report.search_cost.skipped_by_bound == len(skipped)


def test_a_pretrained_model_skips_the_train_search(go: Go) -> None:
    report = go(Budget(), task=info(pretrained=True))
    assert report.train_trials == ()
    assert report.chosen is not None
    assert report.chosen.plan.recipe is None


def test_an_energy_budget_can_be_required_to_be_measured(go: Go) -> None:
    with pytest.raises(UsageError, match="vm_guest"):
        go(Budget(energy=Limit(value=1.0)), Effort(require_measured=True))


def test_a_saved_profile_is_checked_by_its_anchors_alone(
    tmp_path: Path, model: Path, profile: Profile
) -> None:
    bridges: list[FunctionBridge] = []

    def make(work: Path) -> FunctionBridge:
        bridges.append(FunctionBridge(Simulation(work, profile).answer))
        return bridges[0]

    report, _ = tune(
        Task.from_file(model),
        None,
        Effort(time_s=60, trials=8),
        profile=profile,
        out=tmp_path / "out",
        bridge=make,
    )
    probes = [job for job in bridges[0].asked if isinstance(job, jobs.Probe)]
    assert [job.anchors_only for job in probes] == [True]
    assert report.profile == profile


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C is heard: it is ignored by what was started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("turned", [False, True], ids=["as it is", "into an error"])
def test_a_train_search_that_is_interrupted_keeps_its_trials(
    tmp_path: Path, model: Path, profile: Profile, turned: bool
) -> None:
    def make(work: Path) -> FunctionBridge:
        simulation = Simulation(work, profile)

        def answer(job: jobs.Job) -> jobs.Result:
            if isinstance(job, jobs.Train) and simulation.seen.get("train") == 4:
                try:
                    signal.raise_signal(signal.SIGINT)
                except KeyboardInterrupt:
                    if not turned:
                        raise
                    raise WorkerError("what a library made of it") from None
            return simulation.answer(job)

        return FunctionBridge(answer)

    report, _ = tune(Task.from_file(model), out=tmp_path / "out", bridge=make)
    assert report.status == "interrupted"
    assert len(report.train_trials) == 4
    assert report.train_baseline == report.train_trials[0]
    assert report.exit_code == 4


def test_a_search_alone_leaves_a_plan_to_execute(go: Go) -> None:
    report = go(Budget(), Effort(time_s=60, train_trials=5, search_only=True))
    assert report.chosen is None
    assert report.deploy_trials == ()
    plan = load_plan(go.folder)  # type: ignore[attr-defined]
    best = max(t.quality or 0.0 for t in report.train_trials if t.state == "complete")
    assert plan.recipe in [t.recipe for t in report.train_trials if t.quality == best]


def test_a_floor_on_quality_is_judged_the_right_way_round(go: Go) -> None:
    high = go(Budget(min_quality=0.9))
    assert verdicts(high)["min_quality"] == "MET"
    assert high.exit_code == 0
    low = go(Budget(min_quality=0.999))
    assert verdicts(low)["min_quality"] == "NOT_MET"
    assert low.exit_code == 3
    assert any("required" in text for text in low.why.text)


def test_the_studies_are_kept_in_a_journal(go: Go) -> None:
    import optuna

    report = go(Budget(), Effort(time_s=60, trials=12, train_trials=5))
    backend = optuna.storages.journal.JournalFileBackend(str(go.folder / "study.journal"))  # type: ignore[attr-defined]
    storage = optuna.storages.JournalStorage(backend)
    kinds = {
        s.study_name.partition("-")[0]: s.n_trials for s in optuna.get_all_study_summaries(storage)
    }
    assert set(kinds) == {"train", "deploy"}
    assert kinds["train"] >= len(report.train_trials) - 1


def test_no_report_is_left_when_nothing_is_known(go: Go, tmp_path: Path) -> None:
    from autotune.errors import ContractError

    with pytest.raises(ContractError, match="no model"):
        go(Budget(), fail={"inspect:1": Failure(kind="contract", message="no model")})
    assert not (tmp_path / "out1").exists()


def _plans(bridge: FunctionBridge | ReplayBridge) -> list[str]:
    return [key(j) for j in bridge.asked if isinstance(j, jobs.Train | jobs.Build)]


def test_the_same_seed_gives_the_same_plans_through_a_replay(
    tmp_path: Path, model: Path, profile: Profile
) -> None:
    effort = Effort(time_s=120, trials=25, seed=3)
    recording = tmp_path / "recording.jsonl"
    live: list[FunctionBridge] = []

    def record(work: Path) -> Recorder:
        live.append(FunctionBridge(Simulation(work, profile).answer))
        return Recorder(live[0], recording)

    first, _ = tune(Task.from_file(model), None, effort, out=tmp_path / "a", bridge=record)
    replays: list[ReplayBridge] = []

    def replay(work: Path) -> ReplayBridge:
        bridge = ReplayBridge(load_recording(recording))
        replays.append(bridge)
        # the files that jobs leave behind are not in a recording: make them again
        simulation = Simulation(work, profile)
        for job in live[0].asked:
            simulation.answer(job)
        return bridge

    second, _ = tune(Task.from_file(model), None, effort, out=tmp_path / "b", bridge=replay)
    assert _plans(live[0]) == _plans(replays[0])
    assert first.chosen == second.chosen
    assert first.verdicts == second.verdicts
    assert replays[0].replayed == len(live[0].asked)


def test_a_replayed_run_imports_no_torch(tmp_path: Path) -> None:
    import subprocess

    script = tmp_path / "replayed.py"
    script.write_text(
        "import sys, pathlib\n"
        f"sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
        "from tests.support import made\n"
        "from tests.support.bridges import FunctionBridge\n"
        "from autotune.records.budget import Effort\n"
        "from autotune.api import Task, tune\n"
        "from tests.support.simulated import Simulation\n"
        "profile = made.profile()\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "(root / 'm.py').write_text('')\n"
        "bridge = lambda work: FunctionBridge(Simulation(work, profile).answer)\n"
        "tune(Task.from_file(root / 'm.py'), None, Effort(time_s=60, trials=10),\n"
        "     out=root / 'o', bridge=bridge)\n"
        "loaded = {'torch', 'onnxruntime', 'pynvml'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, script, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_torn_recording_loses_only_the_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    from autotune.records import codec

    line = codec.encode(Recorded(key="k", result=jobs.Result(wall_s=1.0)))
    path.write_bytes(line + b"\n" + line[:20])
    assert len(load_recording(path)) == 1
    assert path.read_bytes() == line + b"\n"
    assert json.loads(line)["key"] == "k"


def test_what_cannot_be_exported_is_found_out_once(go: Go) -> None:
    never = Failure(kind="unsupported", message="ONNX cannot take it", never="onnx")
    report = go(Budget(), fail={"runtime:onnxruntime": never})
    failed = [t for t in report.deploy_trials if t.state == "failed"]
    skipped = [t for t in report.deploy_trials if t.state == "skipped"]
    assert len(failed) == 1
    assert skipped
    assert all(t.deployment.runtime == "onnxruntime" for t in skipped)
    assert all(f"cannot become: see trial {failed[0].number}" in (t.bound or "") for t in skipped)
    assert report.exit_code == 0
    lines = [line for line in report.why.refused if line.startswith("trial ")]
    assert len(lines) == 2  # one a reason
    assert chosen(report).runtime == "compiled"


@pytest.mark.parametrize(("lost", "times"), [(60, 1), (0, 0)])
def test_int8_is_trained_for_once_where_only_its_quality_keeps_it_from_winning(
    go: Go, lost: int, times: int
) -> None:
    effort = Effort(time_s=120, trials=8, without=("prune",))
    report = go(Budget(), effort, options=(*OPTIONS, AWARE), int8_lost=lost)
    trained = [
        t
        for t in report.deploy_trials
        if any(step.name == "int8_aware" for step in t.deployment.compress)
    ]
    assert len(trained) == times
    for trial in trained:
        names = [step.name for step in trial.deployment.compress]
        assert names == ["int8_aware", "int8_static"]
        assert trial.deployment.recovery_epochs > 0
        assert trial.why == "quantization-aware training"
        assert any(s.name == "int8_aware" for s in chosen(report).compress)
    assert len(report.deploy_trials) <= 8


def test_a_build_that_takes_too_much_of_the_search_is_cut_and_reported(
    tmp_path: Path, model: Path, profile: Profile
) -> None:
    limits: list[float] = []

    class Slow(FunctionBridge):
        def run(self, job: jobs.Job, *, timeout_s: float, on_report: Any = None) -> jobs.Result:
            if not isinstance(job, jobs.Build) or job.runtime != "compiled":
                return super().run(job, timeout_s=timeout_s, on_report=on_report)
            limits.append(timeout_s)
            self._now += timeout_s
            hang = Failure(kind="hang", message="no answer within its time limit")
            return jobs.Result(failure=hang, wall_s=timeout_s)

    report, _ = tune(
        Task.from_file(model),
        None,
        Effort(time_s=300, trials=30),
        out=tmp_path / "out",
        bridge=lambda work: Slow(Simulation(work, profile).answer),
    )
    cut = [t for t in report.deploy_trials if t.state == "failed"]
    assert [t.failure.kind for t in cut if t.failure] == ["slow"] * len(limits)
    assert all(20 <= limit < 120 for limit in limits)
    assert len(limits) <= 2, "no other of its kind is begun where it would take as long"
    assert cut[0].failure is not None
    assert "40% of what was left" in cut[0].failure.message
