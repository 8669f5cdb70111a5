"""Replaying: each distinct operator once, by kind, at every setting; all of it quick."""

import math
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autotune.records.job import Replay
from autotune.records.measurement import OpReplay, OpTime
from autotune.records.task import TaskSpec
from autotune.worker.channel import NullChannel
from autotune.worker.machine import noise
from autotune.worker.opbench import op_benchmark
from autotune.worker.survey import op_trace


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = self.deep(torch.relu(self.deep(x)))
        return self.head(x.mean((2, 3)))


def ops(model: nn.Module, *shape: int, onnx: bool = False) -> dict[str, int]:
    found = op_benchmark.replay(
        model.eval(),
        lambda b: ((torch.randn(b, *shape),), {}),
        (1, 2),
        (1,),
        onnx=onnx,
        until_s=time.monotonic() + 30,
    )
    assert [(r.batch_size, r.threads) for r in found] == [(1, 1), (2, 1)]
    assert found[0].whole_s is not None
    assert found[1].whole_s is None
    assert all(op.eager_s > 0 for r in found for op in r.ops)
    kinds: dict[str, int] = {}
    for op in found[0].ops:
        kinds[op.kind] = kinds.get(op.kind, 0) + op.calls
    if onnx:
        assert all(op.onnx_s is not None for op in found[0].ops if op.kind in ("conv", "matmul"))
    return kinds


def test_kinds_and_calls() -> None:
    kinds = ops(Net(), 3, 10, 10, onnx=True)
    assert kinds["conv"] == 1
    assert kinds["depthwise"] == 2
    assert kinds["matmul"] == 1
    assert kinds["normal"] == 2  # the batch norm and the mean
    assert kinds["pointwise"] == 2


def test_a_norm_after_a_convolution_is_fused() -> None:
    tape_of = op_trace.record(Net(), (torch.randn(1, 3, 10, 10),))
    found = op_benchmark._ops(tape_of, op_benchmark.Weights(0, 0), 1, onnx=False)
    assert {op.fused for op in found if op.kind == "conv"} == {False}
    assert sorted(op.fused for op in found if op.kind == "normal") == [False, True]


def test_what_onnx_runtime_fuses_is_timed_inside_of_what_it_is_fused_into() -> None:
    pieces = op_benchmark._pieces(op_trace.record(Net(), (torch.randn(1, 3, 10, 10),)))
    led = next(p for p in pieces if p.one.name == "convolution")
    assert [one.name.strip("_") for one in led.followers] == ["native_batch_norm", "relu"]
    assert [p.inside for p in pieces if p.one.name in ("native_batch_norm", "relu")] == [True] * 3
    linear = op_benchmark._pieces(op_trace.record(nn.Linear(4, 4), (torch.randn(2, 3, 4),)))
    assert [p.followers for p in linear] == [()]


def test_weights_have_as_many_copies_as_push_them_out() -> None:
    (one,) = op_trace.record(nn.Linear(64, 64, bias=False), (torch.randn(2, 64),)).played
    assert op_benchmark._copies(one, 0) == 1
    assert op_benchmark._copies(one, 3 * 64 * 64 * 4) == 3
    assert op_benchmark._copies(one, 1 << 40) == op_benchmark._MOST_COPIES


@pytest.mark.parametrize(("room", "copies"), [(1 << 20, 4), (40_000, 2), (0, 1)])
def test_hot_weights_have_no_more_copies_than_a_cores_cache_holds(
    room: int, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def chain(ones: object, deep: bool, copies: int, threads: int) -> None:
        asked.append(copies)

    monkeypatch.setattr(op_benchmark.onnx_ops, "chain", chain)
    (piece,) = op_benchmark._pieces(
        op_trace.record(nn.Linear(64, 64, bias=False), (torch.randn(2, 64),))
    )
    assert op_benchmark._onnx(piece, op_benchmark.Weights(0, room), 1) is None
    assert asked == [copies]


def passed(*seconds: float, packed_s: float | None = None) -> tuple[OpReplay]:
    ops = (OpTime(kind="matmul", calls=1, eager_s=s, packed_s=packed_s) for s in seconds)
    return (OpReplay(batch_size=1, threads=1, ops=tuple(ops)),)


def test_of_two_passes_the_faster_counts() -> None:
    (both,) = op_benchmark.combined([passed(2.0, 5.0), passed(3.0, 4.0, packed_s=1.0)])
    assert [op.eager_s for op in both.ops] == [2.0, 4.0]
    assert [op.packed_s for op in both.ops] == [1.0, 1.0]
    assert both.apart == pytest.approx(0.0), "7 s both"
    (both,) = op_benchmark.combined([passed(2.0), passed(1.0)])
    assert both.apart == pytest.approx(math.log(2))
    assert op_benchmark.combined([passed(2.0), passed(1.0, 1.0)]) == passed(2.0)


def test_of_three_passes_the_middle_counts() -> None:
    (one,) = op_benchmark.combined([passed(2.0, 5.0), passed(4.0, 5.0), passed(1.0, 7.0)])
    assert [op.eager_s for op in one.ops] == [2.0, 5.0]
    sums = [math.log(a / b) for a, b in ((7, 9), (7, 8), (9, 8))]
    assert one.apart == pytest.approx(math.sqrt(sum(x * x for x in sums) / 3))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_recurrent_layer_is_one_operator_of_onnx_runtime(kind: type[nn.RNNBase]) -> None:
    found = op_trace.record(kind(4, 8, 2, batch_first=True), (torch.randn(2, 3, 4),))
    (cell,) = found.cells
    assert (cell.shape, cell.hidden, cell.layers, cell.start) == ((2, 3, 4), 8, 2, 0)
    ops = op_benchmark._ops(found, op_benchmark.Weights(0, 1 << 20), 1, onnx=True)
    assert [op.kind for op in ops] == ["recurrent"]
    assert ops[0].eager_s > 0
    assert ops[0].onnx_s is not None


def test_integer_inputs_stay_in_range() -> None:
    table = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2)).eval()
    found = op_benchmark.replay(
        table,
        lambda b: ((torch.randint(0, 10, (b, 3)),), {}),
        (1,),
        (1,),
        onnx=False,
        until_s=time.monotonic() + 10,
    )
    assert {op.kind for op in found[0].ops} == {"move", "matmul"}


def test_attention_and_recurrence() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    assert ops(layer, 5, 16, onnx=True)["attention"] == 1
    assert ops(nn.LSTM(8, 8, batch_first=True), 4, 8)["recurrent"] >= 1


def test_the_job(tmp_path: Path, examples: Path) -> None:
    spec = TaskSpec(kind="file", path=str(examples / "digits_mlp.py"))
    job = Replay(task=spec, batch_sizes=(1, 4), threads=(1,), onnx=False, budget_s=2.0)
    answer = op_benchmark.run(job, tmp_path, NullChannel())
    assert [r.batch_size for r in answer.replays] == [1, 4]


def test_clean_samples_are_preferred_and_the_fastest_half_is_the_remedy() -> None:
    clean, slow = noise.Sample(1.0, True), noise.Sample(5.0, False)
    assert noise.best([clean, slow, clean, slow, clean]) == [1.0, 1.0, 1.0]
    assert noise.best([clean, slow, slow, slow]) == [1.0, 5.0]


def test_a_call_that_waits_is_not_clean() -> None:
    assert not noise.timed(lambda: time.sleep(0.005)).clean


@pytest.mark.parametrize("work", [lambda: None])
def test_a_call_has_a_positive_time(work: object) -> None:
    assert noise.timed(work).seconds > 0  # type: ignore[arg-type]
