"""How good are the estimates?  ``python -m benchmarks.cost_model [--quick]``

Models that no calibration has seen (`benchmarks.zoo`), at several batches and thread counts, in
eager PyTorch, compiled, and ONNX Runtime.  For each model its operators are replayed (worker.
replay) and each runtime is run end to end once, at batch 4 on one thread: these points are not
counted.  All other points are predicted, then measured in an interpreter of their own (a
runtime each), medians of undisturbed calls.  Points that other work disturbed are left out.

Targets: at least 200 points of 12 models; mean absolute error 12 %, its 90th percentile 25 %,
Kendall's tau 0.85 over pairs that differ by more than 10 %, 85 to 95 % within their 90 % intervals.
Rows are kept under .cache/benchmarks; a run goes on where the last one stopped.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from autotune.control import estimate
from autotune.records import codec
from autotune.records.base import Record
from autotune.records.job import Footprinted
from autotune.records.measurement import OpReplay

CACHE = Path(".cache/benchmarks")
BATCHES = (1, 4, 16, 32)
THREADS = (1, 2)
ANCHOR = (4, 1)
COMPILED = ("resnet", "mobilenet", "mlp_wide", "mlp_small", "bert", "gpt", "recommender")
QUICK = ("mobilenet", "mlp_wide", "bert", "lstm")
CALL_S = 0.3
LEAST_CLEAN = 0.1
"""Points with a smaller share of undisturbed calls tell about other work: they are left out."""
MEMORY_BATCHES = (16, 64)
MEMORY_STEPS = 4


class Truth(Record, frozen=True, kw_only=True):
    """One measured point."""

    model: str
    runtime: str
    batch: int
    threads: int
    seconds: float
    clean: float


class Replays(Record, frozen=True, kw_only=True):
    """One model's operators."""

    model: str
    replays: tuple[OpReplay, ...]


class Peak(Record, frozen=True, kw_only=True):
    """Resident bytes before training, and the most while a process trained."""

    model: str
    batch: int
    base_bytes: int
    peak_bytes: int


class Point(NamedTuple):
    """A prediction beside its truth, in seconds."""

    model: str
    runtime: str
    batch: int
    threads: int
    predicted: float
    low: float
    high: float
    truth: float

    @property
    def error(self) -> float:
        return abs(self.predicted / self.truth - 1)


# -- measuring, in an interpreter of its own -----------------------------------------------


def measure(name: str, runtime: str, most: int = max(THREADS)) -> Iterator[Record]:
    """What the parent keeps: the truths of one runtime, or (``replay``) the operators."""
    import torch

    from benchmarks.zoo import ZOO

    torch.manual_seed(0)
    make, inputs = ZOO[name]
    model = make().eval()
    if runtime.startswith("memory"):
        yield _memory(name, make, inputs, int(runtime.removeprefix("memory") or 0))
        return
    if runtime == "replay":
        from autotune.worker import replay

        found = replay.replay(
            model,
            lambda b: ((inputs(b),), {}),
            BATCHES,
            tuple(t for t in THREADS if t <= most),
            onnx=True,
            until_s=time.monotonic() + 60,
        )
        yield Replays(model=name, replays=found)
        return
    batches = BATCHES if runtime != "compiled" else (1, ANCHOR[0], 16)
    calls = _onnx(model, inputs) if runtime == "onnxruntime" else None
    for threads in (t for t in THREADS if t <= most):
        torch.set_num_threads(threads)
        for batch in sorted(batches):
            x = inputs(batch)
            call = calls(threads, x) if calls else _torch(model, x, runtime == "compiled")
            seconds, clean = settled(call)
            yield Truth(
                model=name,
                runtime=runtime,
                batch=batch,
                threads=threads,
                seconds=seconds,
                clean=clean,
            )


def _memory(name: str, make: Any, inputs: Any, batch: int) -> Record:
    """A training step's footprint, or (``batch``) the peak of a process that trains."""
    from autotune.records.plan import Recipe
    from autotune.worker import footprint, optimizers, trained

    def loss(model: Any, size: int) -> Any:
        return model(inputs(size)).float().square().mean()

    recipe = Recipe()
    footprint.warm_up(recipe)
    base = footprint.resident_bytes()
    if not batch:
        fixed, per_sample = footprint.line(make, loss, recipe)
        return Footprinted(base_bytes=base, fixed_bytes=fixed, bytes_per_sample=per_sample)
    model = make().train()
    optimizer = optimizers.build(recipe, model)
    for _ in range(MEMORY_STEPS):
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    peak = trained.peak_memory_bytes()
    return Peak(model=name, batch=batch, base_bytes=base, peak_bytes=peak)


