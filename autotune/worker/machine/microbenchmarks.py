"""Microbenchmarks: how fast this machine multiplies, copies and dispatches.

    Timer.cpu      gemm_fp32_{t}t_flop_per_s (t: 1 and all threads), gemm_bf16_1t_flop_per_s,
                   gemm_int8_1t_op_per_s, copy_{t}t_bytes_per_s, op_overhead_s; the other paths
                   (`paths`): conv_fp32_, linear_fp32_ and read_; with ``thorough`` all of theirs,
                   bf16 and int8 on all threads, and int8 as ONNX Runtime does it
    Timer.anchors  gemm_fp32_1t, copy_1t and op_overhead: enough to see that a profile fits

"Supports bf16" says nothing: without the instructions it is 60 times slower than fp32.  So
bf16 and int8 start small, and the first call over its budget is the last.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from autotune.records.hardware import Leaf
from autotune.worker.machine import foreign, noise, power_draw

_SAMPLES = 7
_SPREAD = 0.15
_NOISE = 0.95
"""Two thread counts that share one limit, such as the memory's, may differ this little."""
_COLLAPSED = 0.5
"""More threads under this share of fewer ones' rate were not measured: others held the cores."""
_HARDLY = 1.5
"""More threads that raise a rate less are looked at a second time."""
_GOOD = (False, False, _SPREAD)
"""Under the floor, disturbed, and spread: the most of samples that stay without a warning."""
_REPEATS = 2
_PAUSE_S = 0.05
_GEMM_N = 512
"""Large enough for the full rate, and short enough to be done within one time slice."""
_LADDER = (32, 64, 128, 256, 512, 1024)
_SURE_N = 128
"""Up to this size a ladder climbs untested; beyond it only where the next call is affordable."""
_CALL_S = 0.1
DISPATCHES = 500
_SHOWN = 3
"""Uncertain rates that are named; each leaf holds its own interval."""

Clock = Callable[[], float]


