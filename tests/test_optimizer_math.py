"""Update rules, schedules and regularisers against the NumPy of `docs/algorithms.md`.

What runs on our side is what the training loop runs; everything in float64.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from autotune.records.job import Train
from autotune.records.plan import Optimizer, Recipe
from autotune.worker.channel import NullChannel
from autotune.worker.contract import default_metrics
from autotune.worker.contract import task as contract_task
from autotune.worker.training import lr_schedule, optimizers
from autotune.worker.training import train as loop
from autotune.worker.training.ema import MovingAverage
from autotune.worker.training.evaluation import seed_all
from tests.support import tasks

STEPS = 100
TEXT = (Path(__file__).parent.parent / "docs" / "algorithms.md").read_text()
PAGE: dict[str, Any] = {}
exec("\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)), PAGE)

ALL: dict[str, Any] = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-4, "weight_decay": 0.1}
RECIPES: list[dict[str, Any]] = [
    {"optimizer": "sgd", "lr": 0.02},
    {"optimizer": "sgd", "lr": 0.02, "weight_decay": 0.1},
    {"optimizer": "momentum", "lr": 0.01},
    {"optimizer": "momentum", "lr": 0.01, "momentum": 0.5, "weight_decay": 0.01},
    {"optimizer": "nesterov", "lr": 0.01},
    {"optimizer": "nesterov", "lr": 0.01, "momentum": 0.7, "weight_decay": 0.01},
    {"optimizer": "adam", "lr": 0.01},
    {"optimizer": "adam", "lr": 0.02, **ALL},
    {"optimizer": "adamw", "lr": 0.01},
    {"optimizer": "adamw", "lr": 0.02, **ALL},
    {"optimizer": "rmsprop", "lr": 0.003},
    {"optimizer": "rmsprop", "lr": 0.003, "momentum": 0.9, "beta2": 0.9, "eps": 1e-4},
    {"optimizer": "nadam", "lr": 0.003},  # at 0.01 it is chaotic: rounding decides step 80
    {"optimizer": "nadam", "lr": 0.003, **ALL},
    {"optimizer": "radam", "lr": 0.01},
    {"optimizer": "radam", "lr": 0.02, **ALL},
    {"optimizer": "adafactor", "lr": 0.01},
    {"optimizer": "adafactor", "lr": 0.5, "weight_decay": 0.01, "eps": 1e-3},
    {"optimizer": "muon", "lr": 0.01},
    {"optimizer": "muon", "lr": 0.02, "momentum": 0.8, **ALL},
]


class Net(nn.Module):
    """A hidden matrix, a last layer with its bias: independent bowls, so that each weight has a
    gradient of its own.
    """

    def __init__(self, seed: int = 7) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.hidden = nn.Linear(4, 6, bias=False, dtype=torch.float64)
        self.last = nn.Linear(6, 3, dtype=torch.float64)
        self.bowls: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, weight in self.named_parameters():
            rows = weight.shape[0]
            root = rng.normal(size=(rows, rows))
            self.bowls[name] = root @ root.T / rows + np.eye(rows), rng.normal(size=weight.shape)
            weight.data = torch.tensor(rng.normal(size=weight.shape))

    def gradient(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        a, b = self.bowls[name]
        return lambda w: a @ w - b

    def loss(self) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for name, w in self.named_parameters():
            a, b = (torch.tensor(x) for x in self.bowls[name])
            total = total + (0.5 * w * (a @ w) - b * w).sum()
        return total


def reference(recipe: dict[str, Any], net: Net, name: str, steps: int = STEPS) -> np.ndarray:
    fields = dict(recipe)
    rule = fields.pop("optimizer")
    if rule == "muon" and name == "hidden.weight":
        fields = {k: v for k, v in fields.items() if k in ("lr", "momentum", "weight_decay")}
    elif rule == "muon":
        rule = "adamw"
        fields.pop("momentum", None)
    start = dict(net.named_parameters())[name].detach().numpy().copy()
    found: np.ndarray = PAGE[rule](start, net.gradient(name), steps, **fields)
    return found


def train(net: Net, recipe: Recipe, steps: int = STEPS) -> None:
    rule = optimizers.build(recipe, net)
    for _ in range(steps):
        rule.zero_grad()
        net.loss().backward()
        rule.step()


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    """The scalars that torch keeps beside the weights are float64 too; one thread is faster."""
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: " ".join(map(str, r.values())))
def test_a_rule_follows_its_formula(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Muon rounds to bfloat16 within; what is compared here is the formula without that
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    net = Net()
    expected = {name: reference(recipe, net, name) for name, _ in net.named_parameters()}
    before = {name: w.detach().clone() for name, w in net.named_parameters()}
    train(net, Recipe(**recipe))
    for name, w in net.named_parameters():
        assert (w - before[name]).abs().max() > 1e-2
        np.testing.assert_allclose(w.detach().numpy(), expected[name], rtol=0, atol=1e-6)


def test_every_rule_is_on_the_page_and_tried() -> None:
    sections = re.findall(r"^### (\w+)", TEXT, re.MULTILINE)
    assert set(get_args(Optimizer)) <= set(sections)
    assert {r["optimizer"] for r in RECIPES} == set(get_args(Optimizer))


def test_muon_in_bfloat16_stays_near_its_formula() -> None:
    recipe = {"optimizer": "muon", "lr": 1.0}
    net = Net()
    start = net.hidden.weight.detach().clone()
    expected = reference(recipe, net, "hidden.weight", steps=1)
    train(net, Recipe(**recipe), steps=1)
    apart = np.linalg.norm(net.hidden.weight.detach().numpy() - expected)
    assert apart < 0.05 * np.linalg.norm(expected - start.numpy())


def test_newton_schulz_brings_singular_values_near_one() -> None:
    rng = np.random.default_rng(0)
    for shape in ((4, 9), (9, 4)):
        found = PAGE["newton_schulz"](rng.normal(size=shape))
        values = np.linalg.svd(found, compute_uv=False)
        assert 0.5 < values.min() <= values.max() < 1.3


# -- schedules -----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 10, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("name", ["constant", "cosine", "one_cycle"])
def test_a_schedule_follows_its_formula(name: str, warmup: float, steps: int) -> None:
    recipe = Recipe(schedule=name, warmup=warmup)  # type: ignore[arg-type]
    given = {"warmup": warmup} if warmup else {}
    for step in range(steps):
        expected = PAGE[name](step, steps, **given)
        assert lr_schedule.factor(recipe, step, steps) == pytest.approx(expected, abs=1e-12)
    assert lr_schedule.factor(recipe, steps + 5, steps) == lr_schedule.factor(
        recipe, steps - 1, steps
    )


def shares(make: Callable[[Any], Any]) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(found) < STEPS:
            scheduler.step()
    return found


def test_schedules_are_those_that_torch_has() -> None:
    kinds = torch.optim.lr_scheduler
    cycle = shares(lambda o: kinds.OneCycleLR(o, 1.0, total_steps=STEPS, cycle_momentum=False))
    assert cycle == pytest.approx(
        [lr_schedule.factor(Recipe(schedule="one_cycle"), i, STEPS) for i in range(STEPS)],
        abs=1e-12,
    )
    cosine = shares(lambda o: kinds.CosineAnnealingLR(o, STEPS))
    assert cosine == pytest.approx(
        [lr_schedule.factor(Recipe(schedule="cosine"), i, STEPS) for i in range(STEPS)], abs=1e-12
    )


# -- around the step -----------------------------------------------------------------------


def test_labels_are_smoothed_as_the_formula_says() -> None:
    rng = np.random.default_rng(1)
    logits, target = rng.normal(size=(20, 5)), rng.integers(0, 5, 20)
    for smoothing in (0.0, 0.1, 0.3):
        found = default_metrics.loss(
            torch.tensor(logits), torch.tensor(target), smoothing=smoothing
        )
        expected = PAGE["smoothed_cross_entropy"](logits, target, smoothing)
        assert float(found) == pytest.approx(expected, abs=1e-12)


def test_the_average_follows_its_formula() -> None:
    net = nn.BatchNorm1d(3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    average = MovingAverage(net, 0.9)
    seen: dict[str, list[np.ndarray]] = {n: [t.numpy().copy()] for n, t in live(net)}
    for _ in range(STEPS):
        for name, tensor in live(net):
            tensor.add_(torch.randn(3, generator=generator, dtype=torch.float64))
            seen[name].append(tensor.numpy().copy())
        average.update()
    with average.applied():
        for name, tensor in live(net):
            expected = PAGE["ema"](seen[name], 0.9)
            np.testing.assert_allclose(tensor.numpy(), expected, rtol=0, atol=1e-9)
    for name, tensor in live(net):
        np.testing.assert_array_equal(tensor.numpy(), seen[name][-1])


def test_the_average_is_that_of_torch_with_tied_weights_averaged_once() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    multi = get_ema_multi_avg_fn(0.05)  # below the ramp of ours from the first step on
    torchs = AveragedModel(net, multi_avg_fn=multi, use_buffers=True)
    average = MovingAverage(net, 0.05)
    torchs.update_parameters(net)  # the first one copies
    for _ in range(STEPS):
        with torch.no_grad():
            for _, tensor in live(net):
                tensor.add_(torch.randn_like(tensor))
        average.update()
        torchs.update_parameters(net)
    with average.applied():
        for (name, ours), (_, theirs) in zip(live(net), live(torchs.module), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, msg=name)


def live(net: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Floating-point weights and buffers."""
    return [(n, t) for n, t in net.state_dict().items() if t.is_floating_point()]


