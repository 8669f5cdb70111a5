"""Time one artifact in a new interpreter: ``python -m autotune.worker.measure JOB ROOT OUT``.

    threads into the environment -> load.py (load) -> first call -> warm-up
        -> single calls, each timed, inside one energy window -> peak memory -> outputs

Nothing but the standard library and records is imported before the artifact's own loader,
so that load time and resident memory are those of a process that serves it.  No call is
dropped; what disturbed the calls is counted in ``tags``.

What this does not know: latency under load (calls go one at a time, warm).
"""

import gc
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from autotune.errors import JobError, WorkerError
from autotune.records import codec
from autotune.records.job import Measure, Measured
from autotune.records.measurement import EnergyWindow, Launch
from autotune.worker import system

if TYPE_CHECKING:
    from autotune.worker.meterclient import MeterClient
    from autotune.worker.rows import Array, Rows

Predict = Callable[..., Any]
Call = tuple[tuple[Any, ...], dict[str, Any]]

OUT_OF_MEMORY = 75
"""Exit status that tells the bridge: memory ran out."""
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_POOL = 256
_POOL_BYTES = 64 << 20
_SETTLED = 0.02
_WARM_CALLS = 10
_WARM_S = 0.02
_PERIODS = 40
"""The energy window spans this many update periods: 5 % from the counter's edges."""
_ENERGY_CAP_S = 5.0
_PERIOD_S = 0.05
_SCORE_BATCH = 64


class Clock(NamedTuple):
    """Time as the measurement sees it; tests put simulated clocks in its place."""

    now_ns: Callable[[], int] = time.perf_counter_ns
    cpu_ns: Callable[[], int] = time.process_time_ns


class Timed(NamedTuple):
    """What the timed region gave."""

    latency_ns: list[int]
    window_ns: int
    window_calls: int
    cpu_ns: int
    energy: EnergyWindow | None
    tags: dict[str, int]


def run(job: Measure, root: Path, clock: Clock | None = None) -> Launch:
    """Measure one artifact in this process.

    Raises:
        JobError: the artifact cannot be loaded, or does not answer a batch with a batch.
    """
    clock = clock or Clock()
    began = clock.now_ns()
    before = _environment()
    limit_threads(job.threads)
    folder = root / job.artifact
    started = clock.now_ns()
    predict = _load(folder / "load.py")
    load_ns = clock.now_ns() - started
    calls = _pool(root / job.rows, job)
    started = clock.now_ns()
    predict(*calls[0][0], **calls[0][1])
    first_ns = clock.now_ns() - started
    warmup_calls, settled = _warm_up(predict, calls, job, clock)
    timed = _metered(predict, calls, job, clock)
    peak = system.peak_memory_bytes() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    environment = _changes(before, _environment())  # before scoring, whose load is not ours
    if job.score_rows and job.outputs:
        _score(predict, job, folder, root)
    return Launch(
        latency_s=tuple(ns * 1e-9 for ns in timed.latency_ns),
        load_s=load_ns * 1e-9,
        first_call_s=first_ns * 1e-9,
        warmup_calls=warmup_calls,
        settled=settled,
        window_s=timed.window_ns * 1e-9,
        window_calls=timed.window_calls,
        cpu_s=timed.cpu_ns * 1e-9,
        peak_memory_bytes=peak,
        energy=timed.energy,
        tags=timed.tags,
        environment=environment,
        work_s=(clock.now_ns() - began) * 1e-9,
    )


def limit_threads(threads: int) -> None:
    """Tell every numeric library how many threads it has, before one of them is imported."""
    for name in _THREAD_VARIABLES:
        os.environ[name] = str(threads)


