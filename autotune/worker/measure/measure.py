"""Time one artifact in a new interpreter.

    python -m autotune.worker.measure.measure JOB ROOT OUT

    thread counts into the environment -> load.py (load) -> first call -> warm-up
        -> calls, each timed (`timing`, or `open_loop` where requests arrive on a schedule), inside
           one energy window and two readings of `interference` -> peak memory -> outputs

Nothing but the standard library and records is imported before the artifact's own loader,
so that load time and resident memory are those of a process that serves it.  No call is
dropped; disturbances of the calls are counted in ``tags``.

What this does not know: a server of several processes, or a network.
"""

import importlib.util
import json
import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from autotune.errors import JobError, WorkerError
from autotune.records import codec
from autotune.records.job import Measure, Measured
from autotune.records.measurement import EnergyWindow, Launch
from autotune.worker.host import interference, linux
from autotune.worker.measure import open_loop, outputs, timing
from autotune.worker.measure.timing import Call, Clock, Predict

if TYPE_CHECKING:
    from autotune.worker.energy import MeterClient

OUT_OF_MEMORY = 75
"""Exit status for the bridge: memory ran out."""
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_POOL = 256  # batches
_POOL_BYTES = 64 << 20
_PERIODS = 20
"""Update periods of the counter in an energy window: an error of at most a tenth, even if the meter
process did not wait for the counter's edges (`autotune.meters.edge`).
"""
_ENERGY_CAP_S = 5.0
_PERIOD_S = 0.05  # where a counter's update period is unknown
_COARSE = 0.05  # share of a usual call


class Timed(NamedTuple):
    """The results of the timed region."""

    latency_ns: list[int]
    window_ns: int
    window_calls: int
    cpu_ns: int
    energy: EnergyWindow | None
    tags: dict[str, int]
    environment: interference.Environment
    response_ns: list[int]
    timeouts: int


class TimedRegion(NamedTuple):
    """What is timed: the artifact's ``predict`` on ``calls``, after its warm-up."""

    predict: Predict
    calls: list[Call]
    job: Measure
    clock: Clock
    warm: timing.Warm


def run(job: Measure, root: Path, clock: Clock | None = None) -> Launch:
    """Measure one artifact in this process.

    Raises:
        JobError: the artifact cannot be loaded, or does not answer a batch with a batch.
    """
    clock = clock or Clock()
    began = clock.now_ns()
    before = interference.state()
    limit_threads(job.threads)
    folder = root / job.artifact
    started = clock.now_ns()
    predict = _load(folder / "load.py")
    load_ns = clock.now_ns() - started
    calls = _pool(root / job.rows, job)
    started = clock.now_ns()
    answers = _in_host_memory(predict(*calls[0][0], **calls[0][1]))
    first_ns = clock.now_ns() - started
    if not answers:
        predict = _synchronised(predict)
    warm = timing.warm_up(predict, calls, job.warmup_s, clock)
    timed = _metered(TimedRegion(predict, calls, job, clock, warm))
    peak = linux.peak_memory_bytes() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    held = _device_memory_bytes()
    step = timing.resolution_ns(clock)
    environment = before | timed.environment | {"threads": linux.threads()}
    environment["timer_resolution_s"] = None if step is None else step * 1e-9
    tags = timed.tags | {"coarse_timer": int(_coarse(step, timed.latency_ns))}
    if job.score_rows and job.outputs:  # last: its time and memory are no part of serving
        _score(predict, job, folder, root)
    return Launch(
        latency_s=tuple(ns * 1e-9 for ns in timed.latency_ns),
        load_s=load_ns * 1e-9,
        first_call_s=first_ns * 1e-9,
        warmup_calls=warm.calls,
        settled=warm.settled,
        window_s=timed.window_ns * 1e-9,
        window_calls=timed.window_calls,
        cpu_s=timed.cpu_ns * 1e-9,
        peak_memory_bytes=peak,
        device_memory_bytes=held,
        energy=timed.energy,
        tags=tags | {"unsynchronised": int(not answers)},
        environment=environment,
        work_s=(clock.now_ns() - began) * 1e-9,
        response_s=tuple(ns * 1e-9 for ns in timed.response_ns),
        timeouts=timed.timeouts,
    )


