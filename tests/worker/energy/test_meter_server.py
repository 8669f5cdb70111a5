"""The meter process: its windows on simulated meters, and the process on a simulated tree."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from autotune import meters
from autotune.errors import WorkerError
from autotune.meters import Fault, MeterTools, Reading
from autotune.records.measurement import Domain, EnergySource
from autotune.worker.energy import meter_client, meter_server
from autotune.worker.energy.meter_client import MeterClient
from autotune.worker.measure import measure
from tests.support.energy_sim import Nvml

SIMULATOR = Path(__file__).parents[2] / "support" / "powercap_sim.py"


class Steady:
    """A counter of 20 W on a clock that the test moves; ``fault`` takes its place."""

    def __init__(self, guard: float | None = 2.0) -> None:
        self.now = 0.0
        self.reads = 0
        self.fault: Fault | None = None
        self.periods_s = {"steady": 0.001}
        self._guard = guard

    def clock(self) -> float:
        return self.now

    def read(self) -> Reading:
        self.reads += 1
        return Reading(self.now, {"steady": self.fault or int(self.now * 20)})

    def sources(self) -> tuple[EnergySource, ...]:
        label = "measured_counter" if self.fault is None else "unavailable"
        reason = None if self.fault is None else str(self.fault)
        return (EnergySource(name="steady", domains=("steady",), label=label, reason=reason),)  # type: ignore[arg-type]

    def difference(self, *readings: Reading) -> tuple[Domain, ...]:
        first, last = readings[0], readings[-1]
        for reading in readings:
            value = reading.counters["steady"]
            if isinstance(value, Fault):
                return (meters.unavailable("steady", value),)
        energy = float(last.counters["steady"] - first.counters["steady"])  # type: ignore[operator]
        span = last.at_s - first.at_s
        return (
            meters.conclude(
                "steady", energy, span, period_s=0.001, quantum_j=0, max_w=1000, origin="simulated"
            ),
        )

    def max_gap_s(self) -> float | None:
        return self._guard


def test_windows_overlap_and_share_readings() -> None:
    steady = Steady()
    monitor = meter_server.EnergyMonitor([steady], steady.clock)
    first = monitor.open()
    steady.now = 1.0
    second = monitor.open()
    steady.now = 3.0
    monitor.read_if_due()
    assert steady.reads == 3
    monitor.read_if_due()  # too early for another one
    assert steady.reads == 3
    assert monitor.close(first).total_j == pytest.approx(60.0)
    steady.now = 4.0
    assert monitor.close(second).total_j == pytest.approx(60.0)
    with pytest.raises(KeyError):
        monitor.close(first)


def test_boards_are_left_out_of_a_window_that_is_not_about_them() -> None:
    class Board(Steady):
        def difference(self, *readings: Reading) -> tuple[Domain, ...]:
            return tuple(
                msgspec.structs.replace(domain, name="nvml:gpu0")
                for domain in super().difference(*readings)
            )

    board, steady = Board(), Steady()
    both = meter_server.EnergyMonitor([board, steady], steady.clock)
    tokens = both.open(), both.open(boards=False)
    board.now = steady.now = 2.0
    assert both.close(tokens[0]).total_j == pytest.approx(80.0)
    alone = both.close(tokens[1])
    assert (alone.total_j, [d.name for d in alone.domains]) == (pytest.approx(40.0), ["steady"])
    idle = meter_server.EnergyMonitor([board], board.clock)
    token = idle.open(boards=False)
    board.now = 4.0
    assert idle.close(token).total_j is None  # a board that idles beside says nothing


def test_nothing_is_read_while_no_window_is_open() -> None:
    steady = Steady()
    monitor = meter_server.EnergyMonitor([steady], steady.clock)
    steady.now = 100.0
    monitor.read_if_due()
    assert steady.reads == 0
    monitor.drop(monitor.open())
    monitor.read_if_due()
    assert steady.reads == 1


@pytest.mark.parametrize(("guard", "expected"), [(None, 10.0), (2.0, 2.0), (0.001, 0.2)])
def test_guard_period(guard: float | None, expected: float) -> None:
    assert meter_server.EnergyMonitor([Steady(guard)], lambda: 0.0).max_gap_s == expected


def test_a_fault_within_the_window_spoils_it() -> None:
    steady = Steady()
    monitor = meter_server.EnergyMonitor([steady], steady.clock)
    token = monitor.open()
    steady.now, steady.fault = 3.0, Fault("no_interface", "errno 2")
    monitor.read_if_due()
    steady.now, steady.fault = 4.0, None
    window = monitor.close(token)
    assert window.total_j is None
    assert window.reason == "no_interface: errno 2"


def test_without_meters_there_is_no_energy() -> None:
    monitor = meter_server.EnergyMonitor([], lambda: 0.0)
    window = monitor.close(monitor.open())
    assert (window.total_j, window.label, window.reason) == (None, "unavailable", "no_interface")


def test_foreign_load_is_what_the_tree_did_not_use() -> None:
    loads = iter([meter_server.CpuTimes(0, 0, 0), meter_server.CpuTimes(5.0, 10.0, 3.0)])
    steady = Steady()
    monitor = meter_server.EnergyMonitor([steady], steady.clock, cpu_times=lambda pid: next(loads))
    token = monitor.open(1)
    steady.now = 5.0
    assert monitor.close(token, 1).foreign_load == pytest.approx(0.2, abs=0.01)


def test_cpu_time_of_a_tree_counts_its_children() -> None:
    """A child that works is part of its parent's tree, running and ended."""
    work = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    before = meter_server.cpu_times(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        running = meter_server.cpu_times(os.getpid())
        child.communicate(b"\n")
    after = meter_server.cpu_times(os.getpid())
    assert before is not None
    assert running is not None
    assert after is not None
    assert running.tree_s - before.tree_s >= 0.25
    assert after.tree_s >= running.tree_s
    assert running.busy_s - before.busy_s >= 0.25
    assert meter_server.cpu_times(child.pid) is None
    assert meter_server.cpu_times(0) is None


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, Steady]]:
    """A server in a thread of this process."""
    steady = Steady()
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        server = meter_server.Server(listener, meter_server.EnergyMonitor([steady], steady.clock))
        thread = threading.Thread(target=server.serve)
        thread.start()
        yield path, steady
        server.stop()
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as knock:
            knock.connect(str(path))
        thread.join(5)
        assert not thread.is_alive()


