"""What stored profiles are for: listed, compared, merged, checked against this machine.

    measured --over packaged datasheets of the very same models--> merged
    saved, now --> does it still fit: YES, NO, or cannot be told while others use the machine

All pure but `entries`.  A model is matched by its full name, to the letter: what a similar
name would add is a guess.

What this does not know: whether a datasheet is right, and a machine's parts that have no
name (Arm processors report none).
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
"""The leaf with the share of the usable processors that others kept busy while probing."""
_BUSY = 0.2
_SLACK = 0.1
"""Of the processors: what others use is only known to so much, and they may give way."""
_WIDE = 0.5
_NEAR = 1.3
"""An anchor fits within this factor: the same machine, on another day, in another state."""
State = Literal["fits", "off", "unknown"]


class Entry(NamedTuple):
    """A stored profile, or why its file cannot be read."""

    name: str
    place: Literal["yours", "packaged"]
    profile: Profile | None
    fault: str | None = None


class Anchor(NamedTuple):
    """One quick measurement now beside the stored one; ``ratio`` is now over then."""

    name: str
    then: Leaf
    now: Leaf
    ratio: float | None
    state: State


class Fit(NamedTuple):
    """Whether a stored profile fits this machine now, and what speaks against it."""

    state: State
    reasons: tuple[str, ...]
    anchors: tuple[Anchor, ...]


class Difference(NamedTuple):
    """One fact or leaf that two profiles tell otherwise; None where one does not tell it."""

    path: str
    first: Leaf | str | None
    second: Leaf | str | None


# -- files --------------------------------------------------------------------------------


def profile_folders() -> tuple[Path, ...]:
    """Where profiles are looked for: the user's own, then those that ship with autotune."""
    home = os.environ.get("XDG_DATA_HOME")
    base = Path(home) if home else Path.home() / ".local" / "share"
    shipped = Path(sys.prefix) / "share" / "autotune" / "profiles"
    return base / "autotune" / "profiles", shipped, Path(__file__).parents[2] / "profiles"


def load_profile(name: str) -> Profile:
    """A profile by file or by name.

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


def entries() -> tuple[Entry, ...]:
    """Every stored profile by name, the user's own first; a name that hides another once."""
    found: dict[str, Entry] = {}
    for index, folder in enumerate(profile_folders()):
        place: Literal["yours", "packaged"] = "packaged" if index else "yours"
        for path in sorted(folder.glob("*.json")):
            if path.stem in found:
                continue
            try:
                found[path.stem] = Entry(path.stem, place, load_profile(str(path)))
            except AutotuneError as error:
                found[path.stem] = Entry(path.stem, place, None, str(error))
    return tuple(sorted(found.values(), key=lambda e: (e.place != "yours", e.name)))


# -- merge ---------------------------------------------------------------------------------


def over(measured: dict[str, Leaf], datasheet: dict[str, Leaf]) -> dict[str, Leaf]:
    """Leaf by leaf: what has a value wins, the measured one first; each keeps its source."""
    known = {name: leaf for name, leaf in datasheet.items() if leaf.value is not None}
    mine = {
        name: leaf for name, leaf in measured.items() if leaf.value is not None or name not in known
    }
    return dict(sorted((known | mine).items()))


def merge(measured: Profile, library: Iterable[Profile]) -> tuple[Profile, tuple[str, ...]]:
    """Lay a measured profile over the datasheets of the same models.

    A processor's datasheet counts where model and number of cores agree (a part of a chip has
    only a part of its rates); a device's where exactly one entry has its name, a node of as
    many devices before the device alone.  A device that MIG splits has no datasheet.

    Returns:
        The merged profile, and the names of the datasheets that gave something.
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
    """The share of the processors that others used while it was probed, where that matters."""
    share = profile.figures.get(FOREIGN)
    return share.value if share and share.value is not None and share.value > _BUSY else None


def without_collapsed(profile: Profile) -> Profile:
    """Where foreign load took what a probe needed, its rate is a lower end, a time an upper one.

    The value becomes unknown, the best sample stays as that end: the machine did as much, and
    does more when it is quiet.  A probe that found enough free processors keeps its value.
    """
    share = busy(profile)
    if share is None:
        return profile
    free = profile.cpu.cores * (1 - share + _SLACK)
    lost: list[str] = []

    def kept(figures: dict[str, Leaf]) -> dict[str, Leaf]:
        spoilt = {name: _end(leaf) for name, leaf in figures.items() if _spoilt(name, leaf, free)}
        lost.extend(spoilt)
        return figures | spoilt

    figures = kept(profile.figures)
    gpus = tuple(msgspec.structs.replace(g, figures=kept(g.figures)) for g in profile.gpus)
    warning = f"other work kept {share:.0%} of the usable processors busy while this was measured"
    if lost:
        warning += f": not recorded, but for the best that was reached: {', '.join(lost)}"
    return msgspec.structs.replace(
        profile,
        figures=figures,
        gpus=gpus,
        warnings=(*profile.warnings, f"{warning}; measure again when it is quiet"),
    )


def _spoilt(name: str, leaf: Leaf, free: float) -> bool:
    """Whether a measured leaf wanted more processors than were free, or tells how it fared.

    Watts are not among these: each of their windows was judged by what others used in it.
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


def fit(saved: Profile, now: Profile) -> Fit:
    """Whether ``saved`` fits the machine of ``now``, whose quick anchors were just measured."""
    now = without_collapsed(now)
    found = anchors(saved, now)
    reasons = mismatches(saved, now) + tuple(
        f"{a.name} is now {a.ratio:.2f}x of what the profile says"
        for a in found
        if a.state == "off"
    )
    if saved.fingerprint != now.fingerprint or any(a.state == "off" for a in found):
        return Fit("off", reasons, found)
    if busy(now) is not None:
        reasons += now.warnings[-1:]
    if not any(anchor.ratio for anchor in found):
        missing = () if found else ("the profile has no measured anchor to compare",)
        return Fit("unknown", reasons + missing, found)
    return Fit("fits", reasons, found)


def anchors(saved: Profile, now: Profile) -> tuple[Anchor, ...]:
    """Each anchor that was measured now and then: near within a factor of 1.3."""
    found = []
    for name, leaf in now.figures.items():
        old = saved.figures.get(name)
        if old is None or "measured" not in (leaf.source, old.source) or leaf.source != old.source:
            continue
        ratio = leaf.value / old.value if leaf.value and old.value else None
        state: State = "unknown" if ratio is None else "off"
        if ratio is not None and 1 / _NEAR <= ratio <= _NEAR:
            state = "fits"
        found.append(Anchor(name, old, leaf, ratio, state))
    return tuple(found)


def mismatches(saved: Profile, now: Profile) -> tuple[str, ...]:
    """Other hardware, other software: each said apart."""
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
    """Every fact and figure that differs, hardware first; how they were made is no fact."""
    a, b = _flat(first), _flat(second)
    paths = list(dict.fromkeys([*a, *b]))
    found = (Difference(path, a.get(path), b.get(path)) for path in paths)
    return tuple(d for d in found if _said(d.first) != _said(d.second))


def _said(side: Leaf | str | None) -> tuple[float | None, str] | str | None:
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