def settled(call: Callable[[], object]) -> tuple[float, float]:
    """The median of undisturbed calls after a warm-up, and the share of such calls."""
    from autotune.worker import quiet

    until = time.perf_counter() + CALL_S / 3
    for _ in range(3):
        call()
    while time.perf_counter() < until:
        call()
    samples: list[quiet.Sample] = []
    until = time.perf_counter() + CALL_S
    while len(samples) < 5 or time.perf_counter() < until:
        samples.append(quiet.timed(call))
    return median(quiet.best(samples)), mean(s.clean for s in samples)


def _torch(model: Any, x: Any, compiled: bool) -> Callable[[], object]:
    import torch

    if not compiled:

        def eager() -> object:
            with torch.inference_mode():
                return model(x)

        return eager
    import torch._inductor.config as config

    torch._dynamo.reset()
    config.freezing = True
    fast = torch.compile(model, dynamic=False)

    def run() -> object:
        with torch.no_grad():
            return fast(x)

    return run


def _onnx(model: Any, inputs: Any) -> Callable[[int, Any], Callable[[], object]]:
    import io

    import onnxruntime as ort
    import torch

    file = io.BytesIO()
    shapes = ({0: torch.export.Dim("n", min=1, max=4096)},)
    program = torch.onnx.export(
        model, (inputs(2),), dynamo=True, dynamic_shapes=shapes, verbose=False
    )
    assert program is not None
    program.save(file)

    def session(threads: int, x: Any) -> Callable[[], object]:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        made = ort.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
        feed = {made.get_inputs()[0].name: x.numpy()}
        return lambda: made.run(None, feed)

    return session


# -- collecting ----------------------------------------------------------------------------


def jobs(quick: bool) -> list[tuple[str, str]]:
    """(model, runtime) of every interpreter that is needed."""
    from benchmarks.zoo import ZOO

    names = QUICK if quick else tuple(ZOO)
    out = []
    for name in names:
        out += [(name, "replay"), (name, "eager"), (name, "onnxruntime")]
        out += [(name, f"memory{batch or ''}") for batch in (0, *MEMORY_BATCHES)]
        if name in COMPILED and not quick:
            out.append((name, "compiled"))
    return out


def rows(name: str, runtime: str, most: int) -> Path:
    """Where the rows of one interpreter are kept; those of fewer threads apart."""
    apart = "" if most == max(THREADS) or runtime.startswith("memory") else f"-{most}t"
    return CACHE / f"cost-{name}-{runtime}{apart}.jsonl"


def collect(wanted: list[tuple[str, str]], until: float, most: int) -> list[str]:
    """Measure what is not kept yet; the failures in words."""
    CACHE.mkdir(parents=True, exist_ok=True)
    failures = []
    for name, runtime in wanted:
        path = rows(name, runtime, most)
        if path.exists() or time.monotonic() > until:
            continue
        command = [sys.executable, "-m", "benchmarks.cost_model", "--threads", str(most)]
        command += ["--measure", name, runtime]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            last = done.stderr.strip().splitlines()[-1:] or ["no output"]
            failures.append(f"{name} {runtime}: {last[0][:150]}")
            continue
        path.write_text("\n".join(lines) + "\n")
    return failures


def points(wanted: list[tuple[str, str]], most: int = max(THREADS)) -> list[Point]:
    """Every kept truth beside its prediction."""
    truths: dict[str, list[Truth]] = defaultdict(list)
    replays: dict[str, tuple[OpReplay, ...]] = {}
    for name, runtime in wanted:
        path = rows(name, runtime, most)
        if not path.exists() or runtime.startswith("memory"):
            continue
        for line in path.read_bytes().splitlines():
            if runtime == "replay":
                replays[name] = codec.decode(line, Replays, what=path.name).replays
            else:
                truths[name].append(codec.decode(line, Truth, what=path.name))
    out = []
    for name, found in replays.items():
        at = [t for t in truths[name] if (t.batch, t.threads) == ANCHOR]
        known = [estimate.Anchor(t.runtime, t.batch, t.threads, t.seconds) for t in at]
        for t in truths[name]:
            guess = estimate.latency_s(found, known, t.runtime, t.batch, t.threads)
            if guess is not None and t not in at and t.clean >= LEAST_CLEAN:
                low, high = guess.low, guess.high
                key = (t.model, t.runtime, t.batch, t.threads)
                out.append(Point(*key, guess.value, low, high, t.seconds))
    return out


def memory(wanted: list[tuple[str, str]]) -> list[tuple[str, int, float, bool]]:
    """(model, batch, predicted over true peak memory, within its interval)."""
    out = []
    for name in dict.fromkeys(name for name, _ in wanted):
        path = CACHE / f"cost-{name}-memory.jsonl"
        if not path.exists():
            continue
        found = codec.decode(path.read_bytes().strip(), Footprinted, what=path.name)
        for batch in MEMORY_BATCHES:
            path = CACHE / f"cost-{name}-memory{batch}.jsonl"
            if path.exists():
                peak = codec.decode(path.read_bytes().strip(), Peak, what=path.name)
                guess = estimate.training_memory_bytes(found, batch)
                inside = guess.low <= peak.peak_bytes <= guess.high
                out.append((name, batch, guess.value / peak.peak_bytes, inside))
    return out


