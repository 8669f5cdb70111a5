"""Profiles of machines: stored, listed, compared, merged, checked against this machine.

    measured --over packaged datasheets of the very same models--> merged
    saved, now --> does it still fit: fits, off, or unknown while others use the machine

Only the functions on files do input and output.  A model is matched by its exact name: a
similar name may be another part.

What this does not know: whether a datasheet is right, and parts that report no name (as Arm
processors).
"""

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from autotune.errors import AutotuneError, UsageError
from autotune.patterns import slug
from autotune.records import profiles
from autotune.records.hardware import Gpu, Leaf, Profile
from autotune.report import run_folder

FOREIGN = "foreign_load"
"""The figure with the share of the usable processors that other processes kept busy."""
_BUSY = 0.2
_SLACK = 0.1
"""Share of the processors: the uncertainty of `FOREIGN`."""
_WIDE = 0.5
_NEAR = 1.3
"""An anchor fits within this factor, which covers the same machine on other days."""
State = Literal["fits", "off", "unknown"]


class StoredProfile(NamedTuple):
    """A stored profile, or why its file cannot be read."""

    name: str
    place: Literal["yours", "packaged"]
    profile: Profile | None
    fault: str | None = None


class AnchorCheck(NamedTuple):
    """One quick measurement beside the stored one; ``ratio`` is now over then."""

    name: str
    then: Leaf
    now: Leaf
    ratio: float | None
    state: State


class ProfileFit(NamedTuple):
    """Whether a stored profile fits this machine now, and the reasons against."""

    state: State
    reasons: tuple[str, ...]
    anchors: tuple[AnchorCheck, ...]


class Difference(NamedTuple):
    """A fact or figure that differs between two profiles; None where one lacks it."""

    path: str
    first: Leaf | str | None
    second: Leaf | str | None


# -- files --------------------------------------------------------------------------------


def profile_folders() -> tuple[Path, ...]:
    """Where profiles are looked for, in this order: the user's own, then the packaged ones."""
    home = os.environ.get("XDG_DATA_HOME")
    base = Path(home) if home else Path.home() / ".local" / "share"
    shipped = Path(sys.prefix) / "share" / "autotune" / "profiles"
    return base / "autotune" / "profiles", shipped, Path(__file__).parents[2] / "profiles"


def load_profile(name: str) -> Profile:
    """Read a profile, by file or by name.

    Raises:
        UsageError: there is none; the message lists those there are.
        FormatError: the file is wrong, with the path of the wrong leaf.
    """
    path = Path(name)
    if path.suffix != ".json" or not path.exists():
        found = [f / f"{name}.json" for f in profile_folders() if (f / f"{name}.json").exists()]
        if not found:
            names = sorted({p.stem for f in profile_folders() for p in f.glob("*.json")})
            raise UsageError(
                f"no profile {name!r}: neither a JSON file nor one of the saved ones "
                f"({', '.join(names) or 'there are none'}); `autotune profile` makes one"
            )
        path = found[0]
    return profiles.read(path.read_bytes(), what=str(path))


def save_profile(profile: Profile, out: Path | None) -> Path:
    """Write a profile to ``out`` or to the user's own folder under its name."""
    path = out or profile_folders()[0] / f"{slug(profile.name)}.json"
    run_folder.write(path, profiles.write(profile).decode())
    return path


def entries() -> tuple[StoredProfile, ...]:
    """Every stored profile by name, the user's own first; of two with one name the user's."""
    found: dict[str, StoredProfile] = {}
    for index, folder in enumerate(profile_folders()):
        place: Literal["yours", "packaged"] = "packaged" if index else "yours"
        for path in sorted(folder.glob("*.json")):
            if path.stem in found:
                continue
            try:
                found[path.stem] = StoredProfile(path.stem, place, load_profile(str(path)))
            except AutotuneError as error:
                found[path.stem] = StoredProfile(path.stem, place, None, str(error))
    return tuple(sorted(found.values(), key=lambda e: (e.place != "yours", e.name)))


# -- merge ---------------------------------------------------------------------------------


def over(measured: dict[str, Leaf], datasheet: dict[str, Leaf]) -> dict[str, Leaf]:
    """Merge figure by figure: a measured value, else the datasheet's; each keeps its source."""
    known = {name: leaf for name, leaf in datasheet.items() if leaf.value is not None}
    mine = {
        name: leaf for name, leaf in measured.items() if leaf.value is not None or name not in known
    }
    return dict(sorted((known | mine).items()))


