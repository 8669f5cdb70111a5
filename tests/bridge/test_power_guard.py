"""The power guard on a made-up NVML: limits are restored however the run ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autotune.bridge.power_guard import PowerGuard
from autotune.errors import WorkerError

NVML = """
import json
from pathlib import Path

STATE = Path({state!r})
class NVMLError(Exception):
    pass
def nvmlInit():
    pass
def nvmlDeviceGetCount():
    return 1
def nvmlDeviceGetHandleByIndex(index):
    return "GPU-1"
def nvmlDeviceGetHandleByUUID(uuid):
    return uuid
def nvmlDeviceGetUUID(handle):
    return handle
def nvmlDeviceGetPowerManagementLimitConstraints(handle):
    return 100_000, 250_000
def nvmlDeviceGetPowerManagementLimit(handle):
    return json.loads(STATE.read_text())["limit"]
def nvmlDeviceSetPowerManagementLimit(handle, limit):
    state = json.loads(STATE.read_text())
    if not state["allowed"] or not 100_000 <= limit <= 250_000:
        raise NVMLError("Insufficient Permissions" if not state["allowed"] else "Invalid Argument")
    put(state | {{"limit": limit}})
def put(state):
    scratch = STATE.with_suffix(".part")  # whole or not at all: the test reads along
    scratch.write_text(json.dumps(state))
    scratch.replace(STATE)
def nvmlDeviceGetSupportedMemoryClocks(handle):
    return [405, 5001]
def nvmlDeviceGetSupportedGraphicsClocks(handle, memory):
    return [1980, 1965, 210] if memory == 5001 else [405]
def nvmlDeviceSetGpuLockedClocks(handle, low, high):
    state = json.loads(STATE.read_text())
    if not state["clocks"] or not 210 <= low <= high <= 1980:
        raise NVMLError("Not Supported" if not state["clocks"] else "Invalid Argument")
    put(state | {{"locked": [low, high]}})
def nvmlDeviceResetGpuLockedClocks(handle):
    put(json.loads(STATE.read_text()) | {{"locked": None}})
"""

LOSER = """
import os, signal, sys
from pathlib import Path
from autotune.bridge.power_guard import PowerGuard
guard = PowerGuard(Path(sys.argv[1]))
guard.limit(150.0, 1.2e9)
Path(sys.argv[2]).touch()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The board: 220 W, and whether limits may be set; guards find it instead of a driver."""
    path = tmp_path / "board.json"
    path.write_text(json.dumps({"limit": 220_000, "allowed": True, "clocks": True, "locked": None}))
    (tmp_path / "pynvml.py").write_text(NVML.format(state=str(path)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return path


def limit(state: Path) -> float:
    return float(json.loads(state.read_text())["limit"]) / 1000


def locked(state: Path) -> list[int] | None:
    found: list[int] | None = json.loads(state.read_text())["locked"]
    return found


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_limits_are_set_and_put_back(state: Path, tmp_path: Path) -> None:
    file = tmp_path / "limits.json"
    guard = PowerGuard(file)
    assert guard.range_w == (100.0, 250.0)
    guard.limit(150.0)
    assert limit(state) == 150.0
    guard.limit(125.0)
    assert json.loads(file.read_text()) == {"GPU-1": 220_000}
    guard.limit(None)
    assert limit(state) == 220.0
    guard.limit(175.0)
    guard.close()
    assert limit(state) == 220.0
    assert not file.exists()


def test_an_owner_that_is_killed_leaves_nothing_behind(state: Path, tmp_path: Path) -> None:
    seen, file = tmp_path / "seen", tmp_path / "limits.json"
    lost = subprocess.run([sys.executable, "-c", LOSER, str(file), str(seen)], check=False)
    assert lost.returncode == -signal.SIGKILL
    assert seen.exists()
    until(lambda: limit(state) == 220.0 and not file.exists())
    until(lambda: locked(state) is None and not list(tmp_path.glob("limits*")))


def test_a_guard_that_is_ended_puts_limits_back_first(state: Path, tmp_path: Path) -> None:
    guard = PowerGuard(tmp_path / "limits.json")
    guard.limit(150.0, 1.2e9)
    assert locked(state) == [210, 1200]
    guard._process.terminate()
    guard._process.wait()
    assert (limit(state), locked(state)) == (220.0, None)
    with pytest.raises(WorkerError, match="cannot be set to 125 W"):
        guard.limit(125.0)
    guard.close()


def test_what_a_killed_guard_left_is_put_back_by_the_next(state: Path, tmp_path: Path) -> None:
    file = tmp_path / "limits.json"
    guard = PowerGuard(file)
    guard.limit(150.0, 1.2e9)
    guard._process.kill()
    guard.close()
    assert (limit(state), locked(state)) == (150.0, [210, 1200])
    PowerGuard(file).close()
    assert (limit(state), locked(state)) == (220.0, None)
    assert not list(tmp_path.glob("limits*"))


def test_without_permission_it_says_so_and_sets_nothing(state: Path, tmp_path: Path) -> None:
    state.write_text(
        json.dumps({"limit": 220_000, "allowed": False, "clocks": True, "locked": None})
    )
    guard = PowerGuard(tmp_path / "limits.json")
    assert guard.range_w is None
    assert "needs the administrator" in (guard.reason or "")
    assert guard.range_hz is None
    assert guard.clock_reason == guard.reason
    guard.close()
    assert limit(state) == 220.0


def test_a_limit_that_a_board_refuses_is_an_error_and_undone(state: Path, tmp_path: Path) -> None:
    guard = PowerGuard(tmp_path / "limits.json")
    guard.limit(150.0)
    with pytest.raises(WorkerError, match="Invalid Argument"):
        guard.limit(50.0)
    assert limit(state) == 220.0
    guard.close()


def test_clocks_are_locked_beside_the_limit_and_set_free(state: Path, tmp_path: Path) -> None:
    guard = PowerGuard(tmp_path / "limits.json")
    assert guard.range_hz == (210e6, 1980e6)
    assert locked(state) is None
    guard.limit(150.0, 1.5e9)
    assert (limit(state), locked(state)) == (150.0, [210, 1500])
    guard.limit(150.0, None)
    assert (limit(state), locked(state)) == (150.0, None)
    guard.limit(None, 1.2e9)
    assert (limit(state), locked(state)) == (220.0, [210, 1200])
    with pytest.raises(WorkerError, match=r"to 150 W and 3 GHz: Invalid Argument"):
        guard.limit(150.0, 3e9)
    assert (limit(state), locked(state)) == (220.0, None)
    guard.limit(125.0, 1.2e9)
    guard.close()
    assert (limit(state), locked(state)) == (220.0, None)
    assert not list(tmp_path.glob("limits*"))


def test_boards_whose_clocks_cannot_be_locked_have_limits_all_the_same(
    state: Path, tmp_path: Path
) -> None:
    state.write_text(json.dumps(json.loads(state.read_text()) | {"clocks": False}))
    guard = PowerGuard(tmp_path / "limits.json")
    assert guard.range_w == (100.0, 250.0)
    assert guard.range_hz is None
    assert "Not Supported" in (guard.clock_reason or "")
    guard.limit(150.0)
    guard.close()
    assert limit(state) == 220.0
