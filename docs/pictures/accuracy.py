"""The error of the covariance term in float32, over the std of a few runaway features.

The truth is the definition in float64 of the same numbers. NumPy is asked whether the difference
cancels. PyTorch under ``vmap`` cannot be asked, and keeps the 32 largest features apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes

from vicreg import covariance_loss

N, D = 128, 1024
STDS = 10.0 ** np.arange(0, 5.1, 0.5)
Way = Callable[[np.ndarray], float]


def runaway(count: int, std: float, seed: int) -> np.ndarray:
    """A view whose first `count` features have that std and no correlation with each other."""
    rng = np.random.default_rng(seed)
    view = rng.standard_normal((N, D))
    basis, _ = np.linalg.qr(np.c_[np.ones(N), view[:, :count]])
    view[:, :count] = basis[:, 1:] * np.sqrt(N - 1) * std
    return view.astype(np.float32)


def definition(view: np.ndarray) -> float:
    """The definition, which forms the covariance."""
    return float(covariance_loss(view, method="covariance"))


def default(view: np.ndarray) -> float:
    """What is computed by default, here the Gram route."""
    return float(covariance_loss(view))


def naive(view: np.ndarray) -> float:
    """The Gram route's difference with nothing done about it."""
    zc = view - view.mean(axis=0)
    k, variances = zc @ zc.T / (N - 1), (zc * zc).sum(axis=0) / (N - 1)
    return float(((k * k).sum() - (variances * variances).sum()) / D)


def mapped(view: np.ndarray) -> float:
    """What is computed by default where no value can be asked for."""
    return float(torch.vmap(covariance_loss)(torch.asarray(view)[None])[0])


def errors(way: Way, count: int) -> list[float]:
    """The median over seeds of the relative error, at each std."""

    def error(std: float, seed: int) -> float:
        view = runaway(count, std, seed)
        truth = definition(view.astype(np.float64))
        return max(abs(way(view) - truth) / truth, 2.0**-26)

    return [float(np.median([error(std, seed) for seed in range(3)])) for std in STDS]


def draw(one: Axes, forty: Axes) -> None:
    """Draw one panel for one large feature, and one for forty."""
    curves = [errors(way, 1) for way in (naive, definition, default)]
    for values, style in zip(curves, STYLES, strict=True):
        one.loglog(STDS, values, **style)
    one.text(250, 3e-2, "ΣK² − ΣC²ⱼⱼ as it stands", color="C1", ha="right")
    one.text(STDS[-1], 3e-9, 'method="auto"', color="C0", ha="right", va="top")
    one.text(300, 1.2e-6, "definition", color="C2", ha="center", va="bottom")
    one.set_title("One runaway feature: the default stays exact")
    curves = [errors(way, 40) for way in (mapped, definition, default)]
    for values, style in zip(curves, STYLES, strict=True):
        forty.loglog(STDS, values, **style)
    forty.text(700, 3e-2, "where no value can be\nasked: PyTorch, mapped", color="C1", ha="right")
    forty.text(STDS[-1], 3e-9, 'method="auto" in NumPy, and the definition', ha="right", va="top")
    forty.set_title("Forty of them: ask, or choose the definition")
    for ax in (one, forty):
        ax.axhline(4 * D**0.5 * 2.0**-24, color="#6e7781", linestyle="-", linewidth=1)
        ax.text(1, 1e-5, "4√d u", va="bottom")
        ax.set_ylim(3e-10, 300)
        ax.set_ylabel("relative error")
    forty.set_xlabel("std of the runaway features; the others' is 1")


#: Of what goes wrong, of the definition and of the default.
STYLES = (
    {"color": "C1", "linestyle": "--"},
    {"color": "C2", "linestyle": "-."},
    {"color": "C0", "linestyle": "-"},
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", required=True, metavar="FILE")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(2, figsize=(5.2, 6), sharex=True)
    draw(*axes)
    figure.savefig(arguments.plot)