def memory_summary(found: list[tuple[str, int, float, bool]]) -> tuple[list[str], bool]:
    """Lines, and whether the median error is within 10 %."""
    if not found:
        return [], True
    errors = [abs(ratio - 1) for _, _, ratio, _ in found]
    good = mean(errors) <= 0.10
    worst = max(found, key=lambda row: abs(row[2] - 1))
    covered = mean(inside for *_, inside in found)
    return [
        f"peak training memory: {len(found)} points, MAPE {mean(errors):.3f}, "
        f"{sum(e <= 0.10 for e in errors)} within 10 %, worst {worst[0]} batch {worst[1]} "
        f"{worst[2]:.2f}x, in interval {covered:.2f}  {'PASS' if good else 'FAIL'}  (<= 0.10)"
    ], good


# -- the verdict ---------------------------------------------------------------------------


def kendall(found: list[Point]) -> float:
    """Agreement on which of two points is faster, over pairs that differ by more than 10 %."""
    agree = total = 0
    for a, b in combinations(found, 2):
        if abs(math.log(a.truth / b.truth)) > math.log(1.1):
            total += 1
            agree += 1 if (a.truth > b.truth) == (a.predicted > b.predicted) else -1
    return agree / total if total else 0.0


def within(found: list[Point]) -> float:
    """Kendall's tau within each model, averaged: what a search of one model needs."""
    models: dict[str, list[Point]] = defaultdict(list)
    for point in found:
        models[point.model].append(point)
    return mean(kendall(group) for group in models.values())


def summary(found: list[Point]) -> tuple[list[str], bool]:
    """Lines to print, and whether every target is met."""
    errors = sorted(p.error for p in found)
    p90 = errors[min(len(errors) - 1, int(0.9 * len(errors)))]
    covered = mean(p.low <= p.truth <= p.high for p in found)
    tau, models = kendall(found), len({p.model for p in found})
    rows = [
        ("points", len(found), len(found) >= 200, ">= 200"),
        ("models", models, models >= 12, ">= 12"),
        ("MAPE", mean(errors), mean(errors) <= 0.12, "<= 0.12"),
        ("p90 of errors", p90, p90 <= 0.25, "<= 0.25"),
        ("Kendall tau", tau, tau >= 0.85, ">= 0.85"),
        ("Kendall tau within a model", within(found), True, ""),
        ("within 90 % interval", covered, 0.85 <= covered <= 0.95, "0.85 to 0.95"),
    ]
    lines = [f"{'group':<24}{'n':>5}{'MAPE':>8}{'bias':>8}{'in interval':>13}"]
    for label, key in (("runtime", 1), ("threads", 3), ("batch", 2), ("model", 0)):
        groups: dict[Any, list[Point]] = defaultdict(list)
        for point in found:
            groups[point[key]].append(point)
        for name, group in sorted(groups.items()):
            bias = math.exp(mean(math.log(p.predicted / p.truth) for p in group)) - 1
            inside = mean(p.low <= p.truth <= p.high for p in group)
            error = mean(p.error for p in group)
            text = f"{label} {name}"
            lines.append(f"{text:<24}{len(group):>5}{error:>8.3f}{bias:>+8.3f}{inside:>13.2f}")
    for what, value, good, target in rows:
        shown = f"{value:d}" if isinstance(value, int) else f"{value:.3f}"
        mark = ("PASS" if good else "FAIL") + f"  ({target})" if target else ""
        lines.append(f"{what:<28}{shown:>8}  {mark}")
    return lines, all(good for _, _, good, _ in rows)


def main(argv: list[str] | None = None) -> int:
    """Measure what is missing, print errors by group and the targets; 0 if all are met."""
    parser = argparse.ArgumentParser(prog="benchmarks.cost_model", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four models, in about a minute")
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop, to go on later")
    parser.add_argument("--fresh", action="store_true", help="forget the rows of earlier runs")
    parser.add_argument("--threads", type=int, choices=THREADS, default=max(THREADS), help="most")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.measure:
        for row in measure(*given.measure, given.threads):
            print(codec.encode(row).decode(), flush=True)
        return 0
    if given.fresh:
        for path in CACHE.glob("cost-*.jsonl"):
            path.unlink()
    wanted = jobs(given.quick)
    failures = collect(wanted, time.monotonic() + given.seconds, given.threads)
    found = points(wanted, given.threads)
    if not found:
        print("\n".join(["no point was measured", *failures]))
        return 1
    lines, good = summary(found)
    more, fits = memory_summary(memory(wanted))
    good = good and fits
    print("\n".join([*lines, *more, *failures]))
    print(json.dumps({"points": len(found), "passed": good}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
