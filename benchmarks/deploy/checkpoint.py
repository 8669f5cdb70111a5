"""Trains a benchmark model: ``python -m benchmarks.deploy.checkpoint FILE.py OUT``.

    model file's make_model, train_data, recipe, epochs -> weights.safetensors

A plain loop (AdamW, one cycle, bf16 where that is fast), so that the checkpoint that autotune and
its peers are given does not come from autotune.  A killed training resumes from its last
checkpoint, which is written every half minute.
"""

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader


def module(path: Path) -> ModuleType:
    """The model file, imported."""
    spec = importlib.util.spec_from_file_location(f"deploy_model_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output for a batch: a tensor or several."""
    return model(*inputs) if isinstance(inputs, list | tuple) else model(inputs)


def score(file: ModuleType, output: Tensor, target: Tensor) -> Tensor:
    """Quality of each row: the file's own, else right or wrong."""
    if hasattr(file, "score"):
        own: Tensor = file.score(output, target)
        return own
    return (output.argmax(1) == target).float()


def train(file: ModuleType, kept: Path, seed: int = 0) -> nn.Module:
    """A new model, trained by the file's recipe; checkpoints are written to ``kept``."""
    torch.manual_seed(seed)
    model: nn.Module = file.make_model()
    if getattr(file, "pretrained", False):
        return model
    recipe, epochs = file.recipe, file.epochs
    if any(isinstance(m, nn.Conv2d) for m in model.modules()):
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loss = getattr(file, "loss", nn.functional.cross_entropy)
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe["lr"], weight_decay=recipe["weight_decay"]
    )
    data = file.train_data()
    order = batches(len(data), recipe["batch_size"], epochs, seed)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe["lr"], total_steps=len(order))
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    done, saved = restored(kept, parts), time.monotonic()
    recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
    fast = not recurrent and torch.cpu.get_capabilities().get("amx_bf16", False)
    model.train()
    for step, (inputs, target) in enumerate(DataLoader(data, batch_sampler=order[done:]), done):
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            output = call(model, inputs)
        found = loss(output.float(), target)
        optimizer.zero_grad()
        found.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if time.monotonic() - saved > 30:
            keep(kept, parts, step + 1)
            print(f"step {step + 1} of {len(order)}", flush=True)
            saved = time.monotonic()
    kept.unlink(missing_ok=True)
    return model.eval()


def batches(rows: int, size: int, epochs: int, seed: int) -> list[list[int]]:
    """Row numbers of every step, shuffled by ``seed``; incomplete batches are dropped."""
    draw = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(rows, generator=draw) for _ in range(epochs)]
    return [o[i : i + size].tolist() for o in orders for i in range(0, rows - size + 1, size)]


def keep(path: Path, parts: dict[str, Any], step: int) -> None:
    """Write a checkpoint that a killed training resumes from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".new")
    torch.save({"step": step} | {n: part.state_dict() for n, part in parts.items()}, scratch)
    scratch.replace(path)


def restored(path: Path, parts: dict[str, Any]) -> int:
    """Load the checkpoint, if there is one; the number of steps that it is after."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def quality(file: ModuleType, model: nn.Module, rows: Any) -> float:
    """Mean score on a dataset."""
    model.eval()
    scores = []
    with torch.inference_mode():
        for inputs, target in DataLoader(rows, 128):
            scores.append(score(file, call(model, inputs), target))
    return float(torch.cat(scores).mean())


def main(argv: list[str]) -> int:
    """Train and save; prints the quality on *validation*."""
    path, out = Path(argv[0]), Path(argv[1])
    file = module(path)
    model = train(file, out.with_name("training.pt"))
    found = quality(file, model, file.eval_data())
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(out.name + ".part")
    save_file(
        {
            n: t.detach().clone(memory_format=torch.contiguous_format)
            for n, t in model.state_dict().items()
        },
        scratch,
    )
    scratch.replace(out)
    print(f"{path.stem}: quality {found:.4f} on validation")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
