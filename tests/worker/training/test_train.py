"""The training loop in one process: what it measures, when it stops, what it refuses."""

import hashlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, load_model

from autotune.errors import ContractError, JobError
from autotune.records.job import Throughput, Train
from autotune.records.measurement import EnergyWindow
from autotune.records.plan import Optimizer, Recipe
from autotune.records.task import TaskSpec
from autotune.worker.channel import NullChannel
from autotune.worker.contract import task as contract_task
from autotune.worker.energy import meter_client
from autotune.worker.training import evaluation, train
from autotune.worker.training.evaluation import peak_memory_bytes
from tests.support import tasks, texts
from tests.support.tasks import StopsAt

PLAIN = """
def make_model():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))
"""
NORMED = """
def make_model():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
"""
IMAGES = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def make_model():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(),
        nn.Linear(12, 3),
    )

def train_data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2, 6, 6, generator=g)
    return TensorDataset(x, x.mean((1, 2, 3)).gt(0).long())
"""
TIED = (
    texts.TIED
    + """
def make_model():
    return Net()
"""
)


def task(root: Path, text: str = PLAIN) -> TaskSpec:
    return tasks.write(root, texts.noisy() + text)


def run(root: Path, text: str = PLAIN, channel: Any = None, **more: Any) -> Any:
    recipe = {"optimizer": "adam", "lr": 0.02, "batch_size": 8, **more.pop("recipe", {})}
    job = {"epochs": 3, "step_losses": 1000, **more}
    return tasks.trained(root, texts.noisy() + text, channel, recipe, **job)


def test_it_learns_and_says_what_it_did(tmp_path: Path) -> None:
    done = run(tmp_path, epochs=20)
    assert (done.epochs, done.steps, done.stopped) == (20, 100, False)
    assert len(done.train_losses) == 20
    assert done.train_losses[-1] < 0.6 * done.train_losses[0]
    assert len(done.val_losses) == len(done.qualities) == 1
    assert done.qualities[0] > 0.8
    assert len(done.step_losses) == 100
    # 33 rows: the mean of an epoch weighs its steps by their rows
    first = sum(loss * rows for loss, rows in zip(done.step_losses, [8, 8, 8, 8, 1], strict=False))
    assert done.train_losses[0] == pytest.approx(first / 33)
    assert done.train_s > 0
    assert done.startup_s > 0
    assert done.samples_per_s > 0
    assert done.peak_memory_bytes > 10_000_000
    assert done.energy is None
    assert done.weights_sha256 is None


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    one, again, other = (run(tmp_path, seed=seed) for seed in (1, 1, 2))
    assert one.step_losses == again.step_losses
    assert one.val_losses == again.val_losses
    assert one.step_losses != other.step_losses


def test_rungs_are_reported_and_the_horizon_ends_it(tmp_path: Path) -> None:
    channel = NullChannel()
    done = run(tmp_path, channel=channel, epochs=4, rungs=(1, 2, 4))
    assert [step for step, _ in channel.reports] == [1, 2, 4]
    assert len(done.qualities) == 3
    seen = zip(done.qualities, done.val_losses, strict=True)  # accuracy, and what breaks ties
    stands = [1 - quality + 1e-4 * math.tanh(loss) for quality, loss in seen]
    assert [value for _, value in channel.reports] == pytest.approx(stands)
    assert not done.stopped


def test_what_is_no_rate_is_compared_by_its_loss(tmp_path: Path) -> None:
    channel = NullChannel()
    own = PLAIN + "\ndef quality(output, target):\n    return float(len(output))\n"
    done = run(tmp_path, own, channel=channel, epochs=2, rungs=(1, 2))
    assert tuple(value for _, value in channel.reports) == done.val_losses


def test_a_last_epoch_that_is_no_rung_is_evaluated_too(tmp_path: Path) -> None:
    channel = NullChannel()
    done = run(tmp_path, channel=channel, epochs=3, rungs=(1,))
    assert [step for step, _ in channel.reports] == [1]
    assert len(done.val_losses) == 2


@pytest.mark.parametrize(("qualities", "losses", "best"), [
    ((0.5, 0.8, 0.6), (3.0, 1.0, 2.0), 2),  # it overfits after the second
    ((0.5, 0.8, 0.7), (3.0, 2.0, 1.0), 3),  # less accurate, but a lower loss
    ((0.5, 0.6, 0.8), (1.0, 2.0, 3.0), 3),
    ((0.7, 0.7, 0.7), (2.0, 1.0, 1.5), 2),  # equal: the loss decides
    ((0.7, 0.7, 0.7), (1.0, 1.0, 1.0), 1),
])  # fmt: skip
def test_the_weights_of_the_best_validation_are_kept(
    qualities: tuple[float, ...], losses: tuple[float, ...], best: int,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run(tmp_path, epochs=3, rungs=(best,), channel=StopsAt(best), weights_out="then.st")

    def validated() -> None:
        scores = [
            SimpleNamespace(quality=q, loss=x) for q, x in zip(qualities, losses, strict=True)
        ]
        monkeypatch.setattr(evaluation.evaluate, "evaluate", lambda *_: scores.pop(0))

    validated()
    done = run(tmp_path, epochs=3, rungs=(1, 2, 3), weights_out="w.st")
    assert done.qualities == qualities
    assert (done.kept_epochs, done.kept_quality, done.quality) == (best, *[qualities[best - 1]] * 2)
    kept = load_file(tmp_path / "w.st")
    for name, tensor in load_file(tmp_path / "then.st").items():
        assert tensor.equal(kept[name]), name
    validated()
    paused = {"channel": StopsAt(2), "checkpoint": "t.state"}
    run(tmp_path, epochs=3, rungs=(1, 2), **paused)
    again = run(tmp_path, epochs=3, rungs=(3,), checkpoint="t.state", weights_out="again.st")
    assert (again.kept_epochs, again.kept_quality) == (done.kept_epochs, done.kept_quality)
    assert again.weights_sha256 == done.weights_sha256


@pytest.mark.parametrize(("losses", "ends"), [
    ((1.0, 1.3, 1.4, 9.0, 9.0), 3),
    ((1.0, 1.3, 1.1, 1.3, 1.4), 5),  # two in a row
    ((1.0, 1.1, 1.1, 1.1, 1.1), None),
    ((1.0, 1.3, 0.9, 1.0, 1.0), None),  # better once more
])  # fmt: skip
def test_a_training_ends_where_it_learns_rows_by_heart(
    losses: tuple[float, ...], ends: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def validated(*losses: float) -> None:
        scores = [SimpleNamespace(quality=0.5, loss=loss) for loss in losses]
        monkeypatch.setattr(evaluation.evaluate, "evaluate", lambda *_: scores.pop(0))

    # the training loss halves from epoch to epoch
    monkeypatch.setattr(
        "autotune.worker.training.loop.Loop.epoch_losses",
        property(lambda loop: [0.5**n for n in range(round(loop.done) + 1)], lambda *_: None),
        raising=False,
    )
    validated(*losses)
    rungs = tuple(range(1, len(losses) + 1))
    horizon = len(losses) + 1 if ends == len(losses) else len(losses)
    done = run(tmp_path, epochs=horizon, rungs=rungs, checkpoint="t.state", weights_out="a.st")
    assert done.overfitted == (ends is not None)
    assert done.epochs == (ends or len(losses))
    assert len(done.val_losses) == done.epochs
    if ends is not None:  # what goes on from there ends at once, with the weights that were kept
        validated()
        again = run(tmp_path, epochs=horizon, rungs=(horizon,), checkpoint="t.state",
                    weights_out="b.st")  # fmt: skip
        assert (again.overfitted, again.epochs) == (True, ends)
        assert again.weights_sha256 == done.weights_sha256
        assert again.kept_epochs == done.kept_epochs == 1.0


def test_with_a_target_the_last_weights_are_kept(tmp_path: Path) -> None:
    done = run(tmp_path, epochs=3, rungs=(1, 2, 3), until_quality=2.0)
    assert done.kept_epochs is None
    assert done.quality == done.qualities[-1]


def test_evaluating_does_not_change_the_training(tmp_path: Path) -> None:
    assert run(tmp_path, rungs=(1, 2)).step_losses == run(tmp_path).step_losses


def test_stop_at_a_rung_keeps_what_there_is(tmp_path: Path) -> None:
    done = run(tmp_path, channel=StopsAt(2), epochs=50, rungs=(1, 2, 3), weights_out="w.st")
    assert (done.epochs, done.stopped, len(done.val_losses)) == (2, True, 2)
    assert (tmp_path / "w.st").exists()


@pytest.mark.parametrize("batch", [8, 33])
def test_the_time_limit_ends_it_with_weights_and_a_score(tmp_path: Path, batch: int) -> None:
    done = run(
        tmp_path,
        epochs=10**6,
        time_limit_s=0.2,
        weights_out="w.st",
        recipe={"batch_size": batch},
    )
    assert done.stopped
    assert done.epochs < 10**6
    assert len(done.val_losses) == 1
    assert 0.2 <= done.train_s < 2.0
    assert done.weights_sha256


@pytest.mark.parametrize("text", [PLAIN, NORMED, TIED])
def test_the_weights_file_is_the_model(tmp_path: Path, text: str) -> None:
    done = run(tmp_path, text, weights_out="deep/w.safetensors", rungs=(1,))
    path = tmp_path / "deep" / "w.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == done.weights_sha256
    assert [p.name for p in path.parent.iterdir()] == [path.name]

    from autotune.worker.evaluation.evaluate import evaluate

    loaded = contract_task.load(task(tmp_path, text))
    model = loaded.make_model()
    load_model(model, path)
    assert evaluate(model, loaded, "validation").loss == pytest.approx(
        done.val_losses[-1], abs=1e-6
    )


def weights(root: Path, name: str = "w.st") -> dict[str, torch.Tensor]:
    return load_file(root / name)


def test_a_schedule_ends_at_the_horizon_however_soon_it_is_stopped(tmp_path: Path) -> None:
    cosine = {"schedule": "cosine", "warmup": 0.1}
    whole = run(tmp_path, epochs=10, rungs=(2, 10), recipe=cosine)
    early = run(tmp_path, channel=StopsAt(2), epochs=10, rungs=(2, 10), recipe=cosine)
    short = run(tmp_path, epochs=2, recipe=cosine)
    assert early.stopped
    assert early.step_losses == whole.step_losses[:10]
    assert early.step_losses != short.step_losses


@pytest.mark.parametrize("rule", get_args(Optimizer))
def test_every_rule_learns_with_everything_on(tmp_path: Path, rule: str) -> None:
    everything = {
        "optimizer": rule, "lr": {"sgd": 1.0, "radam": 0.5}.get(rule, 0.05),
        "schedule": "one_cycle", "clip_norm": 1.0, "label_smoothing": 0.1, "ema": 0.9,
        "weight_decay": 1e-3,
    }  # fmt: skip
    done = run(tmp_path, epochs=20, recipe=everything)
    assert done.train_losses[-1] < 0.9 * done.train_losses[0]
    assert done.qualities[0] > 0.7


@pytest.mark.parametrize("text", [PLAIN, NORMED, TIED])
def test_averaged_weights_are_what_is_validated_and_kept(tmp_path: Path, text: str) -> None:
    from autotune.worker.evaluation.evaluate import evaluate

    run(tmp_path, text, weights_out="plain.st")
    whole = run(tmp_path, text, recipe={"ema": 0.9}, rungs=(1, 2, 3), weights_out="w.st")
    ended = run(tmp_path, text, recipe={"ema": 0.9}, epochs=3, rungs=(3,), weights_out="ended.st")
    stopped = run(
        tmp_path,
        text,
        StopsAt(3),
        recipe={"ema": 0.9},
        epochs=9,
        rungs=(3, 9),
        weights_out="cut.st",
    )  # fmt: skip
    assert whole.step_losses == ended.step_losses == stopped.step_losses
    assert whole.val_losses[-1] == ended.val_losses[-1] == stopped.val_losses[-1]
    for name, tensor in weights(tmp_path).items():
        assert tensor.equal(weights(tmp_path, "ended.st")[name])
        assert tensor.equal(weights(tmp_path, "cut.st")[name])
        counter = not tensor.is_floating_point()
        assert tensor.equal(weights(tmp_path, "plain.st")[name]) == counter
    loaded = contract_task.load(task(tmp_path, text))
    model = loaded.make_model()
    load_model(model, tmp_path / "w.st")
    loss = evaluate(model, loaded, "validation").loss
    assert loss == pytest.approx(whole.val_losses[-1], abs=1e-6)


def test_smoothing_changes_the_training_alone(tmp_path: Path) -> None:
    plain = run(tmp_path, recipe={"lr": 0.0})
    smooth = run(tmp_path, recipe={"lr": 0.0, "label_smoothing": 0.3})
    assert plain.train_losses != smooth.train_losses
    assert plain.val_losses == smooth.val_losses


@pytest.mark.parametrize(
    "more",
    [
        "def loss(output, target):\n    return nn.functional.cross_entropy(output, target)\n",
        "def train_data():\n    x = torch.randn(33, 6)\n    return TensorDataset(x, x[:, :3])\n"
        "def eval_data():\n    return train_data()\n",
    ],
)
def test_a_loss_that_is_not_the_default_cannot_be_smoothed(tmp_path: Path, more: str) -> None:
    with pytest.raises(ContractError, match="label_smoothing needs the default loss"):
        run(tmp_path, PLAIN + more, recipe={"label_smoothing": 0.1})


def test_a_clipped_gradient_moves_the_weights_no_further(tmp_path: Path) -> None:
    def moved(clip: float | None) -> float:
        sgd = {"optimizer": "sgd", "lr": 1.0, "batch_size": 33, "clip_norm": clip}
        run(tmp_path, epochs=1, recipe={**sgd, "lr": 0.0}, weights_out="start.st")
        run(tmp_path, epochs=1, recipe=sgd, weights_out="w.st")
        start = weights(tmp_path, "start.st")
        gaps = [(w - start[name]).square().sum() for name, w in weights(tmp_path).items()]
        return float(torch.stack(gaps).sum().sqrt())

    assert moved(None) > 0.02
    assert moved(0.01) == pytest.approx(0.01, rel=1e-3)
    assert moved(100.0) == pytest.approx(moved(None), rel=1e-6)


def test_a_rule_without_use_for_the_model_is_unsupported(tmp_path: Path) -> None:
    text = "\ndef make_model():\n    return nn.Linear(6, 3)\n"
    with pytest.raises(JobError, match="no hidden matrix") as caught:
        run(tmp_path, text, recipe={"optimizer": "muon"})
    assert caught.value.kind == "unsupported"


def test_batch_norm_drops_a_last_row_alone(tmp_path: Path) -> None:
    assert run(tmp_path, NORMED, epochs=1).steps == 4
    assert run(tmp_path, PLAIN, epochs=1).steps == 5


def test_one_row_and_batch_norm_cannot_be_trained(tmp_path: Path) -> None:
    text = NORMED + "\ndef train_data():\n    return _data(1, 0)\n"
    with pytest.raises(JobError, match="1 training rows") as caught:
        run(tmp_path, text)
    assert caught.value.kind == "unsupported"


def test_no_epochs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="epochs is 0"):
        run(tmp_path, epochs=0)


def test_nothing_to_train_is_refused(tmp_path: Path) -> None:
    text = "\ndef make_model():\n    return nn.Linear(6, 3).requires_grad_(False)\n"
    with pytest.raises(JobError, match="requires a gradient"):
        run(tmp_path, text)


def test_a_diverging_run_is_nan_with_its_step(tmp_path: Path) -> None:
    text = PLAIN + "\ndef loss(output, target):\n    return (output ** 4).mean()\n"
    with pytest.raises(JobError, match=r"loss is (nan|inf) at step \d+ \(sgd, lr 1e\+10, fp32\)"):
        run(tmp_path, text, recipe={"optimizer": "sgd", "lr": 1e10})


def test_no_training_data_says_what_to_define(tmp_path: Path) -> None:
    text = PLAIN + "\ndel train_data\n"
    with pytest.raises(ContractError, match="train_data"):
        run(tmp_path, text)


def test_a_pretrained_task_can_still_be_trained(tmp_path: Path) -> None:
    assert run(tmp_path, PLAIN + "\npretrained = True\n").steps == 15


def test_bf16_is_close_to_fp32(tmp_path: Path) -> None:
    full, half = run(tmp_path), run(tmp_path, recipe={"precision": "bf16"})
    assert full.step_losses != half.step_losses
    assert half.train_losses[-1] == pytest.approx(full.train_losses[-1], rel=0.05)


@pytest.mark.parametrize("higher", [True, False])
def test_the_metric_stands_in_for_a_missing_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, higher: bool
) -> None:
    from autotune.records.measurement import Scores

    scores = Scores(quality=0.75, rows=4)
    monkeypatch.setattr("autotune.worker.evaluation.evaluate.evaluate", lambda *_, **__: scores)
    done = run(tmp_path, PLAIN + f"\nhigher_is_better = {higher}\n", epochs=1)
    assert done.val_losses == (0.25 if higher else 0.75,)
    assert done.qualities == (0.75,)


def test_a_validation_loss_that_is_not_finite_is_nan(tmp_path: Path) -> None:
    text = (
        PLAIN + "\ndef loss(output, target):\n"
        "    base = nn.functional.cross_entropy(output, target)\n"
        "    return base if torch.is_grad_enabled() else base * float('inf')\n"
    )
    with pytest.raises(JobError, match="is inf") as caught:
        run(tmp_path, text)
    assert caught.value.kind == "nan"


def test_the_energy_window_spans_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    window = EnergyWindow(duration_s=1.0, domains=(), total_j=None, label="unavailable")

    class Meter:
        def __init__(self, path: str) -> None:
            events.append(path)

        def __enter__(self) -> "Meter":
            return self

        def __exit__(self, *_: object) -> None:
            events.append("gone")

        def open(self) -> int:
            events.append("open")
            return 5

        def close(self, token: int) -> EnergyWindow:
            events.append(f"close {token}")
            return window

    class Channel(NullChannel):
        def report(self, step: float, value: float) -> bool:
            events.append(f"rung {step}")
            return True

    monkeypatch.setattr(meter_client, "MeterClient", Meter)
    done = run(tmp_path, epochs=2, rungs=(1, 2), meter="sock", channel=Channel())
    assert done.energy == window
    assert events == ["sock", "open", "rung 1", "close 5", "gone", "rung 2"]


def test_throughput_counts_samples_and_minds_no_loss(tmp_path: Path) -> None:
    text = PLAIN + "\ndef loss(output, target):\n    return output.mean() * float('nan')\n"
    job = Throughput(task=task(tmp_path, text), recipe=Recipe(batch_size=8), budget_s=0.1)
    rate = train.throughput(job, tmp_path, NullChannel())
    assert math.isfinite(rate.samples_per_s)
    assert rate.samples_per_s > 100
    assert rate.peak_memory_bytes > 0


def test_peak_memory_follows_an_allocation() -> None:
    before = peak_memory_bytes()
    block = torch.ones(20_000_000)
    assert peak_memory_bytes() >= before
    assert block.numel() == 20_000_000


def test_a_training_may_end_within_an_epoch(tmp_path: Path) -> None:
    spec, recipe = task(tmp_path), Recipe(batch_size=4)
    whole = train.run(Train(task=spec, recipe=recipe, epochs=1), tmp_path, NullChannel())
    job = Train(task=spec, recipe=recipe, epochs=1.5, rungs=(0.5, 1.5))
    done = train.run(job, tmp_path, NullChannel())
    assert done.steps == math.ceil(1.5 * whole.steps)
    assert done.epochs == pytest.approx(1.5, abs=1 / whole.steps)
    assert len(done.val_losses) == 2
    assert not done.stopped
    with pytest.raises(JobError, match="training needs more than 0"):
        train.run(Train(task=spec, recipe=recipe, epochs=0), tmp_path, NullChannel())


def test_a_training_that_is_far_too_slow_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autotune.worker.training.divergence._MEASURED_S", 0.0)
    given: dict[str, Any] = {"task": task(tmp_path), "recipe": Recipe(batch_size=4), "epochs": 2}
    with pytest.raises(JobError, match=r"allows no less than 1e\+12 \(adam, batch 4\)") as error:
        train.run(Train(**given, least_samples_per_s=1e12), tmp_path, NullChannel())
    assert error.value.kind == "slow"
    done = train.run(Train(**given, least_samples_per_s=1e-3), tmp_path, NullChannel())
    assert done.epochs == 2


def test_channels_last_learns_the_same_and_is_saved_as_usual(tmp_path: Path) -> None:
    spec = tasks.write(tmp_path, IMAGES)

    def trained(name: str, channel: NullChannel, rungs: tuple[float, ...], last: bool) -> Any:
        recipe = Recipe(batch_size=8, optimizer="sgd", lr=0.05, ema=0.9, channels_last=last)
        job = Train(
            task=spec, recipe=recipe, epochs=4, rungs=rungs, weights_out=f"{name}.safetensors",
            checkpoint=f"{name}.state",
        )  # fmt: skip
        return train.run(job, tmp_path, channel)

    usual = trained("usual", NullChannel(), (4,), last=False)
    paused = trained("last", StopsAt(2), (2, 4), last=True)
    assert paused.stopped
    done = trained("last", NullChannel(), (4,), last=True)
    assert done.resumed_epochs == 2
    assert done.val_losses[-1] == pytest.approx(usual.val_losses[-1], rel=1e-3)
    ours, theirs = (load_file(tmp_path / f"{n}.safetensors") for n in ("last", "usual"))
    for name, value in theirs.items():
        assert torch.allclose(ours[name].float(), value.float(), atol=1e-4), name


def test_what_torch_warns_of_is_named_once() -> None:
    def step() -> None:
        for _ in range(2):
            torch.ones(3).put_(torch.tensor([0]), torch.zeros(1))
        torch.ones(3).sum()

    assert train.nondeterministic(step) == ("put_",)
    assert train.nondeterministic(lambda: torch.ones(3) @ torch.ones(3)) == ()
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_mode_is_put_back_after_an_error() -> None:
    def step() -> None:
        raise KeyError

    try:
        train.nondeterministic(step)
    except KeyError:
        assert not torch.are_deterministic_algorithms_enabled()
