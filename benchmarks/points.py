"""Measured points for `benchmarks.cost_model`: a model at a batch and thread count in a runtime.

    interpreter (model, runtime) --export once--> fork per point, three times --median--> Truth
    interpreter (model, "replay")                                             --------> Replays
    interpreter (model, "memoryN")                                --------> Footprinted or Peak

Each point is measured in a process of its own, as a served model is.  Rows are kept under
.cache/benchmarks, one file an interpreter; what is there is not measured again.
"""

import argparse
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

from autotune.records import codec
from autotune.records.base import Record
from autotune.records.measurement import OpReplay

CACHE = Path(".cache/benchmarks")
BATCHES = (1, 4, 16, 32)
FEW = (1, 4, 16)
"""Batches where time is short."""
THREADS = (1, 2)
COMPILED = ("resnet", "mobilenet", "mlp_wide", "mlp_small", "bert", "gpt", "recommender")
QUICK = ("mobilenet", "mlp_wide", "bert", "lstm")
DRAWN, DRAWN_COMPILED = 14, 4
"""Models of `benchmarks.families` that test constants."""
CALL_S = 0.2
MOST_S = 90.0
REPEATS, MOST_REPEATS = 3, 6
"""Processes of each point: the second fastest counts, the median of three; where it is not within
``AGREE`` of the fastest more of them are made.
"""
AGREE = 1.1
MakeCall = Callable[[int, int], Callable[[], object]]
"""(threads, batch) -> one call."""
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
    each_s: tuple[float, ...] = ()


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


def made(name: str) -> tuple[Callable[[], Any], Callable[[int], Any]]:
    """A model of the zoo, or ``drawn7``: the seventh of `benchmarks.families`."""
    from benchmarks import families
    from benchmarks.zoo import ZOO

    if name in ZOO:
        return ZOO[name]
    number = int(name.removeprefix("drawn"))
    sample = families.draw(random.Random(number), number)
    return lambda: sample.module, sample.inputs


# -- measuring, in an interpreter of its own -----------------------------------------------


def measure(name: str, runtime: str, most: int = max(THREADS)) -> Iterator[Record]:
    """What the parent keeps: the truths of one runtime, ``replay`` (the operators), ``memory``, or
    ``quick`` (all of it in short, but memory).
    """
    import torch

    torch.manual_seed(0)
    if not runtime.startswith("memory"):
        torch.set_num_threads(1)  # no pool of threads before the forks, which could not use it
    make, inputs = made(name)
    if runtime.startswith("memory"):
        yield _memory(name, make, inputs, int(runtime.removeprefix("memory") or 0))
        return
    model = make().eval()
    few = runtime in ("quick", "compiled") or name.startswith("drawn")
    for kind in ("eager", "onnxruntime") if runtime == "quick" else (runtime,):
        if kind != "replay":
            yield from _truths(name, model, inputs, kind, few, most)
    if runtime in ("quick", "replay"):
        yield _replays(name, model, inputs, few, most)


def _replays(name: str, model: Any, inputs: Any, few: bool, most: int) -> Replays:
    from autotune.worker import replay

    found = replay.replay(
        model,
        lambda b: ((inputs(b),), {}),
        FEW if few else BATCHES,
        tuple(t for t in THREADS if t <= most),
        onnx=True,
        until_s=time.monotonic() + 60,
    )
    return Replays(model=name, replays=found)


def _truths(
    name: str, model: Any, inputs: Any, runtime: str, few: bool, most: int
) -> Iterator[Truth]:
    make_call = _onnx(model, inputs) if runtime == "onnxruntime" else _torch(model, inputs, runtime)
    settings = [(t, b) for t in THREADS if t <= most for b in (FEW if few else BATCHES)]
    found: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for number in range(1 if few else MOST_REPEATS):  # a compilation takes seconds
        for setting in settings:
            if number < REPEATS or not agree([seconds for seconds, _ in found[setting]]):
                found[setting].append(_apart(partial(_settled_in, make_call, *setting)))
    for (threads, batch), taken in found.items():
        yield Truth(
            model=name,
            runtime=runtime,
            batch=batch,
            threads=threads,
            seconds=sorted(seconds for seconds, _ in taken)[len(taken) > 1],
            clean=mean(clean for _, clean in taken),
            each_s=tuple(seconds for seconds, _ in taken),
        )