def _load(path: Path) -> Predict:
    """Execute the artifact's loader from its own folder and return its ``predict``."""
    spec = importlib.util.spec_from_file_location("artifact_load", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise JobError("error", f"{path.name} is not in the artifact folder {path.parent.name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    predict: Predict = module.load()
    return predict


def _pool(path: Path, job: Measure) -> list[Call]:
    """Up to 256 batches in a seeded order, ready before the clock starts."""
    import numpy as np

    from autotune.worker import rows as files

    rows = files.load(path)
    if len(rows) == 0:
        raise JobError("error", f"{path.name} holds no rows to time the artifact with")
    order = np.random.default_rng(job.seed).permutation(len(rows))
    count = min(_POOL, max(1, len(rows) // job.batch_size))
    calls: list[Call] = []
    held = 0
    for start in range(0, count * job.batch_size, job.batch_size):
        chosen = [order[(start + i) % len(rows)] for i in range(job.batch_size)]
        calls.append(_batch(rows, chosen))
        held += _bytes(calls[-1])
        if held > _POOL_BYTES:
            break
    return calls


def _batch(rows: "Rows", chosen: list[Any]) -> Call:
    try:
        return rows.batch(chosen)
    except ValueError as error:
        raise JobError(
            "unsupported",
            f"rows of different shapes cannot share a batch of {len(chosen)} ({error}); "
            "use batch size 1",
        ) from None


def _bytes(call: Call) -> int:
    return sum(int(array.nbytes) for array in (*call[0], *call[1].values()))


def _warm_up(predict: Predict, calls: list[Call], job: Measure, clock: Clock) -> tuple[int, bool]:
    """Call until two windows in a row have medians within 2 %, or the time is spent."""
    began = clock.now_ns()
    end = began + int(job.warmup_s * 1e9)
    previous: float | None = None
    done = 0
    while clock.now_ns() < end:
        opened = clock.now_ns()
        window: list[int] = []
        while not _window_full(len(window), clock.now_ns() - opened, job.warmup_s):
            window.append(_time(predict, calls[done % len(calls)], clock))
            done += 1
        middle = median(window)
        if previous is not None and abs(middle - previous) <= _SETTLED * previous:
            return done, True
        previous = middle
    return done, False


def _window_full(calls: int, elapsed_ns: int, warmup_s: float) -> bool:
    if calls >= _WARM_CALLS and elapsed_ns >= _WARM_S * 1e9:
        return True
    return calls >= 3 and elapsed_ns >= warmup_s * 1e9 / 6  # slow models: smaller windows


def _metered(predict: Predict, calls: list[Call], job: Measure, clock: Clock) -> Timed:
    """The timed region, with an energy window around it where there is a meter."""
    if job.meter is None:
        return _timed(predict, calls, job, clock, None, 0.0)
    from autotune.worker.meterclient import MeterClient

    try:
        with MeterClient(job.meter) as meter:
            return _timed(predict, calls, job, clock, meter, _energy_s(meter))
    except WorkerError as error:
        # latency does not depend on the meter: its absence is a missing number, not a failure
        print(f"energy not measured: {error}", file=sys.stderr)
        return _timed(predict, calls, job, clock, None, 0.0)


def _energy_s(meter: "MeterClient") -> float:
    """How long the window must be for the slowest counter that can be read here."""
    found = [s for s in meter.sources() if s.label.startswith("measured") and s.domains]
    periods = [s.update_period_s or _PERIOD_S for s in found]
    return min(_ENERGY_CAP_S, _PERIODS * max(periods)) if periods else 0.0


def _timed(
    predict: Predict,
    calls: list[Call],
    job: Measure,
    clock: Clock,
    meter: "MeterClient | None",
    energy_s: float,
) -> Timed:
    """Time single calls; go on untimed past ``max_calls`` if the energy window needs it."""
    now = clock.now_ns
    latency: list[int] = []
    least_ns, energy_ns = int(job.time_s * 1e9), int(energy_s * 1e9)
    with _collections() as collections:
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        token = meter.open() if meter else None
        cpu = clock.cpu_ns()
        began = now()
        while len(latency) < job.max_calls:
            latency.append(_time(predict, calls[len(latency) % len(calls)], clock))
            if len(latency) >= job.min_calls and now() - began >= max(least_ns, energy_ns):
                break
        count = len(latency)
        while now() - began < energy_ns:
            args, kwargs = calls[count % len(calls)]
            predict(*args, **kwargs)
            count += 1
        window_ns, cpu_ns = now() - began, clock.cpu_ns() - cpu
        energy = meter.close(token) if meter and token is not None else None
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - switches
    tags = {"gc": len(collections), "context_switch": switches}
    return Timed(latency, window_ns, count, cpu_ns, energy, tags)


def _time(predict: Predict, call: Call, clock: Clock) -> int:
    args, kwargs = call
    started = clock.now_ns()
    predict(*args, **kwargs)
    return clock.now_ns() - started


@contextmanager
def _collections() -> Iterator[list[int]]:
    """The generations that the garbage collector, left on, collected meanwhile."""
    seen: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            seen.append(info["generation"])

    gc.callbacks.append(note)
    try:
        yield seen
    finally:
        gc.callbacks.remove(note)


def _score(predict: Predict, job: Measure, folder: Path, root: Path) -> None:
    """Write the outputs of every row of ``score_rows`` as a rows file."""
    from autotune.worker import rows as files

    assert job.score_rows is not None
    assert job.outputs is not None
    rows = files.load(root / job.score_rows)
    dynamic = bool(json.loads((folder / "artifact.json").read_text()).get("dynamic_batch"))
    size = job.batch_size if not dynamic else 1 if rows.ragged else _SCORE_BATCH
    samples: list[tuple[Array, ...]] = []
    shape: tuple[str, tuple[str, ...]] = ("tensor", ("",))
    for start in range(0, len(rows), size):
        chosen = list(range(start, min(start + size, len(rows))))
        # an artifact of a fixed batch gets a full one: the last row again, its output cut off
        full = chosen if dynamic else chosen + [chosen[-1]] * (size - len(chosen))
        args, kwargs = _batch(rows, full)
        kind, names, fields = _fields(predict(*args, **kwargs), len(full))
        shape = (kind, names)
        samples += [tuple(field[i] for field in fields) for i in range(len(chosen))]
    files.save(root / job.outputs, files.from_samples(*shape, samples))


def _fields(output: Any, batch: int) -> tuple[str, tuple[str, ...], "list[Array]"]:
    """An output's kind, names and arrays, each ``[batch, ...]``."""
    import numpy as np

    if isinstance(output, dict):
        kind, names, values = "dict", tuple(output), list(output.values())
    elif isinstance(output, tuple | list):
        kind, names, values = "tuple", ("",) * len(output), list(output)
    else:
        kind, names, values = "tensor", ("",), [output]
    arrays = [np.asarray(value) for value in values]
    for array in arrays:
        if array.ndim == 0 or array.shape[0] != batch:
            raise JobError(
                "unsupported",
                f"predict answered a batch of {batch} with an array of shape {array.shape}; "
                "the first dimension must be the batch",
            )
    return kind, names, arrays


def _environment() -> dict[str, str | float | None]:
    throttled = system.throttled()
    return {
        "governor": system.governor(),
        "load_average": system.load_average(),
        "steal_s": system.steal_s(),
        "nr_throttled": None if throttled is None else float(throttled),
        "cpus": float(os.cpu_count() or 0) or None,
        "affinity": None if (count := system.affinity()) is None else float(count),
    }


def _changes(
    before: dict[str, str | float | None], after: dict[str, str | float | None]
) -> dict[str, str | float | None]:
    """Counters as their growth over the measurement, the rest as it was before it."""
    found = dict(before)
    for name in ("steal_s", "nr_throttled"):
        first, last = before[name], after[name]
        known = isinstance(first, float) and isinstance(last, float)
        found[name] = last - first if known else None  # type: ignore[operator]
    return found


def main(argv: list[str]) -> int:
    """Measure as the job file says; 0, or 1 with a one-line reason on standard error."""
    job_file, root, out = (Path(argument) for argument in argv)
    try:
        job = codec.decode(job_file.read_bytes(), Measure, what=job_file.name)
        launch = run(job, root)
        scratch = out.with_name(out.name + ".part")
        scratch.write_bytes(codec.encode(Measured(launch=launch)))
        scratch.replace(out)
    except SystemExit as error:
        print(f"SystemExit: the artifact's code called exit({error.code!r})", file=sys.stderr)
        return 1
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        if _out_of_memory(error):
            print(f"out of memory: {text}", file=sys.stderr)
            return OUT_OF_MEMORY
        print(text, file=sys.stderr)
        return 1
    return 0


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    signs = ("out of memory", "allocate memory", "bad_alloc", "bad allocation")
    return isinstance(error, MemoryError) or any(sign in text for sign in signs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
