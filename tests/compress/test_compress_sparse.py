"""2:4 sparsity: what goes, what recovery keeps at zero, who is offered it, how it is loaded."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from autotune.compress import CompressTools, sparse_fp16
from autotune.errors import JobError
from autotune.forms import Form, module
from autotune.records.hardware import Gpu, Leaf
from autotune.records.job import Context
from autotune.runtimes import RuntimeSettings, cuda_eager
from tests.support import made, stages

SOURCE = """
from torch import nn

def make_model():
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.Linear(64, 3))
"""
ROWS = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)


def model() -> nn.Module:
    return stages.made_from(SOURCE)


@pytest.fixture
def form(tmp_path: Path) -> Form:
    return stages.form(tmp_path / "given", model, 64, standalone=True)


def recover(network: nn.Module) -> float:
    """One step that moves every weight."""
    rule = torch.optim.SGD(network.parameters(), lr=0.1)
    network(torch.from_numpy(ROWS)).square().sum().backward()
    rule.step()
    return 2.5


def tools(workdir: Path) -> CompressTools:
    return stages.tools(workdir, model, recover)


def test_the_two_largest_of_each_four_stay() -> None:
    weight = torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.5, 0.1, -0.2, 0.3]])
    assert sparse_fp16.two_of_four(weight).tolist() == [[0, 1, 1, 0, 1, 0, 0, 1]]


def test_recovery_moves_the_weights_and_not_the_zeros(form: Form, tmp_path: Path) -> None:
    given = model().get_parameter("0.weight")
    done = sparse_fp16.apply(form, {}, tools(tmp_path / "done"))
    assert (done.about.precision, done.about.sparse, done.about.recovery_s) == ("fp16", True, 2.5)
    weights = module.load(model(), done.folder)
    first, second, last = (weights.get_parameter(f"{i}.weight") for i in (0, 2, 3))
    assert ((first.reshape(-1, 4) != 0).sum(1) == 2).all()
    assert not torch.equal(first[first != 0], given.half().float()[first != 0])
    assert bool((second != 0).all())  # 96 inputs are none of 64 n
    assert bool((last != 0).all())  # nor 3 outputs of 32 n


def test_what_is_kept_in_fp32_is_not_cut(form: Form, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no Linear layer has 32n outputs and 64n inputs"):
        sparse_fp16.apply(form, {"keep_fp32": "0"}, tools(tmp_path / "done"))


def test_the_loader_makes_them_sparse_where_the_kernels_take_them(
    form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = sparse_fp16.apply(form, {}, tools(tmp_path / "done"))
    (done.folder / "model.py").write_text(SOURCE)
    out = tmp_path / "artifact"
    out.mkdir()
    cuda_eager.write(done, out, RuntimeSettings(threads=torch.get_num_threads(), batch_size=1))
    text = (out / "load.py").read_text()
    (out / "load.py").write_text(text.replace('"cuda"', '"cpu"'))
    seen: list[tuple[int, ...]] = []

    def sparse(weight: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(weight.shape))
        return weight

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", sparse)
    found = stages.loader(out).load()(ROWS)
    assert seen == [(96, 64)]
    with torch.no_grad():
        exact = module.load(model(), done.folder)(torch.from_numpy(ROWS)).numpy()
    np.testing.assert_allclose(found, exact, atol=2e-2 * np.abs(exact).max())


def context(capability: str | None, half: float = 4e12, **types: int) -> Context:
    figures = {
        f"gemm_{name}_flop_per_s": Leaf(value=value, unit="FLOP/s", source="measured")
        for name, value in (("fp16", half), ("fp32", 1e12))
    }
    gpus = (
        ()
        if capability is None
        else (
            Gpu(index=0, name="m", memory_bytes=1, compute_capability=capability, figures=figures),
        )
    )
    on = msgspec.structs.replace(made.profile(), gpus=gpus)
    return made.context(of=made.traits(module_types=types or {"Linear": 2}), on=on)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (context(None), "needs an NVIDIA GPU of compute capability 8.0"),
        (context("7.5"), "capability 8.0, this one has 7.5"),
        (context("8.6", Conv2d=3), "no Linear layer"),
        (context("8.6", half=5e11), "slower here"),
        (context("10.0"), None),
    ],
)
def test_it_is_offered_where_it_can_pay(asked: Context, words: str | None) -> None:
    reason = sparse_fp16.unavailable(asked)
    assert reason is None if words is None else words in (reason or "")


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_sparse_weight_multiplies_as_its_dense_self() -> None:
    weight = torch.randn(128, 128, device="cuda", dtype=torch.float16)
    weight *= sparse_fp16.two_of_four(weight)
    rows = torch.randn(64, 128, device="cuda", dtype=torch.float16)
    dense = torch.nn.functional.linear(rows, weight)
    sparse = torch.sparse.to_sparse_semi_structured(weight)
    found = torch.nn.functional.linear(rows, sparse)
    torch.testing.assert_close(found, dense, rtol=1e-2, atol=1e-2)
