"""Makes one row of the deployment benchmark: a model at a batch size, everything cached.

    model, peers (`prepare`) -> autotune run -> its plan scored -> all of them raced

The search's report stays in ``.cache/benchmarks/deploy/MODEL/b1t2/autotune``.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._common import rows
from benchmarks._common.rows import ROOT
from benchmarks.deploy import judge
from benchmarks.deploy.judge import BASE, OURS, Quality
from benchmarks.deploy.peers import software
from benchmarks.deploy.prepare import (
    FOLDER,
    RowError,
    Setting,
    forget_scores,
    make_test_rows,
    place,
    prepared,
    rows_of_test,
    scored,
    size,
    source,
    train,
    weights,
)
from benchmarks.deploy.race import ContestantError, Entry, race, typical

_USAGE = 2
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8",
          "asimd", "asimddp", "i8mm", "bf16", "sve")  # fmt: skip


def code() -> str:
    """A digest of autotune's source: rows made with another one are not used."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "autotune").rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def machine() -> dict[str, Any]:
    """Architecture, usable CPUs and instruction sets; nothing that identifies the machine."""
    flags: list[str] = []
    info = Path("/proc/cpuinfo")
    if info.is_file():
        present = set(info.read_text().split())
        flags = [flag for flag in _FLAGS if flag in present]
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"architecture": platform.machine(), "cpus": cpus, "flags": flags}


class Tuned(NamedTuple):
    """``folder`` of the artifact (None where there is none), and what the report says of it."""

    folder: Path | None
    facts: dict[str, Any]


def tuned(model: str, batch: int, setting: Setting) -> Tuned:
    """Run autotune as a user would, optimizing the median latency; the report is kept beside the
    peers with the setting that it was made with, so that an interrupted row need not search again.
    """
    out = place(model, batch, setting.threads) / OURS
    note, made = out.with_name("autotune.json"), {**setting._asdict(), "code": code()}
    if note.is_file():
        known = json.loads(note.read_text())
        if known["made"] == made:
            return Tuned(out / "artifact" if known["artifact"] else None, known["facts"])
    note.unlink(missing_ok=True)
    forget_scores(out.parent, OURS)
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    found = _searched(model, batch, setting, out)
    kept = {"made": made, "artifact": found.folder is not None, "facts": found.facts}
    note.write_text(json.dumps(kept))
    return found


def _searched(model: str, batch: int, setting: Setting, out: Path) -> Tuned:
    command = [
        *(sys.executable, "-m", "autotune", "run", str(source(model))),
        *("--weights", str(weights(model)), "--goal", "latency", "--percentile", "50"),
        *("--batch", str(batch)),
        *("--threads", str(setting.threads), "--time", f"{setting.time_s:g}s"),
        *("--trials", str(setting.trials), "--max-drop", str(judge.MAX_DROP)),
        *("--out", str(out)),
    ]
    began = time.monotonic()
    log = out.with_name("autotune.log")
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    with log.open("w") as out_file:
        status = subprocess.call(command, cwd=ROOT, env=env, stdout=out_file, stderr=out_file)
    facts: dict[str, Any] = {"exit_code": status, "search_s": time.monotonic() - began}
    path = out / "report.json"
    if not path.is_file() or not (out / "artifact" / "load.py").is_file():
        last = log.read_text().strip().splitlines()[-4:] or [f"exit code {status}"]
        if status == _USAGE:
            raise RowError(f"{model}: autotune does not take it: " + " ".join(last))
        return Tuned(None, facts | {"failure": last[-1]})
    return Tuned(out / "artifact", facts | _summary(json.loads(path.read_text())))


def _summary(report: dict[str, Any]) -> dict[str, Any]:
    deployment = report["chosen"]["plan"]["deployment"]
    steps = [f"{s['name']}({', '.join(f'{k}={v}' for k, v in s['params'].items())})"
             for s in deployment["compress"]]  # fmt: skip
    recovery = deployment.get("recovery_epochs") or 0
    steps += [f"recovered {recovery} epochs"] if recovery else []
    return {
        "plan": " + ".join([*steps, deployment["runtime"]]),
        "tried": report["search_cost"]["trials"],
        "verdicts": {v["name"]: v["verdict"] for v in report["verdicts"]},
    }


def stored(setting: Setting) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows by model and batch size, of this source, these versions and this setting; of several
    the last.
    """
    wanted = {**setting._asdict(), "code": code(), "software": software()}
    return {
        (found["model"], found["batch"]): found
        for found in rows.read(FOLDER / "rows.jsonl")
        if all(found.get(key) == value for key, value in wanted.items())
    }


def keep(found: dict[str, Any]) -> None:
    """Append a row to the stored ones."""
    rows.append(FOLDER / "rows.jsonl", found)


def row(model: str, batch: int, setting: Setting, search: bool = True) -> dict[str, Any]:
    """Search, score and race: the row as it is stored; without ``search`` peers alone.

    Raises:
        RowError: the model or the baseline cannot be made.
        benchmarks._common.data.DataError: a package cannot be fetched.
    """
    began = time.monotonic()
    train([model], setting.threads)
    make_test_rows(model, setting.rows)
    contestants = prepared(model, batch, setting)
    facts: dict[str, Any] = {}
    if search:
        ours = tuned(model, batch, setting)
        facts = {key: value for key, value in ours.facts.items() if key != "failure"}
        contestants[OURS] = judged(model, batch, setting, ours)
    timed(model, batch, setting, contestants)
    return {
        "schema": "deploy/1", "model": model, "batch": batch, **setting._asdict(), "code": code(),
        "software": software(), "machine": machine(),
        "test_rows": len(scored_base(model, batch, setting)),
        "contestants": {n: _plain(c) for n, c in contestants.items()},
        **facts,
        "wall_s": time.monotonic() - began,
    }  # fmt: skip


def scored_base(model: str, batch: int, setting: Setting) -> list[float]:
    """The dense model's scores, which every drop is relative to."""
    folder = place(model, batch, setting.threads) / BASE
    return scored(model, folder, batch, setting)


def judged(model: str, batch: int, setting: Setting, ours: Tuned) -> dict[str, Any]:
    """Autotune as a contestant: its artifact's folder, size and quality, or its failure."""
    if ours.folder is None:
        return {"title": OURS, "failure": ours.facts["failure"]}
    try:
        mine = scored(model, ours.folder, batch, setting, OURS)
    except ContestantError as error:
        return {"title": OURS, "failure": str(error)}
    quality = judge.quality(mine, scored_base(model, batch, setting))
    return {
        "title": OURS, "folder": ours.folder, "size_bytes": size(ours.folder), "quality": quality
    }  # fmt: skip


def timed(model: str, batch: int, setting: Setting, contestants: dict[str, dict[str, Any]]) -> None:
    """Race those that have a folder, and add what each took."""
    entries = {
        name: Entry(one["folder"], rows_of_test(model, setting.rows), batch, setting.threads)
        for name, one in contestants.items()
        if "folder" in one
    }
    found = race(entries, launches=setting.launches, cycles=setting.cycles, block_s=setting.block_s)
    for name, times in found.items():
        contestants[name] |= {
            "launches": times.launches,
            "p50_s": typical(times.launches),
            "load_s": sorted(times.load_s)[len(times.load_s) // 2],
            "first_s": sorted(times.first_s)[len(times.first_s) // 2],
        }


def _plain(contestant: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in contestant.items() if key != "folder"}
    if isinstance(kept.get("quality"), Quality):
        kept["quality"] = list(kept["quality"])
    return kept
