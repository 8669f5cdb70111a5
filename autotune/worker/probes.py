"""Microbenchmarks: how fast this machine multiplies, copies and dispatches.

    Bench.cpu      gemm_fp32_{t}t_flop_per_s (t: 1 and all threads), gemm_bf16_1t_flop_per_s,
                   gemm_int8_1t_op_per_s, copy_{t}t_bytes_per_s, op_overhead_s; the other paths
                   (`paths`): conv_fp32_, linear_fp32_ and read_; with ``thorough`` all of theirs
    Bench.anchors  gemm_fp32_1t, copy_1t and op_overhead: enough to see that a profile fits
    cuda           the same kinds of leaves for each device

"Supports bf16" says nothing: without the instructions it is 60 times slower than fp32.  So
bf16 and int8 start small, and the first call over its budget is the last.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from autotune.records.hardware import Gpu, Leaf
from autotune.worker import boards, quiet

_SAMPLES = 7
_SPREAD = 0.15
_NOISE = 0.95
"""Two thread counts that share one limit, such as the memory's, may differ this little."""
_COLLAPSED = 0.5
"""More threads under this share of fewer ones' rate were not measured: others held the cores."""
_REPEATS = 2
_GEMM_N = 512
"""Large enough for the full rate, and short enough to be done within one time slice."""
_LADDER = (32, 64, 128, 256, 512, 1024)
_SURE_N = 128
"""Up to this size a ladder climbs untested; beyond it only where the next call is affordable."""
_CALL_S = 0.1
_DISPATCHES = 500
_DEVICE_N = 4096

Timer = Callable[[], float]

if TYPE_CHECKING:
    import torch


