"""Traits without weights: transformers are found by what they do, not by their names."""

import pytest
import torch
from torch import nn

from autotune.errors import JobError
from autotune.records.job import Outline
from autotune.records.task import TaskSpec
from autotune.worker.channel import NullChannel
from autotune.worker.survey import meta_inspect
from autotune.worker.survey.model_stats import count


@pytest.fixture
def outlined(tmp_path):
    def run(path, *args):
        spec = TaskSpec(kind="file", path=str(path), args=args)
        return meta_inspect.run(Outline(task=spec), tmp_path, NullChannel())

    return run


def test_the_example_at_its_default(outlined, examples):
    found = outlined(examples / "transformer_lm.py")
    shape = found.traits.transformer
    assert found.notes == ()
    assert (shape.layers, shape.hidden, shape.sequence, shape.heads) == (2, 64, 32, 4)
    assert shape.vocabulary == 64
    assert shape.fused_attention
    block = 2 * (12 * 64**2 + 13 * 64)
    assert shape.block_parameters == block
    assert found.traits.parameters == block + (64 + 32 + 64) * 64 + 2 * 64
    scored = 2 * 4 * 64 * 32**2
    assert shape.attention_flops_per_sample == scored
    assert shape.block_flops_per_sample == 2 * 2 * 12 * 64**2 * 32 + scored
    assert found.traits.flops_per_sample == shape.block_flops_per_sample + 2 * 32 * 64 * 64


def test_seventy_billion_parameters_take_no_memory(outlined, examples):
    wide = ("--hidden=8192", "--heads=64", "--kv-heads=8", "--ffn=28672", "--gated")
    long = ("--layers=80", "--vocabulary=32000", "--sequence=4096")
    found = outlined(examples / "transformer_lm.py", *wide, *long)
    assert 68e9 < found.traits.parameters < 70e9
    assert found.traits.transformer.layers == 80
    assert found.notes == ()


def test_counts_agree_with_the_real_model(outlined, examples):
    found = outlined(examples / "digits_cnn.py").traits
    assert found.transformer is None
    assert found.parameters > 0
    assert found.op_calls


def test_a_model_that_looks_at_values_is_made_in_full(outlined, tmp_path):
    path = tmp_path / "values.py"
    path.write_text(MODEL)
    found = outlined(path)
    assert found.traits.parameters == 5
    assert "cannot be traced without its weights" in found.notes[0]


def test_one_that_would_not_fit_is_refused(outlined, tmp_path, monkeypatch):
    path = tmp_path / "values.py"
    path.write_text(MODEL)
    monkeypatch.setattr(meta_inspect, "_SHARE", 0.0)
    with pytest.raises(JobError, match="cannot be traced without them"):
        outlined(path)


MODEL = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 1)
    def forward(self, x):
        return self.inner(x) if x.sum().item() > 0 else self.inner(-x)
def make_model():
    return Net()
def train_data():
    return torch.utils.data.TensorDataset(torch.ones(20, 4), torch.ones(20, 1))
"""


class Plain(nn.Module):
    """Attention that keeps its scores."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(x).view(x.shape[0], x.shape[1], 3, 2, 8).permute(2, 0, 3, 1, 4)
        scores = (parts[0] @ parts[1].transpose(-1, -2)).softmax(-1)
        return x + (scores @ parts[2]).transpose(1, 2).flatten(2)


def test_attention_with_scores_is_found_by_its_softmax():
    shape = count(nn.Sequential(Plain(), Plain(), Plain()), (torch.randn(1, 6, 16),)).transformer
    assert shape is not None
    assert (shape.layers, shape.hidden, shape.sequence, shape.heads) == (3, 16, 6, 2)
    assert not shape.fused_attention
    assert shape.vocabulary is None
    assert shape.block_parameters == 3 * (16 * 48 + 48)
    assert shape.attention_flops_per_sample == 3 * 4 * 16 * 6**2


def test_pytorchs_encoder_is_one():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    shape = count(encoder, (torch.randn(1, 5, 16),)).transformer
    assert shape is not None
    assert (shape.layers, shape.hidden, shape.sequence) == (2, 16, 5)
    assert shape.fused_attention


def test_a_stack_without_attention_is_none():
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)]
    assert count(nn.Sequential(*blocks), (torch.randn(1, 8),)).transformer is None


def test_attention_is_as_it_was_afterwards():
    before = nn.functional.scaled_dot_product_attention
    count(nn.Sequential(Plain(), Plain()), (torch.randn(1, 6, 16),))
    assert nn.functional.scaled_dot_product_attention is before


class Windows(Plain):
    """Attention inside windows of four."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.reshape(-1, 4, 16)).reshape(x.shape)


def test_windowed_attention_is_planned_as_another_model():
    assert count(nn.Sequential(Windows(), Windows()), (torch.randn(1, 8, 16),)).transformer is None


def test_attention_in_a_small_part_of_a_model_is_none():
    model = nn.Sequential(nn.Sequential(Plain(), Plain()), nn.Linear(16, 4096))
    assert count(model, (torch.randn(1, 6, 16),)).transformer is None
