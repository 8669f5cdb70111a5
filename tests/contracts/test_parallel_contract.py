"""Conformance: every file in autotune/parallel joins by itself."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from autotune import plugins
from autotune.errors import ContractError
from autotune.parallel import Group, Reporter
from autotune.records.job import Context, MeasuredThroughput, Throughput
from autotune.records.plan import Recipe
from autotune.records.task import TaskSpec
from autotune.worker.survey.options import declared
from tests.support import made

NAMES = plugins.names("parallel")
SEED, REFUSED = 11, 12  # jobs' seeds, which select what the body below does


class Asker:
    """Remembers reports; says stop at step 2."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, float]] = []

    def report(self, step: int, value: float) -> bool:
        self.reports.append((step, value))
        return step < 2


def body(job: Throughput, root: Path, channel: Reporter, group: Group) -> MeasuredThroughput:
    """Uses everything a group promises; runs in each rank's interpreter."""
    import torch

    if job.seed == REFUSED:
        raise ContractError(f"refused by rank {group.rank}")
    assert torch.get_num_threads() == job.recipe.threads
    assert group.started_s > 0
    assert torch.device(group.device).type in ("cpu", "cuda")
    found = {
        "world": group.world,
        "mean": group.mean(10.0 * (group.rank + 1), 2.0),
        "largest": group.largest(float(group.rank)),
        "shared": group.share(5.0 + group.rank),
        "agreed": [group.agree(group.rank == 0), group.agree(group.rank != 0)],
        "gradient": _gradient(group),
    }
    go = [group.rank != 0 or channel.report(step, step / 2) for step in (1, 2)]
    found["go"] = [group.agree(g) for g in go]
    (root / f"rank{group.rank}.json").write_text(json.dumps(found))
    return MeasuredThroughput(samples_per_s=1.0 + group.rank, startup_s=0.5, peak_memory_bytes=7)


def _gradient(group: Group) -> float:
    import torch

    torch.manual_seed(group.rank)  # wrap gives all ranks rank 0's weights
    model = torch.nn.Linear(1, 1, bias=False, device=group.device)
    wrapped = group.wrap(model, find_unused=False)
    assert group.unwrap(wrapped) is model
    wrapped(torch.full((1, 1), 1.0 + group.rank, device=group.device)).sum().backward()
    return float(model.weight.grad)


def order(name: str, seed: int = SEED) -> Throughput:
    ranks = 1 if name == "single" else 2
    recipe = Recipe(parallel=name, ranks=ranks, threads=1)
    spec = TaskSpec(kind="file", path="unused.py")
    return Throughput(task=spec, recipe=recipe, seed=seed, device="cpu")


def context() -> Context:
    return made.context(task=made.info(train_rows=1), on=made.profile(cores=0.5))


@pytest.mark.parametrize("name", NAMES)
def test_importing_it_imports_nothing_heavy(name: str) -> None:
    code = (
        f"import sys; from autotune import plugins; plugins.load('parallel', {name!r});"
        "print(sorted({'torch', 'numpy', 'psutil', 'optuna'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_it_has_the_protocol(name: str) -> None:
    plugin = plugins.load("parallel", name)
    assert list(inspect.signature(plugin.unavailable).parameters) == ["context"]
    expected = ["job", "root", "channel", "body"]
    assert list(inspect.signature(plugin.launch).parameters) == expected
    assert plugin.__doc__
    ranks = declared(plugin, made.context(on=made.profile(cores=4.0)))["ranks"]
    assert ranks
    assert sorted(set(ranks)) == list(ranks)
    assert ranks[0] >= 1


@pytest.mark.parametrize("name", NAMES)
def test_unavailable_says_why_in_words(name: str) -> None:
    reason = plugins.load("parallel", name).unavailable(context())
    assert reason is None or len(reason.split()) > 3


@pytest.mark.parametrize("name", NAMES)
def test_a_group_keeps_its_promises(name: str, tmp_path: Path) -> None:
    asker = Asker()
    answer = plugins.load("parallel", name).launch(order(name), tmp_path, asker, body)

    assert answer == MeasuredThroughput(samples_per_s=1.0, startup_s=0.5, peak_memory_bytes=7)
    assert asker.reports == [(1, 0.5), (2, 1.0)]
    world = order(name).recipe.ranks
    for rank in range(world):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert found == {
            "world": world,
            "mean": sum(10.0 * (r + 1) for r in range(world)) / (2.0 * world),
            "largest": world - 1.0,
            "shared": 5.0,
            "agreed": [True, False],
            "gradient": (world + 1) / 2,
            "go": [True, False],
        }


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_contract_is_reported_as_such(name: str, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="refused by rank"):
        plugins.load("parallel", name).launch(order(name, REFUSED), tmp_path, Asker(), body)
