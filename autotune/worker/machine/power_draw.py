"""The power that this machine draws, idle and loaded, in watts; read by the meter process.

    idle    nothing runs      -- windows --> idle_power_w
    loaded  matrix products   -- windows --> loaded_power_{t}t_w (t threads)
                                             loaded_power_w (a board)

The processor's watts are those of all domains that a run's joules are counted in, GPU boards
excepted; each board has its own.  A leaf is the median of its windows; its interval spans all of
them, the counter's resolution included.  A window
in which others used over 5 % of the processor is taken again; what stays so is not recorded.

What this does not know: the power of other work than matrix products, and clocks that fall later.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple, Protocol

from autotune.meters import FOREIGN_WARN, UNKNOWN_PERIOD_S, of_board, shortest_window
from autotune.records.hardware import Leaf
from autotune.records.measurement import Domain, EnergySource, EnergyWindow

IDLE = "idle_power_w"
LOADED = "loaded_power_{}t_w"
BOARD = "loaded_power_w"
_ERROR = 0.05
"""Relative error of one window that the counter's update period may cause."""
_LEAST_S, _MOST_S = 0.3, 3.5
_PHASE_S = 4.0
_IDLE_WINDOWS = 3
_REPEATS = 2


class WindowMeter(Protocol):
    """The methods of `meter_client.MeterClient` that are used here."""

    def sources(self) -> tuple[EnergySource, ...]: ...

    def open(self) -> int: ...

    def close(self, token: int) -> EnergyWindow: ...


class Watts(NamedTuple):
    """Mean power of one window, with its interval."""

    value: float
    low: float
    high: float


