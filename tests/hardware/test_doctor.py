"""What the doctor says, in words a person can act on."""

import re

import pytest

from autotune.hardware import doctor
from autotune.records.measurement import EnergySource

ABSENT = tuple(
    EnergySource(name=name, label="unavailable", reason="no_interface: none", remedy="none")
    for name in ("amd", "apple", "battery", "hwmon", "jetson", "nvml")
)
MODEL = EnergySource(name="modelled", label="modelled_tdp", reason="a model", remedy="pass it")


def rapl(reason: str | None, **more: object) -> EnergySource:
    label = "measured_counter" if reason is None else "unavailable"
    return EnergySource(name="rapl", label=label, reason=reason, **more)  # type: ignore[arg-type]


def said(*sources: EnergySource, board: str | None = None) -> str:
    text = "\n".join(doctor.energy_lines(sources, board=board))
    assert not re.search(r"\b0(\.0+)? ?J\b", text)
    return text


def test_guest_gets_a_reason_and_a_remedy() -> None:
    text = said(*ABSENT, MODEL, rapl("vm_guest", remedy="ask the host"))
    assert "CPU energy cannot be measured here." in text
    assert "virtual machine" in text
    assert "autotune run MODEL.py --energy 20mJ --powercap-root DIR" in text
    assert "--accept-modelled-energy" in text
    assert "Not on this machine: AMD GPU, Apple chip, battery" in text


def test_measured_counter_says_how_well() -> None:
    text = said(*ABSENT, MODEL, rapl(None, domains=("rapl:package-0",), update_period_s=0.001))
    assert "CPU energy can be measured: a counter, rapl:package-0." in text
    assert "updated every 1.00 ms" in text
    assert "+-1 % one of 100 ms" in text
    assert "model" not in text


def test_permission_has_one_command() -> None:
    text = said(*ABSENT, MODEL, rapl("permission: errno 13", remedy="chmod"))
    assert "this user may not read it (errno 13)" in text
    assert "chmod a+r /sys/class/powercap/*/energy_uj" in text
    assert "sudo" not in text


@pytest.mark.parametrize(
    "reason", ["wrap_ambiguous: r", "stale_counter", "implausible: x", "no_interface: no zone"]
)
def test_every_reason_is_a_sentence_with_a_remedy(reason: str) -> None:
    text = said(rapl(reason, remedy="do this"))
    assert "Why: " in text
    assert "What to do: do this" in text


def test_gpu_that_cannot_be_read_is_not_just_lacking() -> None:
    refused = EnergySource(
        name="nvml", label="unavailable", reason="no_interface: no driver", remedy="install it"
    )
    assert "NVIDIA GPU energy cannot" in said(refused, rapl("vm_guest"), board="nvml")
    mig = EnergySource(name="nvml:gpu0", label="unavailable", reason="mig", remedy="disable MIG")
    text = said(mig, rapl("vm_guest"), board="nvml")
    assert "NVIDIA GPU gpu0 energy cannot" in text
    assert "disable MIG" in text


def test_boards_of_one_maker_do_not_ask_for_the_others() -> None:
    board = EnergySource(
        name="nvml:gpu0",
        domains=("nvml:gpu0",),
        label="measured_sampled",
        update_period_s=0.5,
        note="2 processes share this board",
    )
    text = said(board, *ABSENT[:1], rapl("vm_guest"), board="nvml")
    assert "NVIDIA GPU gpu0 energy can be measured: sampled power" in text
    assert "Not on this machine: AMD GPU." in text
    assert "ROCm" not in text
    assert "Note: 2 processes" in text


def test_whole_machine_rails_and_other_origins_have_notes_of_their_own() -> None:
    whole = EnergySource(
        name="battery", domains=("battery:BAT0",), label="measured_sampled", scope="machine"
    )
    rails = EnergySource(
        name="hwmon:rails", domains=("hwmon:x/in1",), label="measured_sampled", scope="rails"
    )
    host = rapl(None, domains=("rapl:package-0",), origin="host")
    text = said(whole, rails, host)
    assert "measures the whole machine" in text
    assert "never added to a total" in text
    assert "labelled 'host'" in text
    assert "No update was seen" in text


def test_battery_on_mains_has_the_remedy_to_unplug() -> None:
    plugged = EnergySource(
        name="battery",
        domains=("battery:BAT0",),
        label="unavailable",
        reason="no_interface: the battery's status is 'Full', not 'Discharging'",
        remedy="unplug the charger",
    )
    assert "What to do: unplug the charger" in said(plugged, rapl("vm_guest"))


def test_doctor_on_this_machine() -> None:
    """The whole of it: every room answers, and nowhere stands a 0 J."""
    lines = doctor.doctor()
    text = "\n".join(lines)
    assert "Energy" in lines
    assert "energy can be measured" in text or "energy cannot be measured here" in text
    assert re.search(r"runtime +eager +yes", text)
    assert not re.search(r"\b0(\.0+)? ?J\b", text)
