"""transformers, config only: a small Llama over the pixels of a digit, its embeddings tied; the
labels are the inputs, which the model shifts by itself.
"""

import torch
from sklearn.datasets import load_digits
from transformers import LlamaConfig, LlamaForCausalLM

epochs = 3
recipe = {"optimizer": "adamw", "lr": 3e-3, "batch_size": 32}


def make_model():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=17,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
        )
    )


def rows(start, stop):
    pixels = torch.tensor(load_digits().data[start:stop, :40]).long()
    return [{"input_ids": ids, "labels": ids} for ids in pixels]


def train_data():
    return rows(0, 400)


def eval_data():
    return rows(400, 600)
