"""Linear regression by gradient descent in NumPy, and the same task under autotune.

    python examples/linear_regression_numpy.py    three solutions, side by side
    autotune run examples/linear_regression_numpy.py --time 2min

The textbook listing with four corrections: the bias is learned, the gradient is divided by the
number of rows (so that the step does not grow with the data), features are standardised with the
training rows alone, and the loop ends when the gradient is small, not after a fixed count.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import TensorDataset

Array = NDArray[np.float64]

epochs = 60
recipe = {"optimizer": "sgd", "lr": 0.05, "batch_size": 32}


def data() -> tuple[Array, Array, Array, Array]:
    """Training and test rows, standardised: x [rows, 10], y [rows]."""
    x, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    train, test = order[:242], order[242:]
    x = (x - x[train].mean(axis=0)) / x[train].std(axis=0)
    y = (y - y[train].mean()) / y[train].std()
    return x[train], y[train], x[test], y[test]


def gradient_descent(x: Array, y: Array, lr: float = 0.1, tolerance: float = 1e-6) -> Array:
    """Weights and bias [11] that minimise the mean squared error, one step at a time."""
    x = np.column_stack([x, np.ones(len(x))])
    w = np.zeros(x.shape[1])
    for _ in range(100_000):
        gradient = 2 / len(x) * x.T @ (x @ w - y)
        w -= lr * gradient
        if np.abs(gradient).max() < tolerance:
            break
    return w


def closed_form(x: Array, y: Array) -> Array:
    """The same minimum by least squares, without a step size."""
    return np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]


def error(w: Array, x: Array, y: Array) -> float:
    """Mean squared error of weights and bias [11]."""
    return float(np.mean((x @ w[:-1] + w[-1] - y) ** 2))


# The same task under autotune's contract.  Its default score is minus the squared error.


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 1), nn.Flatten(0))


def train_data() -> TensorDataset:
    x, y, _, _ = data()
    return TensorDataset(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32))


def eval_data() -> TensorDataset:
    _, _, x, y = data()
    return TensorDataset(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32))


def main() -> None:
    import autotune

    x, y, x_test, y_test = data()
    descended, exact = gradient_descent(x, y), closed_form(x, y)
    print(f"weights differ by at most {np.abs(descended - exact).max():.1e}")
    print(f"gradient descent  test error {error(descended, x_test, y_test):.4f}")
    print(f"closed form       test error {error(exact, x_test, y_test):.4f}")

    task = autotune.Task.from_file(__file__)
    report, folder = autotune.tune(task, autotune.Budget(), autotune.Effort(time_s=90))
    if report.chosen is None or report.chosen.quality is None:
        raise SystemExit(f"autotune found no plan; see {folder}")
    print(f"autotune          test error {-report.chosen.quality:.4f} (half of the test rows)")


if __name__ == "__main__":
    main()
