"""A file copied into each folder of plug-ins is found, searched, chosen and reported.

A copy of the package gets one made-up plug-in of each kind; other interpreters run on that copy.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import autotune

RUNTIME = '''"""Runtime ``madeup``: eager by another name."""
from autotune.runtimes.eager import dims, unavailable, write

DEVICE = "cpu"
TAKES = "module"
'''
COMPRESSOR = '''"""``halved``: gives the module back as it is."""
TAKES = "module"
GIVES = "module"
GROUP = "madeup"
DTYPE = None


def unavailable(context):
    return None


def dims(context):
    return ()


def apply(form, params, tools):
    return form
'''
PARALLEL = '''"""``pairs``: two ranks."""
from autotune.parallel.ddp import launch

RANKS = (2,)


def unavailable(context):
    return None
'''
METER = '''"""``crystal``: a joule a read."""
from autotune.meters import Reading
from autotune.records.measurement import Domain, EnergySource

NOUN = "crystal ball"


class Crystal:
    def __init__(self, clock):
        self.periods_s, self._clock, self._count = {}, clock, 0

    def sources(self):
        return (EnergySource(name="crystal", label="measured_counter", domains=("crystal",)),)

    def read(self):
        self._count += 1
        return Reading(self._clock(), {"crystal": self._count})

    def difference(self, *readings):
        joules = readings[-1].counters["crystal"] - readings[0].counters["crystal"]
        return (
            Domain(
                name="crystal",
                energy_j=float(joules),
                label="measured_counter",
                origin="local",
                uncertainty_j=0.0,
            ),
        )

    def max_gap_s(self):
        return None


def open(tools):
    return Crystal(tools.clock)
'''
FILES = {
    "runtimes/madeup.py": RUNTIME,
    "compress/halved.py": COMPRESSOR,
    "parallel/pairs.py": PARALLEL,
    "meters/crystal.py": METER,
}

SEARCH = """
import sys
from pathlib import Path

from autotune.records.budget import Budget, Effort, Limit
from autotune.records.job import Menu
from autotune.report import text
from autotune.task import Task
from autotune.api import tune
from autotune.worker.channel import NullChannel
from autotune.worker.survey import options
from tests.support import made, simulated
from tests.support.bridges import FunctionBridge

work = Path(sys.argv[1])
menu = options.run(Menu(context=made.context()), work, NullChannel()).options
found = {(o.kind, o.name): o for o in menu}
new = [found["runtime", "madeup"], found["compress", "halved"], found["parallel", "pairs"]]
assert all(option.available for option in new), new
simulated.RUNTIME["madeup"] = 0.2


class Simulation(simulated.Simulation):
    def latency_s(self, build):
        halved = any(step.name == "halved" for step in build.compress)
        return super().latency_s(build) * (0.5 if halved else 1.0)

    def _throughput(self, job):
        result = super()._throughput(job)
        if job.recipe.parallel != "pairs":
            return result
        import msgspec

        fast = msgspec.structs.replace(result.answer, samples_per_s=1e4)
        return msgspec.structs.replace(result, answer=fast)


def bridge(folder):
    run = Simulation(folder, made.profile(), options=(*simulated.OPTIONS, *new))
    return FunctionBridge(run.answer)


(work / "model.py").write_text("raise SystemExit('never loaded here')")
budget = Budget(latency=Limit(value=0.15, relative=True), goal="latency", max_drop=0.05)
report, _ = tune(
    Task.from_file(work / "model.py"),
    budget,
    Effort(time_s=120, trials=30),
    out=work / "out",
    bridge=bridge,
)
plan = report.chosen.plan
assert plan.deployment.runtime == "madeup", plan
assert "halved" in [step.name for step in plan.deployment.compress], plan
assert plan.recipe.parallel == "pairs", plan
rendered = text.markdown(report)
assert all(name in rendered for name in ("madeup", "halved", "pairs"))
"""

READ = """
from autotune.hardware import doctor
from autotune.meters import MeterTools
from autotune.worker.energy.meter_server import EnergyMonitor, meters

monitor = EnergyMonitor(meters(MeterTools(), cuda=False))
sources = tuple(s for s in monitor.sources() if s.name == "crystal")
assert "crystal ball energy can be measured" in " ".join(doctor.energy_lines(sources, board=None))
window = monitor.close(monitor.open())
assert [d.energy_j for d in window.domains if d.name == "crystal"] == [1.0]
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, source = tmp_path_factory.mktemp("copy"), Path(autotune.__file__).parent
    shutil.copytree(source, root / "autotune", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        (root / "autotune" / name).write_text(text)
    (root / "tests").symlink_to(Path(__file__).parent)
    return root


@pytest.mark.parametrize("code", [SEARCH, READ], ids=["searched and chosen", "read"])
def test_a_dropped_in_file_is(code: str, copy: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
