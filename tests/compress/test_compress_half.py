"""16-bit steps: half the bytes, the runtime's precision, fp32 outputs; refused with figures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from autotune.compress import CompressTools, bf16, fp16
from autotune.errors import JobError
from autotune.forms import Form, module
from autotune.records.hardware import Gpu, Leaf
from autotune.runtimes import RuntimeSettings, _torch, eager, openvino
from tests.support import made, stages

SOURCE = """
from torch import nn

def make_model():
    return nn.Sequential(
        nn.Linear(6, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 64), nn.Linear(64, 3)
    )
"""
ROWS = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)


def model() -> nn.Module:
    return stages.made_from(SOURCE)


@pytest.fixture
def form(tmp_path: Path) -> Form:
    return stages.form(tmp_path / "given", model, 6, standalone=True)


def tools(workdir: Path) -> CompressTools:
    return stages.tools(workdir, model)


def test_bf16_halves_the_file_and_the_artifact_answers_in_fp32(form: Form, tmp_path: Path) -> None:
    half = bf16.apply(form, {}, tools(tmp_path / "half"))
    assert half.about.precision == "bf16"
    small, big = ((f.folder / module.WEIGHTS).stat().st_size for f in (half, form))
    assert small < 0.6 * big
    found = loaded(half, tmp_path / "artifact")(ROWS)
    with torch.no_grad():
        exact = model()(torch.from_numpy(ROWS)).numpy()
    assert found.dtype == np.float32
    error = np.abs(found - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.03  # it did compute in bf16


def loaded(form: Form, out: Path) -> Callable[[np.ndarray], np.ndarray]:
    out.mkdir()
    (form.folder / "model.py").write_text(SOURCE)
    eager.write(form, out, RuntimeSettings(threads=1, batch_size=1))
    threads, fast = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    predict: Callable[[np.ndarray], np.ndarray] = stages.loader(out).load()
    assert not torch.backends.mha.get_fastpath_enabled(), "autocast does not know its kernel"
    torch.set_num_threads(threads)
    torch.backends.mha.set_fastpath_enabled(fast)
    return predict


def test_what_is_kept_in_fp32_is_stored_and_computed_so(form: Form, tmp_path: Path) -> None:
    with torch.no_grad():
        exact = model()(torch.from_numpy(ROWS)).numpy()
    whole = bf16.apply(form, {"keep_fp32": "*"}, tools(tmp_path / "whole"))
    assert whole.about.exact == ("0", "1", "2", "3", "4")
    np.testing.assert_allclose(loaded(whole, tmp_path / "a")(ROWS), exact, atol=1e-6)
    part = bf16.apply(form, {"keep_fp32": "0, 4"}, tools(tmp_path / "part"))
    assert part.about.exact == ("0", "4")
    stored = load_file(part.folder / module.WEIGHTS)
    kinds = [stored[f"{i}.weight"].dtype for i in (0, 3, 4)]
    assert kinds == [torch.float32, torch.bfloat16, torch.float32]
    error = np.abs(loaded(part, tmp_path / "b")(ROWS) - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.03


def test_who_cannot_keep_layers_in_fp32_says_so(form: Form, tmp_path: Path) -> None:
    part = bf16.apply(form, {"keep_fp32": "0"}, tools(tmp_path / "part"))
    with pytest.raises(JobError, match="OpenVINO computes all layers in bf16"):
        openvino.write(part, tmp_path, RuntimeSettings(threads=1, batch_size=1))
    program = Form("program", part.folder, part.about)
    with pytest.raises(JobError, match="kept in fp32 only if the model"):
        _torch.loader(program)


def test_fp16_is_served_on_the_gpu(form: Form, tmp_path: Path) -> None:
    half = fp16.apply(form, {}, tools(tmp_path / "half"))
    with pytest.raises(JobError, match="fp16 is computed on GPUs only"):
        _torch.loader(half)
    text = _torch.loader(half, device="cuda")
    compile(text, "load.py", "exec")
    assert 'model.to("cuda")' in text
    assert 'torch.autocast("cuda", torch.float16)' in text


def test_weights_that_fp16_cannot_hold_are_refused(form: Form, tmp_path: Path) -> None:
    large = model()
    with torch.no_grad():
        large.get_parameter("0.weight")[0, 0] = 1e6
    module.save(large, model(), form.folder)
    with pytest.raises(JobError, match=r"0\.weight holds values outside the range of fp16"):
        fp16.apply(form, {}, tools(tmp_path / "half"))


def gpu(half: float, full: float) -> Gpu:
    leaves = {
        f"gemm_{name}_flop_per_s": Leaf(value=value, unit="FLOP/s", source="measured")
        for name, value in (("fp16", half), ("fp32", full))
    }
    return Gpu(index=0, name="made-up", memory_bytes=1 << 30, figures=leaves)


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        ((), "needs a GPU"),
        ((gpu(1e12, 4e12),), "fp16 GEMM 1e+03 GFLOP/s against fp32 4e+03 (0.25x)"),
        ((gpu(4e12, 1e12),), None),
    ],
)
def test_fp16_is_refused_with_the_figure_where_it_does_not_pay(
    gpus: tuple[Gpu, ...], words: str | None
) -> None:
    import msgspec

    context = made.context(on=msgspec.structs.replace(made.profile(), gpus=gpus))
    reason = fp16.unavailable(context)
    assert reason is None if words is None else words in (reason or "")
