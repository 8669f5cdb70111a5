"""transformers, config only: a BERT that reads a digit's pixels as tokens; dicts with labels."""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification

epochs = 8
recipe = {"optimizer": "adamw", "lr": 3e-3, "batch_size": 32}
dynamic = {"input_ids": {1: (16, 96)}, "attention_mask": {1: (16, 96)}}


class Pixels(Dataset):
    def __init__(self, start: int, stop: int):
        pixels, labels = load_digits(return_X_y=True)
        self.pixels = torch.tensor(pixels[start:stop]).long()
        self.labels = torch.tensor(labels[start:stop])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        ids = self.pixels[row]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": None,  # optional, and not given
            "labels": self.labels[row],
        }


def make_model():
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=17,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=96,
            num_labels=10,
        )
    )


def train_data():
    return Pixels(0, 600)


def eval_data():
    return Pixels(600, 900)
