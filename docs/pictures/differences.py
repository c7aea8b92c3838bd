"""The errors of difference quotients and of the closed form, by a derivative in long double."""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from vicreg import vicreg_loss, vicreg_value_and_grad

N, D = 24, 40
STEPS = 10.0 ** np.arange(-12, 0.5, 0.5)


def official(z: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The definition; it is analytic in `z`, so `z` may be complex."""
    zc = z - z.mean(axis=0)
    std = np.sqrt((zc**2).sum(axis=0) / (N - 1) + np.longdouble("1e-4"))
    hinge = np.where(std.real < 1, 1 - std, 0).mean()
    off = (zc.T @ zc / (N - 1)) * (1 - np.eye(D))
    return 25 * ((z - other) ** 2).mean() + 25 * hinge / 2 + (off**2).sum() / D


def true_slope(z1: np.ndarray, z2: np.ndarray, direction: np.ndarray) -> float:
    """The derivative along `direction`, by a complex step in long double: nothing cancels."""
    step = np.longdouble("1e-100")
    return official(z1 + 1j * step * direction.astype(np.longdouble), z2).imag / step


def draw(ax: Axes) -> None:
    """Draw the errors over the step."""
    rng = np.random.default_rng(0)
    z1 = rng.standard_normal((N, D))
    z2, direction = z1 + 0.3 * rng.standard_normal((N, D)), rng.standard_normal((N, D))
    truth = true_slope(z1, z2, direction)
    _, (gradient, _) = vicreg_value_and_grad(z1, z2)

    def loss(step: float) -> float:
        return float(vicreg_loss(z1 + step * direction, z2))

    def error(slope: float) -> float:
        return max(float(abs(slope / truth - 1)), 2.0**-54)

    one_sided = [error((loss(h) - loss(0)) / h) for h in STEPS]
    central = [error((loss(h) - loss(-h)) / (2 * h)) for h in STEPS]
    ax.loglog(STEPS, one_sided, color="C1", linestyle="--")
    ax.loglog(STEPS, central, color="C2", linestyle="-.")
    closed = error(float((gradient * direction).sum()))
    ax.axhline(closed, color="C0", linestyle="-")
    ax.text(STEPS[0], closed * 2, "closed form: no step", color="C0", va="bottom")
    ax.text(1e-5, one_sided[14] * 3, "one-sided\ndifference ", color="C1", ha="right")
    ax.text(3e-3, central[18] / 4, " central\n difference", color="C2", va="top")
    ax.set_xlabel("step of the difference quotient")
    ax.set_ylabel("relative error of the derivative")
    ax.set_title("The closed form is as exact as float64 is")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", required=True, metavar="FILE")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(figsize=(5.2, 3.8))
    draw(axes)
    figure.savefig(arguments.plot)