def _coarse(step_ns: int | None, latency_ns: list[int]) -> bool:
    """Whether the clock's resolution is over 5 % of the median call."""
    usual = sorted(latency_ns)[len(latency_ns) // 2]
    return step_ns is not None and step_ns > _COARSE * usual


def _device_memory_bytes() -> int | None:
    """Peak GPU memory that PyTorch's allocator reserved; None without an initialised GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.max_memory_reserved())


def limit_threads(threads: int) -> None:
    """Set the thread count of every numeric library, before any of them is imported."""
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
    """Up to 256 batches (at most 64 MiB) in a seeded order, made before the clock starts."""
    import numpy as np

    from autotune.worker.data import rows as files

    rows = files.load(path)
    if len(rows) == 0:
        raise JobError("error", f"{path.name} has no rows to time the artifact with")
    order = np.random.default_rng(job.seed).permutation(len(rows))
    count = min(_POOL, max(1, len(rows) // job.batch_size))
    calls: list[Call] = []
    held = 0
    for start in range(0, count * job.batch_size, job.batch_size):
        chosen = [order[(start + i) % len(rows)] for i in range(job.batch_size)]
        calls.append(outputs.batch(rows, chosen))
        held += _bytes(calls[-1])
        if held > _POOL_BYTES:
            break
    return calls


def _bytes(call: Call) -> int:
    return sum(int(array.nbytes) for array in (*call[0], *call[1].values()))


def _in_host_memory(output: Any) -> bool:
    """Wait until an output has been computed, and return whether it is in host memory: NumPy arrays
    are; a device's tensor may still be being computed.
    """
    import numpy as np

    if isinstance(output, dict | tuple | list):
        parts = output.values() if isinstance(output, dict) else output
        known = [_in_host_memory(part) for part in parts]  # a list: each part is waited for
        return all(known)
    if output is None or isinstance(output, np.ndarray | np.generic | int | float | str):
        return True
    np.asarray(output.cpu() if hasattr(output, "cpu") else output)
    return False


def _synchronised(predict: Predict) -> Predict:
    """``predict``, returning only when its outputs are in host memory."""

    def synchronised(*args: Any, **kwargs: Any) -> Any:
        output = predict(*args, **kwargs)
        _in_host_memory(output)
        return output

    return synchronised


def _metered(region: TimedRegion) -> Timed:
    """The timed region, with an energy window around it where there is a meter."""
    if region.job.meter is None:
        return _timed(region, None, 0.0)
    from autotune.worker.energy import MeterClient

    try:
        with MeterClient(region.job.meter) as meter:
            return _timed(region, meter, _energy_s(meter))
    except WorkerError as error:
        # latency does not need the meter: without it energy is missing, which is no failure
        print(f"energy not measured: {error}", file=sys.stderr)
        return _timed(region, None, 0.0)


def _energy_s(meter: "MeterClient") -> float:
    """Length of the energy window, for the slowest counter that can be read here."""
    found = [s for s in meter.sources() if s.label.startswith("measured") and s.domains]
    periods = [s.update_period_s or _PERIOD_S for s in found]
    return min(_ENERGY_CAP_S, _PERIODS * max(periods)) if periods else 0.0


def _timed(region: TimedRegion, meter: "MeterClient | None", energy_s: float) -> Timed:
    """Time single calls; a closed loop goes on untimed where the energy window needs it."""
    predict, calls, job, clock, warm = region
    now, wanted_s = clock.now_ns, max(job.time_s, energy_s)
    due = open_loop.requests(job, wanted_s) if job.load_per_s is not None else None
    watch = timing.SlowCalls(warm.median_ns, clock)
    response: list[int] = []
    timeouts = 0
    with watch.collections():
        before = interference.counters()
        token = meter.open(boards=job.boards) if meter else None
        cpu, began = clock.cpu_ns(), now()
        if due is None:
            latency = timing.closed(predict, calls, job, clock, watch, wanted_s)
        else:
            latency, response, timeouts = open_loop.serve(predict, calls, due, job, clock, watch)
        count = len(latency)
        while due is None and now() - began < energy_s * 1e9:
            args, kwargs = calls[count % len(calls)]
            predict(*args, **kwargs)
            count += 1
        window_ns, cpu_ns = now() - began, clock.cpu_ns() - cpu
        energy = meter.close(token) if meter and token is not None else None
        environment = interference.grown(before, interference.counters(), cpu_ns * 1e-9)
    return Timed(
        latency, window_ns, count, cpu_ns, energy, watch.tags(), environment, response, timeouts
    )


def _score(predict: Predict, job: Measure, folder: Path, root: Path) -> None:
    """Write the outputs of every row of ``score_rows`` as a rows file: in large batches where rows
    do not influence each other, else in the plan's batch size.
    """
    from autotune.worker.data import rows as files

    assert job.score_rows is not None
    assert job.outputs is not None
    rows = files.load(root / job.score_rows).every(job.every)
    free = bool(json.loads((folder / "artifact.json").read_text()).get("dynamic_batch"))
    free = free and not _batchwise(folder)
    outputs.record(predict, rows, root / job.outputs, fixed=None if free else job.batch_size)


def _batchwise(folder: Path) -> bool:
    """Whether quantization ranges are those of each batch, so that rows influence each other."""
    return any(b"DynamicQuantizeLinear" in p.read_bytes() for p in folder.glob("*.onnx"))


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
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the answer is written; a runtime's clean-up would take half a second
