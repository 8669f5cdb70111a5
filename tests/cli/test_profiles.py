"""The profile commands, on stored profiles and a made-up machine."""

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from autotune.cli.main import cli
from autotune.hardware import doctor
from autotune.hardware import profiles as library
from autotune.records import job as jobs
from autotune.records import profiles
from autotune.records.hardware import Leaf, Profile


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "80")


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, args, catch_exceptions=False)


def test_list_and_show() -> None:
    assert "h100-sxm-x8" in run("profiles", "list").output
    shown = run("profiles", "show", "h100-sxm").output
    assert "peak bf16" in shown
    assert "989 TFLOP/s" in shown
    assert json.loads(run("profiles", "show", "h100-sxm", "--json").output)["name"] == "h100-sxm"


def test_diff() -> None:
    assert "0.32x" in run("profiles", "diff", "h100-sxm", "a100-80-sxm").output


def test_profile_saves_and_says_so(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []
    trees: list[str | None] = []

    def probe(
        device: str, *, quick: bool, powercap_root: str | None, powercap_label: str
    ) -> Profile:
        asked.append((device, quick))
        trees.append(powercap_root)
        return profile

    monkeypatch.setattr(doctor, "profile", probe)
    said = run("profile", "--quick", "--device", "cpu").output
    assert asked == [("cpu", True)]
    assert "use it with --profile made-up" in said
    assert run("profiles", "show", "made-up").exit_code == 0
    out = tmp_path / "p.json"
    shown = run("profile", "--out", str(out), "--json").output
    assert asked[-1] == ("auto", False)
    assert profiles.read(out.read_bytes()) == profiles.read(shown.encode()) == profile
    run("profile", "--powercap-root", str(tmp_path))
    assert trees == [None, None, str(tmp_path)]
    refused = CliRunner().invoke(cli, ["profile", "--powercap-root", str(tmp_path / "no")])
    assert "does not exist" in refused.output


@pytest.mark.parametrize(("state", "code"), [("fits", 0), ("off", 3), ("unknown", 4)])
def test_check_exits_by_what_it_found(
    profile: Profile, state: library.State, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = library.ProfileFit(state, ("because",), ())
    monkeypatch.setattr(doctor, "check", lambda saved, device: fit)
    done = run("profiles", "check", "l4")
    assert done.exit_code == code
    assert "because" in done.output


def loaded(profile: Profile, share: float) -> Profile:
    load = Leaf(value=share, unit="1", source="probed")
    rate = Leaf(value=1e9, unit="B/s", source="measured", samples=7)
    figures = {library.FOREIGN: load, "copy_2t_bytes_per_s": rate}
    return msgspec.structs.replace(profile, figures=figures)


@pytest.mark.parametrize(("shares", "kept", "probes"), [
    ([0.0], True, 1), ([0.6, 0.0], True, 2), ([0.6, 0.6], False, 2),
])  # fmt: skip
def test_a_busy_machine_is_probed_again(
    profile: Profile,
    shares: list[float],
    kept: bool,
    probes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = [loaded(profile, share) for share in shares]
    asked: list[jobs.Probe] = []

    def probed(bridge: object, job: jobs.Probe) -> Profile:
        asked.append(job)
        return rounds.pop(0)

    monkeypatch.setattr(doctor, "_probed", probed)
    monkeypatch.setattr(doctor, "_SETTLE_S", 0.0)
    found = doctor.profile(quick=True)
    assert len(shares) - len(rounds) == probes
    assert all(job.meter == "auto" for job in asked)
    assert (found.figures["copy_2t_bytes_per_s"].value is not None) is kept
