"""Timing an artifact: on a simulated clock in this process, and for real in a new one."""

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.errors import JobError
from autotune.records import codec
from autotune.records.job import Measure, Measured
from autotune.worker.data import rows
from autotune.worker.measure import measure

pytestmark = pytest.mark.usefixtures("_environment")
DOUBLE = """
import numpy as np

def load():
    def predict(x):
        return x * 2.0
    return predict
"""


class Simulated:
    """Wall and CPU time in nanoseconds, moved by the artifact alone."""

    def __init__(self) -> None:
        self.wall = 0
        self.cpu = 0

    def clock(self) -> measure.Clock:
        return measure.Clock(now_ns=lambda: self.wall, cpu_ns=lambda: self.cpu)

    def spend(self, wall_s: float, cpu_s: float | None = None) -> None:
        self.wall += round(wall_s * 1e9)
        self.cpu += round((wall_s if cpu_s is None else cpu_s) * 1e9)


@pytest.fixture
def time_(monkeypatch: pytest.MonkeyPatch) -> Simulated:
    """A simulated clock that an artifact reaches as ``measure.simulated``."""
    simulated = Simulated()
    monkeypatch.setattr(measure, "simulated", simulated, raising=False)
    return simulated


def artifact(root: Path, code: str = DOUBLE, *, dynamic: bool = True) -> None:
    folder = root / "artifact"
    folder.mkdir(exist_ok=True)
    (folder / "load.py").write_text(code)
    (folder / "artifact.json").write_text(json.dumps({"dynamic_batch": dynamic}))


def data(root: Path, count: int = 20, kind: str = "tensor", names: tuple[str, ...] = ("",)) -> None:
    fields = [tuple(np.full(3, i + n, np.float32) for n in range(len(names))) for i in range(count)]
    rows.save(root / "rows.npz", rows.from_samples(kind, names, fields))


def job(**changes: Any) -> Measure:
    standard: dict[str, Any] = {
        "artifact": "artifact",
        "rows": "rows.npz",
        "batch_size": 1,
        "threads": 1,
        "min_calls": 10,
        "time_s": 0.0,
        "warmup_s": 0.05,
    }
    return Measure(**standard | changes)


def sleeping(body: str) -> str:
    """An artifact whose n-th call executes ``body`` with the simulated clock as ``t``."""
    return f"""
from autotune.worker.measure.measure import simulated as t
t.spend(0.5)
calls = 0
def load():
    def predict(x):
        global calls
        calls += 1
        n = calls
        {body}
        return x
    return predict
"""


def test_every_call_is_kept_and_phases_stand_apart(tmp_path: Path, time_: Simulated) -> None:
    body = "t.spend(0.2 if n == 1 else 0.001 if n % 7 else 0.009, 0.002)"
    artifact(tmp_path, sleeping(body))
    data(tmp_path)
    launch = measure.run(job(time_s=0.1), tmp_path, time_.clock())
    assert launch.load_s == pytest.approx(0.5)
    assert launch.first_call_s == pytest.approx(0.2)
    assert launch.settled
    assert launch.warmup_calls >= 10
    assert launch.work_s > 0.8
    assert set(np.round(launch.latency_s, 6)) == {0.001, 0.009}
    assert launch.window_s == pytest.approx(sum(launch.latency_s))
    assert launch.window_s >= 0.1
    assert launch.window_calls == len(launch.latency_s)
    assert launch.cpu_s == pytest.approx(0.002 * launch.window_calls)
    assert launch.energy is None
    assert launch.peak_memory_bytes > 1 << 20


def test_least_and_most_calls(tmp_path: Path, time_: Simulated) -> None:
    artifact(tmp_path, sleeping("t.spend(0.001)"))
    data(tmp_path)
    few = measure.run(job(min_calls=104), tmp_path, time_.clock())
    assert len(few.latency_s) == 104
    many = measure.run(job(time_s=9.0, max_calls=300), tmp_path, time_.clock())
    assert len(many.latency_s) == 300


def test_a_model_that_never_settles_is_said_so(tmp_path: Path, time_: Simulated) -> None:
    artifact(tmp_path, sleeping("t.spend(0.001 * 1.05 ** (n / 10))"))
    data(tmp_path)
    launch = measure.run(job(warmup_s=0.3), tmp_path, time_.clock())
    assert not launch.settled
    assert launch.warmup_calls > 20


def test_slow_model_warms_up_in_bounded_time(tmp_path: Path, time_: Simulated) -> None:
    artifact(tmp_path, sleeping("t.spend(1.0)"))
    data(tmp_path)
    launch = measure.run(job(warmup_s=3.0, min_calls=2), tmp_path, time_.clock())
    assert launch.warmup_calls <= 6


def test_batches_come_in_a_seeded_order(tmp_path: Path) -> None:
    data(tmp_path, 20)
    first = measure._pool(tmp_path / "rows.npz", job(batch_size=4, seed=1))
    again = measure._pool(tmp_path / "rows.npz", job(batch_size=4, seed=1))
    other = measure._pool(tmp_path / "rows.npz", job(batch_size=4, seed=2))
    assert [c[0][0].shape for c in first] == [(4, 3)] * 5
    assert all(np.array_equal(a[0][0], b[0][0]) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a[0][0], b[0][0]) for a, b in zip(first, other, strict=True))


