"""Nothing that identifies a person or one machine stands in a probed profile."""

import getpass
import os
import re
import socket
import uuid
from pathlib import Path

from autotune.records import profiles
from autotune.records.hardware import Profile
from autotune.records.job import Probe
from autotune.worker.channel import NullChannel
from autotune.worker.machine import profile as machine_profile

PATTERNS = {
    "a UUID": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "a PCI address": r"\b[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\b",
    "a MAC address": r"\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b",
    "an IP address": r"\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b",
    "a path": r"(?<![a-z0-9])/(home|root|usr|tmp|var|etc|proc|sys|work|opt|Users)\b",
}


def serials() -> set[str]:
    """What this machine's firmware and system call it, where that may be read."""
    found = {f"{uuid.getnode():012x}"}
    files = [*Path("/sys/class/dmi/id").glob("*serial"), *Path("/sys/class/dmi/id").glob("*uuid"),
             Path("/etc/machine-id"), Path("/proc/sys/kernel/random/boot_id")]  # fmt: skip
    for path in files:
        try:
            text = path.read_text(errors="replace").strip()
        except OSError:
            continue
        if len(text) >= 6 and text.lower() not in ("not specified", "none", "unknown"):
            found |= {text, text.replace("-", "")}
    return found


def text_of(profile: Profile) -> str:
    """All but the hashes, which are of hardware and software that many machines share."""
    return re.sub(r'"(software_)?fingerprint": "[0-9a-f]+"', "", profiles.write(profile).decode())


def test_a_probed_profile_identifies_nobody() -> None:
    probed = machine_profile.run(Probe(anchors_only=True), Path(), NullChannel()).profile
    text = text_of(probed)
    for what, pattern in PATTERNS.items():
        assert not re.search(pattern, text, re.IGNORECASE), what
    names = {socket.gethostname(), socket.getfqdn(), getpass.getuser(), str(Path.cwd())}
    names |= {os.environ.get("HOSTNAME", ""), str(Path.home())} | serials()
    for name in names:
        if len(name) > 3:  # a short name may be part of a word
            assert name.lower() not in text.lower()


def test_the_patterns_find_what_they_name() -> None:
    for what, sample in {
        "a UUID": "GPU-0a1b2c3d-1111-2222-3333-444455556666",
        "a PCI address": "0000:3b:00.0",
        "a MAC address": "52:54:00:12:34:56",
        "an IP address": "10.0.0.1",
        "a path": "/home/me/model.py",
    }.items():
        assert re.search(PATTERNS[what], sample, re.IGNORECASE), what


def test_fingerprints_are_shared_by_like_machines() -> None:
    probed = machine_profile.run(
        Probe(anchors_only=True, device="cpu"), Path(), NullChannel()
    ).profile
    again = profiles.hardware_fingerprint(probed.cpu, probed.memory_bytes, probed.gpus)
    assert again == probed.fingerprint
