"""Ranges of activations: histograms from one pass over the calibration rows, and a rule on them.

    graph, its tensors made outputs --rows--> one histogram per tensor --rule--> (lowest, highest)

    minmax      the whole range seen
    percentile  without the outermost 1 in 10,000 at either end
    mse         the range with the least squared error at 8 bits

A histogram's range is that of the first batch, and its bin width doubles when a later batch exceeds
it, so that rows are run once and not kept.  Minimum and maximum are exact; of a large activation
every n-th value is counted.  Does not know ranges beyond those of the calibration rows.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from autotune.errors import JobError

_BINS = 2048
_COUNTED = 100_000  # values per tensor and batch
_OUTSIDE = 1e-4
_LEVELS = 255
_SHARES = np.linspace(1.0, 0.2, 33)  # of the range seen, which the rule mse tries

Range = tuple[float, float]


class Histogram:
    """Counts of a tensor's values, in equal bins from ``-edge`` to ``edge``."""

    def __init__(self) -> None:
        self.lowest, self.highest, self.edge = math.inf, -math.inf, 0.0
        self.counts = np.zeros(_BINS, np.int64)

    def add(self, values: Any) -> None:
        """Count one batch."""
        flat = np.ravel(values)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise JobError("nan", "an activation of the calibration rows is not a finite number")
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        self._widen(max(abs(low), abs(high)) or 1e-12)
        flat = flat[:: -(-flat.size // _COUNTED)]
        bins = ((flat + self.edge) * (_BINS / 2 / self.edge)).astype(np.int32)
        self.counts += np.bincount(np.clip(bins, 0, _BINS - 1), minlength=_BINS)

    def _widen(self, reach: float) -> None:
        """Double the bins' width until they hold ``reach``."""
        self.edge = self.edge or reach
        while self.edge < reach:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.pad(pairs, _BINS // 4)
            self.edge *= 2

    def range(self, rule: str) -> Range:
        """The range to quantize to 8 bits; contains 0, which must be exact."""
        low, high = _RULES[rule](self)
        return min(0.0, low), max(0.0, high)

    def centres(self) -> Any:
        return (np.arange(_BINS) + 0.5) * (2 * self.edge / _BINS) - self.edge


def _minmax(seen: Histogram) -> Range:
    return seen.lowest, seen.highest


def _percentile(seen: Histogram) -> Range:
    below = np.cumsum(seen.counts) / max(1, seen.counts.sum())
    edges = np.linspace(-seen.edge, seen.edge, _BINS + 1)
    low = edges[int(np.searchsorted(below, _OUTSIDE))]
    high = edges[min(_BINS, int(np.searchsorted(below, 1 - _OUTSIDE)) + 1)]
    return max(float(low), seen.lowest), min(float(high), seen.highest)


def _mse(seen: Histogram) -> Range:
    values, counts = seen.centres(), seen.counts

    def error(low: float, high: float) -> float:
        return float((np.square(_rounded(values, low, high) - values) * counts).sum())

    return _least(seen, error)


def _least(seen: Histogram, error: Any) -> Range:
    """The range seen, both ends scaled by the factor with the least error."""
    low, high = min(0.0, seen.lowest), max(0.0, seen.highest)
    share = min(_SHARES, key=lambda s: (error(low * s, high * s), -s))
    return float(low * share), float(high * share)


def _levels(values: Any, low: float, high: float) -> Any:
    scale = (high - low) / _LEVELS or 1.0
    return np.clip(np.rint((values - low) / scale), 0, _LEVELS).astype(np.int64)


def _rounded(values: Any, low: float, high: float) -> Any:
    return _levels(values, low, high) * ((high - low) / _LEVELS) + low


_RULES = {"minmax": _minmax, "percentile": _percentile, "mse": _mse}


def collect(
    path: str, batches: Iterator[Mapping[str, Any]], kinds: Collection[str]
) -> dict[str, Histogram]:
    """Histograms of the inputs and outputs of all nodes of these ``kinds``.

    Raises:
        JobError: unsupported: there are no calibration rows; nan: an activation is not finite.
    """
    import onnx

    model = onnx.load(path)
    graph = model.graph
    held = {value.name for value in graph.initializer}
    given = {value.name for value in graph.input} - held
    shown = {value.name for value in graph.output}
    wanted = {
        name
        for node in graph.node
        if node.op_type in kinds
        for name in (*node.input, *node.output)
        if name and name not in held
    }
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted - given - shown))
    session = session_of(model)
    outputs = {value.name: value.type for value in session.get_outputs()}
    asked = [name for name in sorted(wanted & set(outputs)) if outputs[name] == "tensor(float)"]
    found = {name: Histogram() for name in asked}
    for batch in batches:
        feed = {name: array for name, array in batch.items() if name in given}
        for name, array in zip(asked, session.run(asked, feed), strict=True):
            found[name].add(array)
        for name in wanted & set(feed):
            if feed[name].dtype == np.float32:
                found.setdefault(name, Histogram()).add(feed[name])
    if not any(seen.edge for seen in found.values()) and wanted:
        raise JobError("unsupported", "static int8 needs calibration rows, and there are none")
    return {name: seen for name, seen in found.items() if seen.edge}


def session_of(model: Any) -> Any:
    """A session that does not fuse nodes."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