# -- the loop as a whole -------------------------------------------------------------------

SOFTMAX = """
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import TensorDataset

def rows(count, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=g, dtype=torch.float64)
    return TensorDataset(x, x[:, :3].argmax(1))

def train_data():
    return rows(24, 0)

def eval_data():
    return rows(30, 1)

def make_model():
    return nn.Linear(4, 3, bias=False, dtype=torch.float64)
"""


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
def test_a_training_is_what_the_page_says_put_together(tmp_path: Path, schedule: str) -> None:
    recipe: dict[str, Any] = {
        "optimizer": "momentum", "lr": 0.5, "weight_decay": 1e-3, "batch_size": 24,
        "schedule": schedule, "warmup": 0.2, "clip_norm": 0.2, "label_smoothing": 0.1, "ema": 0.9,
    }  # fmt: skip
    spec = tasks.write(tmp_path, SOFTMAX)
    job = Train(task=spec, recipe=Recipe(**recipe), epochs=STEPS, seed=5, weights_out="w.st")
    done = loop.run(job, tmp_path, NullChannel())
    assert done.steps == STEPS

    task = contract_task.load(spec)
    x, target = (part.numpy() for part in task.collate([task.train[i] for i in range(24)]))
    seed_all(5)
    start = task.make_model().weight.detach().numpy().copy()
    expected = together(recipe, start, x, target)
    found = load_file(tmp_path / "w.st")["weight"]
    assert np.abs(expected - start).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def together(
    recipe: dict[str, Any], w: np.ndarray, x: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Momentum on the smoothed cross-entropy of a linear model, clipped, scheduled, averaged."""
    smoothing, velocity, weights = recipe["label_smoothing"], np.zeros_like(w), [w]
    wanted = np.full((len(x), 3), smoothing / 3)
    wanted[np.arange(len(x)), target] += 1 - smoothing
    for step in range(STEPS):
        p = np.exp(x @ w.T)
        p /= p.sum(axis=1, keepdims=True)
        g = PAGE["clip"]((p - wanted).T @ x / len(x), recipe["clip_norm"])
        velocity = 0.9 * velocity + g + recipe["weight_decay"] * w
        share = PAGE[recipe["schedule"]](step, STEPS, recipe["warmup"])
        w = w - recipe["lr"] * share * velocity
        weights.append(w)
    averaged: np.ndarray = PAGE["ema"](weights, recipe["ema"])
    return averaged
