"""Runtime ``tensorrt``: NVIDIA's TensorRT on a GPU, as an execution provider of ONNX Runtime.

    model.onnx --engine, built when loaded--> TensorRT; unsupported operators: CUDA

ONNX Runtime silently falls back to the CPU where a provider cannot be loaded; the loader raises
instead.  Engines are not cached: each start builds one, which takes seconds to minutes.  Int8 is
not offered: our graphs have unsigned activations, TensorRT needs signed ones.  Written from the
documentation of both libraries and not yet run on a GPU.
"""

from pathlib import Path

from autotune.errors import DISTRIBUTION, JobError
from autotune.forms import Form
from autotune.records.job import Context
from autotune.records.task import Dim
from autotune.runtimes import RuntimeSettings, _artifact, onnxruntime

DEVICE = "cuda"
TAKES = "onnx"
_PROVIDER = "TensorrtExecutionProvider"
_NEEDS = ("onnx", "onnxscript")
_INSTALL = f"`pip uninstall onnxruntime && pip install {DISTRIBUTION}[tensorrt]`"
"""onnxruntime and onnxruntime-gpu overwrite each other, so one is removed first."""

_SESSION = """\
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "TF32")  # 0: fp32 without tf32
    engine = {"trt_fp16_enable": FP16}
    providers = [("TensorrtExecutionProvider", engine), "CUDAExecutionProvider"]
    session = ort.InferenceSession(str(HERE / "model.onnx"), options, providers=providers)
    if session.get_providers()[0] != "TensorrtExecutionProvider":
        raise RuntimeError("TensorRT could not be loaded here, and this model was tuned for it")
"""


def unavailable(context: Context | None) -> str | None:
    """Needs an NVIDIA GPU, and an ONNX Runtime that was built with TensorRT."""
    gpus = context.profile.gpus if context is not None else ()
    if context is not None and not any(gpu.compute_capability for gpu in gpus):
        return "needs an NVIDIA GPU"
    if missing := _artifact.missing(_NEEDS, "onnx"):
        return missing
    return None if _PROVIDER in providers() else f"needs TensorRT in ONNX Runtime: {_INSTALL}"


def providers() -> list[str]:
    """The execution providers of the installed ONNX Runtime; empty without it."""
    try:
        import onnxruntime as ort
    except ImportError:
        return []
    found: list[str] = ort.get_available_providers()
    return found


def dims(context: Context) -> tuple[Dim, ...]:
    """None: the engine's builder chooses kernels by itself."""
    del context
    return ()


def write(form: Form, out: Path, settings: RuntimeSettings) -> None:
    """Write ``model.onnx`` and a loader.

    Raises:
        JobError: unsupported: bf16, or layers to be kept in fp32 of a model in fp16.
    """
    precision = form.about.precision
    if precision == "bf16" or form.about.exact:
        why = "TensorRT chooses the precision of each layer by itself: fp32 or fp16 for all"
        raise JobError("unsupported", why)
    text = onnxruntime.named(onnxruntime.LOADER, None)
    text = text.replace(onnxruntime.SESSION, _SESSION)
    text = text.replace("import json\n", "import json\nimport os\n", 1)
    text = text.replace("FP16", str(precision == "fp16"))
    text = text.replace('"TF32"', '"0"' if precision == "fp32" else '"1"')
    text = text.replace("Needs onnxruntime;", "Needs onnxruntime-gpu and tensorrt;")
    _artifact.write(
        form, out, settings, runtime="tensorrt", loader=_artifact.for_batch_size(text, form)
    )
