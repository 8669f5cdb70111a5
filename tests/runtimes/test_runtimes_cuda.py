"""The runtimes on a GPU: their loaders' text anywhere, what they compute where there is one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from autotune import plugins
from autotune.compress import CompressTools, bf16, fp16, tf32
from autotune.errors import JobError
from autotune.forms import Form, changed, exported, flat, module
from autotune.records.hardware import Gpu, Leaf
from autotune.runtimes import RuntimeSettings, _torch
from tests.support import made, stages

NAMES = ("cuda_eager", "cuda_graphs", "cuda_compiled")
ABOUT = stages.interface(64, standalone=True)
pytestmark = pytest.mark.filterwarnings("ignore")  # of a PyTorch that is not pinned here
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SOURCE = """
from torch import nn

def make_model():
    return nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, 32))
"""
ROWS = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, 32)
    ).eval()


@pytest.fixture(autouse=True)
def _as_it_was():
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.set_num_threads(before[1])


@pytest.fixture
def form(tmp_path: Path) -> Form:
    folder = tmp_path / "module"
    folder.mkdir()
    (folder / "model.py").write_text(SOURCE)
    module.save(model(), model(), folder)
    return Form("module", folder, ABOUT)


def gpu(**rates: float) -> Gpu:
    figures = {
        f"gemm_{name}_flop_per_s": Leaf(value=value, unit="FLOP/s", source="measured")
        for name, value in rates.items()
    }
    return Gpu(index=0, name="made up", memory_bytes=1 << 30, figures=figures)


def context(*gpus: Gpu, types: dict[str, int] | None = None):
    on = msgspec.structs.replace(made.profile(), gpus=gpus)
    return made.context(of=made.traits(module_types=types or {"Linear": 2}), on=on)


@pytest.mark.parametrize("name", NAMES)
def test_they_need_a_gpu_and_say_so(name: str) -> None:
    plugin = plugins.load("runtimes", name)
    assert "needs a GPU that PyTorch computes on" in plugin.unavailable(context())
    assert plugin.DEVICE == "cuda"
    if name != "cuda_compiled":
        assert plugin.unavailable(context(gpu(fp32=1e12))) is None
    assert plugin.dims(context(gpu(fp32=1e12))) == ()
    (layout,) = plugin.dims(context(gpu(fp32=1e12), types={"Conv2d": 1}))
    assert layout.name == "channels_last"


def test_a_precision_is_offered_to_the_device_on_which_it_pays() -> None:
    slow, fast = gpu(fp32=2e12, bf16=1e12, tf32=1e12), gpu(fp32=1e12, bf16=4e12, tf32=3e12)
    assert bf16.unavailable(context(fast)) is None
    assert set(NAMES) <= set(bf16.runtimes(context(fast)))
    assert not set(NAMES) & set(bf16.runtimes(context(slow)))
    half = made.profile(
        measured={
            f"gemm_{kind}_1t_flop_per_s": Leaf(value=value, unit="FLOP/s", source="measured")
            for kind, value in (("fp32", 2e11), ("bf16", 1e11))
        }
    )
    here = "bf16 GEMM 100 GFLOP/s against fp32 200 (0.5x)"  # the processor's own figure
    assert here in str(bf16.unavailable(made.context(on=half)))
    both = str(bf16.unavailable(made.context(on=msgspec.structs.replace(half, gpus=(slow,)))))
    assert here in both
    assert "on the GPU: slower here" in both
    assert "0.5x" in str(tf32.unavailable(context(slow)))
    assert tf32.unavailable(context(fast)) is None
    assert "needs a GPU" in str(tf32.unavailable(context()))


@pytest.mark.parametrize("kind", ["module", "program"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("way", ["eager", "graphs", "compiled"])
def test_every_text_is_python_and_says_what_it_does(way, precision: str, kind: str) -> None:
    form = Form(kind, Path(), changed(ABOUT, precision=precision))
    text = _torch.loader(form, way, device="cuda")
    compile(text, "load.py", "exec")
    assert ('torch.set_float32_matmul_precision("high")' in text) == (precision == "tf32")
    assert ("torch.cuda.graph(graph)" in text) == (way == "graphs")
    assert ("torch.compile" in text) == (way == "compiled")
    assert ('torch.autocast("cuda"' in text) == (precision in ("bf16", "fp16"))
    assert ("cache_enabled=False" in text) == (precision in ("bf16", "fp16") and way == "graphs")
    assert ("move_to_device_pass" if kind == "program" else 'model.to("cuda")') in text
    assert "_keep_freed_memory" not in text  # of a processor's calls


def test_what_cannot_be_had_is_refused() -> None:
    ragged = Form("module", Path(), changed(ABOUT, ragged=True))
    with pytest.raises(JobError, match="many shapes would need a CUDA graph for each"):
        _torch.loader(ragged, "graphs", device="cuda")
    with pytest.raises(JobError, match="tf32 is computed on GPUs only"):
        _torch.loader(Form("module", Path(), changed(ABOUT, precision="tf32")))


def tools(folder: Path) -> CompressTools:
    return stages.tools(folder, model)


def loaded(form: Form, out: Path, name: str) -> Callable[..., np.ndarray]:
    out.mkdir()
    plugins.load("runtimes", name).write(form, out, RuntimeSettings(threads=1, batch_size=2))
    return stages.loader(out).load()


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_they_give_the_models_outputs(
    name: str, precision: str, form: Form, tmp_path: Path
) -> None:
    if reason := plugins.load("runtimes", name).unavailable(None):
        pytest.skip(reason)
    step = {"tf32": tf32, "bf16": bf16, "fp16": fp16}.get(precision)
    if step is not None:
        form = step.apply(form, {}, tools(tmp_path / precision))
        shutil.copyfile(tmp_path / "module" / "model.py", form.folder / "model.py")
    predict = loaded(form, tmp_path / "out", name)
    exact = {"fp32": 1e-5, "tf32": 5e-3, "bf16": 5e-2, "fp16": 1e-2}[precision]
    for rows in (ROWS, ROWS[:2], ROWS, -ROWS):  # a graph is replayed on other rows
        with torch.no_grad():
            expected = model()(torch.from_numpy(rows)).numpy()
        found = predict(rows)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=exact)
    first = predict(ROWS)
    kept = first.copy()
    predict(-ROWS)
    np.testing.assert_array_equal(first, kept)  # an answer is the caller's own


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("name", ["cuda_eager", "cuda_graphs"])
def test_a_program_moves_with_what_it_makes(name: str, tmp_path: Path) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + torch.arange(8, device=x.device)

    whole = Shifted().eval()
    folder = tmp_path / "program"
    folder.mkdir()
    wrapped = flat.Flat(whole, "tensor", ("input",)).eval()
    exported.save(
        exported.trace(wrapped, [torch.from_numpy(ROWS)], dynamic=False), folder / exported.PROGRAM
    )
    form = Form("program", folder, changed(ABOUT, batch_size=3))
    predict = loaded(form, tmp_path / "out", name)
    with torch.no_grad():
        expected = whole(torch.from_numpy(ROWS)).numpy()
    np.testing.assert_allclose(predict(ROWS), expected, atol=1e-5)