def merge(measured: Profile, library: Iterable[Profile]) -> tuple[Profile, tuple[str, ...]]:
    """Fill what a measured profile lacks from the datasheets of the same models.

    A processor's datasheet counts where model and number of cores agree (a part of a chip has
    only a part of its rates); a device's where exactly one entry has its name, a node of as
    many devices before the device alone.  A device that MIG splits has no datasheet.

    Returns:
        The merged profile, and the names of the datasheets that were used.
    """
    sheets = [sheet for sheet in library if sheet.software_fingerprint is None]
    used: list[str] = []
    figures = measured.figures
    chip = _processor(measured, sheets)
    if chip is not None:
        figures = over(figures, chip.figures)
        used.append(chip.name)
    gpus = []
    for gpu in measured.gpus:
        sheet = _device(gpu, sum(g.count for g in measured.gpus if g.name == gpu.name), sheets)
        if sheet is not None:
            gpu = _over_device(gpu, sheet.gpus[0])
            used.append(sheet.name)
        gpus.append(gpu)
    changes = {"figures": figures, "gpus": tuple(gpus)}
    return msgspec.structs.replace(measured, **changes), tuple(dict.fromkeys(used))


def _processor(measured: Profile, sheets: list[Profile]) -> Profile | None:
    cpu = measured.cpu
    same = [
        sheet
        for sheet in sheets
        if not sheet.gpus and cpu.model is not None and sheet.cpu.model == cpu.model
        and sheet.cpu.physical_cores == cpu.physical_cores
        and cpu.usable_cores == cpu.logical_cores
    ]  # fmt: skip
    return same[0] if len(same) == 1 else None


def _device(gpu: Gpu, count: int, sheets: list[Profile]) -> Profile | None:
    if gpu.mig:
        return None
    same = [sheet for sheet in sheets if len(sheet.gpus) == 1 and sheet.gpus[0].name == gpu.name]
    for wanted in (count, 1):
        exact = [sheet for sheet in same if sheet.gpus[0].count == wanted]
        if exact:
            return exact[0] if len(exact) == 1 else None
    return None


def _over_device(gpu: Gpu, sheet: Gpu) -> Gpu:
    known = {
        name: getattr(gpu, name) if getattr(gpu, name) is not None else getattr(sheet, name)
        for name in ("compute_capability", "multiprocessors", "power_limit_w")
    }
    return msgspec.structs.replace(gpu, **known, figures=over(gpu.figures, sheet.figures))


# -- foreign load --------------------------------------------------------------------------


def busy(profile: Profile) -> float | None:
    """The share of the processors that others used during the probe, if above 20 %; else None."""
    share = profile.figures.get(FOREIGN)
    return share.value if share and share.value is not None and share.value > _BUSY else None


def without_disturbed(profile: Profile) -> Profile:
    """Turn figures that foreign load disturbed into bounds: lower ones of rates, upper of times.

    The value becomes unknown and the best sample the bound: an idle machine does at least that
    well.  A probe that found enough free processors keeps its value.
    """
    share = busy(profile)
    if share is None:
        return profile
    free = profile.cpu.cores * (1 - share + _SLACK)
    lost: list[str] = []

    def kept(figures: dict[str, Leaf]) -> dict[str, Leaf]:
        disturbed = {
            name: _end(leaf) for name, leaf in figures.items() if _disturbed(name, leaf, free)
        }
        lost.extend(disturbed)
        return figures | disturbed

    figures = kept(profile.figures)
    gpus = tuple(msgspec.structs.replace(g, figures=kept(g.figures)) for g in profile.gpus)
    warning = f"other work kept {share:.0%} of the usable processors busy while this was measured"
    if lost:
        warning += f": only the best sample is kept, as a bound, of {', '.join(lost)}"
    return msgspec.structs.replace(
        profile,
        figures=figures,
        gpus=gpus,
        warnings=(*profile.warnings, f"{warning}; measure again on an idle machine"),
    )


def _disturbed(name: str, leaf: Leaf, free: float) -> bool:
    """Whether a measured figure needed more processors than were free, or has a wide interval.

    Watts are never: each of their windows was checked for foreign load when it was measured.
    """
    if leaf.source != "measured" or leaf.value is None or leaf.samples is None:
        return False
    if leaf.unit == "W":
        return False
    threads = re.search(r"_(\d+)t_", name)
    wide = (leaf.high or leaf.value) - (leaf.low or leaf.value) > _WIDE * leaf.value
    return wide or (int(threads[1]) if threads else 1) > free


