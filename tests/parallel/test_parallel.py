"""One process against two ranks, and what happens when a rank does not live."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.numpy import load_file

from autotune import plugins
from autotune.errors import JobError
from autotune.records.job import Context, MeasuredThroughput, Throughput, Train
from autotune.records.plan import Recipe
from autotune.records.task import TaskSpec
from autotune.worker.channel import NullChannel
from autotune.worker.training import train
from tests.support import made, tasks, texts
from tests.support.tasks import StopsAt

# 33 rows in batches of 8: the last has one row, so that one of two ranks has none.
# `spare` never gets a gradient; `tied` shares the first layer's weight.
MODEL = """
import os

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.first.weight
        self.last = nn.Linear(6, 3)
        {spare}

    def forward(self, x):
        {forward}
        return self.last(torch.tanh(self.tied(torch.tanh(self.first(x)))))

def make_model():
    return Net()
"""


def task(root: Path, *, forward: str = "pass", spare: str = "pass", more: str = "") -> TaskSpec:
    model = MODEL.format(forward=forward, spare=spare)
    return tasks.write(root, texts.noisy() + model + more)


def job(
    spec: TaskSpec, *, ranks: int = 1, lr: float = 0.05, rule: str = "sgd", course=None, **more
) -> Train:
    recipe = Recipe(
        **(course or {}),
        optimizer=rule,
        lr=lr,
        batch_size=8,
        parallel="single" if ranks == 1 else "ddp",
        ranks=ranks,
    )
    more = {"epochs": 2, "step_losses": 100, "seed": 3, **more}
    return Train(task=spec, recipe=recipe, **more)


def ranks_of(root: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "autotune.worker.server.rank" in line and str(root) in line:
            found.append(process)
    return found


def assert_nobody_left(root: Path, before: set[int]) -> None:
    assert not ranks_of(root)
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= before


def family() -> set[int]:
    return {p.pid for p in psutil.Process().children(recursive=True)}


def close(one, other, rel: float = 1e-5) -> None:
    assert list(one) == pytest.approx(list(other), rel=rel)


def same_weights(one: Path, other: Path) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name] == pytest.approx(second[name], abs=1e-5)


def test_two_ranks_train_as_one_process_does_with_sgd(tmp_path: Path) -> None:
    spec = task(tmp_path)
    before = family()
    alone = train.run(job(spec, weights_out="one.st"), tmp_path, NullChannel())
    pair = train.run(job(spec, ranks=2, weights_out="two.st"), tmp_path, NullChannel())

    assert alone.steps == pair.steps == len(pair.step_losses) == 10
    close(alone.step_losses, pair.step_losses)
    close(alone.train_losses, pair.train_losses)
    close(alone.val_losses, pair.val_losses)
    same_weights(tmp_path / "one.st", tmp_path / "two.st")
    assert_nobody_left(tmp_path, before)


def test_two_ranks_stop_at_a_rung_as_one_does_with_adam(tmp_path: Path) -> None:
    spec = task(tmp_path, spare="self.spare = nn.Linear(2, 2)")
    rungs = {"epochs": 9, "rungs": (1, 3, 5), "time_limit_s": 60.0}
    channels = StopsAt(3), StopsAt(3)
    alone = train.run(
        job(spec, rule="adam", lr=0.01, weights_out="one.st", **rungs), tmp_path, channels[0]
    )
    pair = train.run(
        job(spec, rule="adam", lr=0.01, ranks=2, weights_out="two.st", **rungs),
        tmp_path,
        channels[1],
    )

    assert [step for step, _ in channels[1].reports] == [1, 3]
    close([v for _, v in channels[0].reports], [v for _, v in channels[1].reports])
    assert alone.stopped
    assert pair.stopped
    assert alone.epochs == pair.epochs == 3
    close(alone.step_losses, pair.step_losses)
    assert len(pair.val_losses) == len(pair.qualities) == 2
    same_weights(tmp_path / "one.st", tmp_path / "two.st")
    assert pair.peak_memory_bytes > 0
    assert pair.startup_s > 0


def test_two_ranks_follow_one_course_with_muon(tmp_path: Path) -> None:
    spec = task(tmp_path)
    more = {
        "rule": "muon", "lr": 0.01, "epochs": 3, "rungs": (1, 3),
        "course": {
            "schedule": "cosine", "warmup": 0.1, "clip_norm": 0.3, "label_smoothing": 0.1,
            "ema": 0.9,
        },
    }  # fmt: skip
    alone = train.run(job(spec, weights_out="one.st", **more), tmp_path, NullChannel())
    pair = train.run(job(spec, ranks=2, weights_out="two.st", **more), tmp_path, NullChannel())
    # Muon rounds to bfloat16, which carries differences of the last bit further
    close(alone.step_losses, pair.step_losses, rel=1e-2)
    close(alone.val_losses, pair.val_losses, rel=1e-2)


def test_two_ranks_follow_one_course_with_adamw(tmp_path: Path) -> None:
    spec = task(tmp_path)
    more = {
        "rule": "adamw", "lr": 0.01, "epochs": 3, "rungs": (1, 3),
        "course": {
            "schedule": "one_cycle", "clip_norm": 0.3, "label_smoothing": 0.1, "ema": 0.9,
        },
    }  # fmt: skip
    alone = train.run(job(spec, weights_out="one.st", **more), tmp_path, NullChannel())
    pair = train.run(job(spec, ranks=2, weights_out="two.st", **more), tmp_path, NullChannel())
    close(alone.step_losses, pair.step_losses)
    close(alone.val_losses, pair.val_losses)
    same_weights(tmp_path / "one.st", tmp_path / "two.st")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_loss_that_is_not_finite_ends_the_job(tmp_path: Path, ranks: int) -> None:
    more = "\ndef loss(output, target):\n    return output.sum() * float('nan')\n"
    before = family()
    with pytest.raises(JobError, match="loss is nan at step 1") as caught:
        train.run(job(task(tmp_path, more=more), ranks=ranks), tmp_path, NullChannel())
    assert caught.value.kind == "nan"
    assert_nobody_left(tmp_path, before)


def test_a_rank_that_exits_is_a_crash(tmp_path: Path, capfd) -> None:
    leave = (
        "if os.environ.get('RANK') == '1':\n"
        "            print('goodbye from rank 1', flush=True)\n"
        "            os._exit(3)"
    )
    before = family()
    with pytest.raises(JobError) as caught:
        train.run(job(task(tmp_path, forward=leave), ranks=2), tmp_path, NullChannel())
    assert caught.value.kind == "crash"
    assert "rank 1 of 2 exited with status 3" in str(caught.value)
    assert "goodbye from rank 1" in str(caught.value)
    assert "goodbye from rank 1" in capfd.readouterr().err
    assert_nobody_left(tmp_path, before)


LAUNCHER = """
import sys
from pathlib import Path
from autotune.records import codec
from autotune.records.job import Train
from autotune.worker.training import train
from autotune.worker.channel import NullChannel
root = Path(sys.argv[1])
train.run(codec.decode((root / "job.json").read_bytes(), Train), root, NullChannel())
"""


def test_ranks_die_with_a_killed_launcher(tmp_path: Path) -> None:
    from autotune.records import codec

    mark = tmp_path / "hung"
    hang = f"open({str(mark)!r}, 'w').close(); import time; time.sleep(600)"
    order = job(task(tmp_path, forward=hang), ranks=2)
    (tmp_path / "job.json").write_bytes(codec.encode(order))
    command = [sys.executable, "-c", LAUNCHER, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as launcher:
        _until(mark.exists, 60)
        assert len(ranks_of(tmp_path)) >= 2
        launcher.kill()
    _until(lambda: not ranks_of(tmp_path), 10)


def _until(done, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_throughput_of_two_ranks(tmp_path: Path) -> None:
    recipe = Recipe(optimizer="sgd", batch_size=8, parallel="ddp", ranks=2, lr=1e9)
    order = Throughput(task=task(tmp_path), recipe=recipe, budget_s=0.2)
    rate = train.throughput(order, tmp_path, NullChannel())
    assert isinstance(rate, MeasuredThroughput)
    assert rate.samples_per_s > 0


def test_single_refuses_two_ranks(tmp_path: Path) -> None:
    order = job(task(tmp_path))
    recipe = Recipe(parallel="single", ranks=2)
    with pytest.raises(JobError, match="ddp"):
        train.run(Train(task=order.task, recipe=recipe, epochs=1), tmp_path, NullChannel())


def context(cores: float, rows: int = 100) -> Context:
    return made.context(task=made.info(train_rows=rows), on=made.profile(cores=cores))


def test_ddp_says_why_not() -> None:
    ddp = plugins.load("parallel", "ddp")
    assert ddp.unavailable(context(2.0)) is None
    assert "1.5 cores" in ddp.unavailable(context(1.5))
    assert "1" in ddp.unavailable(context(2.0, rows=1))


@pytest.mark.parametrize(
    ("status", "words"), [(3, "status 3"), (-9, "SIGKILL (the kernel"), (-11, "SIGSEGV")]
)
def test_how_a_rank_ended_is_said_in_words(status: int, words: str) -> None:
    from autotune.parallel import ddp

    assert words in ddp._ending(status)


def test_a_long_root_does_not_break_the_socket(tmp_path: Path) -> None:
    from autotune.parallel import ddp

    root = tmp_path / ("long" * 30)
    root.mkdir()
    near, far = ddp._private_folder(tmp_path), ddp._private_folder(root)
    assert len(str(far)) < 100
    assert not list(root.iterdir())
    near.rmdir()
    far.rmdir()
