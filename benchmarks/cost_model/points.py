"""Measures points for `benchmarks.cost_model`: a model at a batch size and thread count.

    interpreter (model, "points") --export once--> three rounds of
                                    fork: one pass over the operators      --middle--> Replays
                                    fork a point: the whole model          --median--> Measured
                                    (a compiled one in one fork, which waits from round to round)
    interpreter (model, "memoryN")                          --------> StepMemory or Peak

Each point is measured in a process of its own, as a served model is.  Operators and whole models
are timed in turns, since clock frequency and other load change within minutes.  Rows are kept
under ``.cache/benchmarks``, one file an interpreter; what is there is not measured again.
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
from benchmarks._common.rows import CACHE

BATCHES = (1, 4, 16, 32)
FEW = (1, 4, 16)
"""Batch sizes of ``--quick`` and of what is slow to build."""
THREADS = (1, 2)
COMPILED = ("resnet", "mobilenet", "mlp_wide", "mlp_small", "bert", "gpt", "recommender")
QUICK = ("mobilenet", "mlp_wide", "bert", "lstm")
DRAWN, DRAWN_COMPILED = 14, 4
"""Models of `families` that ``--calibrate`` measures, and those of them that are compiled too."""
CALL_S = 0.2
MOST_S = 90.0
PASSES, REPEATS, MOST_REPEATS = 3, 3, 6
"""Passes over the operators, and processes of each point.  The second fastest counts (of two the
faster); where it is not within ``AGREE`` of the fastest, more processes are started.
"""
AGREE = 1.1
MakeCall = Callable[[int, int], Callable[[], object]]
"""(threads, batch) -> one call."""
MEMORY_BATCHES = (16, 64)
MEMORY_STEPS = 4


class Measured(Record, frozen=True, kw_only=True):
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
    """A model of the zoo, or ``drawn7``: number 7 of `families`."""
    from benchmarks._common import families
    from benchmarks._common.zoo import ZOO

    if name in ZOO:
        return ZOO[name]
    number = int(name.removeprefix("drawn"))
    sample = families.draw(random.Random(number), number)
    return lambda: sample.module, sample.inputs


# -- measuring, in an interpreter of its own -----------------------------------------------


def measure(name: str, what: str, most: int = max(THREADS)) -> Iterator[Record]:
    """Rows of one interpreter; ``what`` is ``points``, ``quick`` (fewer of them) or ``memory``."""
    import torch

    torch.manual_seed(0)
    make, inputs = made(name)
    if what.startswith("memory"):
        yield _memory(name, make, inputs, int(what.removeprefix("memory") or 0))
        return
    torch.set_num_threads(1)  # a thread pool would not survive the forks
    threads = tuple(t for t in THREADS if t <= most)
    quick = what == "quick"
    runtimes = ["eager", "onnxruntime"]
    if not quick and name in (*COMPILED, *(f"drawn{n}" for n in range(DRAWN_COMPILED))):
        runtimes.append("compiled")
    yield from _Rounds(name, make().eval(), inputs, quick, threads).run(runtimes)


class _Rounds:
    """All points of one model; a round is one pass over its operators and each point once."""

    def __init__(
        self, name: str, model: Any, inputs: Any, quick: bool, threads: Sequence[int]
    ) -> None:
        self._name, self._model, self._inputs = name, model, inputs
        self._quick, self._threads = quick, tuple(threads)
        self._few = quick or name.startswith("drawn")
        self._passes: list[tuple[OpReplay, ...]] = []
        self._found: dict[tuple[str, int, int], list[tuple[float, float]]] = defaultdict(list)
        self._compiled: dict[tuple[int, int], _Kept] = {}

    def run(self, runtimes: Sequence[str]) -> Iterator[Record]:
        calls = {
            kind: _onnx(self._model, self._inputs)
            if kind == "onnxruntime"
            else _torch(self._model, self._inputs, kind)
            for kind in runtimes
        }
        for number in range(2 if self._quick else MOST_REPEATS):
            if number < PASSES:
                data = _apart(self._pass)
                self._passes.append(codec.decode(data, Replays, what="a pass").replays)
            for kind, make_call in calls.items():
                self._round(number, kind, make_call)
        from autotune.worker.opbench import op_benchmark

        yield Replays(model=self._name, replays=op_benchmark.combined(self._passes))
        for (kind, threads, batch), taken in self._found.items():
            yield Measured(
                model=self._name,
                runtime=kind,
                batch=batch,
                threads=threads,
                seconds=sorted(seconds for seconds, _ in taken)[len(taken) > 2],
                clean=mean(clean for _, clean in taken),
                each_s=tuple(seconds for seconds, _ in taken),
            )

    def _batches(self, few: bool) -> tuple[int, ...]:
        return FEW if few or self._few else BATCHES

    def _pass(self) -> bytes:
        from autotune.worker.opbench import op_benchmark

        def inputs(size: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return (self._inputs(size),), {}

        found = op_benchmark.once(
            self._model, inputs, self._batches(few=False), self._threads, onnx=True
        )
        return codec.encode(Replays(model=self._name, replays=tuple(found)))

    def _round(self, number: int, kind: str, make_call: MakeCall) -> None:
        """Time every point of a runtime whose processes do not agree yet."""
        slow_build = kind == "compiled"  # compiled once a point
        for threads in self._threads:
            for batch in self._batches(few=slow_build):
                taken = self._found[kind, threads, batch]
                if number >= REPEATS and agree([seconds for seconds, _ in taken]):
                    continue
                once = partial(_settled_in, make_call, threads, batch)
                data = self._again(threads, batch, make_call) if slow_build else _apart(once)
                seconds, clean = json.loads(data)
                taken.append((seconds, clean))

    def _again(self, threads: int, batch: int, make_call: MakeCall) -> bytes:
        if (threads, batch) not in self._compiled:
            self._compiled[threads, batch] = _Kept(partial(make_call, threads, batch))
        return self._compiled[threads, batch].settled()


def agree(seconds: Sequence[float]) -> bool:
    """Whether the two fastest of several processes are within ``AGREE`` of each other."""
    ordered = sorted(seconds)
    return len(ordered) > 1 and ordered[1] <= AGREE * ordered[0]


def _settled_in(make_call: MakeCall, threads: int, batch: int) -> bytes:
    return json.dumps(settled(make_call(threads, batch))).encode()


def _apart(work: Callable[[], bytes]) -> bytes:
    """Run in a forked process, so that the heap is that of this batch size alone."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            with os.fdopen(writer, "wb") as out:
                out.write(work())
        finally:
            os._exit(0)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], MOST_S)
    if not ready:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader, "rb") as answers:
        data = answers.read()
    os.waitpid(child, 0)
    if not data:
        raise RuntimeError(f"a measuring process ended without an answer, or took over {MOST_S} s")
    return data


