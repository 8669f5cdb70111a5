"""A LightningModule as people have them: training_step, logging, an optimizer of its own."""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

epochs = 6


class Digits(lightning.LightningModule):
    def __init__(self, hidden: int = 32):
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y, label_smoothing=0.1)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def make_model():
    return Digits()


def train_data():
    pixels, labels = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(pixels / 16).float(), torch.tensor(labels))