class PowerProbe:
    """Fills ``figures`` (the processor's), ``boards`` (by torch's index) and ``warnings``.

    Args:
        meter: the meter process's client; without one nothing is measured.
        windows: how many to take of each load (of idleness always three).
        over: whether the time for probing is spent: what is left then stays unknown.
    """

    def __init__(
        self,
        meter: WindowMeter | None,
        *,
        windows: int = 1,
        over: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.figures: dict[str, Leaf] = {}
        self.boards: dict[int, dict[str, Leaf]] = {}
        self.warnings: list[str] = []
        self._meter, self._count, self._over = meter, windows, over
        self._clock, self._sleep = clock, sleep
        self._sources = meter.sources() if meter is not None else ()
        read = [s for s in self._sources if s.label.startswith("measured")]
        self._readable = {name for source in read for name in source.domains}
        longest = max((s.update_period_s or UNKNOWN_PERIOD_S for s in read), default=0.0)
        wanted = shortest_window(longest, _ERROR) if longest else 0.0
        self._window_s = min(_MOST_S, max(_LEAST_S, wanted))

    def idle(self, boards: int = 0) -> None:
        """The processor and ``boards`` GPUs while nothing runs; call it before a GPU is used."""
        windows = self._windows(None, _IDLE_WINDOWS)
        self._record(IDLE, windows)
        for index in range(boards):
            self._record_board(index, IDLE, windows)

    def processor(self, threads: int, call: Callable[[], object]) -> None:
        """The processor while ``call`` runs repeatedly on ``threads`` threads."""
        self._record(LOADED.format(threads), self._windows(call, self._count))

    def devices(self, boards: int, call: Callable[[], object]) -> None:
        """``boards`` GPUs while ``call`` keeps all of them busy; it must wait for them."""
        taken = self._windows(call, self._count)
        for index in range(boards):
            self._record_board(index, BOARD, taken)

    # -- windows ---------------------------------------------------------------------------

    def _windows(self, call: Callable[[], object] | None, count: int) -> list[EnergyWindow]:
        """Undisturbed windows, or else one disturbed one; none where nothing can be read."""
        if not self._readable or self._over():
            return []
        count = max(1, min(count, int(_PHASE_S / self._window_s)))
        clean: list[EnergyWindow] = []
        unreliable: list[EnergyWindow] = []
        while len(clean) < count and len(unreliable) <= _REPEATS:
            window = self._window(call)
            (unreliable if _foreign(window) > FOREIGN_WARN else clean).append(window)
            if clean and self._over():
                break
        return clean or unreliable[-1:]

    def _window(self, call: Callable[[], object] | None) -> EnergyWindow:
        assert self._meter is not None
        token = self._meter.open()
        until_s = self._clock() + self._window_s
        if call is None:
            self._sleep(self._window_s)
        while call is not None and self._clock() < until_s:
            call()
        return self._meter.close(token)

    # -- leaves ----------------------------------------------------------------------------

    def _record(self, name: str, windows: Sequence[EnergyWindow]) -> None:
        if self._meter is None:
            return
        chosen = [[d for d in w.domains if not of_board(d.name)] for w in windows]
        self.figures[name] = self._leaf(name, windows, chosen, of_boards=False)

    def _record_board(self, index: int, name: str, windows: Sequence[EnergyWindow]) -> None:
        if self._meter is None:
            return
        chosen = [
            [d for d in w.domains if of_board(d.name) and d.name.endswith(f":gpu{index}")]
            for w in windows
        ]
        full = f"{name} of GPU {index}"
        leaf = self._leaf(full, windows, chosen, of_boards=True)
        self.boards.setdefault(index, {})[name] = leaf

    def _leaf(
        self,
        name: str,
        windows: Sequence[EnergyWindow],
        chosen: Sequence[Sequence[Domain]],
        *,
        of_boards: bool,
    ) -> Leaf:
        pairs = list(zip(windows, chosen, strict=True))
        clean = [w for w, _ in pairs if of_boards or _foreign(w) <= FOREIGN_WARN]
        known = [x for w, ds in pairs if w in clean and (x := _watts(w, ds)) is not None]
        if not known:
            self.warnings.append(f"{name} is not known: {self._why(pairs, of_boards=of_boards)}")
            return Leaf(value=None, unit="W", source="measured")
        domains = dict.fromkeys(f"{d.name}{_origin(d)}" for _, ds in pairs for d in ds)
        return Leaf(
            value=median(watts.value for watts in known),
            unit="W",
            source="measured",
            low=min(watts.low for watts in known),
            high=max(watts.high for watts in known),
            samples=len(known),
            reference=f"energy of {' + '.join(domains)} over time",
        )

    def _why(
        self, pairs: Sequence[tuple[EnergyWindow, Sequence[Domain]]], *, of_boards: bool
    ) -> str:
        """Why no power follows from these windows."""
        if not pairs and self._readable:
            return "the time for probing was spent"
        domains = [d for _, ds in pairs for d in ds]
        missing = [d for d in domains if d.energy_j is None]
        if missing:
            return f"{missing[0].name} says {missing[0].reason}"
        if domains:
            others = min(_foreign(window) for window, _ in pairs)
            return f"other work used {others:.0%} of the processor meanwhile"
        lacking = [s for s in self._sources if s.label == "unavailable"]
        own = [s for s in lacking if of_board(s.name) == of_boards]
        why = f"{own[0].name} says {own[0].reason}" if own else "nothing here measures it"
        return f"{why} (`autotune doctor` says what helps)"


def _watts(window: EnergyWindow, domains: Sequence[Domain]) -> Watts | None:
    if not domains or window.duration_s <= 0:
        return None
    joules = uncertainty = 0.0
    for domain in domains:
        if domain.energy_j is None:
            return None
        joules += domain.energy_j
        uncertainty += domain.uncertainty_j or 0.0
    ends = (joules, joules - uncertainty, joules + uncertainty)
    return Watts(*(energy / window.duration_s for energy in ends))


def _foreign(window: EnergyWindow) -> float:
    """Share of the processor that others used; 0 for simulated counters."""
    real = any(d.origin != "simulated" for d in window.domains)
    return (window.foreign_load or 0.0) if real else 0.0


def _origin(domain: Domain) -> str:
    return "" if domain.origin == "local" else f" ({domain.origin})"
