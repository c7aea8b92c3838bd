"""What the two routes form and compute for one view of 256 samples, from their formulas."""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

N = 256
D = 2.0 ** np.arange(5, 17)


def draw(memory: Axes, work: Axes) -> None:
    """Draw the memory of the matrix, and the work for a value and its gradient."""
    one_panel(memory, 4 * D**2 / 1e6, np.full_like(D, 4 * N**2 / 1e6))
    memory.set_ylabel("MB of the matrix")
    memory.set_title("The Gram matrix does not grow with the features")
    one_panel(work, 2 * N * D**2 / 1e9, 2 * N**2 * D / 1e9)
    work.set_ylabel("10⁹ multiply-adds")
    work.set_title("Its work grows with d, that of the other with d²")
    work.set_xlabel(f"features d, at n = {N} samples")


def one_panel(ax: Axes, definition: np.ndarray, gram: np.ndarray) -> None:
    """Draw both routes over the features, and behind them the one that is taken."""
    ax.loglog(D, definition, color="C1", linestyle="--")
    ax.loglog(D, gram, color="C0", linestyle="-")
    taken = np.minimum(definition, gram)
    ax.loglog(D, taken, color="#6e7781", linestyle="-", linewidth=7, alpha=0.35, zorder=1)
    ax.axvline(N, color="#6e7781", linewidth=1)
    ax.text(D[7], definition[7] * 1.6, "definition, d × d ", ha="right", color="C1")
    ax.text(D[-1], gram[-3] / 5, "Gram route, n × n", ha="right", va="top", color="C0")
    ax.text(N * 1.1, ax.get_ylim()[0] * 1.6, "n = d", va="bottom")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", required=True, metavar="FILE")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(2, figsize=(5.2, 5.6), sharex=True)
    draw(*axes)
    figure.savefig(arguments.plot)