def _end(leaf: Leaf) -> Leaf:
    assert leaf.value is not None
    if leaf.unit == "s":
        return msgspec.structs.replace(leaf, value=None, low=None, high=leaf.low or leaf.value)
    return msgspec.structs.replace(leaf, value=None, low=leaf.high or leaf.value, high=None)


# -- check ---------------------------------------------------------------------------------


def fit(saved: Profile, now: Profile) -> ProfileFit:
    """Whether ``saved`` fits the machine whose quick anchors are in ``now``."""
    now = without_disturbed(now)
    found = anchors(saved, now)
    reasons = mismatches(saved, now) + tuple(
        f"{a.name} is now {a.ratio:.2f}x the profile's value" for a in found if a.state == "off"
    )
    if saved.fingerprint != now.fingerprint or any(a.state == "off" for a in found):
        return ProfileFit("off", reasons, found)
    if busy(now) is not None:
        reasons += now.warnings[-1:]
    if not any(anchor.ratio for anchor in found):
        missing = () if found else ("the profile has no measured anchor to compare",)
        return ProfileFit("unknown", reasons + missing, found)
    return ProfileFit("fits", reasons, found)


def anchors(saved: Profile, now: Profile) -> tuple[AnchorCheck, ...]:
    """Each figure that is measured in both profiles; it fits within a factor of 1.3."""
    found = []
    for name, leaf in now.figures.items():
        old = saved.figures.get(name)
        if old is None or "measured" not in (leaf.source, old.source) or leaf.source != old.source:
            continue
        ratio = leaf.value / old.value if leaf.value and old.value else None
        state: State = "unknown" if ratio is None else "off"
        if ratio is not None and 1 / _NEAR <= ratio <= _NEAR:
            state = "fits"
        found.append(AnchorCheck(name, old, leaf, ratio, state))
    return tuple(found)


def mismatches(saved: Profile, now: Profile) -> tuple[str, ...]:
    """Whether hardware and software are others, in a sentence each."""
    out = []
    if saved.fingerprint != now.fingerprint:
        parts = [d.path for d in diff(saved, now) if d.path in _HARDWARE]
        named = f" ({', '.join(parts)})" if parts else ""
        out.append(f"the profile {saved.name} was made on other hardware than this{named}")
    then = saved.software_fingerprint
    if then is not None and then != now.software_fingerprint:
        known = {*saved.software, *now.software}
        changed = [
            f"{name} {saved.software.get(name, 'absent')} -> {now.software.get(name, 'absent')}"
            for name in sorted(known)
            if saved.software.get(name) != now.software.get(name)
        ]
        out.append(f"the profile {saved.name} was made with other software: {', '.join(changed)}")
    return tuple(out)


# -- diff ----------------------------------------------------------------------------------

_HARDWARE = ("cpu.model", "cpu.isa", "cpu.usable_cores", "memory_bytes", "gpus")


def diff(first: Profile, second: Profile) -> tuple[Difference, ...]:
    """Every fact and figure that differs, hardware first; sources and intervals do not count."""
    a, b = _flat(first), _flat(second)
    paths = list(dict.fromkeys([*a, *b]))
    found = (Difference(path, a.get(path), b.get(path)) for path in paths)
    return tuple(d for d in found if _compared(d.first) != _compared(d.second))


def _compared(side: Leaf | str | None) -> tuple[float | None, str] | str | None:
    return (side.value, side.unit) if isinstance(side, Leaf) else side


def _flat(profile: Profile) -> dict[str, Leaf | str]:
    found: dict[str, Leaf | str] = {}
    for field in profile.cpu.__struct_fields__:
        value = getattr(profile.cpu, field)
        if value is not None:
            text = ", ".join(value) if isinstance(value, tuple) else f"{value}"
            found[f"cpu.{field}"] = text
    for field in ("memory_bytes", "usable_memory_bytes"):
        size = getattr(profile, field)
        if size is not None:
            found[field] = f"{size / 2**30:.1f} GiB"
    if profile.gpus:
        found["gpus"] = ", ".join(f"{g.count} x {g.name}" for g in profile.gpus)
    found |= profile.figures
    for index, gpu in enumerate(profile.gpus):
        found |= {f"gpus[{index}].{name}": leaf for name, leaf in gpu.figures.items()}
    return found | {f"software.{name}": text for name, text in profile.software.items()}


def short_hash(profile: Profile) -> str:
    """The first twelve digits of its content hash."""
    return profiles.content_hash(profile)[:12]
