"""What a row of the deployment benchmark needs before autotune runs, all of it cached.

    .cache/benchmarks/deploy/MODEL/weights.safetensors          trained once
                                   test.npz                   rows that no search sees
                                   b1t2/PEER/  PEER.scores.npy   built and scored once a version

Scores are computed in the process and by the loader that are timed, at the deployment's batch size.
A step whose result is there is not repeated; delete its folder to repeat it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._common.rows import CACHE, ROOT
from benchmarks.deploy import judge, peers
from benchmarks.deploy.peers import PEERS, software
from benchmarks.deploy.race import UNTIMED, Contestant, ContestantError, Entry

MODELS = ("resnet", "mobilenet", "bert", "minilm", "crepe", "gru", "mlp", "lm")
"""Model files under ``models``."""
THROUGHPUT_BATCH = 32
FOLDER = CACHE / "deploy"
_BUILD_S, _TRAIN_S = 400, 3600


class Setting(NamedTuple):
    """How a row is made; rows are only valid for the setting that they were made with.

    ``rows``: how many of *test*, evenly spread, are scored; None for all.
    """

    threads: int = 2
    time_s: float = 240.0
    trials: int = 60
    launches: int = 5
    cycles: int = 4
    block_s: float = 0.12
    rows: int | None = None


class RowError(Exception):
    """A step that the row needs failed."""


def source(model: str) -> Path:
    """The model file."""
    return peers.MODELS / f"{model}.py"


def weights(model: str) -> Path:
    """The trained checkpoint's place."""
    return FOLDER / model / "weights.safetensors"


def rows_of_test(model: str, count: int | None = None) -> Path:
    """The place of the rows that are scored and served."""
    return FOLDER / model / f"test{_of(count)}.npz"


def _of(rows: int | None) -> str:
    return "" if rows is None else f"-{rows}"


def place(model: str, batch: int, threads: int) -> Path:
    """Where contestants of a row are built."""
    return FOLDER / model / f"b{batch}t{threads}"


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


def train(models: Sequence[str], threads: int) -> None:
    """Train the checkpoints that are missing, several in parallel.

    Raises:
        RowError: one could not be trained.
    """
    missing = [model for model in dict.fromkeys(models) if not weights(model).is_file()]
    lanes = max(1, min(threads, len(missing)))
    with ThreadPoolExecutor(lanes) as pool:
        for trained in [pool.submit(_trained, model, threads // lanes) for model in missing]:
            trained.result()


def _trained(model: str, threads: int) -> None:
    command = ["-m", "benchmarks.deploy.checkpoint", str(source(model)), str(weights(model))]
    why = _run(command, _TRAIN_S, OMP_NUM_THREADS=str(threads), **UNTIMED)
    if why is not None:
        raise RowError(f"{model} could not be trained: {why}")


def make_test_rows(model: str, rows: int | None) -> None:
    """Write the file of *test* rows if it is missing."""
    if not rows_of_test(model, rows).is_file():
        import numpy as np

        inputs, _ = _served(model, rows)
        scratch = rows_of_test(model, rows).with_suffix(".part.npz")
        np.savez(scratch, *(column.numpy() for column in inputs))
        scratch.replace(rows_of_test(model, rows))


def spread(count: int, wanted: int | None) -> list[int]:
    """``wanted`` of ``count`` row numbers, evenly spread; all where that is None or more.

    Rows may be ordered (the weather's are, by airport and date), so the first are no random sample.
    """
    taken = count if wanted is None else min(wanted, count)
    return [number * count // taken for number in range(taken)]


@lru_cache(maxsize=1)
def _served(model: str, rows: int | None) -> tuple[list[Any], Any]:
    """Inputs and targets of *test*, or of ``rows`` of it, evenly spread."""
    import torch
    from torch.utils.data import DataLoader, Subset

    from benchmarks.deploy.checkpoint import module

    data = module(source(model)).test_data()
    inputs, targets = [], []
    for given, target in DataLoader(Subset(data, spread(len(data), rows)), 512):
        inputs.append(given if isinstance(given, list | tuple) else [given])
        targets.append(target)
    return [torch.cat(column) for column in zip(*inputs, strict=True)], torch.cat(targets)


def scored(
    model: str, folder: Path, batch: int, setting: Setting, name: str | None = None
) -> list[float]:
    """Per-sample scores of a contestant on *test*, from its own process; cached beside its folder.

    Raises:
        ContestantError: it does not load, or does not answer.
    """
    import numpy as np

    stem = f"{name or folder.name}.scores{_of(setting.rows)}"
    kept = place(model, batch, setting.threads) / f"{stem}.npy"
    if not kept.is_file():
        import torch

        from benchmarks.deploy.checkpoint import module, score

        out = kept.with_name(kept.name.replace("scores", "outputs"))
        rows = rows_of_test(model, setting.rows)
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
    """A peer's folder; built if it is missing or of other package versions.

    Raises:
        ContestantError: it could not be built; recorded, so that it is not tried again.
    """
    folder = place(model, batch, threads) / peer
    marker = folder / "peer.json"
    failed = folder.with_name(f"{peer}.failed.json")
    if failed.is_file():
        known = json.loads(failed.read_text())
        if known["software"] == software():
            raise ContestantError(known["failure"])
    if marker.is_file() and json.loads(marker.read_text())["software"] == software():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    forget_scores(folder.parent, peer)
    why = _run(
        [*("-m", "benchmarks.deploy.peers", peer, str(source(model)), str(weights(model))),
         *(str(batch), str(threads), str(folder))],
        _BUILD_S,
    )  # fmt: skip
    if why is not None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        failed.write_text(json.dumps({"failure": why, "software": software()}))
        raise ContestantError(why)
    return folder


def forget_scores(folder: Path, name: str) -> None:
    """Delete the scores of a contestant that is built again."""
    for stale in folder.glob(f"{name}.scores*.npy"):
        stale.unlink()


def prepared(model: str, batch: int, setting: Setting) -> dict[str, dict[str, Any]]:
    """Every peer, built (on one core each) and then scored: its folder and quality, or why it
    failed.
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
            if name == judge.BASE:
                raise RowError(f"{model}: the eager model does not run: {error}") from error
            continue
        found[name] |= {"folder": folder, "size_bytes": size(folder)}
        found[name]["quality"] = judge.quality(scores[name], scores[judge.BASE])
    return found


def size(folder: Path) -> int:
    """Bytes of all files within."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
