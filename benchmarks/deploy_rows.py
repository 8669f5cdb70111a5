"""Makes one row of the deployment benchmark: a model at a batch size, everything cached.

    .cache/benchmarks/deploy/MODEL/weights.safetensors          trained once
                                   confirm.npz                   rows that no search sees
                                   b1t2/PEER/  PEER.scores.npy   built and scored once a version
                                   b1t2/autotune/                the report folder of the search

Scoring is by the same process and loader that is timed, at the deployment's batch.  Each step that
is there already is not done again; delete its folder to have it done.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import data, deploy_judge
from benchmarks.deploy_judge import BASE, OURS, Quality
from benchmarks.deploy_peers import PEERS, software
from benchmarks.deploy_race import (
    ROOT,
    UNTIMED,
    Contestant,
    ContestantError,
    Entry,
    race,
    typical,
)

MODELS = {
    "resnet": 32,
    "mobilenet": 32,
    "bert": 32,
    "minilm": 32,
    "crepe": 32,
    "gru": 32,
    "mlp": 32,
    "lm": 32,
}
"""Model file under ``deploy_models`` -> its throughput batch."""
FOLDER = data.CACHE / "deploy"
_BUILD_S, _TRAIN_S = 400, 3600
_USAGE = 2
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8",
          "asimd", "asimddp", "i8mm", "bf16", "sve")  # fmt: skip


class Setting(NamedTuple):
    """How a row is made; rows of another setting do not answer for this one.

    ``rows``: how many of *confirm*, evenly spread, are scored; None for all.
    """

    threads: int = 2
    time_s: float = 240.0
    trials: int = 60
    launches: int = 5
    cycles: int = 4
    block_s: float = 0.12
    rows: int | None = None


class RowError(Exception):
    """A step that the row cannot do without failed."""


def source(model: str) -> Path:
    """The model file."""
    return Path(__file__).parent / "deploy_models" / f"{model}.py"


def weights(model: str) -> Path:
    """The trained checkpoint's place."""
    return FOLDER / model / "weights.safetensors"


def confirm(model: str, rows: int | None = None) -> Path:
    """The place of the rows that are scored and served."""
    return FOLDER / model / f"confirm{_of(rows)}.npz"


def _of(rows: int | None) -> str:
    return "" if rows is None else f"-{rows}"


def place(model: str, batch: int, threads: int) -> Path:
    """Where contestants of a row are built."""
    return FOLDER / model / f"b{batch}t{threads}"


