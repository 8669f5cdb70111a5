"""What is tried, and what comes first."""

import time

import pytest

from autotune.planning import machines, ranking
from tests.support import made, planned

MODEL = planned.decoder(layers=32, hidden=4096, sequence=2048, heads=32, vocabulary=50000)


def ranked(machine, batches=(64,), model=MODEL):
    return ranking.rank(model, machine, batches, ("bf16",))


def test_every_plan_uses_all_devices_and_keeps_tensor_parallelism_in_the_node():
    machine = planned.machine(devices=64)
    found = list(ranking.plans(MODEL, machine, (256,), ("bf16",)))
    assert len(found) == len(set(found)) > 100
    for plan in found:
        assert plan.dp * plan.tp * plan.pp == 64
        assert plan.tp <= 8
        assert 32 % plan.pp == 0
        assert plan.dp * plan.micro_batch * plan.micro_batches == plan.batch_size
        assert plan.zero == 0 or plan.dp > 1


def test_tensor_parallelism_divides_the_heads():
    model = planned.decoder(heads=6, hidden=66)
    layouts = {p.tp for p in ranking.plans(model, planned.machine(), (8,), ("bf16",))}
    assert layouts == {1, 2}


def test_slow_links_favour_data_parallelism_inside_a_node():
    fitting, _, _ = ranked(planned.machine(link=2e10, network=2e10))
    assert fitting[0].plan.tp == 1


def test_more_micro_batches_shrink_the_bubble():
    fitting, _, _ = ranked(planned.machine(), batches=(8, 128))
    piped = {f.plan.batch_size: f for f in fitting if f.plan.pp == 8 and f.plan.micro_batch == 1}
    assert piped[128].samples_per_s > 1.5 * piped[8].samples_per_s


def test_seventy_billion_do_not_fit_one_device_nor_eight():
    model = planned.decoder(layers=80, hidden=8192, sequence=4096, heads=64, vocabulary=32000)
    assert 64e9 < model.parameters < 66e9
    for count in (1, 8):
        machine = planned.machine(devices=count, per_node=count)
        fitting, others, tried = ranked(machine, model=model)
        assert not fitting
        assert len(others) == tried > 0
    fitting, _, _ = ranked(planned.machine(devices=64), (256,), model)
    assert fitting
    assert fitting[0].plan.dp < 64 or fitting[0].plan.zero == 3


def test_other_models_are_planned_with_data_parallelism_alone():
    model = made.traits(flops_per_sample=1e9)
    found = list(ranking.plans(model, planned.machine(), (64,), ("bf16",)))
    assert {(p.dp, p.tp, p.pp, p.micro_batch) for p in found} == {(8, 1, 1, 8)}


def test_a_batch_that_cannot_be_spread_gives_nothing():
    assert ranked(planned.machine(), batches=(3,), model=made.traits()) == ([], [], 0)


def test_distinct_shows_each_split_once_before_others():
    fitting, _, _ = ranked(planned.machine())
    shown = ranking.distinct(fitting, 5)
    assert len({(f.plan.dp, f.plan.tp, f.plan.pp) for f in shown}) == 5
    assert shown[0] == fitting[0]


@pytest.mark.parametrize("name", ["h100-sxm-x8", "a100-80-sxm-x8"])
def test_a_thousand_devices_are_ranked_at_once(name):
    began = time.perf_counter()
    machine = machines.machine(planned.profile(name), devices=1024)
    fitting, _, tried = ranking.rank(MODEL, machine, (1024, 4096), ("bf16", "fp32"))
    print(f"{name}: {tried} plans in {time.perf_counter() - began:.2f} s")
    assert fitting
    assert tried > 500
