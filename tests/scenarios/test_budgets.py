"""Budgets that cannot be met, or cannot be measured, or steer the choice by a counter."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.scenarios.conftest import EXAMPLES, QUICK, ROOT, Ran

MLP = EXAMPLES / "digits_mlp.py"
PLAIN = ("--without", "compiled,prune,ddp")
Run = Callable[..., Ran]


def test_an_impossible_latency(run: Run) -> None:
    ran = run(MLP, *QUICK, *PLAIN, "--latency", "1us")
    assert ran.code == 3
    assert ran.verdicts["latency"] == "NOT_MET"
    assert "least-violating plan" in ran.out
    assert "x the limit" in ran.out


def test_energy_that_cannot_be_measured(run: Run, tmp_path: Path) -> None:
    empty = tmp_path / "no-powercap"
    empty.mkdir()
    ran = run(MLP, *QUICK, "--energy", "1mJ", "--powercap-root", empty, *PLAIN)
    assert ran.code == 4
    assert ran.verdicts["energy"] == "NOT_MEASURED"
    assert "exit 4" in ran.err
    assert ran.report is not None
    assert ran.report["chosen"]["energy_j_per_sample"] is None
    modelled = ran.report["chosen"]["energy_modelled"]
    assert 0 < modelled["low"] < modelled["value"] < modelled["high"]
    ran = run(MLP, *QUICK, "--energy", "1kJ", "--powercap-root", empty, "--accept-modelled-energy")
    assert ran.code == 0, ran.out
    assert "modelled" in ran.out


@pytest.fixture
def powercap(tmp_path: Path) -> Iterator[Path]:
    """A powercap tree that a script advances from the CPU time used."""
    tree = tmp_path / "powercap"
    process = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "support" / "powercap_sim.py", tree,
         "--idle-w", "10", "--per-core-w", "20"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    yield tree
    process.kill()
    process.wait()


def test_energy_steers_the_choice(run: Run, powercap: Path) -> None:
    given = ("--powercap-root", powercap, "--powercap-label", "simulated", "--max-drop", "0.05")
    options = (*QUICK, *given, "--without", "compiled,prune,ddp")
    loose = run(MLP, *options, "--energy", "1J", "--train-energy", "100kJ")
    assert loose.code == 0, loose.out + loose.err
    assert loose.verdicts["energy"] == loose.verdicts["train_energy"] == "MET"
    assert "simulated" in loose.out
    assert loose.report is not None
    joules = loose.report["chosen"]["energy_j_per_sample"]
    assert joules > 0
    base = loose.report["baseline"]["energy_j_per_sample"]
    broken = run(MLP, *options, "--energy", f"{joules * 0.03:.3g}J", "--train-energy", "1mJ")
    assert broken.code == 3, broken.out
    assert broken.verdicts["energy"] == "NOT_MET"
    assert broken.verdicts["train_energy"] == "NOT_MET"
    only = run(MLP, *options, "--energy", f"{base * 2:.3g}J", "--only", "runtime=eager")
    assert only.code == 0, only.out
    assert only.deployment["runtime"] == "eager"


def test_only_and_without(run: Run) -> None:
    ran = run(MLP, *QUICK, "--only", "runtime=eager", "--without", "prune,ddp")
    assert ran.report is not None, ran.err
    trials = [t["deployment"] for t in ran.report["deploy_trials"]]
    assert {t["runtime"] for t in trials} == {"eager"}
    assert not any(t["compress"] for t in trials)
    excluded = {o["name"] for o in ran.report["survey"]["options"] if o["excluded_by_user"]}
    assert excluded >= {"prune", "onnxruntime", "compiled"}


def test_a_plan_forced_to_ddp_learns_what_single_learns(run: Run, tmp_path: Path) -> None:
    import json

    from tests.scenarios.conftest import command, read

    ran = run(MLP, *QUICK, "--only", "parallel=ddp", "--only", "runtime=eager")
    assert ran.report is not None, ran.err
    plan = json.loads((ran.folder / "plan.json").read_text())
    assert (plan["recipe"]["parallel"], plan["recipe"]["ranks"]) == ("ddp", 2)
    plan["recipe"] |= {"parallel": "single", "ranks": 1}
    single = tmp_path / "single.json"
    single.write_text(json.dumps(plan))
    done = command("execute", single, MLP, "--out", tmp_path / "single")
    report = read(tmp_path / "single")
    assert report is not None, done.stderr
    ours, theirs = ran.report["execution"]["step_losses"], report["execution"]["step_losses"]
    assert len(ours) == len(theirs) > 10
    assert ours == pytest.approx(theirs, rel=1e-5)