class Bench:
    """Probes until ``deadline_s`` (on `time.monotonic`'s clock); what it doubts in ``warnings``."""

    def __init__(
        self,
        deadline_s: float,
        threads: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        timer: Timer = time.perf_counter,
    ) -> None:
        self._deadline_s = deadline_s
        self._threads = threads
        self._clock = clock
        self._timer = timer
        self.warnings: list[str] = []

    def anchors(self, buffer_bytes: int) -> dict[str, Leaf]:
        """The three leaves that tell whether a saved profile fits, measured as `cpu` does."""
        return {
            **self._gemm_fp32((1,)),
            **self._copy((1,), buffer_bytes),
            **self._overhead(),
        }

    def cpu(
        self,
        buffer_bytes: int,
        *,
        thorough: bool = False,
        own_cache_bytes: int | None = None,
        last_cache_bytes: int | None = None,
    ) -> dict[str, Leaf]:
        """Every CPU leaf, in order of importance: a spent budget costs the last ones.

        The caches are a core's own, and the last one before memory.
        """
        from autotune.worker import paths

        counts = tuple(dict.fromkeys((1, self._threads)))
        found = {
            **self._gemm_fp32(counts),
            **self._copy(counts, buffer_bytes),
            **self._overhead(),
            **self._ladder("gemm_bf16_1t_flop_per_s", "FLOP/s", _bf16),
            **self._ladder("gemm_int8_1t_op_per_s", "op/s", _int8),
            **paths.quick(self, counts, buffer_bytes, last_cache_bytes),
        }
        if thorough:
            found |= paths.thorough(self, counts, buffer_bytes, own_cache_bytes)
        return found

    def rates(
        self, call: Callable[[], object], work: float, *, floor: float | None = None
    ) -> tuple[list[float], bool]:
        """``work`` per second of single calls, and whether foreign load spoiled them.

        Samples are spoiled if they spread over 15 %, or if their median lies under
        ``floor`` (more threads slower than fewer).  Spoiled ones are discarded and taken
        again, twice; the least spread set is kept.  A sample that was disturbed (`quiet`)
        gives way to the undisturbed ones.
        """
        call()
        best: list[float] = []
        for _ in range(1 + _REPEATS):
            taken = [self._sample(call) for _ in range(_SAMPLES)]
            samples = [work / seconds for seconds in quiet.best(taken)]
            if not best or _spoilt(samples, floor) < _spoilt(best, floor):
                best = samples
            if _spoilt(best, floor) <= _SPREAD or self.over():
                break
        return best, _spoilt(best, floor) > _SPREAD

    def over(self) -> bool:
        """True when the time for probing is spent."""
        return self._clock() >= self._deadline_s

    def leaf(
        self, name: str, unit: str, call: Callable[[], object], work: float,
        floor: float | None = None,
    ) -> dict[str, Leaf]:  # fmt: skip
        """One rate as a leaf; empty, with a warning, when there is no time left."""
        if self.over():
            self.warnings.append(f"{name} was not measured: the time for probing was spent")
            return {}
        samples, spoilt = self.rates(call, work, floor=floor)
        if floor is not None and median(samples) < _COLLAPSED * floor:
            self.warnings.append(
                f"{name} is not recorded: {median(samples):.3g} {unit} is under half of what fewer "
                "threads reach, so other work held their cores; profile again when it is done"
            )
            return {name: Leaf(value=None, unit=unit, source="measured")}
        if spoilt:
            self.warnings.append(
                f"{name} is uncertain ({min(samples):.3g} to {max(samples):.3g} {unit}): other "
                "work ran on this machine while it was probed"
            )
        return {name: as_leaf(samples, unit)}

    def _gemm_fp32(self, counts: Sequence[int]) -> dict[str, Leaf]:
        import torch

        left, right = torch.ones(2, _GEMM_N, _GEMM_N)
        out = torch.empty(_GEMM_N, _GEMM_N)

        def call() -> object:
            return torch.mm(left, right, out=out)

        return self.scaled("gemm_fp32_{}t_flop_per_s", "FLOP/s", call, 2.0 * _GEMM_N**3, counts)

    def _copy(self, counts: Sequence[int], size: int) -> dict[str, Leaf]:
        """Bytes read plus bytes written."""
        import torch

        source = torch.ones(size // 4)
        target = torch.zeros(size // 4)

        def call() -> object:
            return target.copy_(source)

        return self.scaled("copy_{}t_bytes_per_s", "B/s", call, 2.0 * size, counts)

    def scaled(
        self, name: str, unit: str, call: Callable[[], object], work: float, counts: Sequence[int]
    ) -> dict[str, Leaf]:
        """The same call at several thread counts; more threads must not be slower."""
        import torch

        found: dict[str, Leaf] = {}
        floor: float | None = None
        for threads in counts:
            torch.set_num_threads(threads)
            found |= self.leaf(name.format(threads), unit, call, work, floor)
            leaf = found.get(name.format(threads))
            floor = _NOISE * leaf.value if leaf and leaf.value else floor
        return found

    def _overhead(self) -> dict[str, Leaf]:
        """Seconds of one eager operator on one element."""
        import torch

        if self.over():
            self.warnings.append("op_overhead_s was not measured: the time for probing was spent")
            return {}
        torch.set_num_threads(1)
        one = torch.ones(1)

        def call() -> object:
            with torch.no_grad():
                for _ in range(_DISPATCHES):
                    torch.add(one, one)
            return None

        samples, spoilt = self.rates(call, float(_DISPATCHES))
        if spoilt:
            self.warnings.append("op_overhead_s is uncertain: other work ran on this machine")
        return {"op_overhead_s": as_leaf([1 / rate for rate in samples], "s")}

    def _ladder(
        self, name: str, unit: str, make: Callable[[int], Callable[[], object]]
    ) -> dict[str, Leaf]:
        """The rate at the largest square size whose calls stay under their budget."""
        import torch

        torch.set_num_threads(1)
        samples: list[float] = []
        for size in _LADDER:
            work = 2.0 * size**3
            if size > _SURE_N and work / max(samples) > _CALL_S:
                break
            if self.over():
                break
            try:
                call = make(size)
                first = self._time(call)
            except (RuntimeError, NotImplementedError, AttributeError) as error:
                reason = str(error).partition("\n")[0]
                self.warnings.append(f"{name} was not measured: {reason}")
                return {}
            if first > _CALL_S:
                samples = [work / first]
                break
            samples, spoilt = self.rates(call, work)
        else:
            if spoilt:
                self.warnings.append(f"{name} is uncertain: other work ran on this machine")
        return {name: as_leaf(samples, unit)} if samples else {}

    def _sample(self, call: Callable[[], object]) -> quiet.Sample:
        if self._timer is time.perf_counter:
            return quiet.timed(call)
        return quiet.Sample(self._time(call), True)

    def _time(self, call: Callable[[], object]) -> float:
        started = self._timer()
        call()
        return max(self._timer() - started, 1e-9)


def as_leaf(samples: Sequence[float], unit: str) -> Leaf:
    """The median with the extremes."""
    return Leaf(
        value=median(samples),
        unit=unit,
        source="measured",
        low=min(samples),
        high=max(samples),
        samples=len(samples),
    )


def cuda(bench: Bench, *, anchors_only: bool) -> tuple[Gpu, ...]:
    """Every CUDA device that torch sees, with its facts and, time permitting, its rates."""
    import torch

    if not torch.cuda.is_available():
        return ()
    devices = range(torch.cuda.device_count())
    return tuple(_gpu(bench, index, anchors_only) for index in devices)


def _gpu(bench: Bench, index: int, anchors_only: bool) -> Gpu:
    import torch

    facts = torch.cuda.get_device_properties(index)
    device = torch.device("cuda", index)
    measured = device_leaves(
        bench,
        device,
        lambda: torch.cuda.synchronize(device),
        copy_bytes=min(256 << 20, facts.total_memory // 16),
        kinds=("fp32",) if anchors_only else ("fp32", "bf16", "fp16"),
    )
    gpu = Gpu(
        index=index,
        name=facts.name,
        memory_bytes=facts.total_memory,
        compute_capability=f"{facts.major}.{facts.minor}",
        multiprocessors=facts.multi_processor_count,
        figures=measured,
    )
    return boards.described(gpu, boards.of_device(str(getattr(facts, "uuid", ""))))


def device_leaves(
    bench: Bench,
    device: "torch.device",
    wait: Callable[[], None],
    *,
    copy_bytes: int,
    kinds: Sequence[str],
    size: int = _DEVICE_N,
) -> dict[str, Leaf]:
    """Copy and GEMM rates of one device; ``wait`` blocks until its work is done."""
    import torch

    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    source = torch.ones(copy_bytes // 4, device=device)
    target = torch.zeros(copy_bytes // 4, device=device)

    def copy() -> None:
        target.copy_(source)
        wait()

    found = bench.leaf("copy_bytes_per_s", "B/s", copy, 2.0 * copy_bytes)
    if device.type == "cuda":
        found |= _host_copies(bench, source, wait)
    for kind in kinds:
        matrix = torch.ones(size, size, device=device, dtype=types[kind])
        out = torch.empty_like(matrix)

        def multiply(matrix: "torch.Tensor" = matrix, out: "torch.Tensor" = out) -> None:
            torch.mm(matrix, matrix, out=out)
            wait()

        found |= bench.leaf(f"gemm_{kind}_flop_per_s", "FLOP/s", multiply, 2.0 * size**3)
    return found


def _host_copies(bench: Bench, held: "torch.Tensor", wait: Callable[[], None]) -> dict[str, Leaf]:
    """Between pinned host memory and the device, one way each."""
    import torch

    part = held[: min(held.numel(), 16 << 20)]
    host = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
    size = float(part.numel() * part.element_size())

    def down() -> None:
        part.copy_(host, non_blocking=True)
        wait()

    def up() -> None:
        host.copy_(part, non_blocking=True)
        wait()

    return {
        **bench.leaf("host_to_device_bytes_per_s", "B/s", down, size),
        **bench.leaf("device_to_host_bytes_per_s", "B/s", up, size),
    }


def _bf16(size: int) -> Callable[[], Any]:
    import torch

    matrix = torch.ones(size, size, dtype=torch.bfloat16)
    return lambda: matrix @ matrix


def _int8(size: int) -> Callable[[], Any]:
    import torch

    matrix = torch.ones(size, size, dtype=torch.int8)
    return lambda: torch._int_mm(matrix, matrix)


def _spoilt(samples: Sequence[float], floor: float | None) -> float:
    """Relative spread; infinite for samples that contradict the floor."""
    middle = median(samples)
    if floor is not None and middle < floor:
        return float("inf")
    return (max(samples) - min(samples)) / middle
