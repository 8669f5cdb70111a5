"""Stored profiles: the packaged library, merging, differing, checking, foreign load."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from autotune.errors import FormatError, UsageError
from autotune.hardware import profiles as library
from autotune.hardware import text as hardware_text
from autotune.hardware.profiles import Difference
from autotune.records import profiles
from autotune.records.hardware import Gpu, Leaf, Profile

PACKAGED = sorted((Path(__file__).parents[2] / "profiles").glob("*.json"))
DEVICES = {
    *("h100-sxm", "h100-pcie", "h200-sxm", "b200-sxm", "a100-80-sxm", "a100-80-pcie"),
    *("a100-40-sxm", "l40s", "l4", "t4", "rtx-4090", "mi300x"),
}
H100 = "NVIDIA H100 80GB HBM3"


def read(name: str) -> Profile:
    path = next(p for p in PACKAGED if p.stem == name)
    return profiles.read(path.read_bytes(), what=path.name)


def leaf(value: float | None, unit: str = "FLOP/s", **more: Any) -> Leaf:
    return Leaf(**{"value": value, "unit": unit, "source": "measured"} | more)


def changed(profile: Profile, **changes: Any) -> Profile:
    return msgspec.structs.replace(profile, **changes)


# -- the packaged files --------------------------------------------------------------------


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_packaged_profiles_are_whole(path: Path) -> None:
    found = profiles.read(path.read_bytes(), what=path.name)
    assert profiles.write(found) == path.read_bytes()
    assert found.fingerprint == profiles.hardware_fingerprint(
        found.cpu, found.memory_bytes, found.gpus
    )
    datasheet = found.software_fingerprint is None
    assert not datasheet or found.name == path.stem
    leaves = {**found.figures, **{f"gpu {n}": x for g in found.gpus for n, x in g.figures.items()}}
    assert leaves
    for name, item in leaves.items():
        if datasheet and item.value is not None:
            assert item.reference, name
            assert item.source == "derived" or "https://" in item.reference, name
        if item.value is None:
            assert item.reference is None, name
    if datasheet:
        assert all("https://" in text for text in found.references.values())
        assert {"cpu"} <= set(found.references) or found.cpu.usable_cores is None


def test_the_library_has_what_it_promises() -> None:
    names = {path.stem for path in PACKAGED}
    assert names >= DEVICES | {"h100-sxm-x8", "a100-80-sxm-x8", "mi300x-x8"}
    chips = [
        p for p in (read(path.stem) for path in PACKAGED)
        if not p.gpus and p.software_fingerprint is None
    ]  # fmt: skip
    assert len(chips) >= 8
    isas = {extension for chip in chips for extension in chip.cpu.isa}
    assert isas >= {"avx2", "avx512_vnni", "amx_int8", "asimd", "sve"}


@pytest.mark.parametrize("name", ["h100-sxm", "a100-80-sxm", "mi300x"])
def test_a_node_is_eight_of_its_device(name: str) -> None:
    one, eight = read(name).gpus[0], read(f"{name}-x8").gpus[0]
    assert msgspec.structs.replace(eight, count=1) == one
    assert eight.count == 8
    assert read(f"{name}-x8").figures["network_bytes_per_s"].value


def test_names_are_found_in_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert library.load_profile("h100-sxm-x8") == read("h100-sxm-x8")
    mine = changed(read("t4"), name="l4", software_fingerprint="s")
    library.save_profile(mine, None)
    bad = tmp_path / "autotune/profiles/bad.json"
    bad.write_text("{}")
    found = {entry.name: entry for entry in library.entries()}
    assert (found["l4"].place, found["l4"].profile) == ("yours", mine)
    assert (found["t4"].place, found["t4"].fault) == ("packaged", None)
    assert found["bad"].profile is None
    listed = hardware_text.listing(library.entries(), 80)
    assert max(map(len, listed.splitlines())) <= 80
    assert "unreadable" in listed
    with pytest.raises(FormatError):
        library.load_profile("bad")
    with pytest.raises(UsageError, match="h100-sxm"):
        library.load_profile("h100")


def test_profiles_by_file_and_by_name(
    tmp_path: Path, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    path = library.save_profile(profile, None)
    assert library.load_profile("made-up") == profile
    assert library.load_profile(str(path)) == profile
    with pytest.raises(UsageError, match="made-up"):
        library.load_profile("missing")


def test_a_hand_edited_profile_is_refused_with_the_leaf(tmp_path: Path, profile: Profile) -> None:
    path = tmp_path / "p.json"
    text = profiles.write(profile).decode()
    path.write_text(text.replace('"usable_cores": 2.0', '"usable_cores": "two"'))
    with pytest.raises(FormatError, match=r"cpu\.usable_cores"):
        library.load_profile(str(path))


# -- merge ---------------------------------------------------------------------------------


def test_measured_lies_over_the_datasheet() -> None:
    sheet = {"a": leaf(1.0, source="datasheet", reference="r"), "b": leaf(2.0), "c": leaf(None)}
    mine = {"a": leaf(9.0), "b": leaf(None, low=1.5), "d": leaf(None)}
    assert library.over(mine, sheet) == {"a": leaf(9.0), "b": leaf(2.0), "d": leaf(None)}


def test_a_device_of_the_very_name_is_filled_in(profile: Profile) -> None:
    mine = Gpu(
        index=0, name=H100, memory_bytes=85_520_809_984, power_limit_w=500.0,
        figures={"gemm_bf16_flop_per_s": leaf(7e14)},
    )  # fmt: skip
    sheets = [read(path.stem) for path in PACKAGED]
    found, used = library.merge(changed(profile, gpus=(mine,)), sheets)
    assert used == ("h100-sxm",)
    gpu = found.gpus[0]
    assert (gpu.memory_bytes, gpu.power_limit_w) == (85_520_809_984, 500.0)
    assert (gpu.compute_capability, gpu.multiprocessors) == ("9.0", 132)
    assert gpu.figures["gemm_bf16_flop_per_s"] == leaf(7e14)
    peak = gpu.figures["peak_bf16_flop_per_s"]
    assert (peak.source, peak.value) == ("datasheet", 989e12)
    assert library.merge(found, sheets)[0] == found

    eight = tuple(changed_gpu(mine, index=i) for i in range(8))
    assert library.merge(changed(profile, gpus=eight), sheets)[1] == ("h100-sxm-x8",)
    three = eight[:3]
    assert library.merge(changed(profile, gpus=three), sheets)[1] == ("h100-sxm",)


def changed_gpu(gpu: Gpu, **changes: Any) -> Gpu:
    return msgspec.structs.replace(gpu, **changes)


@pytest.mark.parametrize(
    "changes", [{"name": "NVIDIA H100 80GB HBM3 "}, {"name": "NVIDIA H100"}, {"mig": True}]
)
def test_no_datasheet_for_a_like_name_or_a_slice(profile: Profile, changes: dict[str, Any]) -> None:
    gpu = changed_gpu(Gpu(index=0, name=H100, memory_bytes=1), **changes)
    mine = changed(profile, gpus=(gpu,))
    assert library.merge(mine, [read("h100-sxm")]) == (mine, ())


def test_two_entries_of_one_name_are_no_match(profile: Profile) -> None:
    mine = changed(profile, gpus=(Gpu(index=0, name=H100, memory_bytes=1),))
    twice = [read("h100-sxm"), changed(read("h100-sxm"), name="other")]
    assert library.merge(mine, twice) == (mine, ())


def test_only_a_whole_chip_has_its_datasheet(profile: Profile) -> None:
    sheet = read("amd-epyc-7763")
    whole = changed(profile, cpu=sheet.cpu)
    found, used = library.merge(whole, [sheet])
    assert used == ("amd-epyc-7763",)
    assert found.figures["peak_fp32_flop_per_s"].source == "derived"
    part = msgspec.structs.replace(sheet.cpu, logical_cores=2, physical_cores=2, usable_cores=2.0)
    assert library.merge(changed(profile, cpu=part), [sheet])[1] == ()
    limited = msgspec.structs.replace(sheet.cpu, usable_cores=1.5)
    assert library.merge(changed(profile, cpu=limited), [sheet])[1] == ()


# -- foreign load --------------------------------------------------------------------------

RATE, BOTH = "gemm_fp32_1t_flop_per_s", "gemm_fp32_2t_flop_per_s"


def probed(profile: Profile, load: float, value: float = 9e10) -> Profile:
    """A machine with 2 usable cores of which others keep ``load`` busy."""
    figures = {
        RATE: leaf(value, low=0.9 * value, high=1.1 * value, samples=7),
        BOTH: leaf(1.8e11, low=1.7e11, high=1.9e11, samples=7),
        "op_overhead_s": leaf(1e-6, "s", low=9e-7, high=2e-6, samples=7),
        library.FOREIGN: leaf(load, "1", source="probed"),
    }
    assert profile.cpu.usable_cores == 2
    return changed(profile, figures=figures, software_fingerprint="s")


def test_collapsed_values_are_not_recorded(profile: Profile) -> None:
    quiet = probed(profile, 0.05)
    assert library.without_disturbed(quiet) == quiet
    busy = library.without_disturbed(probed(profile, 0.75))
    assert busy.figures[RATE] == leaf(None, low=1.1 * 9e10, samples=7)
    assert busy.figures[BOTH] == leaf(None, low=1.9e11, samples=7)
    assert busy.figures["op_overhead_s"] == leaf(None, "s", high=9e-7, samples=7)
    assert busy.figures[library.FOREIGN].value == 0.75
    assert "75% of the usable processors" in busy.warnings[-1]
    assert profiles.read(profiles.write(busy)) == busy
    shown = hardware_text.profile(busy)
    assert "at least 99.0 GFLOP/s" in shown
    assert "at most 900 ns" in shown


def test_what_had_processors_enough_is_kept(profile: Profile) -> None:
    """One of two cores is busy: one thread runs undisturbed, two do not."""
    found = library.without_disturbed(probed(profile, 0.5))
    assert found.figures[RATE].value == 9e10
    assert found.figures[BOTH].value is None
    assert found.figures["op_overhead_s"].value is None  # its samples are too far apart
    assert BOTH in found.warnings[-1]
    assert RATE not in found.warnings[-1]


def test_watts_are_judged_by_their_own_windows(profile: Profile) -> None:
    """Foreign load would make a rate a lower end; of power it would be an upper one."""
    busy = probed(profile, 0.75)
    power = leaf(30.0, "W", low=20.0, high=60.0, samples=3)
    figures = busy.figures | {"loaded_power_2t_w": power}
    found = library.without_disturbed(changed(busy, figures=figures))
    assert found.figures["loaded_power_2t_w"] == power


# -- check ---------------------------------------------------------------------------------


def test_a_profile_fits_within_a_third(profile: Profile) -> None:
    saved = probed(profile, 0.0)
    assert library.fit(saved, probed(profile, 0.0, 1e11)).state == "fits"
    slow = library.fit(saved, probed(profile, 0.0, 5e10))
    assert slow.state == "off"
    assert "gemm_fp32_1t_flop_per_s is now 0.56x" in slow.reasons[0]
    assert "does NOT fit" in hardware_text.check(saved, slow)


def test_under_load_the_fit_is_unknown(profile: Profile) -> None:
    found = library.fit(probed(profile, 0.0), probed(profile, 0.8, 5e10))
    assert found.state == "unknown"
    assert "80%" in found.reasons[-1]
    half = library.fit(probed(profile, 0.0), probed(profile, 0.5))
    assert (half.state, len(half.reasons)) == ("fits", 1)


def test_other_hardware_and_other_software_are_said_apart(profile: Profile) -> None:
    now = probed(profile, 0.0)
    old = changed(now, software_fingerprint="t", software={"torch": "1"})
    found = library.fit(old, changed(now, software={"torch": "2"}))
    assert found.state == "fits"
    assert "other software: torch 1 -> 2" in found.reasons[0]
    cpu = msgspec.structs.replace(now.cpu, model="Another")
    found = library.fit(changed(now, cpu=cpu, fingerprint="g"), now)
    assert found.state == "off"
    assert "other hardware than this (cpu.model)" in found.reasons[0]


def test_a_datasheet_has_no_anchor(profile: Profile) -> None:
    now = probed(profile, 0.0)
    sheet = changed(read("amd-epyc-7763"), fingerprint=now.fingerprint)
    found = library.fit(sheet, now)
    assert (found.state, found.anchors) == ("unknown", ())
    assert "no measured anchor" in found.reasons[-1]


# -- diff and show -------------------------------------------------------------------------


def test_differences_are_of_facts_and_values(profile: Profile) -> None:
    first = probed(profile, 0.0)
    assert library.diff(first, changed(first, name="x", probe_s=3.0)) == ()
    assert "describe the same" in hardware_text.difference(first, first, ())
    second = probed(profile, 0.0, 1.8e11 / 2 * 2)
    found = library.diff(first, second)
    assert found == (Difference(RATE, first.figures[RATE], second.figures[RATE]),)
    text = hardware_text.difference(first, second, found)
    assert "2.00x" in text
    gone = changed(first, figures={})
    assert "-" in hardware_text.difference(first, gone, library.diff(first, gone))


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_shown_profiles_fit_the_terminal(path: Path, width: int) -> None:
    text = hardware_text.profile(read(path.stem), width)
    for line in text.splitlines():
        assert len(line) <= width or "https://" in line
    assert "None" not in text
