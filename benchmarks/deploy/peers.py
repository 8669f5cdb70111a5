"""Eight ways to serve a model by hand, each as its own documentation recommends.

    model file + weights -> build(peer) -> a folder with peer.json -> load(folder) -> predict

``python -m benchmarks.deploy.peers PEER MODEL.py WEIGHTS BATCH THREADS OUT`` builds one in a
process of its own.  Every peer has the deployment's batch as a fixed shape, the same number of
threads, and the same 300 training rows for calibration.  ``predict`` takes and returns NumPy
arrays, as an artifact of autotune does.  OpenVINO's default on a CPU with AMX is bfloat16
arithmetic: its title says "default precision", and the quality floor applies to it as to others.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks._common.rows import ROOT

Predict = Callable[..., Any]
CALIBRATION_ROWS = 300
MODELS = Path(__file__).parent / "models"


class Given(NamedTuple):
    """What a peer is built from."""

    file: Path
    weights: Path
    batch: int
    threads: int
    out: Path


def model(given: Given) -> Any:
    """The trained model, ready to serve."""
    from safetensors.torch import load_file

    from benchmarks.deploy.checkpoint import module

    found = module(given.file).make_model()
    found.load_state_dict(load_file(given.weights))
    return found.eval()


def batches(given: Given, part: str, rows: int) -> Iterator[tuple[Any, ...]]:
    """Full batches of a part's first rows, each a tuple of arrays."""
    from torch.utils.data import DataLoader, Subset

    from benchmarks.deploy.checkpoint import module

    data = getattr(module(given.file), f"{part}_data")()
    loader = DataLoader(Subset(data, range(min(rows, len(data)))), given.batch, drop_last=True)
    for inputs, _ in loader:
        several = inputs if isinstance(inputs, list | tuple) else [inputs]
        yield tuple(tensor.numpy() for tensor in several)


def _torch_model(given: Given) -> None:
    """Nothing to build: the module and its weights are loaded as they are."""


def _onnx(given: Given) -> None:
    import torch

    example = tuple(map(torch.from_numpy, next(batches(given, "train", given.batch))))
    names = [f"x{number}" for number in range(len(example))]
    torch.onnx.export(
        model(given), example, given.out / "model.onnx", input_names=names, dynamo=True,
        external_data=False,
    )  # fmt: skip


class _Reader:
    """Calibration rows as ONNX Runtime asks for them."""

    def __init__(self, given: Given) -> None:
        self._left = batches(given, "train", CALIBRATION_ROWS)

    def get_next(self) -> dict[str, Any] | None:
        arrays = next(self._left, None)
        return None if arrays is None else {f"x{i}": a for i, a in enumerate(arrays)}


def _prepared(given: Given) -> Path:
    """The exported model after ONNX Runtime's own preparation for quantization."""
    from onnxruntime.quantization import quant_pre_process

    _onnx(given)
    prepared = given.out / "prepared.onnx"
    quant_pre_process(given.out / "model.onnx", prepared, skip_symbolic_shape=True)
    return prepared


def _dynamic(given: Given) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(_prepared(given), given.out / "model.onnx")


def _static(given: Given, **types: Any) -> None:
    from onnxruntime.quantization import QuantFormat, quantize_static

    quantize_static(
        _prepared(given), given.out / "model.onnx", _Reader(given),
        quant_format=QuantFormat.QDQ, per_channel=True, **types,
    )  # fmt: skip


def _static_u8(given: Given) -> None:
    from onnxruntime.quantization import QuantType

    _static(given, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)


def _converted(given: Given) -> Any:
    import openvino
    import torch

    example = tuple(map(torch.from_numpy, next(batches(given, "train", given.batch))))
    shapes = [tuple(tensor.shape) for tensor in example]
    return openvino.convert_model(
        model(given), example_input=example if len(example) > 1 else example[0], input=shapes
    )


def _openvino(given: Given) -> None:
    import openvino

    openvino.save_model(_converted(given), given.out / "model.xml", compress_to_fp16=False)