class Timer:
    """Probes until ``deadline_s`` (on `time.monotonic`'s clock); what it doubts in ``warnings``."""

    def __init__(
        self,
        deadline_s: float,
        threads: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        timer: Clock = time.perf_counter,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._deadline_s = deadline_s
        self._threads = threads
        self._clock = clock
        self._timer = timer
        self._pause = pause
        self._told: list[str] = []
        self._doubted: dict[str, str] = {}
        self._flat: dict[str, tuple[int, Callable[[], object], float]] = {}

    def extend(self, seconds: float) -> None:
        """Move the deadline."""
        self._deadline_s += seconds

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
        from autotune.worker.machine import kernel_paths

        counts = tuple(dict.fromkeys((1, self._threads)))
        found = {
            **self._gemm_fp32(counts),
            **self._copy(counts, buffer_bytes),
            **self._overhead(),
            **self._narrow((1,), {}),
            **kernel_paths.quick(self, counts, buffer_bytes, last_cache_bytes),
        }
        if thorough:
            found |= kernel_paths.thorough(self, counts, buffer_bytes, own_cache_bytes)
            found |= self._narrow(counts[1:], found)
        return found | self._looked_again(found)

    def _narrow(self, counts: Sequence[int], fewer: Mapping[str, Leaf]) -> dict[str, Leaf]:
        """Matrix products of the narrower types, as eager PyTorch does them; more threads must
        not be slower than ``fewer``.
        """
        found: dict[str, Leaf] = {}
        for kind, unit, make in (
            ("bf16_{}t_flop", "FLOP/s", _bf16),
            ("int8_{}t_op", "op/s", _int8),
        ):
            name = f"gemm_{kind}_per_s"
            floor = _value(fewer.get(name.format(1)))
            for threads in counts:
                found |= self._ladder(name.format(threads), unit, make, threads, floor)
        return found

    def loaded(self, watts: power_draw.Probe) -> None:
        """What the processor draws while it multiplies matrices, on one and on all threads."""
        import torch

        left, right = torch.ones(2, _GEMM_N, _GEMM_N)
        out = torch.empty(_GEMM_N, _GEMM_N)
        for threads in dict.fromkeys((1, self._threads)):
            torch.set_num_threads(threads)
            watts.processor(threads, lambda: torch.mm(left, right, out=out))

    def rates(
        self,
        call: Callable[[], object],
        work: float,
        *,
        floor: float | None = None,
        waits: bool = False,
    ) -> tuple[list[float], bool]:
        """``work`` per second of single calls, and whether foreign load spoiled them.

        Samples are spoiled if hardly one was undisturbed (`quiet`), if they spread over 15 %, or
        if their median lies under ``floor`` (more threads slower than fewer).  Spoiled ones are
        discarded and taken again, twice, after a pause in which threads that were put on one
        core part; the best set is kept.  Of a set, disturbed samples give way to others.  Of a
        call that ``waits`` for a device, time off the core says nothing.
        """
        call()
        best: list[float] = []
        doubt = (True, True, math.inf)
        for again in range(1 + _REPEATS):
            if again:
                self._pause(_PAUSE_S)
            taken = [self._sample(call) for _ in range(_SAMPLES)]
            samples = [work / seconds for seconds in noise.best(taken)]
            under = floor is not None and median(samples) < floor
            disturbed = not waits and not noise.enough(taken)
            spoilt = (under, disturbed, _spread(samples))
            if not best or spoilt < doubt:
                best, doubt = samples, spoilt
            if doubt <= _GOOD or self.over():
                break
        return best, doubt > _GOOD

    def over(self) -> bool:
        """True when the time for probing is spent."""
        return self._clock() >= self._deadline_s

    def leaf(
        self, name: str, unit: str, call: Callable[[], object], work: float,
        floor: float | None = None, *, waits: bool = False,
    ) -> dict[str, Leaf]:  # fmt: skip
        """One rate as a leaf; empty, with a warning, when there is no time left."""
        if self.over():
            self._told.append(f"{name} was not measured: the time for probing was spent")
            return {}
        samples, spoilt = self.rates(call, work, floor=floor, waits=waits)
        return self._judged(name, unit, samples, spoilt, floor)

    def _judged(
        self, name: str, unit: str, samples: Sequence[float], spoilt: bool, floor: float | None
    ) -> dict[str, Leaf]:
        """The samples as a leaf, with a warning where they are doubtful; none if collapsed."""
        if floor is not None and median(samples) < _COLLAPSED * floor:
            self._told.append(
                f"{name} is not recorded: {median(samples):.3g} {unit} is under half of what fewer "
                "threads reach, so other work held their cores; profile again when it is done"
            )
            return {name: Leaf(value=None, unit=unit, source="measured")}
        if spoilt:
            self.doubt(name, samples, unit)
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
        self,
        name: str,
        unit: str,
        call: Callable[[], object],
        work: float,
        counts: Sequence[int],
        *,
        may_slow: bool = False,
    ) -> dict[str, Leaf]:
        """The same call at several thread counts; more threads must not be slower, unless they
        ``may_slow`` it.
        """
        import torch

        found: dict[str, Leaf] = {}
        floor: float | None = None
        for threads in counts:
            torch.set_num_threads(threads)
            named = name.format(threads)
            found |= self.leaf(named, unit, call, work, None if may_slow else floor)
            value = _value(found.get(named))
            if floor and value and value < _HARDLY * floor and named not in self._doubted:
                self._flat[named] = (threads, call, work)
            floor = value or floor
        return found

    def _looked_again(self, found: Mapping[str, Leaf]) -> dict[str, Leaf]:
        """What more threads hardly raised, a second time after all else; the faster look counts.
        Doubtful rates were taken again before.

        Who shares a core with another machine of the same host for a second is slowed down there
        unseen by any counter here, and then all threads wait for the slowest.
        """
        import torch

        looks: dict[str, Leaf] = {}
        for name, (threads, call, work) in self._flat.items():
            if self.over():
                break
            torch.set_num_threads(threads)
            samples, _ = self.rates(call, work)
            leaf = foreign.faster(found[name], as_leaf(samples, found[name].unit))
            self._doubted.pop(name, None)
            if leaf.low and leaf.high and leaf.high > (1 + _SPREAD) * leaf.low:
                self.doubt(name, (leaf.low, leaf.high), leaf.unit)
            looks[name] = leaf
        return looks

    def _overhead(self) -> dict[str, Leaf]:
        """Seconds of one eager operator on one element."""
        import torch

        if self.over():
            self._told.append("op_overhead_s was not measured: the time for probing was spent")
            return {}
        torch.set_num_threads(1)
        one = torch.ones(1)

        def call() -> object:
            with torch.no_grad():
                for _ in range(DISPATCHES):
                    torch.add(one, one)
            return None

        samples, spoilt = self.rates(call, float(DISPATCHES))
        seconds = [1 / rate for rate in samples]
        if spoilt:
            self.doubt("op_overhead_s", seconds, "s")
        return {"op_overhead_s": as_leaf(seconds, "s")}

    def _ladder(
        self,
        name: str,
        unit: str,
        make: Callable[[int], Callable[[], object]],
        threads: int = 1,
        floor: float | None = None,
    ) -> dict[str, Leaf]:
        """The rate at the largest square size whose calls stay under their budget."""
        import torch

        torch.set_num_threads(threads)
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
                self._told.append(f"{name} was not measured: {reason}")
                return {}
            if first > _CALL_S:
                samples = [work / first]
                break
            samples, spoilt = self.rates(call, work)
        else:
            return self._judged(name, unit, samples, spoilt, floor)
        return self._judged(name, unit, samples, False, floor) if samples else {}

    def doubt(self, name: str, samples: Sequence[float], unit: str) -> None:
        """Tell of samples that lie apart."""
        self._doubted[name] = f"{min(samples):.3g} to {max(samples):.3g} {unit}"

    @property
    def warnings(self) -> list[str]:
        """What was not measured, line by line, and in one line what is uncertain."""
        if not self._doubted:
            return [*self._told]
        shown = [f"{name} ({span})" for name, span in self._doubted.items()]
        if len(shown) > _SHOWN:
            shown = [*shown[:_SHOWN], f"and {len(shown) - _SHOWN} more"]
        found = ", ".join(shown)
        line = f"uncertain: {found}; other work ran on this machine, or its clock moved, meanwhile"
        return [*self._told, line]

    def _sample(self, call: Callable[[], object]) -> noise.Sample:
        if self._timer is time.perf_counter:
            return noise.timed(call)
        return noise.Sample(self._time(call), True)

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


def _bf16(size: int) -> Callable[[], Any]:
    import torch

    matrix = torch.ones(size, size, dtype=torch.bfloat16)
    return lambda: matrix @ matrix


def _int8(size: int) -> Callable[[], Any]:
    import torch

    matrix = torch.ones(size, size, dtype=torch.int8)
    return lambda: torch._int_mm(matrix, matrix)


def _value(leaf: Leaf | None) -> float | None:
    """What more threads must reach, noise forgiven."""
    return _NOISE * leaf.value if leaf and leaf.value else None


def _spread(samples: Sequence[float]) -> float:
    """Relative."""
    return (max(samples) - min(samples)) / median(samples)
