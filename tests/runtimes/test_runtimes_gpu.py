"""What is for a GPU: loaders with fakes of its libraries; the real thing where there is one."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from autotune.errors import JobError
from autotune.forms import Form, Interface, changed
from autotune.records.hardware import Gpu
from autotune.runtimes import RuntimeSettings, _torch, tensorrt
from tests.support import made, stages

ABOUT = stages.interface(6, standalone=True)
ROWS = np.ones((2, 6), np.float32)


class Session:
    """Doubles its input; remembers how it was made."""

    made: list[dict[str, Any]] = []
    there: tuple[str, ...] = ("TensorrtExecutionProvider", "CUDAExecutionProvider")

    def __init__(self, path: str, options: Any, providers: list[Any]) -> None:
        self.made.append({"path": path, "providers": providers})

    def get_providers(self) -> list[str]:
        return list(self.there)

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="input")]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="output")]

    def run(self, names: list[str], feed: dict[str, Any], options: Any) -> list[Any]:
        assert options is None
        return [2 * feed["input"] for _ in names]


def fake(monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...]) -> None:
    library: Any = ModuleType("onnxruntime")
    library.InferenceSession = Session
    library.SessionOptions = SimpleNamespace
    library.ExecutionMode = SimpleNamespace(ORT_SEQUENTIAL=0)
    library.GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_ALL=99)
    library.get_available_providers = lambda: list(there)
    monkeypatch.setitem(sys.modules, "onnxruntime", library)
    monkeypatch.setattr(Session, "there", there)
    monkeypatch.setattr(Session, "made", [])


def artifact(folder: Path, about: Interface) -> Any:
    form = folder / "form"
    form.mkdir()
    (form / "model.onnx").write_bytes(b"graph")
    out = folder / "artifact"
    out.mkdir()
    tensorrt.write(Form("onnx", form, about), out, RuntimeSettings(threads=2, batch_size=1))
    return stages.loader(out)


@pytest.mark.parametrize(("precision", "half", "tf32"), [("fp32", False, "0"), ("fp16", True, "1")])
def test_tensorrt_is_asked_for_the_plans_precision(
    precision: str, half: bool, tf32: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, Session.there)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    loader = artifact(tmp_path, changed(ABOUT, precision=precision))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", tf32)  # and taken away again afterwards
    np.testing.assert_array_equal(loader.load()(ROWS), 2 * ROWS)
    assert Session.made[0]["providers"] == [
        ("TensorrtExecutionProvider", {"trt_fp16_enable": half}),
        "CUDAExecutionProvider",
    ]
    text = (tmp_path / "artifact" / "load.py").read_text()
    assert f'os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "{tf32}")' in text


def test_tensorrt_never_falls_back_to_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, ("CPUExecutionProvider",))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    loader = artifact(tmp_path, ABOUT)
    with pytest.raises(RuntimeError, match="TensorRT could not be loaded here"):
        loader.load()


def test_tensorrt_refuses_what_it_cannot_hold_to(tmp_path: Path) -> None:
    for about in (changed(ABOUT, precision="bf16"), changed(ABOUT, exact=("head",))):
        form = Form("onnx", tmp_path, about)
        with pytest.raises(JobError, match="chooses the precision of each layer by itself"):
            tensorrt.write(form, tmp_path, RuntimeSettings(threads=1, batch_size=1))


def test_tensorrt_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tensorrt.unavailable(made.context()) == "needs an NVIDIA GPU"
    gpu = Gpu(index=0, name="made up", memory_bytes=1 << 30, compute_capability="8.0")
    context = made.context(on=msgspec.structs.replace(made.profile(), gpus=(gpu,)))
    fake(monkeypatch, ("CPUExecutionProvider",))
    assert "pip install autotune-torch[tensorrt]" in str(tensorrt.unavailable(context))
    fake(monkeypatch, ("TensorrtExecutionProvider", "CPUExecutionProvider"))
    assert tensorrt.unavailable(context) is None


def test_compiled_code_on_a_gpu_is_one_graph_a_call() -> None:
    def text(device: str = "cuda", **about: Any) -> str:
        form = Form("module", Path(), changed(ABOUT, **about))
        made = _torch.loader(form, "compiled", device=device)
        compile(made, "load.py", "exec")
        return made

    graphs = 'torch.compile(model, mode="reduce-overhead")'
    assert graphs in text(precision="fp16")
    assert graphs not in text("cpu", precision="bf16")
    assert graphs not in text(precision="fp16", ragged=True)  # a graph for each shape


@pytest.mark.gpu
def test_tensorrt_gives_the_models_outputs(tmp_path: Path) -> None:
    if reason := tensorrt.unavailable(None):
        pytest.skip(reason)
    import torch

    from autotune.forms import flat, onnx_file

    model = torch.nn.Linear(6, 3).eval()
    form = tmp_path / "real"
    form.mkdir()
    wrapped = flat.Flat(model, "tensor", ("input",)).eval()
    names = (("input",), ("output",))
    onnx_file.export(wrapped, [torch.ones(2, 6)], form / "model.onnx", names, dynamic=True)
    out = tmp_path / "artifact"
    out.mkdir()
    tensorrt.write(Form("onnx", form, ABOUT), out, RuntimeSettings(threads=1, batch_size=2))
    expected = model(torch.from_numpy(ROWS)).detach().numpy()
    np.testing.assert_allclose(stages.loader(out).load()(ROWS), expected, atol=1e-4)