class _Kept:
    """A process that builds its call once and times it each time `settled` is called."""

    def __init__(self, make: Callable[[], Callable[[], object]]) -> None:
        asked, self._ask = os.pipe()
        self._answer, answering = os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(asked)
            os.close(answering)
            return
        try:
            os.close(self._ask)
            call = make()
            while os.read(asked, 1):
                os.write(answering, json.dumps(settled(call)).encode() + b"\n")
        finally:
            os._exit(0)

    def settled(self) -> bytes:
        os.write(self._ask, b"?")
        ready, _, _ = select.select([self._answer], [], [], MOST_S)
        data = os.read(self._answer, 1000) if ready else b""
        if not data:
            os.kill(self._pid, signal.SIGKILL)
            raise RuntimeError(f"a compiled model gave no answer, or none within {MOST_S} s")
        return data


def _memory(name: str, make: Any, inputs: Any, batch: int) -> Record:
    """A training step's footprint, or (``batch``) the peak of a process that trains."""
    from autotune.records.plan import Recipe
    from autotune.worker.training import evaluation, optimizers
    from benchmarks.cost_model import step_memory

    def loss(model: Any, size: int) -> Any:
        return model(inputs(size)).float().square().mean()

    recipe = Recipe()
    if not batch:
        return step_memory.found(make, loss, recipe)
    step_memory.warm_up(recipe)
    base = step_memory.resident_bytes()
    model = make().train()
    optimizer = optimizers.build(recipe, model)
    for _ in range(MEMORY_STEPS):
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    peak = evaluation.peak_memory_bytes()
    return Peak(model=name, batch=batch, base_bytes=base, peak_bytes=peak)


