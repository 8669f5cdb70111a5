"""`autotune plan` against a GPU.  ``python -m benchmarks.planned_gpu [--profile h200-sxm]``

    examples/transformer_lm.py, 0.94 billion parameters --this GPU--> step and call times
                               --the profile, nothing measured--> predictions --check--> errors

Training is AdamW (fused) under autocast; serving is the eager module in that dtype, with its logits
left on the GPU.  A row is the median of single, synchronized steps or calls after three warm-ups;
energy per sample (NVML) and the peak of PyTorch's allocator are printed beside it.

Without a GPU the rows in ``h200_*.csv`` are checked: one NVIDIA H200 of a virtual machine, PyTorch
2.11 with CUDA 13, 2026-11-26.  No prediction was fitted to them.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks._common.rows import CACHE, ROOT

HERE = Path(__file__).parent
MODEL = ROOT / "examples" / "transformer_lm.py"
_SIZES = {"layers": 16, "hidden": 2048, "heads": 16, "vocabulary": 32000, "sequence": 2048}
ARGS = [text for name, value in _SIZES.items() for text in (f"--{name}", str(value))]
TRAINED = (("bf16", 8), ("bf16", 2), ("tf32", 8), ("fp32", 2))
SERVED = tuple((kind, batch) for kind in ("fp32", "tf32", "bf16", "fp16") for batch in (1, 8))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planned_gpu")
    parser.add_argument("--profile", default="h200-sxm", help="[default: %(default)s]")
    profile = parser.parse_args().profile
    import torch

    train, serve = HERE / "h200_train.csv", HERE / "h200_serve.csv"
    if torch.cuda.is_available():
        CACHE.mkdir(parents=True, exist_ok=True)
        train = _written(CACHE / "planned_train.csv", "step_s", trained())
        serve = _written(CACHE / "planned_serve.csv", "latency_s", served())
    else:
        print("no GPU here: the recorded rows of an NVIDIA H200 are checked", flush=True)
    found = [_check(profile, train), _check(profile, serve, "--goal", "latency")]
    return max(found)


def _check(profile: str, rows: Path, *more: str) -> int:
    command = ("autotune", "plan", str(MODEL), "--profile", profile, "--check", str(rows))
    return subprocess.run([sys.executable, "-m", *command, *more, "--", *ARGS]).returncode


def _written(path: Path, what: str, rows: Iterator[tuple[int, str, float]]) -> Path:
    lines = [f"{batch},{kind},{seconds:.6g}" for batch, kind, seconds in rows]
    path.write_text("\n".join([f"batch,precision,{what}", *lines, ""]))
    return path


def trained() -> Iterator[tuple[int, str, float]]:
    """(batch, precision, seconds of a step)."""
    import torch

    made = _model_file()
    for kind, batch in TRAINED:
        with torch.device("cuda"):
            model = made.make_model()
        rule = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        tokens, target = _tokens(batch), _tokens(batch)
        torch.cuda.reset_peak_memory_stats()

        def step(
            model: Any = model, rule: Any = rule, tokens: Any = tokens, target: Any = target
        ) -> None:
            rule.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16, enabled=kind == "bf16"):  # noqa: B023
                loss = made.loss(model(tokens), target)
            loss.backward()
            rule.step()

        seconds = _timed(f"train {kind} b{batch}", kind, step, batch)
        print(f"  {torch.cuda.max_memory_allocated() / 1e9:.1f} GB", flush=True)
        yield batch, kind, seconds
        del model, rule, step
        torch.cuda.empty_cache()


def served() -> Iterator[tuple[int, str, float]]:
    """(batch, precision, seconds of a call)."""
    import torch

    with torch.device("cuda"):
        model = _model_file().make_model().eval()
    for kind, batch in SERVED:
        if kind in ("bf16", "fp16"):
            model = model.to(torch.bfloat16 if kind == "bf16" else torch.float16)
        tokens = _tokens(batch)

        def call(model: Any = model, tokens: Any = tokens) -> None:
            with torch.no_grad():
                model(tokens)

        yield batch, kind, _timed(f"serve {kind} b{batch}", kind, call, batch)


def _model_file() -> Any:
    sys.path.insert(0, str(MODEL.parent))
    sys.argv = [str(MODEL), *ARGS, "--rows", "64"]
    import transformer_lm  # type: ignore[import-not-found]

    return transformer_lm


def _tokens(batch: int) -> Any:
    import torch

    shape = batch, _SIZES["sequence"]
    return torch.randint(0, _SIZES["vocabulary"], shape, device="cuda")


def _timed(name: str, kind: str, call: Callable[[], None], batch: int) -> float:
    """The median seconds of single calls, over 1.5 s; prints it with the energy per sample."""
    import torch

    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    taken: list[float] = []
    before, began = _joules(), time.perf_counter()
    while len(taken) < 4 or time.perf_counter() - began < 1.5:
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    joules = (_joules() - before) / (len(taken) * batch)
    seconds = statistics.median(taken)
    print(f"{name:16s} {seconds * 1e3:8.2f} ms, {joules:.3g} J a sample", flush=True)
    return seconds


def _joules() -> float:
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000


if __name__ == "__main__":
    sys.exit(main())
