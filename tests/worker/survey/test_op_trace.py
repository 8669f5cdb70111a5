"""The tape: what is needed of a call, against counts by hand."""

import pytest
import torch
from torch import Tensor, nn

from autotune.records.task import Floor
from autotune.worker.survey import op_trace, work_bounds


def floor(model: nn.Module, *inputs: Tensor) -> Floor:
    twice = tuple(torch.cat([x, x]) for x in inputs)
    return work_bounds.floor(op_trace.record(model, inputs), op_trace.record(model, twice))


def test_a_linear_layer() -> None:
    found = floor(nn.Linear(8, 4), torch.randn(1, 8))
    assert found.flops == {"matmul": 64.0}
    assert found.more_flops == {"matmul": 64.0}
    assert found.read_bytes == 4 * (8 * 4 + 4)
    assert found.trainable_bytes == 4 * (8 * 4 + 4)
    assert found.gradient_flops_per_sample == 64.0
    assert not found.narrow


def test_padding_is_not_work() -> None:
    # of 3 taps at 4 positions, the first and the last lie outside once
    model = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    assert floor(model, torch.randn(1, 1, 4)).flops == {"winograd_small": 2.0 * 10}


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_valid_taps_are_those_of_a_count_by_hand(stride: int, dilation: int) -> None:
    size, kernel, padding = 11, 3, 2
    model = nn.Conv1d(1, 1, kernel, stride, padding, dilation, bias=False)
    positions = model(torch.randn(1, 1, size)).shape[-1]
    at = [p * stride + k * dilation - padding for p in range(positions) for k in range(kernel)]
    found = floor(model, torch.randn(1, 1, size))
    assert sum(found.flops.values()) == pytest.approx(2.0 * sum(0 <= i < size for i in at))


def test_kinds_of_convolutions() -> None:
    def kind(model: nn.Module, side: int = 64) -> str:
        (name,) = floor(model, torch.randn(1, 8, side, side)).flops
        return name

    assert kind(nn.Conv2d(8, 8, 3)) == "winograd"
    assert kind(nn.Conv2d(8, 8, 3), 16) == "winograd_small"
    assert kind(nn.Conv2d(8, 8, 1)) == "conv"
    assert kind(nn.Conv2d(8, 8, 3, stride=2)) == "conv"
    assert kind(nn.Conv2d(8, 8, 3, groups=8)) == "conv"


class Wasteful(nn.Module):
    """Needs one product of eight: others are dropped, shared, or the same at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.dropped = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.left = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.dropped(x)
        constant = self.left @ self.left
        return self.used(x) + self.used(x) + constant.sum()


def test_work_that_a_compiler_may_leave_out_does_not_count() -> None:
    assert floor(Wasteful(), torch.randn(1, 8)).flops == {"matmul": 128.0}


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(1000, 4), nn.Linear(4, 2)
        self.unused = nn.Linear(9, 9)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.table(rows).mean(1))


def test_a_table_is_not_read_whole_and_what_is_unused_not_trained() -> None:
    model = Table()
    model.head.bias.requires_grad_(False)
    found = floor(model, torch.tensor([[1, 2, 3]]))
    assert found.read_bytes == 4 * (4 * 2 + 2)
    assert found.trainable_bytes == 4 * (4000 + 8)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_a_recurrence_reads_its_weight_at_each_step_after_the_first(
    kind: type[nn.RNNBase], gates: int
) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = kind(8, 192, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.cell(x)[0][:, -1]
            return out

    found = floor(Last(), torch.randn(1, 6, 8))
    assert found.repeated == ((4.0 * gates * 192 * 192, 4),)


def test_the_most_work_of_a_byte() -> None:
    conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)  # each weight is used at 16 places at most
    found = floor(nn.Sequential(conv, nn.Flatten(), nn.Linear(64, 3)), torch.randn(1, 2, 4, 4))
    inside = 10 * 10 / (3 * 3 * 4 * 4)  # of the taps
    assert found.most_flops_per_byte == pytest.approx(2 * 16 / 4 * inside)
    assert floor(nn.Linear(8, 4), torch.randn(1, 8)).most_flops_per_byte == 0.5

    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.T

    assert floor(Product(), torch.randn(3, 3)).most_flops_per_byte is None


def test_a_shared_layer_that_does_not_wait_for_itself_is_read_once() -> None:
    class Twice(nn.Module):
        def __init__(self, in_turn: bool) -> None:
            super().__init__()
            self.layer, self.in_turn = nn.Linear(256, 256), in_turn

        def forward(self, x: Tensor) -> Tensor:
            once: Tensor = self.layer(x)
            return once + self.layer(once if self.in_turn else x + 1)

    assert floor(Twice(False), torch.randn(1, 256)).repeated == ()
    assert floor(Twice(True), torch.randn(1, 256)).repeated == ((4.0 * 256 * 256, 1),)


def test_what_does_not_grow_with_the_batch() -> None:
    class Made(nn.Module):
        """Makes its weight from the batch's mean."""

        def __init__(self) -> None:
            super().__init__()
            self.maker = nn.Linear(8, 64, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.maker(x.mean(0, keepdim=True)).view(8, 8)

    found = floor(Made(), torch.randn(1, 8))
    assert found.flops == {"matmul": 2.0 * 8 * 64 + 128}
    assert found.more_flops == {"matmul": 128.0}


def test_causal_attention_is_half_and_narrow_types_are_told() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    found = floor(Attention(), torch.randn(1, 2, 6, 4))
    assert found.flops == {"attention": 0.5 * 2 * 2 * 6 * 6 * 8}
    assert floor(nn.Linear(8, 4).bfloat16(), torch.randn(1, 8).bfloat16()).narrow


def test_the_model_is_as_before() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    op_trace.record(model, (torch.randn(3, 4),))
    assert model[1].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_model_that_allows_less_precision_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Linear(8, 4), torch.randn(1, 8)
    assert not floor(layer, x).narrow
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert floor(layer, x).narrow
    monkeypatch.undo()
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    assert floor(layer, x).narrow


def test_products_of_few_rows_with_a_parameter() -> None:
    one = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2, bias=False))
    assert floor(one, torch.randn(1, 8)).thin == ((1, 64.0 + 16.0),)
    assert floor(one, torch.randn(1, 5, 8)).thin == ((5, 5 * 80.0),)
    assert floor(one, torch.randn(1, 33, 8)).thin == (), "as any other"
    gru = nn.GRU(6, 300, batch_first=True)
    found = dict(floor(gru, torch.randn(1, 4, 6)).thin)
    assert found.keys() == {1, 4}, "each step has one row a sample, the input's product all"


def test_products_of_many_samples_are_thin_only_where_a_second_sample_adds_rows() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.mean(0, keepdim=True)) + x

    assert floor(Table(), torch.randn(1, 4)).thin == ()
