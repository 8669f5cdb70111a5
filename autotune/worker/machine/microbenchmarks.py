"""Microbenchmarks: how fast this machine multiplies, copies and dispatches.

    Timer.anchors     gemm_fp32_{t}t_flop_per_s, copy_{t}t_bytes_per_s, op_overhead_s; on one thread
                      they suffice to check a saved profile
    Timer.narrow      gemm_bf16_{t}t_flop_per_s, gemm_int8_{t}t_op_per_s
    Timer.remeasured  rates that more threads hardly raised, once more

A processor without bf16 instructions emulates them, some 60 times slower than fp32.  So bf16 and
int8 products start small, and the first call over its budget is the last.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from autotune.records.hardware import Leaf
from autotune.worker.machine import noise, power_draw

_SAMPLES = 7
_SPREAD = 0.15
_NOISE = 0.95
"""More threads at the same limit, such as memory bandwidth, reach at least this share."""
_COLLAPSED = 0.5
"""More threads under this share of fewer ones' rate were not measured: others held the cores."""
_SCALES = 1.5
"""A rate that more threads raise by a smaller factor is measured a second time."""
_GOOD = (False, False, _SPREAD)
"""(below the floor, disturbed, relative spread): worse samples are taken again."""
_REPEATS = 2
_PAUSE_S = 0.05
_GEMM_N = 512
"""Large enough for the full rate, and short enough to be done within one time slice."""
_LADDER = (32, 64, 128, 256, 512, 1024)
_SURE_N = 128
"""Sizes up to this are always run; larger ones only where the next call is affordable."""
_CALL_S = 0.1
DISPATCHES = 500
_SHOWN = 3
"""Uncertain rates that the warning names; each leaf holds its own interval."""

Clock = Callable[[], float]