def code() -> str:
    """A digest of autotune's source: rows of another one are stale."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "autotune").rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def machine() -> dict[str, Any]:
    """What a reader needs to know of this machine, and nothing that names it."""
    flags: list[str] = []
    info = Path("/proc/cpuinfo")
    if info.is_file():
        present = set(info.read_text().split())
        flags = [flag for flag in _FLAGS if flag in present]
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"architecture": platform.machine(), "cpus": cpus, "flags": flags}


def _run(command: list[str], limit_s: float, **variables: str) -> str | None:
    """Run one of our own commands; None, or why it failed."""
    env = dict(os.environ, PYTHONPATH=str(ROOT), **variables)
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True,
            timeout=limit_s,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"took over {limit_s:.0f} s"
    if done.returncode == 0:
        return None
    said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    return said[0]


def trained(model: str, threads: int, rows: int | None = None) -> None:
    """Make the checkpoint and the file of *confirm*, where they are not there.

    Raises:
        RowError: it could not be trained.
    """
    if not weights(model).is_file():
        command = ["-m", "benchmarks.deploy_train", str(source(model)), str(weights(model))]
        why = _run(command, _TRAIN_S, OMP_NUM_THREADS=str(threads), **UNTIMED)
        if why is not None:
            raise RowError(f"{model} could not be trained: {why}")
    if not confirm(model, rows).is_file():
        import numpy as np

        inputs, _ = _served(model, rows)
        scratch = confirm(model, rows).with_suffix(".part.npz")
        np.savez(scratch, *(column.numpy() for column in inputs))
        scratch.replace(confirm(model, rows))


def spread(count: int, wanted: int | None) -> list[int]:
    """So many of ``count`` row numbers, evenly spread, or all where that is None or more.

    Rows may be ordered (the weather's are, by airport and date): the first ones are no sample.
    """
    taken = count if wanted is None else min(wanted, count)
    return [number * count // taken for number in range(taken)]


@lru_cache(maxsize=1)
def _served(model: str, rows: int | None) -> tuple[list[Any], Any]:
    """The inputs and the targets of *confirm*, or of so many rows of it, evenly spread."""
    import torch
    from torch.utils.data import DataLoader, Subset

    from benchmarks.deploy_train import module

    data = module(source(model)).confirm_data()
    inputs, targets = [], []
    for given, target in DataLoader(Subset(data, spread(len(data), rows)), 512):
        inputs.append(given if isinstance(given, list | tuple) else [given])
        targets.append(target)
    return [torch.cat(column) for column in zip(*inputs, strict=True)], torch.cat(targets)


def scored(
    model: str, folder: Path, batch: int, setting: Setting, name: str | None = None
) -> list[float]:
    """Scores of a contestant on *confirm*, row by row, by its own process; kept beside it.

    Raises:
        ContestantError: it does not load, or does not answer.
    """
    import numpy as np

    stem = f"{name or folder.name}.scores{_of(setting.rows)}"
    kept = place(model, batch, setting.threads) / f"{stem}.npy"
    if not kept.is_file():
        import torch

        from benchmarks.deploy_train import module, score

        out = kept.with_name(kept.name.replace("scores", "outputs"))
        rows = confirm(model, setting.rows)
        one = Contestant(Entry(folder, rows, batch, setting.threads), untimed=True)
        try:
            one.ready()
            one.ask(score=str(out))
        finally:
            one.end()
        file = module(source(model))
        outputs = torch.from_numpy(np.load(out))
        out.unlink()
        _, targets = _served(model, setting.rows)
        pieces = zip(torch.split(outputs, 512), torch.split(targets, 512), strict=True)
        scores = [score(file, output, target) for output, target in pieces]
        np.save(kept, torch.cat(scores).numpy())
    return [float(value) for value in np.load(kept)]


def built(model: str, batch: int, threads: int, peer: str) -> Path:
    """A peer's folder, built where it is not there in these versions.

    Raises:
        ContestantError: it could not be built; remembered, so that it is not tried again.
    """
    folder = place(model, batch, threads) / peer
    marker = folder / "peer.json"
    failed = folder.with_name(f"{peer}.failed.json")
    if failed.is_file():
        told = json.loads(failed.read_text())
        if told["software"] == software():
            raise ContestantError(told["failure"])
    if marker.is_file() and json.loads(marker.read_text())["software"] == software():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    _forget_scores(folder.parent, peer)
    why = _run(
        [*("-m", "benchmarks.deploy_peers", peer, str(source(model)), str(weights(model))),
         *(str(batch), str(threads), str(folder))],
        _BUILD_S,
    )  # fmt: skip
    if why is not None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        failed.write_text(json.dumps({"failure": why, "software": software()}))
        raise ContestantError(why)
    return folder


def _forget_scores(folder: Path, name: str) -> None:
    for stale in folder.glob(f"{name}.scores*.npy"):
        stale.unlink()


class Tuned(NamedTuple):
    """What the search gave."""

    folder: Path | None
    facts: dict[str, Any]


def tuned(model: str, batch: int, setting: Setting) -> Tuned:
    """Run autotune as its user would, for the median that is raced; its report stays beside the
    peers, with a note of what it was made with, so that a row that was cut off need not search it.
    """
    out = place(model, batch, setting.threads) / OURS
    note, made = out.with_name("autotune.json"), {**setting._asdict(), "code": code()}
    if note.is_file():
        known = json.loads(note.read_text())
        if known["made"] == made:
            return Tuned(out / "artifact" if known["artifact"] else None, known["facts"])
    note.unlink(missing_ok=True)
    _forget_scores(out.parent, OURS)
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
        *("--trials", str(setting.trials), "--max-drop", str(deploy_judge.MAX_DROP)),
        *("--out", str(out)),
    ]
    began = time.monotonic()
    log = out.with_name("autotune.log")
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    with log.open("w") as told:
        status = subprocess.call(command, cwd=ROOT, env=env, stdout=told, stderr=told)
    facts: dict[str, Any] = {"exit_code": status, "search_s": time.monotonic() - began}
    path = out / "report.json"
    if not path.is_file() or not (out / "artifact" / "load.py").is_file():
        last = log.read_text().strip().splitlines()[-4:] or [f"exit code {status}"]
        if status == _USAGE:
            raise RowError(f"{model}: autotune does not take it: " + " ".join(last))
        return Tuned(None, facts | {"failure": last[-1]})
    return Tuned(out / "artifact", facts | _told(json.loads(path.read_text())))


def _told(report: dict[str, Any]) -> dict[str, Any]:
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


def peers(model: str, batch: int, setting: Setting) -> dict[str, dict[str, Any]]:
    """Every peer, built (on one core each) and then scored: its folder and quality, or its
    failure.
    """
    found: dict[str, dict[str, Any]] = {}
    scores: dict[str, list[float]] = {}
    with ThreadPoolExecutor(setting.threads) as pool:
        folders: dict[str, Future[Path]] = {
            name: pool.submit(built, model, batch, setting.threads, name) for name in PEERS
        }
    for name, (_, _, title) in PEERS.items():
        found[name] = {"title": title}
        try:
            folder = folders[name].result()
            scores[name] = scored(model, folder, batch, setting)
        except ContestantError as error:
            found[name]["failure"] = str(error)
            if name == BASE:
                raise RowError(f"{model}: the eager model does not run: {error}") from error
            continue
        found[name] |= {"folder": folder, "size_bytes": _size(folder)}
        found[name]["quality"] = deploy_judge.quality(scores[name], scores[BASE])
    return found


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def row(model: str, batch: int, setting: Setting, search: bool = True) -> dict[str, Any]:
    """Search, score and race: the row as it is stored.  Without ``search`` of peers alone.

    Raises:
        RowError: there is no model, or no baseline.
        benchmarks.data.DataError: a package cannot be had.
    """
    began = time.monotonic()
    trained(model, setting.threads, setting.rows)
    contestants = peers(model, batch, setting)
    facts: dict[str, Any] = {}
    if search:
        ours = tuned(model, batch, setting)
        facts = {key: value for key, value in ours.facts.items() if key != "failure"}
        contestants[OURS] = judged(model, batch, setting, ours)
    timed(model, batch, setting, contestants)
    return {
        "schema": "deploy/1", "model": model, "batch": batch, **setting._asdict(), "code": code(),
        "software": software(), "machine": machine(),
        "confirm_rows": len(scored_base(model, batch, setting)),
        "contestants": {n: _plain(c) for n, c in contestants.items()},
        **facts,
        "wall_s": time.monotonic() - began,
    }  # fmt: skip


def scored_base(model: str, batch: int, setting: Setting) -> list[float]:
    """The dense model's scores, which every drop is from."""
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
    quality = deploy_judge.quality(mine, scored_base(model, batch, setting))
    return {
        "title": OURS, "folder": ours.folder, "size_bytes": _size(ours.folder), "quality": quality
    }  # fmt: skip


def timed(model: str, batch: int, setting: Setting, contestants: dict[str, dict[str, Any]]) -> None:
    """Race those that have a folder, and note what each took."""
    entries = {
        name: Entry(one["folder"], confirm(model, setting.rows), batch, setting.threads)
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
