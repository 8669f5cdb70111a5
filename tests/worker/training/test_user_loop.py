"""The user's own train(): what it is given, when it is stopped, what is measured of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from autotune.errors import ContractError, JobError
from autotune.records.job import Inspect, Throughput, Train
from autotune.records.plan import Recipe
from autotune.records.task import TaskSpec
from autotune.worker.channel import NullChannel
from autotune.worker.survey import inspect
from autotune.worker.training import train
from tests.support import tasks, texts

HEAD = texts.noisy(64, 80) + "\ndef make_model():\n    return nn.Linear(6, 3)\n"
LOOP = """
tunes = ("lr", "batch_size")

def train(model, recipe, data, trial):
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr)
    for epoch in range(1, trial.epochs + 1):
        for x, y in DataLoader(data, recipe.batch_size, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        trial.report(epoch, float((model(x).argmax(1) == y).float().mean()))
        if trial.should_stop():
            break
    return model
"""


def task(root: Path, text: str, **spec: Any) -> TaskSpec:
    return tasks.write(root, HEAD + text, **spec)


def run(root: Path, text: str = LOOP, channel: Any = None, **more: Any) -> Any:
    recipe = {"lr": 0.5, "batch_size": 16, **more.pop("recipe", {})}
    return tasks.trained(root, HEAD + text, channel, recipe, **{"epochs": 6, **more})


def test_it_runs_and_what_it_returns_is_measured(tmp_path: Path) -> None:
    channel = NullChannel()
    done = run(tmp_path, channel=channel, rungs=(2, 6), weights_out="w.st")
    assert (done.epochs, done.steps, done.stopped) == (6, 24, False)
    assert [step for step, _ in channel.reports] == [2, 6]
    # accuracy is reported: less is better for who decides
    assert all(-1 <= value <= 0 for _, value in channel.reports)
    assert done.val_losses[:2] == tuple(value for _, value in channel.reports)
    assert len(done.qualities) == 3
    assert done.qualities[-1] > 0.8
    assert done.samples_per_s > 0
    assert (tmp_path / "w.st").exists()


def test_the_inspection_says_what_it_honours(tmp_path: Path) -> None:
    def info(text: str) -> Any:
        spec = task(tmp_path, text)
        return inspect.run(Inspect(task=spec), tmp_path / "work", NullChannel()).info

    assert info(LOOP).own_train
    assert info(LOOP).tunes == ("lr", "batch_size")
    assert info(LOOP.replace("tunes", "other")).tunes == ()
    assert info("").tunes is None
    with pytest.raises(ContractError, match=r"tunes must hold some of optimizer, lr"):
        info(LOOP.replace('"lr"', '"learning_rate"'))
    with pytest.raises(ContractError, match=r"there is no train\(\)"):
        info('tunes = ("lr",)\n')


def test_the_seed_and_the_recipe_decide(tmp_path: Path) -> None:
    one, again, other = (run(tmp_path, seed=s, rungs=(1, 3)).val_losses for s in (1, 1, 2))
    assert one == again
    assert one != other
    assert run(tmp_path, recipe={"lr": 1e-4}).qualities[-1] < 0.8


def test_it_stops_when_asked(tmp_path: Path) -> None:
    done = run(tmp_path, channel=tasks.StopsAt(2), epochs=50, rungs=(1, 2, 9))
    assert (done.epochs, done.stopped) == (2, True)
    assert len(done.val_losses) == 3  # two rungs, and the model it returned


def test_time_is_up(tmp_path: Path) -> None:
    done = run(tmp_path, epochs=10**6, time_limit_s=0.3)
    assert done.stopped
    assert 1 <= done.epochs < 10**6


def test_a_checkpoint_outlives_a_crash_and_no_more(tmp_path: Path) -> None:
    text = """
def train(model, recipe, data, trial):
    state = trial.restore()
    if state is not None:
        model.load_state_dict(state["model"])
        return model
    with torch.no_grad():
        model.weight.fill_(7.0)
    trial.checkpoint({"model": model.state_dict(), "epoch": 1})
    raise MemoryError
"""
    with pytest.raises(MemoryError):
        run(tmp_path, text)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    run(tmp_path, text, weights_out="w.st")
    from safetensors.torch import load_file

    assert load_file(str(tmp_path / "w.st"))["weight"].eq(7).all()
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_data_are_the_users_own_samples(tmp_path: Path) -> None:
    text = """
def train_data():
    return [{"x": torch.ones(6) * i, "labels": i % 3} for i in range(64)]

def eval_data():
    return train_data()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)
    def forward(self, x, labels=None):
        return self.fc(x)

def make_model():
    return Net()

def train(model, recipe, data, trial):
    assert len(data) == 64
    assert data[5]["labels"] == 2 and data[5]["x"][0] == 5
    assert trial.params == {"warmup": 3}
    assert (trial.seed, trial.device) == (9, "cpu")
"""
    done = run(tmp_path, text, seed=9, spec={"params": {"warmup": 3}})
    assert done.epochs == 6


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ("return 3", ContractError, "must return the trained model\n  found:   a int"),
        ("1 / 0", ContractError, "ZeroDivisionError"),
        ("trial.report(1, float('nan'))", JobError, "reported nan at step 1"),
        ("model.weight.data.fill_(float('nan'))", JobError, "not finite"),
    ],
)
def test_what_may_go_wrong(tmp_path: Path, body: str, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        run(tmp_path, f"def train(model, recipe, data, trial):\n    {body}\n")


def test_more_ranks_than_one_are_refused(tmp_path: Path) -> None:
    from autotune.worker.contract import task as contract_task
    from autotune.worker.training import user_loop

    class Two:
        world = 2

    spec = task(tmp_path, LOOP)
    job = Train(task=spec, recipe=Recipe(ranks=2), epochs=1)
    with pytest.raises(JobError, match="runs in one process; 2 ranks"):
        user_loop.fit(job, tmp_path, NullChannel(), Two(), contract_task.load(spec))  # type: ignore[arg-type]


def test_its_speed_is_that_of_the_rows_it_reads(tmp_path: Path) -> None:
    endless = LOOP.replace("range(1, trial.epochs + 1)", "range(10**9)").replace(
        "        trial.report", "        continue\n        trial.report"
    )
    spec = task(tmp_path, endless)
    job = Throughput(task=spec, recipe=Recipe(batch_size=16), budget_s=0.3)
    found = train.throughput(job, tmp_path, NullChannel())
    assert found.samples_per_s > 64
    whole = Throughput(task=task(tmp_path, LOOP), recipe=Recipe(batch_size=16), budget_s=30.0)
    assert train.throughput(whole, tmp_path, NullChannel()).samples_per_s > 0


def test_a_loss_is_not_needed(tmp_path: Path) -> None:
    text = (
        LOOP + "def score(output, target):\n    return (output['y'].argmax(1) == target).float()\n"
    )
    text = text.replace("cross_entropy(model(x), y)", "cross_entropy(model(x)['y'], y)")
    text = (
        text.replace("model(x).argmax", "model(x)['y'].argmax")
        + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)
    def forward(self, x):
        return {"aux": x[:, :2], "y": self.fc(x)}
def make_model():
    return Net()
"""
    )
    spec = task(tmp_path, text)
    info = inspect.run(Inspect(task=spec), tmp_path / "work", NullChannel()).info
    assert not info.has_loss
    done = run(tmp_path, text)
    assert done.qualities[-1] > 0.8
    assert torch.isfinite(torch.tensor(done.val_losses)).all()
