"""The examples that are programs of their own, run without autotune."""

import runpy

import numpy as np


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