def settled(call: Callable[[], object]) -> tuple[float, float]:
    """The median of undisturbed calls after a warm-up, and the share of such calls."""
    from autotune.worker.machine import noise

    until = time.perf_counter() + CALL_S / 3
    for _ in range(3):
        call()
    while time.perf_counter() < until:
        call()
    samples: list[noise.Sample] = []
    until = time.perf_counter() + CALL_S
    while len(samples) < 5 or time.perf_counter() < until:
        samples.append(noise.timed(call))
    return median(noise.best(samples)), mean(s.clean for s in samples)


def _torch(model: Any, inputs: Any, runtime: str) -> MakeCall:
    import torch

    from autotune.runtimes._heap import keep_freed_memory

    def make_call(threads: int, batch: int) -> Callable[[], object]:
        keep_freed_memory()  # as the loaders of PyTorch's runtimes do
        torch.set_num_threads(threads)
        x, run = inputs(batch), model
        mode: Callable[[], Any] = torch.inference_mode
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
    program.save(file)  # type: ignore[arg-type]

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
    """(model, what) of every interpreter of ``--calibrate``."""
    return [(f"drawn{number}", "points") for number in range(DRAWN)]


def jobs(quick: bool) -> list[tuple[str, str]]:
    """(model, what) of every interpreter to run."""
    from benchmarks._common.zoo import ZOO

    if quick:
        return [(name, "quick") for name in QUICK]
    parts = ["points", "memory", *(f"memory{batch}" for batch in MEMORY_BATCHES)]
    return [(name, what) for name in ZOO for what in parts]


def rows(name: str, what: str, most: int) -> Path:
    """The file of one interpreter's rows, by the largest thread count."""
    apart = "" if most == max(THREADS) or what.startswith("memory") else f"-{most}t"
    return CACHE / f"cost-{name}-{what}{apart}.jsonl"


def read(
    name: str, what: str, most: int = max(THREADS)
) -> tuple[list[Measured], tuple[OpReplay, ...]]:
    """The stored points of one model and its operators."""
    path = rows(name, what, most)
    replays: tuple[OpReplay, ...] = ()
    measured: list[Measured] = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        if b'"replays"' in line:
            replays = codec.decode(line, Replays, what=path.name).replays
        else:
            measured.append(codec.decode(line, Measured, what=path.name))
    return measured, replays


def collect(wanted: list[tuple[str, str]], until: float, most: int) -> list[str]:
    """Measure what is not stored yet; the failures as lines of text."""
    CACHE.mkdir(parents=True, exist_ok=True)
    failures = []
    for name, what in wanted:
        path = rows(name, what, most)
        if path.exists() or time.monotonic() > until:
            continue
        command = [sys.executable, "-m", "benchmarks.cost_model.points", name, what, str(most)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            last = done.stderr.strip().splitlines()[-1:] or ["no output"]
            failures.append(f"{name} {what}: {last[0][:150]}")
            continue
        path.write_text("\n".join(lines) + "\n")
    return failures


def main(argv: list[str] | None = None) -> int:
    """One interpreter's rows, a line each."""
    parser = argparse.ArgumentParser(prog="benchmarks.cost_model.points", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("what")
    parser.add_argument("threads", type=int, help="most")
    given = parser.parse_args(argv)
    for row in measure(given.model, given.what, given.threads):
        print(codec.encode(row).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
