"""transformers, config only: a small vision transformer on digits."""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from transformers import ViTConfig, ViTForImageClassification

epochs = 8
recipe = {"optimizer": "adamw", "lr": 3e-3, "batch_size": 32}


class Digits(Dataset):
    def __init__(self, start: int, stop: int):
        pixels, labels = load_digits(return_X_y=True)
        self.images = torch.tensor(pixels[start:stop]).float().reshape(-1, 1, 8, 8) / 16
        self.labels = torch.tensor(labels[start:stop])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return {"pixel_values": self.images[row], "labels": self.labels[row]}


def make_model():
    return ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            num_labels=10,
        )
    )


def train_data():
    return Digits(0, 600)


def eval_data():
    return Digits(600, 900)
