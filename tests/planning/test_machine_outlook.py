"""One machine's outlook: limits on training and deployment, and why nothing fits."""

import itertools

import pytest

from autotune.errors import UsageError
from autotune.planning.machine_outlook import PlanRequest, outlook
from autotune.planning.machines import machine
from autotune.records.budget import Budget, Limit
from tests.support import planned

MODEL = planned.decoder(layers=32, hidden=4096, sequence=2048, heads=32, vocabulary=50000)
NODE = machine(planned.profile("h100-sxm-x8"))


def outlook_of(budget=None, target=NODE, model=MODEL, **changes):
    asked = PlanRequest(budget or Budget(), **({"samples": 10_000} | changes))
    return outlook(model, target, asked)[0]


def words(found):
    return {j.name: j.word for j in found.judgements}


def test_training_is_planned_unless_deployment_was_asked_for():
    found = outlook_of()
    assert found.training
    assert not found.serving
    assert not found.judgements
    served = outlook_of(Budget(latency=Limit(value=0.1)))
    assert served.serving
    assert not served.training
    both = outlook_of(Budget(latency=Limit(value=0.1), train_time_s=1e5))
    assert both.serving
    assert both.training


def test_plans_come_fastest_first():
    rates = [p.samples_per_s.value for p in outlook_of().training]
    assert all(ahead > 0.97 * behind for ahead, behind in itertools.pairwise(rates))
    assert all(p.fits >= 0.5 for p in outlook_of().training)


def test_words_of_a_training_time():
    # 10,000 samples of 86 TFLOP on 8 x 1038 TFLOP/s take 106 s at least
    assert words(outlook_of(Budget(train_time_s=60.0))) == {"train time": "CANNOT"}
    assert words(outlook_of(Budget(train_time_s=130.0))) == {"train time": "UNLIKELY"}
    assert words(outlook_of(Budget(train_time_s=3600.0))) == {"train time": "LIKELY"}


def test_words_of_a_training_memory():
    least = 16 * MODEL.parameters / 8
    assert words(outlook_of(Budget(train_memory_bytes=0.9 * least))) == {"train memory": "CANNOT"}
    assert words(outlook_of(Budget(train_memory_bytes=60e9))) == {"train memory": "LIKELY"}


def test_energy_has_no_bound_and_is_never_ruled_out():
    assert words(outlook_of(Budget(train_energy_j=1.0))) == {"train energy": "UNLIKELY"}
    assert words(outlook_of(Budget(energy=Limit(value=1e4)))) == {"energy": "LIKELY"}


def test_deployment_limits():
    found = outlook_of(Budget(latency=Limit(value=1e-4), memory=Limit(value=1e8)))
    assert words(found) == {"latency": "CANNOT", "memory": "CANNOT"}
    assert all("CANNOT" not in j.why and j.bound for j in found.judgements)
    assert words(outlook_of(Budget(latency=Limit(value=1.0)))) == {"latency": "LIKELY"}


def test_what_does_not_fit_says_why():
    large = planned.decoder(layers=80, hidden=8192, sequence=4096, heads=64, vocabulary=32000)
    found = outlook_of(target=machine(planned.profile("h100-sxm")), model=large)
    assert not found.training
    assert found.why_not[0].startswith("One device cannot train it: 64.9 billion parameters x 16")
    assert found.why_not[1].startswith("CANNOT train here")
    assert outlook_of(target=machine(planned.profile("h100-sxm-x8"), nodes=8), model=large).training
    served = outlook_of(Budget(goal="latency"), machine(planned.profile("h100-sxm")), large)
    assert served.serving[0].plan.precision in ("fp8", "int8")


def test_fp8_must_be_asked_for():
    assert {p.plan.precision for p in outlook_of().training} <= {"bf16", "tf32", "fp32"}
    assert {p.plan.precision for p in outlook_of(precisions=("fp8",)).training} == {"fp8"}
    with pytest.raises(UsageError, match="--precision fp8: a100-80-sxm-x8 has no rate"):
        outlook_of(target=machine(planned.profile("a100-80-sxm-x8")), precisions=("fp8",))


def test_a_batch_that_cannot_be_spread_is_refused():
    small = planned.decoder(heads=1, layers=1)
    with pytest.raises(UsageError, match="--train-batch"):
        outlook_of(batches=(3,), model=small)