def test_several_clients(served: tuple[Path, Steady]) -> None:
    path, steady = served
    with MeterClient(path) as one, MeterClient(path) as two:
        assert one.sources()[0].name == "steady"
        first, second = one.open(), two.open()
        steady.now = 2.0
        assert one.close(first).total_j == pytest.approx(40.0)
        with pytest.raises(WorkerError, match="no window"):
            one.close(second)  # another client's window
        assert two.close(second).total_j == pytest.approx(40.0)


def test_idle_baseline_gives_dynamic_energy(
    served: tuple[Path, Steady], monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 W before, while and after: 40 J in all, and nothing beyond idle."""
    path, steady = served
    slept = []

    def rest(seconds: float) -> None:
        slept.append(seconds)
        steady.now += seconds

    monkeypatch.setattr(meter_client, "time", SimpleNamespace(sleep=rest))
    with MeterClient(path) as client:
        token = client.open(idle_s=1.0)
        steady.now += 2.0
        found = client.close(token)
    assert slept == [1.0, 1.0]
    assert found.total_j == pytest.approx(40.0)
    assert found.idle_w == pytest.approx(20.0)
    assert found.dynamic_j == pytest.approx(0.0, abs=1e-9)
    assert any("below resolution" in note for note in found.notes)
    assert found.meter_cpu_s is not None


def rails_and_battery(tmp_path: Path) -> MeterTools:
    """A machine with a battery, a rail that nobody knows, and no counter."""
    for folder, files in {
        "class/hwmon/hwmon0": {"name": "ina226", "in1_input": 1, "curr1_input": 1},
        "class/power_supply/BAT0": {
            "type": "Battery",
            "status": "Discharging",
            "power_now": 9_000_000,
        },
    }.items():
        (tmp_path / folder).mkdir(parents=True)
        for name, value in files.items():
            (tmp_path / folder / name).write_text(str(value))
    none = tmp_path / "none"
    return MeterTools(sys=tmp_path, powercap=none, proc=none, background=False)


def test_meters_that_a_machine_lacks_are_left_out(tmp_path: Path) -> None:
    tools = rails_and_battery(tmp_path)
    few = meter_server.EnergyMonitor(meter_server.meters(tools, cuda=False))
    assert [s.name for s in few.sources()] == ["battery", "modelled", "rapl"]
    window = few.close(few.open())
    assert [d.name for d in window.domains] == ["battery:BAT0"]
    found = meter_server.meters(tools, cuda=False, everything=True)
    names = [s.name for s in meter_server.EnergyMonitor(found, everything=True).sources()]
    assert {"hwmon:rails", "jetson", "apple", "amd", "nvml"} <= set(names)


def test_boards_of_the_maker_that_answers(tmp_path: Path) -> None:
    """With a GPU in use nobody's silence stands for joules; another maker's is no news."""
    none = rails_and_battery(tmp_path)
    both = [type(m).__name__ for m in meter_server.meters(none, cuda=True)]
    assert {"Amd", "Nvml"} <= set(both)
    tools = none._replace(nvml=Nvml(a=1))
    assert "Amd" not in [type(m).__name__ for m in meter_server.meters(tools, cuda=True)]


def test_a_client_that_leaves_takes_its_windows_along(served: tuple[Path, Steady]) -> None:
    path, steady = served
    with MeterClient(path) as gone:
        gone.open()
    with MeterClient(path) as here:
        here.sources()
        reads = steady.reads
        steady.now = 50.0
        here.sources()
        assert steady.reads == reads


@pytest.mark.parametrize("line", [b"{}", b"[]", b"nonsense", b'{"ask": "close", "token": []}'])
def test_bad_requests_are_answered(served: tuple[Path, Steady], line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(served[0]))
        raw.sendall(line + b"\n")
        assert raw.recv(1000).startswith(b'{"error"')


def test_no_meter_process(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="does not answer"):
        MeterClient(tmp_path / "none.sock")


@contextlib.contextmanager
def process(*command: str | Path, pipe: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """A child that has printed ``ready``; killed at the end."""
    stdin = subprocess.PIPE if pipe else subprocess.DEVNULL
    child = subprocess.Popen(
        [sys.executable, *map(str, command)], stdin=stdin, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"ready\n"
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        if child.stdin is not None:
            child.stdin.close()


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_process_on_a_simulated_tree(tmp_path: Path) -> None:
    """A busy window costs more than an idle one; a fresh artifact's calls have joules."""
    tree, path = tmp_path / "tree", tmp_path / ("deep" * 30) / "m.sock"
    path.parent.mkdir()
    simulate = (SIMULATOR, tree, "--idle-w", "5", "--per-core-w", "200", "--pid", str(os.getpid()))
    serve = ("-m", "autotune.worker.energy.meter_server", "--socket", path, "--powercap-root", tree)
    with (
        process(*simulate),
        process(*serve, "--origin", "simulated", pipe=True) as served,
        MeterClient(path) as client,
    ):
        source = next(s for s in client.sources() if s.name == "rapl")
        assert (source.label, source.origin) == ("measured_counter", "simulated")
        assert source.domains == ("rapl:package-0", "rapl:package-0/dram")
        assert source.update_period_s is not None
        token = client.open()
        time.sleep(0.3)
        idle = client.close(token)
        token = client.open()
        burn(0.3)
        busy = client.close(token)
        assert idle.total_j is not None
        assert busy.total_j is not None
        assert busy.foreign_load is not None
        assert busy.total_j / busy.duration_s > 2 * idle.total_j / idle.duration_s
        assert 0 < (busy.uncertainty_j or 0) < busy.total_j
        assert measure._energy_s(client) == pytest.approx(min(5, 20 * source.update_period_s))
        assert served.stdin is not None
        served.stdin.close()  # the owner goes
        assert served.wait(5) == 0
    assert not path.exists()


def test_process_ends_at_sigterm_and_says_why_there_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with process(
        "-m", "autotune.worker.energy.meter_server", "--socket", path, "--powercap-root", tmp_path
    ) as p:
        with MeterClient(path) as client:
            window = client.close(client.open())
            found = {s.name: s for s in client.sources()}
        assert (window.total_j, meters.code(window.reason)) == (None, "no_interface")
        assert found["rapl"].label == "unavailable"
        assert found["modelled"].label == "modelled_tdp"
        assert "nvml" not in found
        p.terminate()
        assert p.wait(5) == 0


@pytest.mark.parametrize("kind", ["meter", "simulator"])
def test_no_process_outlives_its_parent(tmp_path: Path, kind: str) -> None:
    child = {
        "meter": [
            "-m",
            "autotune.worker.energy.meter_server",
            "--socket",
            str(tmp_path / "m.sock"),
        ],
        "simulator": [str(SIMULATOR), str(tmp_path / "tree")],
    }[kind]
    code = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, *{child}], stdout=subprocess.PIPE,\n"
        "    stdin=subprocess.DEVNULL, start_new_session=True)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    stat = Path(f"/proc/{int(shown.stdout)}/stat")
    end = time.monotonic() + 10
    while time.monotonic() < end and _alive(stat):
        time.sleep(0.05)
    assert not _alive(stat)


