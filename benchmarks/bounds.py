"""Lower bounds of latency and memory against measurements.  ``python -m benchmarks.bounds``

Random models of seven families, each at several batch sizes and thread counts, dense and pruned,
in eager PyTorch and, where the model is a chain of layers, in ONNX Runtime, there also with
int8 weights; the points of `benchmarks.cost_model` are added.  The measured value of a pair
(plan, model) is the *fastest* of its calls on this machine; its bound is `bounds.latency_bound_s`
from this machine's profile.  Recorded trials of the reports under ``reports/`` are added with their
bounds on latency (from their own profile) and memory.

Passes when at least 10,000 pairs have no bound above the measured value and the median of
bound/measured is at least 0.3.  Rows are kept under ``.cache/benchmarks``; a further run continues
from them and recomputes the bounds.  Other load makes measurements slower, never faster: that
costs tightness, not safety.  A profile must be measured on an idle machine (``--profile`` takes a
stored one).
"""

import argparse
import logging
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch import nn

from autotune.errors import FormatError
from autotune.hardware import bounds
from autotune.hardware import profiles as hardware_profiles
from autotune.records import codec
from autotune.records.base import Record
from autotune.records.hardware import Profile
from autotune.records.job import Probe
from autotune.records.plan import Deployment, Step
from autotune.records.task import Traits
from autotune.report import run_folder
from autotune.worker.channel import NullChannel
from autotune.worker.machine import profile as machine_profile
from autotune.worker.survey import model_stats, op_trace, work_bounds
from benchmarks._common import families, zoo
from benchmarks._common.rows import CACHE
from benchmarks.cost_model import points

LEAST_PAIRS = 10_000
LEAST_MEDIAN = 0.3
BATCHES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32)
CALLS = 8
CALL_S = 0.008
MOST_FLOPS = 2e9
"""Calls with more work are left out to save time."""


class Row(Record, frozen=True, kw_only=True):
    """One model's plans, each with the seconds of its fastest call."""

    model: int
    traits: Traits
    timed: tuple[tuple[str, Deployment, float], ...]


class Pair(NamedTuple):
    """Seconds, or bytes for memory."""

    what: str
    bound: float
    measured: float


def fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls, after two that warm up."""
    call()
    best, spent = float("inf"), 0.0
    for number in range(CALLS + 1):
        started = time.perf_counter()
        call()
        taken = time.perf_counter() - started
        best = min(best, taken) if number else best
        spent += taken
        if spent > CALL_S and number >= 2:
            break
    return best


def traits_of(sample: families.Sample) -> Traits:
    """As the survey counts them."""
    one, two = (op_trace.record(sample.module, (sample.inputs(n),)) for n in (1, 2))
    counted = model_stats.count(sample.module, (sample.inputs(1),))
    return msgspec.structs.replace(counted, floor=work_bounds.floor(one, two))


def plans(
    sample: families.Sample, found: Traits, sessions: Mapping[tuple[str, int], Any]
) -> Iterator[tuple[str, Deployment, Callable[[], object]]]:
    """Every plan of one model, and a call of it.  ``sessions``: (fp32 or int8, threads) -> one."""
    thinner = _pruned(sample, found)
    for batch in BATCHES:
        if found.flops_per_sample * batch > MOST_FLOPS:
            break
        x = sample.inputs(batch)
        feed = {"x": x.numpy()}
        for count in dict.fromkeys(threads for _, threads in sessions):
            torch.set_num_threads(count)
            plan = Deployment(runtime="eager", threads=count, batch_size=batch)
            yield "eager", plan, partial(_eager, sample.module, x)
            if thinner is not None:
                module, kept_share = thinner
                step = Step(name="prune", params={"macs_kept": kept_share})
                pruned = msgspec.structs.replace(plan, compress=(step,))
                yield "pruned", pruned, partial(_eager, module, x)
            for kind in ("fp32", "int8"):
                session = sessions[kind, count]
                if session is not None:
                    steps = (Step(name="int8_dynamic"),) if kind == "int8" else ()
                    onnx = msgspec.structs.replace(plan, runtime="onnxruntime", compress=steps)
                    yield f"onnxruntime {kind}", onnx, partial(session.run, None, feed)


def measured(sample: families.Sample, number: int, threads: Sequence[int]) -> Row:
    """Every plan of one model, timed."""
    found = traits_of(sample)
    sessions = {(kind, t): _session(sample, kind, t) for t in threads for kind in ("fp32", "int8")}
    timed = [
        (f"{what} {sample.family}", plan, fastest(call))
        for what, plan, call in plans(sample, found, sessions)
    ]
    return Row(model=number, traits=found, timed=tuple(timed))


def _eager(module: nn.Module, x: torch.Tensor) -> object:
    with torch.inference_mode():
        return module(x)


def _pruned(sample: families.Sample, found: Traits) -> tuple[nn.Module, float] | None:
    """An MLP's inner layers cut to half of their channels, and the share of its work left."""
    if sample.family != "mlp":
        return None
    linears = [layer for layer in sample.module.modules() if isinstance(layer, nn.Linear)]
    cut = (max(8, n.out_features // 2) for n in linears[:-1])
    sizes = [linears[0].in_features, *cut, 10]
    layers: list[nn.Module] = []
    for left, right in pairwise(sizes):
        layers += [nn.Linear(left, right), nn.ReLU()]
    thinner = nn.Sequential(*layers[:-1]).eval()
    work = 2.0 * sum(a * b for a, b in pairwise(sizes))
    return thinner, work / found.flops_per_sample


# -- ONNX by hand: an export of each would take seconds ------------------------------------


def _session(sample: families.Sample, kind: str, threads: int) -> Any:
    """An ONNX Runtime session of a chain of layers; None for other models, and for int8
    convolutions (their ranges would have to be calibrated).
    """
    if not isinstance(sample.module, nn.Sequential) or (kind == "int8" and sample.family != "mlp"):
        return None
    import onnxruntime as ort

    model = _graph(sample.module, sample.inputs(1).shape)
    if kind == "int8":
        model = _int8(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _int8(model: Any) -> Any:
    """As the compressor int8_dynamic does it."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        source, target = (str(Path(folder) / f"{name}.onnx") for name in ("fp32", "int8"))
        onnx.save(model, source)
        quantize_dynamic(source, target, op_types_to_quantize=["MatMul", "Gemm"])
        return onnx.load(target)


def _graph(chain: nn.Sequential, shape: torch.Size) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, last = [], [], "x"

    def put(name: str, tensor: torch.Tensor) -> str:
        weights.append(numpy_helper.from_array(tensor.detach().numpy(), name))
        return name

    for i, layer in enumerate(chain):
        out = f"y{i}"
        if isinstance(layer, nn.Linear):
            names = [put(f"w{i}", layer.weight.T.contiguous()), put(f"b{i}", layer.bias)]
            nodes.append(helper.make_node("MatMul", [last, names[0]], [f"m{i}"]))
            nodes.append(helper.make_node("Add", [f"m{i}", names[1]], [out]))
        elif isinstance(layer, nn.Conv2d):
            inputs = [last, put(f"w{i}", layer.weight)]
            inputs += [put(f"b{i}", layer.bias)] if layer.bias is not None else []
            pads = list(layer.padding) * 2
            nodes.append(
                helper.make_node(
                    "Conv",
                    inputs,
                    [out],
                    kernel_shape=list(layer.kernel_size),
                    strides=list(layer.stride),
                    pads=pads,
                    group=layer.groups,
                )
            )
        elif isinstance(layer, nn.BatchNorm2d):
            held = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
            inputs = [last, *(put(f"n{i}{j}", t) for j, t in enumerate(held) if t is not None)]
            nodes.append(helper.make_node("BatchNormalization", inputs, [out]))
        elif isinstance(layer, nn.ReLU):
            nodes.append(helper.make_node("Relu", [last], [out]))
        elif isinstance(layer, nn.ReLU6):
            ends = [put(f"e{i}{n}", torch.tensor(float(n))) for n in (0, 6)]
            nodes.append(helper.make_node("Clip", [last, *ends], [out]))
        elif isinstance(layer, nn.AdaptiveAvgPool2d):
            nodes.append(helper.make_node("GlobalAveragePool", [last], [out]))
        else:
            nodes.append(helper.make_node("Flatten", [last], [out]))
        last = out
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape[1:]])
    y = helper.make_tensor_value_info(last, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "chain", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


# -- recordings ----------------------------------------------------------------------------


def recorded(folder: Path) -> Iterator[Pair]:
    """Every completed trial of every report, by its own profile and traits."""
    for file in sorted(folder.glob("*/report.json")):
        try:
            report = run_folder.load_report(file)
        except FormatError as error:  # of another version
            print(f"left out: {error}")
            continue
        counted = report.survey.traits
        for trial in report.deploy_trials:
            if trial.state != "complete" or trial.latency_s is None:
                continue
            bound = bounds.latency_bound_s(trial.deployment, counted, report.profile)
            if bound is not None:
                yield Pair("recorded latency", bound, trial.latency_s.p50)
            if trial.memory_bytes is not None:
                least = bounds.memory_bound_bytes(trial.deployment, counted)
                yield Pair("recorded memory", least, trial.memory_bytes)


def timed(profile: Profile) -> Iterator[Pair]:
    """The points of `benchmarks.cost_model` on this machine, where it has measured them."""
    for name, (make, inputs) in zoo.ZOO.items():
        found_points, _ = points.read(name, "points")
        if not found_points:
            continue
        found = traits_of(families.Sample(name, make().eval(), inputs))
        for point in found_points:
            plan = Deployment(runtime=point.runtime, threads=point.threads, batch_size=point.batch)
            bound = bounds.latency_bound_s(plan, found, profile)
            if bound is not None:
                yield Pair("zoo " + point.runtime, bound, min(point.each_s or (point.seconds,)))


# -- rows kept between runs ----------------------------------------------------------------


def keep(path: Path, row: Row) -> None:
    """Append one model's plans."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(codec.encode(row).strip() + b"\n")


def kept(path: Path) -> list[Row]:
    """What earlier runs timed."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [codec.decode(line, Row, what=path.name) for line in lines]


def bounded(row: Row, profile: Profile) -> Iterator[Pair]:
    """The pairs of one model's plans."""
    for what, plan, seconds in row.timed:
        bound = bounds.latency_bound_s(plan, row.traits, profile)
        if bound is not None:
            yield Pair(what, bound, seconds)


# -- the verdict ---------------------------------------------------------------------------


def table(pairs: list[Pair]) -> list[str]:
    """One line a kind: how many, the median and largest bound/measured, how many above 1."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        kinds[pair.what].append(pair.bound / pair.measured)
    lines = [f"{'pairs of':<28}{'n':>7}{'median':>9}{'largest':>9}{'above':>7}"]
    for kind, ratios in sorted(kinds.items()):
        above = sum(r > 1 for r in ratios)
        lines.append(
            f"{kind:<28}{len(ratios):>7}{median(ratios):>9.3f}{max(ratios):>9.3f}{above:>7}"
        )
    return lines


def passes(pairs: list[Pair], least: int) -> bool:
    """No bound above the measured value, latency bounds near enough, and pairs enough."""
    ratios = [p.bound / p.measured for p in pairs if not p.what.endswith("memory")]
    near = median(ratios) >= LEAST_MEDIAN if ratios else False
    return len(ratios) >= least and max(ratios) <= 1 and near


def main(argv: list[str] | None = None) -> int:
    """Print the table and PASS or FAIL; 0 for a pass."""
    parser = argparse.ArgumentParser(prog="benchmarks.bounds", description=__doc__)
    parser.add_argument("--pairs", type=int, default=LEAST_PAIRS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop, to go on later")
    parser.add_argument(
        "--profile", help="of this machine, from `autotune profile`, measured alone"
    )
    parser.add_argument("--fresh", action="store_true", help="forget the rows of earlier runs")
    given = parser.parse_args(argv)
    logging.disable()  # the quantizer advises to prepare each model
    torch.manual_seed(given.seed)
    np.random.seed(given.seed)
    if given.profile:
        profile = hardware_profiles.load_profile(given.profile)
    else:
        probe = Probe(thorough=True, budget_s=25.0)
        profile = machine_profile.run(probe, Path(), NullChannel()).profile
    rows = CACHE / f"bounds-{given.seed}.jsonl"
    if given.fresh:
        rows.unlink(missing_ok=True)
    known = kept(rows)
    pairs = [*recorded(given.reports), *timed(profile)]
    pairs += [pair for row in known for pair in bounded(row, profile)]
    number, until = len(known), time.monotonic() + given.seconds
    threads = tuple(dict.fromkeys((1, max(1, int(profile.cpu.cores)))))
    while (
        sum(not p.what.endswith("memory") for p in pairs) < given.pairs and time.monotonic() < until
    ):
        row = measured(
            families.draw(random.Random(f"{given.seed} {number}"), number), number, threads
        )
        keep(rows, row)
        pairs, number = [*pairs, *bounded(row, profile)], number + 1
    print("\n".join(table(pairs)))
    ratios = [p.bound / p.measured for p in pairs if not p.what.endswith("memory")]
    print(f"{len(ratios)} pairs of {number} models: median bound/measured {median(ratios):.3f}")
    good = passes(pairs, given.pairs)
    print(f"none above a measurement, median at least {LEAST_MEDIAN}: {'PASS' if good else 'FAIL'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