def test_a_batch_larger_than_the_data_repeats_rows(tmp_path: Path) -> None:
    data(tmp_path, 3)
    (call,) = measure._pool(tmp_path / "rows.npz", job(batch_size=8))
    assert call[0][0].shape == (8, 3)


def test_ragged_rows_go_one_at_a_time(tmp_path: Path) -> None:
    samples = [(np.zeros(3 + i % 2, np.float32),) for i in range(6)]
    rows.save(tmp_path / "rows.npz", rows.from_samples("tensor", ("",), samples))
    calls = measure._pool(tmp_path / "rows.npz", job())
    assert {c[0][0].shape for c in calls} == {(1, 3), (1, 4)}
    with pytest.raises(JobError, match="batch size 1"):
        measure._pool(tmp_path / "rows.npz", job(batch_size=4))


def test_no_rows(tmp_path: Path) -> None:
    rows.save(tmp_path / "rows.npz", rows.Rows("tensor", ("",), (np.zeros((0, 3)),)))
    with pytest.raises(JobError, match="no rows"):
        measure._pool(tmp_path / "rows.npz", job())


def test_garbage_collections_are_counted_not_dropped(tmp_path: Path, time_: Simulated) -> None:
    artifact(tmp_path, sleeping("t.spend(0.001); import gc; n % 5 or gc.collect()"))
    data(tmp_path)
    before = len(gc.callbacks)
    launch = measure.run(job(min_calls=50), tmp_path, time_.clock())
    assert launch.tags["gc"] >= 10
    assert launch.tags["context_switch"] >= 0
    assert len(launch.latency_s) == 50
    assert len(gc.callbacks) == before


@pytest.mark.parametrize(("dynamic", "batch"), [(True, 4), (False, 4), (False, 1), (False, 64)])
def test_outputs_of_every_row(tmp_path: Path, dynamic: bool, batch: int) -> None:
    artifact(tmp_path, dynamic=dynamic)
    data(tmp_path, 10)
    asked = job(batch_size=batch, score_rows="rows.npz", outputs="out/outputs.npz")
    measure.run(asked, tmp_path)
    found = rows.load(tmp_path / "out/outputs.npz")
    given = rows.load(tmp_path / "rows.npz")
    assert found.kind == "tensor"
    assert np.array_equal(found.fields[0], np.asarray(given.fields[0]) * 2)


def test_a_fixed_batch_is_always_full(tmp_path: Path) -> None:
    artifact(
        tmp_path,
        "def load():\n    def predict(x):\n        assert len(x) == 4\n        return x\n"
        "    return predict\n",
        dynamic=False,
    )
    data(tmp_path, 10)
    measure.run(job(batch_size=4, score_rows="rows.npz", outputs="o.npz"), tmp_path)
    assert len(rows.load(tmp_path / "o.npz")) == 10


@pytest.mark.parametrize(("operator", "most"), [(b"DynamicQuantizeLinear", 4), (b"MatMul", 64)])
def test_where_ranges_are_those_of_a_batch_rows_are_scored_in_the_plans(
    operator: bytes, most: int, tmp_path: Path
) -> None:
    largest = (
        "def load():\n    def predict(x):\n        return x * 0 + len(x)\n    return predict\n"
    )
    artifact(tmp_path, largest)
    (tmp_path / "artifact" / "model.onnx").write_bytes(b"\x08" + operator)
    data(tmp_path, 66)
    measure.run(job(batch_size=4, score_rows="rows.npz", outputs="o.npz"), tmp_path)
    (found,) = rows.load(tmp_path / "o.npz").fields
    assert max(float(np.max(row)) for row in found) == most


@pytest.mark.parametrize(
    ("answer", "kind", "names"),
    [
        ("{'a': x, 'b': y + 1}", "dict", ("a", "b")),
        ("(x, y)", "tuple", ("", "")),
        ("[x, y]", "tuple", ("", "")),
        ("x + float('nan')", "tensor", ("",)),
    ],
)
def test_kinds_of_output(tmp_path: Path, answer: str, kind: str, names: tuple[str, ...]) -> None:
    artifact(
        tmp_path,
        f"def load():\n    def predict(x, y):\n        return {answer}\n    return predict\n",
    )
    data(tmp_path, 5, "dict", ("x", "y"))
    measure.run(job(score_rows="rows.npz", outputs="o.npz"), tmp_path)
    found = rows.load(tmp_path / "o.npz")
    assert (found.kind, found.names, len(found)) == (kind, names, 5)


def test_ragged_outputs(tmp_path: Path) -> None:
    artifact(tmp_path)
    samples = [(np.zeros(3 + i % 2, np.float32),) for i in range(6)]
    rows.save(tmp_path / "rows.npz", rows.from_samples("tensor", ("",), samples))
    measure.run(job(score_rows="rows.npz", outputs="o.npz"), tmp_path)
    found = rows.load(tmp_path / "o.npz")
    assert found.ragged
    assert [len(a) for a in found.fields[0]] == [3, 4, 3, 4, 3, 4]


