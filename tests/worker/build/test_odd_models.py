"""Models that some tool cannot take: what works is built, the rest is refused in plain words."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_model

from autotune.errors import JobError
from autotune.records.job import Build
from autotune.records.plan import Recipe
from autotune.records.task import TaskSpec
from autotune.worker.build import build
from autotune.worker.channel import NullChannel
from autotune.worker.contract import task

HEAD = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def train_data():
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(60, 6, generator=g), torch.arange(60) % 3)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
"""
TAIL = """
def make_model():
    return Net()
"""
# torch.linalg.eigvalsh has no ONNX operator
NO_OPERATOR = """
    def forward(self, x):
        h = self.body(x)
        return self.head(torch.linalg.eigvalsh(h[:, :, None] * h[:, None, :]))
"""
BRANCH = """
    def forward(self, x):
        h = self.body(x)
        if h.sum() > 0:
            h = torch.relu(h)
        return self.head(h)
"""
LOOP = """
    def forward(self, x):
        h = self.body(x)
        while h.norm() > 1:
            h = h / 2
        return self.head(h)
"""
NUMPY = """
    def forward(self, x):
        return self.head(torch.from_numpy(self.body(x).detach().numpy()))
"""
OWN_GRADIENT = """
    def forward(self, x):
        return self.head(Square.apply(self.body(x)))

class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad
"""
TIED = """
        self.back = nn.Linear(8, 8)
        self.again = nn.Linear(8, 8)
        self.again.weight = self.back.weight

    def forward(self, x):
        return self.head(self.again(torch.tanh(self.back(self.body(x)))))
"""
BUFFERS = """
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.register_buffer("scale", torch.full((8,), 3.0))
        self.register_buffer("scratch", torch.ones(8), persistent=False)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.body(x))) * self.scale + self.scratch)
"""


class Odd:
    """One model in a user's file, its weights, and what each runtime makes of it."""

    def __init__(self, source: str, folder: Path) -> None:
        (folder / "odd.py").write_text(HEAD + source + TAIL)
        self.root = folder
        self.spec = TaskSpec(kind="file", path=str(folder / "odd.py"))
        torch.manual_seed(3)
        self.model = task.load(self.spec).make_model().eval()
        save_model(self.model, str(folder / "dense.safetensors"))
        self.rows = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)

    def build(self, runtime: str) -> np.ndarray:
        """The artifact's answer to four rows, by its own loader."""
        job = Build(
            task=self.spec,
            weights="dense.safetensors",
            compress=(),
            runtime=runtime,
            threads=1,
            batch_size=4,
            seed=0,
            recipe=Recipe(),
            recovery_epochs=0,
            out=f"builds/{runtime}",
        )
        built = build.run(job, self.root, NullChannel())
        path = self.root / built.artifact / "load.py"
        spec = importlib.util.spec_from_file_location("odd_load", path)
        loader = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loader)
        answer = loader.load()(self.rows)
        assert isinstance(answer, np.ndarray)
        return answer

    def refusal(self, runtime: str) -> str:
        with pytest.raises(JobError) as found:
            self.build(runtime)
        assert found.value.kind == "unsupported"
        assert found.value.never == ("onnx" if runtime == "onnxruntime" else None)
        return str(found.value)

    def check(self, runtime: str) -> None:
        with torch.no_grad():
            expected = self.model(torch.from_numpy(self.rows)).numpy()
        np.testing.assert_allclose(self.build(runtime), expected, atol=1e-4)


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("source", [OWN_GRADIENT, TIED, BUFFERS])
def test_it_is_built_for_every_form(source, tmp_path):
    odd = Odd(source, tmp_path)
    odd.check("eager")
    odd.check("onnxruntime")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (NO_OPERATOR, ("no ONNX operator", "linalg_eigh", "eager")),
        (BRANCH, ("depends on the values", "torch.cond", "eager")),
        (LOOP, ("depends on the values", "torch.cond", "eager")),
    ],
    ids=["operator", "branch", "loop"],
)
def test_what_cannot_be_exported_runs_eagerly_and_the_refusal_says_what_and_why(
    source, words, tmp_path
):
    odd = Odd(source, tmp_path)
    odd.check("eager")
    found = odd.refusal("onnxruntime")
    for word in words:
        assert word in found


@pytest.mark.parametrize(
    ("source", "words"),
    [(BRANCH, "line 17: `if h.sum() > 0:`"), (NUMPY, "converts tensors to numpy")],
)
def test_ahead_of_time_compilation_refuses_with_the_same_reason(source, words, tmp_path):
    assert words in Odd(source, tmp_path).refusal("aoti")


def test_numpy_within_a_model_is_followed_by_the_onnx_exporter(tmp_path):
    odd = Odd(NUMPY, tmp_path)
    odd.check("eager")
    odd.check("onnxruntime")
