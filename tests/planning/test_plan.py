"""`autotune plan`: the example on two machines, limits, prices, checks, faults."""

import json

import pytest
from click.testing import CliRunner

from autotune.cli.main import cli
from autotune.errors import ContractError, UsageError
from autotune.planning import plan
from autotune.records import codec
from autotune.records import job as jobs
from autotune.records.budget import Budget, Limit
from autotune.records.outlook import Outlook
from autotune.task import Task
from tests.support import made, planned
from tests.support.planned import PROFILES

SIZE = ("--hidden=4096", "--layers=32", "--heads=32", "--vocabulary=50368", "--sequence=2048")
NODES = ("h100-sxm-x8", "a100-80-sxm-x8")


@pytest.fixture
def task(examples):
    return Task.from_file(examples / "transformer_lm.py")


@pytest.fixture
def outlined(monkeypatch):
    """No worker: a 7-billion-parameter decoder."""
    traits = planned.decoder(layers=32, hidden=4096, sequence=2048, heads=32, vocabulary=50000)
    answer = jobs.Outlined(info=made.info(epochs=None), traits=traits)
    monkeypatch.setattr(plan, "outlined", lambda task: answer)


def command(*options, model, after=()):
    files = [f"--profile={PROFILES / name}.json" for name in NODES]
    args = ["plan", str(model), *files, *options, "--", *after]
    return CliRunner().invoke(cli, args, catch_exceptions=False)


def test_the_example_on_two_machines(examples):
    prices = [f"--price={name}={cost}/h" for name, cost in zip(NODES, (24, 12), strict=True)]
    found = command(*prices, model=examples / "transformer_lm.py", after=SIZE)
    assert found.exit_code == 0
    assert "6.87 billion parameters" in found.output
    assert "predicted, not measured on the target" in found.output
    assert "Quality is not predicted" in found.output
    flat = " ".join(found.output.split())
    assert "h100-sxm-x8 faster than a100-80-sxm-x8 with probability" in flat
    assert "cost per million samples" in flat
    assert "One device cannot train it" in flat
    assert "MET" not in flat
    assert max(map(len, found.output.splitlines())) <= 80


def test_json_is_a_record(outlined, task, examples):
    found = command("--json", "--latency", "50ms", model=examples / "transformer_lm.py")
    read = codec.decode(found.output.encode(), Outlook)
    assert read.schema == "autotune.outlook/1"
    assert json.loads(found.output)["quality"] == "not predicted"
    assert {j.name for one in read.machines for j in one.judgements} == {"latency"}


def test_limits_words_and_the_exit_code(outlined, examples):
    found = command("--train-memory", "1GB", model=examples / "transformer_lm.py")
    assert found.output.count("CANNOT: train memory <= 1.00 GB: at least") == 2
    assert found.exit_code == 3
    found = command(
        "--train-time=30d".replace("30d", "700h"),
        "--max-drop=0.01",
        "--nodes=16",
        "--train-batch=512",
        model=examples / "transformer_lm.py",
    )
    assert found.output.count("LIKELY (probability over 0.99): train time") == 2
    assert "judged by `autotune run`" in " ".join(found.output.split())
    assert found.exit_code == 0


def test_deployment_is_shown(outlined, examples):
    found = command("--goal=throughput", "--batch=4", model=examples / "transformer_lm.py")
    assert "runtime  type devices batch" in found.output
    assert "int8 and fp8 may cost quality" in found.output
    assert max(map(len, found.output.splitlines())) <= 80


def test_check_prints_errors_and_coverage(outlined, examples, tmp_path):
    table = tmp_path / "measured.csv"
    table.write_text("batch,precision,dp,micro_batch,zero,step_s\n128,bf16,8,2,1,2.7\n")
    found = command(f"--check={table}", model=examples / "transformer_lm.py")
    assert "1 of 1 within the stated 90 % interval" in found.output
    assert "8x1x1 bf16 b128 z1" in found.output


def test_other_models_and_assumptions_are_said(monkeypatch, task):
    answer = jobs.Outlined(
        info=made.info(), traits=made.traits(flops_per_sample=1e9), notes=("made in full",)
    )
    monkeypatch.setattr(plan, "outlined", lambda task: answer)
    found = plan.plan(task, [planned.profile("h100-sxm-x8")])
    assert {p.plan.tp for p in found.machines[0].training} == {1}
    assert "made in full" in found.notes
    assert plan.exit_code(found) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": Budget(latency=Limit(value=0.6, relative=True))}, "give an absolute one"),
        ({"prices": {"tpu": 1.0}}, "--price tpu=...: no such --profile"),
        ({"devices": 8, "nodes": 1}, "exclude each other"),
    ],
)
def test_faults_of_use(outlined, task, options, said):
    with pytest.raises(UsageError, match=said):
        plan.plan(task, [planned.profile("h100-sxm-x8")], **options)


def test_one_machine_twice_is_refused(outlined, task):
    with pytest.raises(UsageError, match="not all different"):
        plan.plan(task, [planned.profile("h100-sxm-x8")] * 2)


def test_prices_follow_the_devices(outlined, task):
    one = planned.profile("h100-sxm-x8")
    found = plan.plan(task, [one], nodes=4, prices={one.name: 24.0})
    assert found.machines[0].price_per_h == 96.0
    assert found.machines[0].cost_per_million is not None


@pytest.mark.parametrize("price", ["h100", "h100=2", "h100=-2/h", "=2/h", "h100=x/h"])
def test_a_price_needs_its_form(price, examples):
    found = command(f"--price={price}", model=examples / "transformer_lm.py")
    assert found.exit_code == 2
    assert "is not a price: give NAME=2.50/h" in found.output


def test_a_broken_model_is_the_users_fault(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def train_data():\n    return []\n")
    with pytest.raises(ContractError, match="no model"):
        plan.outlined(Task.from_file(path))