def _nncf(given: Given) -> None:
    import nncf
    import openvino

    rows = list(batches(given, "train", max(CALIBRATION_ROWS, given.batch)))
    converted = _converted(given)
    kinds = {op.get_type_name() for op in converted.get_ops()}
    attends = bool(kinds & {"ScaledDotProductAttention", "Softmax"})
    quantized = nncf.quantize(
        converted,
        nncf.Dataset([list(arrays) for arrays in rows]),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER if attends else None,
        subset_size=len(rows),
    )
    openvino.save_model(quantized, given.out / "model.xml", compress_to_fp16=False)


def _eager_load(given: Given, compiled: bool = False) -> Predict:
    import torch

    torch.set_num_threads(given.threads)
    found = model(given)
    mode: Callable[[], Any] = torch.inference_mode
    if compiled:
        cache = given.out.with_name("compile.cache")  # a killed compilation spoils no other
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache.resolve()))
        import torch._inductor.config

        torch._inductor.config.freezing = True
        found, mode = torch.compile(found), torch.no_grad

    def predict(*arrays: Any) -> Any:
        with mode():
            return found(*map(torch.from_numpy, arrays)).numpy()

    return predict


def _compiled_load(given: Given) -> Predict:
    return _eager_load(given, compiled=True)


def _onnx_load(given: Given) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = given.threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(given.out / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    names = [one.name for one in session.get_inputs()]

    def predict(*arrays: Any) -> Any:
        return session.run(None, dict(zip(names, arrays, strict=True)))[0]

    return predict


def _openvino_load(given: Given) -> Predict:
    import openvino

    compiled = openvino.Core().compile_model(
        str(given.out / "model.xml"), "CPU",
        {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": given.threads},
    )  # fmt: skip

    def predict(*arrays: Any) -> Any:
        return compiled(list(arrays))[0]

    return predict


PEERS: dict[str, tuple[Callable[[Given], None], Callable[[Given], Predict], str]] = {
    "eager": (_torch_model, _eager_load, "PyTorch eager"),
    "compile": (_torch_model, _compiled_load, "torch.compile + freezing"),
    "ort": (_onnx, _onnx_load, "ONNX Runtime fp32"),
    "ort-dynamic": (_dynamic, _onnx_load, "ONNX Runtime int8 dynamic"),
    "ort-static": (_static, _onnx_load, "ONNX Runtime int8 static QDQ (s8s8)"),
    "ort-static-u8": (_static_u8, _onnx_load, "ONNX Runtime int8 static QDQ (u8s8)"),
    "openvino": (_openvino, _openvino_load, "OpenVINO (default precision)"),
    "openvino-int8": (_nncf, _openvino_load, "OpenVINO + NNCF int8"),
}
"""Name -> (build, load, title in the table)."""
PACKAGES = ("torch", "onnxruntime", "openvino", "nncf", "numpy")


def software() -> dict[str, str | None]:
    """Versions of what the peers are made with; None for what is not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def build(name: str, given: Given) -> None:
    """Build a peer; its ``peer.json`` is written last, so that half a build is none."""
    given.out.mkdir(parents=True, exist_ok=True)
    PEERS[name][0](given)
    (given.out / "prepared.onnx").unlink(missing_ok=True)
    facts = {
        "name": name, "file": str(given.file), "weights": str(given.weights),
        "batch": given.batch, "threads": given.threads, "software": software(),
    }  # fmt: skip
    (given.out / "peer.json").write_text(json.dumps(facts))


def load(folder: Path) -> Predict:
    """A built peer's ``predict``."""
    facts = json.loads((folder / "peer.json").read_text())
    file = MODELS / Path(facts["file"]).name  # the folder may have moved since
    weights = ROOT / facts["weights"]
    given = Given(file, weights, facts["batch"], facts["threads"], folder)
    return PEERS[facts["name"]][1](given)


def main(argv: list[str]) -> int:
    """Build one peer."""
    name, file, weights, batch, threads, out = argv
    np.random.seed(0)
    build(name, Given(Path(file), Path(weights), int(batch), int(threads), Path(out)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