def _alive(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with (
        process("-m", "autotune.worker.energy.meter_server", "--socket", path),
        MeterClient(path) as client,
    ):
        assert client.sources()


def test_measured_launch_has_joules(tmp_path: Path) -> None:
    """The whole way: an artifact, calls, one window, a total."""
    import numpy as np

    from autotune.records.job import Measure
    from autotune.worker.data import rows

    (tmp_path / "a").mkdir()
    (tmp_path / "a/load.py").write_text("def load():\n    return lambda x: x @ x.T\n")
    sample = [(np.ones((50,), np.float32),) for _ in range(8)]
    rows.save(tmp_path / "rows.npz", rows.from_samples("tensor", ("",), sample))
    tree, path = tmp_path / "tree", tmp_path / "m.sock"
    serve = ("-m", "autotune.worker.energy.meter_server", "--socket", path, "--powercap-root", tree)
    simulated = ("--origin", "simulated")  # a foreign load of this machine is not in its joules
    with process(SIMULATOR, tree, "--pid", str(os.getpid())), process(*serve, *simulated):
        job = Measure(
            artifact="a",
            rows="rows.npz",
            batch_size=1,
            threads=1,
            max_calls=50,
            min_calls=10,
            time_s=0.0,
            warmup_s=0.05,
            meter=str(path),
        )
        environment = dict(os.environ)
        launch = measure.run(job, tmp_path)
        os.environ.update(environment)
    assert launch.energy is not None
    assert launch.energy.total_j is not None
    assert launch.energy.domains[0].origin == "simulated"
    assert launch.window_calls > len(launch.latency_s)  # the window outlasts 50 quick calls
    assert launch.energy.duration_s >= launch.window_s  # its ends lie outside ours