class Timer:
    """Times calls until ``deadline_s`` (on `time.monotonic`'s clock); ``warnings`` says what is
    missing or uncertain.
    """

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
        self._messages: list[str] = []
        self._uncertain: dict[str, str] = {}
        self._flat: dict[str, tuple[int, Callable[[], object], float]] = {}

    def extend(self, seconds: float) -> None:
        """Move the deadline."""
        self._deadline_s += seconds

    @property
    def counts(self) -> tuple[int, ...]:
        """The thread counts that are measured: 1 and all."""
        return tuple(dict.fromkeys((1, self._threads)))

    def anchors(self, buffer_bytes: int, counts: Sequence[int] = (1,)) -> dict[str, Leaf]:
        """fp32 GEMM, copy, operator overhead; on one thread, the anchors of a saved profile."""
        return {
            **self._gemm_fp32(counts),
            **self._copy(counts, buffer_bytes),
            **self._overhead(),
        }

    def narrow(self, counts: Sequence[int], fewer: Mapping[str, Leaf]) -> dict[str, Leaf]:
        """Matrix products in bf16 and int8, as eager PyTorch does them; more threads must not be
        slower than ``fewer``.
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

    def loaded(self, power: power_draw.PowerProbe) -> None:
        """Power of the processor while it multiplies matrices, on one and on all threads."""
        import torch

        left, right = torch.ones(2, _GEMM_N, _GEMM_N)
        out = torch.empty(_GEMM_N, _GEMM_N)
        for threads in dict.fromkeys((1, self._threads)):
            torch.set_num_threads(threads)
            power.processor(threads, lambda: torch.mm(left, right, out=out))

    def rates(
        self,
        call: Callable[[], object],
        work: float,
        *,
        floor: float | None = None,
        waits: bool = False,
    ) -> tuple[list[float], bool]:
        """``work`` per second of single calls, and whether they are unreliable.

        Samples are unreliable if fewer than three were undisturbed (`noise`), if they spread over
        15 %, or if their median lies below ``floor`` (more threads slower than fewer).  Such a set
        is taken again, twice, after a pause in which threads that were put on the same core move
        apart; the best set is kept, without its disturbed samples where enough are left.  For a
        call that ``waits`` for a device, time off the core does not count as disturbance.
        """
        call()
        best: list[float] = []
        least = (True, True, math.inf)
        for attempt in range(1 + _REPEATS):
            if attempt:
                self._pause(_PAUSE_S)
            taken = [self._sample(call) for _ in range(_SAMPLES)]
            samples = [work / seconds for seconds in noise.best(taken)]
            below = floor is not None and median(samples) < floor
            disturbed = not waits and not noise.enough(taken)
            faults = (below, disturbed, _spread(samples))
            if not best or faults < least:
                best, least = samples, faults
            if least <= _GOOD or self.over():
                break
        return best, least > _GOOD

    def over(self) -> bool:
        """True when the time for probing is spent."""
        return self._clock() >= self._deadline_s

    def leaf(
        self, name: str, unit: str, call: Callable[[], object], work: float,
        floor: float | None = None, *, waits: bool = False,
    ) -> dict[str, Leaf]:  # fmt: skip
        """One rate as a leaf; empty, with a warning, when there is no time left."""
        if self.over():
            self._messages.append(f"{name} was not measured: the time for probing was spent")
            return {}
        samples, unreliable = self.rates(call, work, floor=floor, waits=waits)
        return self._checked(name, unit, samples, unreliable, floor)

    def _checked(
        self, name: str, unit: str, samples: Sequence[float], unreliable: bool, floor: float | None
    ) -> dict[str, Leaf]:
        """The samples as a leaf, with a warning where they are unreliable; unknown if collapsed."""
        if floor is not None and median(samples) < _COLLAPSED * floor:
            self._messages.append(
                f"{name} is not recorded: {median(samples):.3g} {unit} is under half of what fewer "
                "threads reach, so other work held their cores; profile again when it is done"
            )
            return {name: Leaf(value=None, unit=unit, source="measured")}
        if unreliable:
            self.mark_uncertain(name, samples, unit)
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
    ) -> dict[str, Leaf]:
        """The same call at several thread counts; more threads must not be slower."""
        import torch

        found: dict[str, Leaf] = {}
        floor: float | None = None
        for threads in counts:
            torch.set_num_threads(threads)
            full_name = name.format(threads)
            found |= self.leaf(full_name, unit, call, work, floor)
            value = _value(found.get(full_name))
            if floor and value and value < _SCALES * floor and full_name not in self._uncertain:
                self._flat[full_name] = (threads, call, work)
            floor = value or floor
        return found

    def remeasured(self, found: Mapping[str, Leaf]) -> dict[str, Leaf]:
        """Rates that more threads hardly raised, measured once more after all else; the faster one
        counts.  Unreliable ones were taken again before.

        A virtual machine that shares a physical core with another one for a second is slowed down
        without any counter here showing it, and all threads then wait for the slowest.
        """
        import torch

        again: dict[str, Leaf] = {}
        for name, (threads, call, work) in self._flat.items():
            if self.over():
                break
            torch.set_num_threads(threads)
            samples, _ = self.rates(call, work)
            leaf = noise.faster(found[name], as_leaf(samples, found[name].unit))
            self._uncertain.pop(name, None)
            if leaf.low and leaf.high and leaf.high > (1 + _SPREAD) * leaf.low:
                self.mark_uncertain(name, (leaf.low, leaf.high), leaf.unit)
            again[name] = leaf
        return again

    def _overhead(self) -> dict[str, Leaf]:
        """Seconds of one eager operator on one element."""
        import torch

        if self.over():
            self._messages.append("op_overhead_s was not measured: the time for probing was spent")
            return {}
        torch.set_num_threads(1)
        one = torch.ones(1)

        def call() -> object:
            with torch.no_grad():
                for _ in range(DISPATCHES):
                    torch.add(one, one)
            return None

        samples, unreliable = self.rates(call, float(DISPATCHES))
        seconds = [1 / rate for rate in samples]
        if unreliable:
            self.mark_uncertain("op_overhead_s", seconds, "s")
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
                self._messages.append(f"{name} was not measured: {reason}")
                return {}
            if first > _CALL_S:
                samples = [work / first]
                break
            samples, unreliable = self.rates(call, work)
        else:
            return self._checked(name, unit, samples, unreliable, floor)
        return self._checked(name, unit, samples, False, floor) if samples else {}

    def mark_uncertain(self, name: str, samples: Sequence[float], unit: str) -> None:
        """Warn that the samples of a rate spread widely."""
        self._uncertain[name] = f"{min(samples):.3g} to {max(samples):.3g} {unit}"

    @property
    def warnings(self) -> list[str]:
        """One line for each rate that was not measured, and one for all uncertain ones."""
        if not self._uncertain:
            return [*self._messages]
        shown = [f"{name} ({span})" for name, span in self._uncertain.items()]
        if len(shown) > _SHOWN:
            shown = [*shown[:_SHOWN], f"and {len(shown) - _SHOWN} more"]
        listed = ", ".join(shown)
        line = f"uncertain: {listed}; other work ran on this machine, or its clock moved, meanwhile"
        return [*self._messages, line]

    def _sample(self, call: Callable[[], object]) -> noise.Sample:
        if self._timer is time.perf_counter:
            return noise.timed(call)
        return noise.Sample(self._time(call), True)

    def _time(self, call: Callable[[], object]) -> float:
        started = self._timer()
        call()
        return max(self._timer() - started, 1e-9)


def as_leaf(samples: Sequence[float], unit: str) -> Leaf:
    """The median, with the extremes as its interval."""
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
    """The rate that more threads must reach, minus noise."""
    return _NOISE * leaf.value if leaf and leaf.value else None


def _spread(samples: Sequence[float]) -> float:
    """Relative to the median."""
    return (max(samples) - min(samples)) / median(samples)
