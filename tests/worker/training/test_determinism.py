"""Operators that are not deterministic are named, and torch's mode is put back."""

import torch

from autotune.worker.training import train


def test_what_torch_warns_of_is_named_once() -> None:
    def step() -> None:
        for _ in range(2):
            torch.ones(3).put_(torch.tensor([0]), torch.zeros(1))
        torch.ones(3).sum()

    assert train.nondeterministic(step) == ("put_",)
    assert train.nondeterministic(lambda: torch.ones(3) @ torch.ones(3)) == ()
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_mode_is_put_back_after_an_error() -> None:
    def step() -> None:
        raise KeyError

    try:
        train.nondeterministic(step)
    except KeyError:
        assert not torch.are_deterministic_algorithms_enabled()
