"""The examples that are programs of their own, run without autotune."""

import runpy
import sys

import numpy as np
import torch


def test_the_plain_script_trains_by_itself(examples, capsys):
    runpy.run_path(str(examples / "plain_script.py"), run_name="__main__")
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("epoch 20")
    assert float(last.rpartition(" ")[2]) > 0.95


def test_gradient_descent_finds_what_least_squares_does(examples):
    names = runpy.run_path(str(examples / "linear_regression_numpy.py"))
    x, y, x_test, y_test = names["data"]()
    descended, exact = names["gradient_descent"](x, y), names["closed_form"](x, y)
    assert np.abs(descended - exact).max() < 1e-3
    assert (
        abs(names["error"](descended, x_test, y_test) - names["error"](exact, x_test, y_test))
        < 1e-4
    )
    assert names["error"](exact, x_test, y_test) < 0.65


def test_the_decoder_learns_to_count(examples, monkeypatch):
    path = str(examples / "transformer_lm.py")
    monkeypatch.setattr(sys, "argv", [path, "--rows", "600"])
    names = runpy.run_path(path)
    torch.manual_seed(0)
    model = names["make_model"]()
    tokens, following = names["train_data"]().tensors
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for rows in torch.arange(600).repeat(3).split(60):
        loss = names["loss"](model(tokens[rows]), following[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
    assert names["score"](model(tokens[:60]), following[:60]).shape == (60,)