def agree(seconds: Sequence[float]) -> bool:
    """Whether the two fastest of several processes tell the same."""
    ordered = sorted(seconds)
    return len(ordered) > 1 and ordered[1] <= AGREE * ordered[0]


def _settled_in(make_call: MakeCall, threads: int, batch: int) -> tuple[float, float]:
    return settled(make_call(threads, batch))


def _apart(work: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """In a process of its own, as a served model is: the heap knows of no other batch."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], MOST_S)
    if not ready:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader) as answers:
        text = answers.read()
    os.waitpid(child, 0)
    if not text:
        raise RuntimeError(f"a measuring process ended without an answer, or took over {MOST_S} s")
    seconds, clean = json.loads(text)
    return seconds, clean


def _memory(name: str, make: Any, inputs: Any, batch: int) -> Record:
    """A training step's footprint, or (``batch``) the peak of a process that trains."""
    from autotune.records.plan import Recipe
    from autotune.worker import footprint, optimizers, trained

    def loss(model: Any, size: int) -> Any:
        return model(inputs(size)).float().square().mean()

    recipe = Recipe()
    if not batch:
        return footprint.found(make, loss, recipe)
    footprint.warm_up(recipe)
    base = footprint.resident_bytes()
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


def _torch(model: Any, inputs: Any, runtime: str) -> MakeCall:
    import torch

    from autotune.worker import heap

    def make_call(threads: int, batch: int) -> Callable[[], object]:
        heap.keep()  # as the loaders of PyTorch's runtimes do
        torch.set_num_threads(threads)
        x, run, mode = inputs(batch), model, torch.inference_mode
        if runtime == "compiled":
            import torch._inductor.config as config

            config.freezing = True
            run, mode = torch.compile(model, dynamic=False), torch.no_grad

        def call() -> object:
            with mode():
                return run(x)

        return call

    return make_call


def _onnx(model: Any, inputs: Any) -> MakeCall:
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

    def make_call(threads: int, batch: int) -> Callable[[], object]:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        made = ort.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
        feed = {made.get_inputs()[0].name: inputs(batch).numpy()}
        return lambda: made.run(None, feed)

    return make_call


# -- collecting ----------------------------------------------------------------------------


def calibrating() -> list[tuple[str, str]]:
    """Those of models that test the constants of `control.estimate` apart from the zoo's."""
    names = [f"drawn{number}" for number in range(DRAWN)]
    out = [(name, runtime) for name in names for runtime in ("replay", "eager", "onnxruntime")]
    return [*out, *((name, "compiled") for name in names[:DRAWN_COMPILED])]


def jobs(quick: bool) -> list[tuple[str, str]]:
    """(model, runtime) of every interpreter that is needed."""
    from benchmarks.zoo import ZOO

    if quick:
        return [(name, "quick") for name in QUICK]
    out = []
    for name in ZOO:
        out += [(name, "replay"), (name, "eager"), (name, "onnxruntime")]
        out += [(name, f"memory{batch or ''}") for batch in (0, *MEMORY_BATCHES)]
        if name in COMPILED:
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
        command = [sys.executable, "-m", "benchmarks.points", name, runtime, str(most)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            last = done.stderr.strip().splitlines()[-1:] or ["no output"]
            failures.append(f"{name} {runtime}: {last[0][:150]}")
            continue
        path.write_text("\n".join(lines) + "\n")
    return failures


def main(argv: list[str] | None = None) -> int:
    """One interpreter's rows, a line each."""
    parser = argparse.ArgumentParser(prog="benchmarks.points", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("runtime")
    parser.add_argument("threads", type=int, help="most")
    given = parser.parse_args(argv)
    for row in measure(given.model, given.runtime, given.threads):
        print(codec.encode(row).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
