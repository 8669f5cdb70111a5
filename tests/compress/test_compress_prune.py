"""Structured pruning reaches its share of operations and leaves the output alone."""

import pytest
import torch
from torch import nn

from autotune.compress._prune import channels, importance
from autotune.errors import JobError
from autotune.forms.flat import Flat, flops
from autotune.forms.module import load, parameters, save, ties


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 16, 40),
        nn.ReLU(),
        nn.Linear(40, 10),
    )


class Pair(nn.Module):
    """A tuple in, a tuple out; a residual ties widths together."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 64), nn.Linear(4, 64)
        self.middle = nn.Linear(64, 64)
        self.classes, self.size = nn.Linear(64, 5), nn.Linear(64, 1)

    def forward(self, a, b):
        h = torch.relu(self.left(a) + self.right(b))
        h = h + torch.relu(self.middle(h))
        return self.classes(h), self.size(h)


class Words(nn.Module):
    """Token ids in a dict, embeddings tied to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.hidden = nn.Linear(16, 96)
        self.back = nn.Linear(96, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids, mask):
        h = self.embed(ids) * mask[..., None]
        return {"logits": self.head(h + self.back(torch.relu(self.hidden(h))))}


def flat_cnn() -> tuple[Flat, tuple[torch.Tensor, ...]]:
    return Flat(cnn().eval(), "tensor", ("input",)), (torch.randn(1, 1, 8, 8),)


def flat_pair() -> tuple[Flat, tuple[torch.Tensor, ...]]:
    return Flat(Pair().eval(), "tuple", ("a", "b")), (torch.randn(1, 6), torch.randn(1, 4))


def flat_words() -> tuple[Flat, tuple[torch.Tensor, ...]]:
    ids, mask = torch.randint(0, 50, (1, 7)), torch.ones(1, 7)
    return Flat(Words().eval(), "dict", ("ids", "mask")), (ids, mask)


def flat_transformer() -> tuple[Flat, tuple[torch.Tensor, ...]]:
    layer = nn.TransformerEncoderLayer(16, 4, 64, batch_first=True)
    model = nn.Sequential(
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3)
    )
    return Flat(model.eval(), "tensor", ("input",)), (torch.randn(1, 6, 16),)


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("make", [flat_cnn, flat_pair])
def test_the_share_of_operations_is_met(make, kept):
    torch.manual_seed(0)
    model, inputs = make()
    before = parameters(model)
    pruned = channels.prune(model, inputs, kept)
    share = flops(lambda: pruned(*inputs)) / flops(lambda: model(*inputs))
    assert abs(share - kept) <= 0.05
    assert parameters(pruned) < before == parameters(model)
    assert [o.shape for o in pruned(*inputs)] == [o.shape for o in model(*inputs)]


def test_dead_units_go_one_by_one():
    """Two thirds of the model's units matter alike, not at all: a level between is still met."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU())
    model.append(nn.Linear(96, 4))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[:64] = 0
            layer.bias[:64] = 0
        model[2].weight[:, :64] = model[4].weight[:, :64] = 0
    inputs = (torch.randn(2, 64),)
    flat = Flat(model.eval(), "tensor", ("input",))
    pruned = channels.prune(flat, inputs, 0.6)
    assert abs(flops(lambda: pruned(*inputs)) / flops(lambda: flat(*inputs)) - 0.6) <= 0.05
    torch.testing.assert_close(pruned(*inputs), flat(*inputs))  # nothing that matters went


def test_the_same_model_is_pruned_the_same_way():
    torch.manual_seed(0)
    model, inputs = flat_cnn()
    first, second = (channels.prune(model, inputs, 0.4) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_a_pruned_model_comes_back_through_its_structure(tmp_path):
    model, inputs = flat_cnn()
    pruned = channels.prune(model, inputs, 0.5).model
    save(pruned, cnn(), tmp_path)
    again = load(cnn(), tmp_path)
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(again(x), pruned(x))


def test_ties_and_token_ids_survive_pruning():
    model, inputs = flat_words()
    pruned = channels.prune(model, inputs, 0.7)
    assert ties(pruned) == ties(model)
    assert pruned(*inputs)[0].shape == (1, 7, 50)


def test_attention_keeps_its_width_and_the_rest_is_pruned():
    model, inputs = flat_transformer()
    pruned = channels.prune(model, inputs, 0.6)
    encoder = pruned.model[0].layers[0]
    assert encoder.self_attn.embed_dim == 16
    assert encoder.linear1.out_features < 64
    with torch.inference_mode():
        assert pruned(*inputs)[0].shape == (1, 6, 3)


class Reshapes(nn.Module):
    """Heads with a fixed width beside layers that may be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(8, 32), nn.Linear(8, 32)
        self.wide, self.head = nn.Linear(8, 64), nn.Linear(64, 2)

    def forward(self, x):
        heads = self.inside(x).view(len(x), 4, 8) * self.outside(x).view(len(x), 4, 8)
        return self.head(torch.relu(self.wide(heads.sum(1))))


def test_layers_that_a_reshape_fixes_are_left_and_the_rest_is_pruned():
    model = Flat(Reshapes().eval(), "tensor", ("input",))
    pruned = channels.prune(model, (torch.randn(1, 8),), 0.7)
    assert pruned.model.inside.out_features == 32
    assert pruned.model.wide.out_features < 64


class OnlyFixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 32), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.first(x).view(len(x), 4, 8).sum(1))


@pytest.mark.parametrize("make", [OnlyFixed, lambda: nn.Linear(8, 3)])
def test_what_cannot_be_pruned_is_unsupported_with_a_reason(make):
    model = Flat(make().eval(), "tensor", ("input",))
    with pytest.raises(JobError, match="prun") as found:
        channels.prune(model, (torch.randn(1, 8),), 0.5)
    assert found.value.kind == "unsupported"


class Bound(nn.Module):
    """Nearly all operations are in the layer that makes the output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 2), nn.Linear(2, 64), nn.Linear(64, 64)

    def forward(self, x):
        return self.head(x + self.second(self.first(x)))


def test_a_level_out_of_reach_says_what_is_the_least():
    model = Flat(Bound().eval(), "tensor", ("input",))
    with pytest.raises(JobError, match=r"cannot reach macs_kept 0.3: 0.9\d is the least"):
        channels.prune(model, (torch.randn(1, 64),), 0.3)


def test_frozen_layers_are_pruned_too_and_stay_frozen():
    model, inputs = flat_cnn()
    model.model[0].requires_grad_(False)
    pruned = channels.prune(model, inputs, 0.5)
    assert parameters(pruned) < parameters(model)
    flags = [p.requires_grad for p in pruned.parameters()]
    assert flags == [p.requires_grad for p in model.parameters()]


class Attention(nn.Module):
    """As those of transformers: the width of a head is fixed, their number follows."""

    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = 4, 8, 32
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.dense = nn.Linear(32, 32)

    def forward(self, x):
        q, k, v = (
            layer(x).view(len(x), x.shape[1], -1, self.attention_head_size).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.dense(y.transpose(1, 2).flatten(2))


def encoder() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 32), Attention(), nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 3)
    )


def test_attention_loses_whole_heads_and_comes_back_through_its_structure(tmp_path):
    torch.manual_seed(0)
    model = Flat(encoder().eval(), "tensor", ("input",))
    pruned = channels.prune(model, (torch.randn(1, 5, 6),), 0.4).model
    attention = pruned[1]
    assert attention.num_attention_heads < 4
    assert attention.attention_head_size == 8
    assert attention.query.out_features == attention.all_head_size
    assert attention.all_head_size == 8 * attention.num_attention_heads
    save(pruned, encoder(), tmp_path)
    x = torch.randn(2, 5, 6)
    assert torch.equal(load(encoder(), tmp_path)(x), pruned(x))


def test_what_the_outputs_do_not_need_goes_first():
    """Taylor sees that a channel is never heard, whatever the size of its weights."""
    torch.manual_seed(0)
    model, inputs = flat_cnn()
    first, second = model.model[0], model.model[3]
    with torch.no_grad():
        first.weight[:12] *= 50
        second.weight[:, :12] = 0
    batches = [(torch.randn(8, 1, 8, 8),) for _ in range(4)]
    gates = importance.gates(model, batches, 0)
    assert float(gates["model.3"][:12].max()) == 0.0 < float(gates["model.3"][12:].min())
    costs = importance.costs(model, inputs)
    assert sum(costs.values()) == pytest.approx(flops(lambda: model(*inputs)))
    rank = importance.Importance("taylor", costs, gates)
    pruned = channels.prune(model, inputs, 0.6, rank)
    x = torch.randn(4, 1, 8, 8)
    by_size = channels.prune(model, inputs, 0.6)
    with torch.no_grad():
        lost, other = ((p(x)[0] - model(x)[0]).square().mean() for p in (pruned, by_size))
    assert lost < 0.5 * other


@pytest.mark.parametrize("kind", importance.NAMES)
def test_convolutions_in_groups_keep_like_groups(kind):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.Conv2d(32, 32, 3, groups=4),
        nn.BatchNorm2d(32),
        nn.Conv2d(32, 32, 1, groups=32),
        nn.Flatten(),
        nn.Linear(32 * 16, 3),
    )
    model, inputs = Flat(net.eval(), "tensor", ("input",)), (torch.randn(2, 1, 8, 8),)
    gates = importance.gates(model, [inputs], 0)
    rank = importance.Importance(kind, importance.costs(model, inputs), gates)
    pruned = channels.prune(model, inputs, 0.5, rank).model
    assert pruned[1].out_channels % 4 == pruned[1].in_channels % 4 == 0
    assert pruned[3].groups == pruned[3].out_channels == pruned[3].in_channels
    assert parameters(pruned) < parameters(net)


class Mixer(nn.Module):
    """Layers over tokens and over channels by turns: torch-pruning takes one for the other."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(1, 48, 2, 2), nn.LayerNorm(48)
        self.tokens = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
        self.channels = nn.Sequential(nn.Linear(48, 256), nn.GELU(), nn.Linear(256, 48))
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(x)).mean(1))


def test_channels_that_there_are_not_leave_their_layer_whole():
    inputs = (torch.randn(1, 1, 8, 8),)
    pruned = channels.prune(Flat(Mixer().eval(), "tensor", ("input",)), inputs, 0.7)
    assert pruned.model.patch.out_channels == 48
    assert pruned.model.channels[0].out_features < 256
    with torch.inference_mode():
        assert pruned(*inputs)[0].shape == (1, 10)
