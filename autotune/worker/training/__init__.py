"""Train a recipe."""

__all__ = ["evaluation", "lr_schedule", "optimizers", "train"]