@pytest.mark.parametrize("answer", ["x.sum()", "x[:1]"])
def test_an_output_that_is_no_batch(tmp_path: Path, answer: str) -> None:
    artifact(
        tmp_path, f"def load():\n    def predict(x):\n        return {answer}\n    return predict\n"
    )
    data(tmp_path, 5)
    with pytest.raises(JobError, match="first dimension must be the batch"):
        measure.run(job(score_rows="rows.npz", outputs="o.npz"), tmp_path)


def test_no_loader(tmp_path: Path) -> None:
    data(tmp_path)
    (tmp_path / "artifact").mkdir()
    with pytest.raises(JobError, match=r"load\.py is not in"):
        measure.run(job(), tmp_path)


def test_a_meter_that_is_gone_is_a_missing_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact(tmp_path)
    data(tmp_path)
    launch = measure.run(job(meter=str(tmp_path / "none.sock")), tmp_path)
    assert launch.energy is None
    assert len(launch.latency_s) >= 10
    assert "energy not measured" in capsys.readouterr().err


def test_environment_is_read_or_none(tmp_path: Path) -> None:
    artifact(tmp_path)
    data(tmp_path)
    found = measure.run(job(), tmp_path).environment
    assert {
        "governor",
        "turbo",
        "smt",
        "temperature_c",
        "load_average",
        "cpus",
        "affinity",
        "usable_cores",
        "threads",
        "steal_s",
        "steal_share",
        "nr_throttled",
        "throttled_s",
        "foreign_load",
        "timer_resolution_s",
    } == set(found)


def test_a_hopeless_candidate_does_not_eat_the_budget(tmp_path: Path, time_: Simulated) -> None:
    artifact(tmp_path, sleeping("t.spend(0.055)"))
    data(tmp_path)
    launch = measure.run(job(min_calls=333, warmup_s=1.5, time_s=0.7), tmp_path, time_.clock())
    assert launch.window_s <= 4.1
    assert 30 <= len(launch.latency_s) < 333
    assert launch.work_s < 6


def test_an_open_loop_has_service_and_response(tmp_path: Path) -> None:
    artifact(tmp_path)
    data(tmp_path)
    launch = measure.run(job(load_per_s=2000.0, min_calls=40, time_s=0.0), tmp_path)
    assert len(launch.latency_s) == len(launch.response_s) == launch.window_calls == 40
    assert all(r >= s for r, s in zip(launch.response_s, launch.latency_s, strict=True))
    assert launch.timeouts == 0


def launch(root: Path, asked: Measure) -> subprocess.CompletedProcess[str]:
    (root / "job.json").write_bytes(codec.encode(asked))
    names = [str(root / "job.json"), str(root), str(root / "answer.json")]
    return subprocess.run(
        [sys.executable, "-m", "autotune.worker.measure.measure", *names],
        capture_output=True,
        text=True,
        check=False,
    )


def test_new_interpreter(tmp_path: Path) -> None:
    """Threads are set and nothing heavy is loaded before the artifact's own imports."""
    artifact(
        tmp_path,
        "import os, sys\n"
        "assert os.environ['OMP_NUM_THREADS'] == os.environ['MKL_NUM_THREADS'] == '2'\n"
        "assert not {'numpy', 'torch', 'psutil'} & set(sys.modules)\n" + DOUBLE,
    )
    data(tmp_path)
    done = launch(tmp_path, job(threads=2))
    assert (done.returncode, done.stderr) == (0, "")
    found = codec.decode((tmp_path / "answer.json").read_bytes(), Measured)
    assert len(found.launch.latency_s) >= 10
    assert found.launch.load_s > 0


@pytest.mark.parametrize(
    ("failure", "status", "text"),
    [
        ("raise ValueError('bad\\nweights')", 1, "ValueError: bad weights"),
        ("raise MemoryError", 75, "out of memory"),
        ("raise RuntimeError('std::bad_alloc')", 75, "out of memory"),
        ("raise SystemExit(0)", 1, "called exit(0)"),
    ],
)
def test_failures_are_one_line_and_a_status(
    tmp_path: Path, failure: str, status: int, text: str
) -> None:
    artifact(tmp_path, f"def load():\n    {failure}\n")
    data(tmp_path)
    done = launch(tmp_path, job())
    assert done.returncode == status
    assert text in done.stderr
    assert len(done.stderr.splitlines()) <= 1
    assert not (tmp_path / "answer.json").exists()


def test_main_in_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact(tmp_path)
    data(tmp_path)
    (tmp_path / "job.json").write_bytes(codec.encode(job()))
    names = [str(tmp_path / "job.json"), str(tmp_path), str(tmp_path / "answer.json")]
    assert measure.main(names) == 0
    (tmp_path / "job.json").write_text("{}")
    assert measure.main(names) == 1
    artifact(tmp_path, "def load():\n    raise MemoryError\n")
    (tmp_path / "job.json").write_bytes(codec.encode(job()))
    assert measure.main(names) == measure.OUT_OF_MEMORY
    assert "out of memory" in capsys.readouterr().err
