"""Profiles: facts on hand-written trees, probes on simulated timers, one quick real run."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autotune.records import codec, profiles
from autotune.records.hardware import Cpu, Gpu, Leaf
from autotune.records.job import Probe
from autotune.worker.channel import NullChannel
from autotune.worker.machine import gpus as machine_gpus
from autotune.worker.machine import kernel_paths, microbenchmarks, noise, power_draw
from autotune.worker.machine import profile as machine_profile

ANCHORS = {"gemm_fp32_1t_flop_per_s", "copy_1t_bytes_per_s", "op_overhead_s"}


class Steps:
    """A timer whose n-th timed call takes ``durations[n]`` seconds (the last one repeats)."""

    def __init__(self, *durations: float) -> None:
        self.durations = list(durations)
        self.now = 0.0
        self.odd = False

    def __call__(self) -> float:
        if self.odd:
            self.now += self.durations.pop(0) if len(self.durations) > 1 else self.durations[0]
        self.odd = not self.odd
        return self.now


def timer_on(
    clock: Callable[[], float], deadline: float = 1e9, threads: int = 2
) -> microbenchmarks.Timer:
    return microbenchmarks.Timer(
        deadline, threads, clock=lambda: 0.0, timer=clock, pause=lambda s: None
    )


def cpu(**changes: object) -> Cpu:
    facts: dict[str, object] = {
        "vendor": "AuthenticAMD",
        "model": "AMD EPYC",
        "architecture": "x86_64",
        "logical_cores": 2,
        "physical_cores": 2,
        "usable_cores": 2.0,
    }
    return Cpu(**facts | changes)  # type: ignore[arg-type]


def gpu(name: str = "NVIDIA H100 80GB HBM3") -> Gpu:
    return Gpu(index=0, name=name, memory_bytes=1)


def nothing() -> None:
    pass


def test_quiet_samples_are_taken_once() -> None:
    clock = Steps(1.0, 1.01, 1.02, 1.0, 1.0, 1.0, 1.0, 99.0)
    samples, unreliable = timer_on(clock).rates(nothing, 2.0)
    assert not unreliable
    assert len(samples) == 7
    assert max(samples) == pytest.approx(2.0)


def test_spoilt_samples_are_discarded_and_taken_again() -> None:
    loaded = [1.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    samples, unreliable = timer_on(Steps(*loaded, 1.0)).rates(nothing, 1.0)
    assert not unreliable
    assert samples == pytest.approx([1.0] * 7)


def test_lasting_load_is_a_warning_and_a_wide_interval() -> None:
    tester = timer_on(Steps(*([1.0, 2.0] * 50)))
    leaf = tester.leaf("x", "B/s", nothing, 1.0)["x"]
    assert (leaf.low, leaf.high, leaf.samples, leaf.source) == (0.5, 1.0, 7, "measured")
    tester.leaf("y", "B/s", nothing, 1.0)
    (line,) = tester.warnings
    assert line.startswith("uncertain: x (0.5 to 1 B/s), y (0.5 to 1 B/s); other work")


@pytest.mark.parametrize(("sets", "rate", "doubted"), [(2, 0.5, False), (3, 1.0, True)])
def test_a_set_that_hardly_one_call_was_undisturbed_in_is_taken_again(
    monkeypatch: pytest.MonkeyPatch, sets: int, rate: float, doubted: bool
) -> None:
    """Two threads on one core: all calls alike, and each one interrupted."""
    disturbed = [noise.Sample(1.0, False)] * 7 * (sets - 1 + doubted)
    samples = iter([*disturbed, *[noise.Sample(2.0, True)] * 7])
    monkeypatch.setattr(noise, "timed", lambda call: next(samples))
    paused: list[float] = []
    found = microbenchmarks.Timer(1.0, 2, clock=lambda: 0.0, pause=paused.append)
    assert found.rates(nothing, 1.0) == ([rate] * (4 if doubted else 7), doubted)
    assert len(paused) == sets - 1


def test_a_call_that_waits_for_a_device_is_not_disturbed_by_its_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(noise, "timed", lambda call: noise.Sample(1.0, False))
    found = microbenchmarks.Timer(
        1.0, 2, clock=lambda: 0.0, pause=lambda s: pytest.fail("taken again")
    )
    assert found.rates(nothing, 1.0, waits=True) == ([1.0] * 4, False)


def test_what_more_threads_hardly_raise_is_looked_at_again_at_the_end() -> None:
    """A core at half its speed for a second makes two threads no faster than one."""
    found = timer_on(Steps(*[1.0] * 16, *[0.5] * 8))
    first = found.scaled("rate_{}t", "1/s", nothing, 1.0, (1, 2))
    assert first["rate_2t"].value == 1.0
    again = found.remeasured(first)
    assert list(again) == ["rate_2t"], "one thread has nothing to share"
    assert (again["rate_2t"].value, again["rate_2t"].low, again["rate_2t"].high) == (2.0, 1.0, 2.0)
    assert found.warnings[0].startswith("uncertain: rate_2t (1 to 2 1/s)")


def test_what_two_threads_double_is_not_looked_at_again() -> None:
    found = timer_on(Steps(*[1.0] * 8, 0.5))
    assert found.remeasured(found.scaled("rate_{}t", "1/s", nothing, 1.0, (1, 2))) == {}


def test_more_threads_that_are_slower_are_spoilt() -> None:
    samples, unreliable = timer_on(Steps(1.0)).rates(nothing, 1.0, floor=5.0)
    assert unreliable
    assert samples == [1.0] * 7
    recovered = timer_on(Steps(*[1.0] * 7, 0.1)).rates(nothing, 1.0, floor=5.0)
    assert not recovered[1]


def test_spent_budget_leaves_values_out_and_says_so() -> None:
    tester = timer_on(Steps(1.0), deadline=-1.0)
    assert kernel_paths.cpu(tester, 1 << 20) == {}
    assert len(tester.warnings) >= 5


def test_ladder_stops_at_the_first_call_over_its_budget() -> None:
    sizes: list[int] = []

    def make(size: int) -> Callable[[], object]:
        sizes.append(size)
        return nothing

    tester = timer_on(Steps(*[0.001] * 8, 0.2))  # N=32: one call and seven samples; N=64: too slow
    leaf = tester._ladder("slow", "op/s", make)["slow"]
    assert sizes == [32, 64]
    assert (leaf.value, leaf.samples) == (pytest.approx(2 * 64**3 / 0.2), 1)


def test_a_ladder_on_more_threads_that_collapses_is_not_recorded() -> None:
    tester = timer_on(Steps(1e-3))
    found = tester._ladder("x", "op/s", lambda size: nothing, threads=1, floor=1e15)
    assert found["x"].value is None
    assert "other work held their cores" in tester.warnings[0]


def test_int8_products_as_onnx_runtime_does_them() -> None:
    call = kernel_paths.onnx_product(16, 1, int8=True)
    assert call is not None
    (product,) = call()  # type: ignore[misc]
    assert product.shape == (16, 16)
    assert (product == 16).all()


def test_ladder_climbs_past_128_only_where_it_is_affordable() -> None:
    now = 0.0
    sizes: list[int] = []

    def largest(rate: float) -> int:
        def make(size: int) -> Callable[[], object]:
            def call() -> None:
                nonlocal now
                now += 2 * size**3 / rate

            sizes.append(size)
            return call

        timer_on(lambda: now)._ladder("bf16", "op/s", make)
        return sizes[-1]

    assert largest(1.4e9) == 256  # 24 ms; the next would take 192 ms
    assert largest(1e12) == 1024
    assert largest(2e7) == 128  # 210 ms, and no further


def test_an_operator_that_is_missing_is_a_warning() -> None:
    def make(size: int) -> Callable[[], object]:
        raise RuntimeError("not built\nC++ trace")

    tester = timer_on(Steps(1.0))
    assert tester._ladder("int8", "op/s", make) == {}
    assert tester.warnings == ["int8 was not measured: not built"]


def test_processor_of_a_tree(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("vendor_id: GenuineIntel\nmodel name: Xeon\nflags: x\n")
    found = machine_profile.processor(tmp_path)
    assert (found.vendor, found.model, found.virtualised) == ("GenuineIntel", "Xeon", False)
    assert found.l3_bytes is None


def test_isa_has_one_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "fma3": False})
    assert machine_profile.isa(frozenset({"avx2", "sse"})) == ("avx2", "avx512f")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert machine_profile.isa(frozenset({"avx2"})) == ("avx2",)


@pytest.mark.parametrize(
    ("model", "cores", "gpus", "expected"),
    [
        ("AMD EPYC", 2.0, (), "amd-epyc-2c"),
        ("AMD EPYC", 1.5, (), "amd-epyc-1.5c"),
        (
            "Intel(R) Xeon(R) Gold 6430 CPU @ 2.10GHz",
            64.0,
            (gpu("NVIDIA L4"),),
            "intel-xeon-gold-6430-64c-nvidia-l4",
        ),
        (None, 4.0, (), "authenticamd-4c"),
    ],
)
def test_names(model: str | None, cores: float, gpus: tuple[Gpu, ...], expected: str) -> None:
    assert machine_profile.name(cpu(model=model, usable_cores=cores), gpus) == expected


def test_fingerprint_holds_what_must_agree() -> None:
    gib = 1 << 30
    base = profiles.hardware_fingerprint(cpu(), 16 * gib, ())
    assert base == profiles.hardware_fingerprint(cpu(l3_bytes=5), 16 * gib + 1000, ())
    others = {
        profiles.hardware_fingerprint(cpu(model="x"), 16 * gib, ()),
        profiles.hardware_fingerprint(cpu(usable_cores=1.0), 16 * gib, ()),
        profiles.hardware_fingerprint(cpu(isa=("avx2",)), 16 * gib, ()),
        profiles.hardware_fingerprint(cpu(), 32 * gib, ()),
        profiles.hardware_fingerprint(cpu(), 16 * gib, (gpu(),)),
    }
    assert len(others | {base}) == 6


def test_no_cuda_device() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert machine_gpus.cuda(timer_on(Steps(1.0)), anchors_only=False) == ()


def test_rates_of_a_device_wait_for_it() -> None:
    waits = 0

    def wait() -> None:
        nonlocal waits
        waits += 1

    found = machine_gpus.device_leaves(
        timer_on(Steps(1.0)),
        torch.device("cpu"),
        wait,
        copy_bytes=4096,
        kinds=("fp32", "bf16", "fp16"),
        size=8,
    )
    assert {name: leaf.value for name, leaf in found.items()} == {
        "copy_bytes_per_s": pytest.approx(8192.0),
        "gemm_fp32_flop_per_s": pytest.approx(1024.0),
        "gemm_bf16_flop_per_s": pytest.approx(1024.0),
        "gemm_fp16_flop_per_s": pytest.approx(1024.0),
    }
    assert waits == 4 * 8


def test_copies_to_a_device_are_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way by its own leaf; a fake stands in for what only CUDA can pin."""
    pinned: list[bool] = []
    plain = torch.empty

    def empty(shape: object, *, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        pinned.append(pin_memory)
        return plain(shape, dtype=dtype)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(torch, "empty", empty)
    found = machine_gpus._host_copies(timer_on(Steps(0.5)), torch.ones(1024), nothing)
    assert pinned == [True]
    assert {name: leaf.value for name, leaf in found.items()} == {
        "host_to_device_bytes_per_s": pytest.approx(8192.0),
        "device_to_host_bytes_per_s": pytest.approx(8192.0),
    }


def test_a_launch_is_one_of_many_that_are_waited_for_together() -> None:
    found = machine_gpus._launches(timer_on(Steps(1.0)), torch.ones(1), nothing)
    assert found["launch_overhead_s"].value == pytest.approx(1 / microbenchmarks.DISPATCHES)


def test_devices_are_loaded_together_and_keep_their_own_watts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[int] = []
    monkeypatch.setattr(machine_gpus, "_device", lambda gpu: torch.device("cpu"))
    monkeypatch.setattr(machine_gpus, "_DEVICE_N", 8)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    leaf = Leaf(value=300.0, unit="W", source="measured")

    class Watts(power_draw.PowerProbe):
        def devices(self, boards: int, call: Callable[[], object]) -> None:
            call()
            self.boards = {index: {power_draw.BOARD: leaf} for index in range(boards)}

    two = (gpu(), Gpu(index=1, name="x", memory_bytes=1))
    found = machine_gpus.with_power(two, Watts(None))
    assert [g.figures for g in found] == [{"loaded_power_w": leaf}] * 2
    assert waited == [0, 1]
    assert machine_gpus.with_power((), Watts(None)) == ()


def test_a_device_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = SimpleNamespace(
        name="GPU X", total_memory=1 << 30, major=9, minor=0, multi_processor_count=132, uuid="u"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    monkeypatch.setattr(machine_gpus, "device_leaves", lambda *args, **kwargs: {})
    (found,) = machine_gpus.cuda(timer_on(Steps(1.0)), anchors_only=True)
    assert (found.name, found.compute_capability, found.multiprocessors) == ("GPU X", "9.0", 132)
    assert "u" not in codec.encode(found).decode().split('"')


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies that take a moment even where others hold the processor."""
    monkeypatch.setattr(machine_profile, "_buffer_bytes", lambda cpu, usable: 16 << 20)


@pytest.mark.usefixtures("_small")
def test_anchors_alone_for_real() -> None:
    threads = torch.get_num_threads()
    probed = machine_profile.run(Probe(anchors_only=True, budget_s=60.0), Path(), NullChannel())
    assert set(probed.profile.figures) - {"foreign_load", "steal_share"} == ANCHORS
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("_small")
def test_whole_profile_for_real(metered: Path) -> None:
    job = Probe(device="cpu", budget_s=30.0, meter=str(metered))
    profile = machine_profile.run(job, Path(), NullChannel()).profile
    assert set(profile.figures) >= ANCHORS
    for name, leaf in profile.figures.items():
        if leaf.source != "measured":
            continue
        if leaf.value is None:  # other work held the cores: it says so
            assert any(name in text for text in profile.warnings)
            continue
        assert leaf.low is not None
        assert leaf.high is not None
        assert 0 < leaf.low <= leaf.value <= leaf.high
    assert profile.probe_s is not None
    text = codec.encode(profile).decode()
    for private in (socket.gethostname(), str(Path.home()), str(Path.cwd())):
        assert len(private) < 4 or private not in json.loads(text).values()
    assert f"/{os.environ.get('USER', 'home')}/" not in text
    idle, loaded = profile.figures["idle_power_w"], profile.figures["loaded_power_1t_w"]
    assert idle.value is not None
    assert loaded.value is not None
    assert loaded.value > 2 * idle.value
    assert "(simulated)" in str(idle.reference)
    assert profiles.read(profiles.write(profile)).figures["idle_power_w"] == idle


@pytest.fixture
def metered(tmp_path: Path) -> Iterator[Path]:
    """The socket of a meter process on a simulated tree: 5 W, and 200 W a core that we use."""
    simulator = Path(__file__).parents[2] / "support" / "powercap_sim.py"
    tree, path = tmp_path / "tree", tmp_path / "m.sock"
    simulate = [simulator, tree, "--idle-w", "5", "--per-core-w", "200", "--pid", f"{os.getpid()}"]
    serve = ["-m", "autotune.worker.energy.meter_server", "--socket", path, "--powercap-root", tree]
    with process(simulate), process([*serve, "--origin", "simulated"]):
        yield path


@contextmanager
def process(command: list[object]) -> Iterator[None]:
    text = [sys.executable, *map(str, command)]
    started = subprocess.Popen(text, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    with started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            started.terminate()


def test_a_collapsed_rate_is_not_recorded_as_truth() -> None:
    tester = timer_on(Steps(1.0))
    found = tester.leaf("gemm", "FLOP/s", nothing, 1.0, floor=5.0)
    assert found["gemm"].value is None
    assert tester.warnings == [
        "gemm is not recorded: 1 FLOP/s is under half of what fewer threads reach, so other work "
        "held their cores; profile again when it is done"
    ]
    kept = timer_on(Steps(1.0)).leaf("gemm", "FLOP/s", nothing, 1.0, floor=1.5)
    assert kept["gemm"].value == 1.0
