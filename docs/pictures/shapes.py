"""The matrices of the two routes, to scale: covariances of features, products of samples."""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

N, D = 256, 2048
GAP = 330


def draw(ax: Axes) -> None:
    """Draw the view and the two matrices."""
    rectangle(ax, (0, 0), (D, N), "C2", f"centred view\n{N} × {D:,}", (D + 150, N / 2))
    top = N + GAP
    of_features = f"C, of the features\n{D:,} × {D:,}\n{megabytes(D)}"
    rectangle(ax, (0, top), (D, D), "C1", of_features, (D / 2, top + D / 2), align="center")
    right, middle = D + 150, top + D / 2
    of_samples = f"K, of the samples\n{N} × {N}\n{megabytes(N)}"
    below = (right, middle + N / 2 + GAP)
    rectangle(ax, (right, middle - N), (N, N), "C0", of_samples, below)
    ax.set_xlim(-20, D + 1600)
    ax.set_ylim(top + D + 30, -30)
    ax.set_aspect("equal")
    ax.axis("off")
    ax.set_title(f"K has 1/{D * D // N**2} of the entries of C", x=0)


def rectangle(
    ax: Axes,
    corner: tuple[float, float],
    size: tuple[int, int],
    color: str,
    text: str,
    text_at: tuple[float, float],
    align: str = "left",
) -> None:
    """Draw a matrix of `size` (columns, rows), and its text."""
    ax.add_patch(Rectangle(corner, *size, facecolor=color, alpha=0.3))
    ax.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=1.5))
    ax.text(*text_at, text, ha=align, va="center")


def megabytes(size: int) -> str:
    """How much a square matrix of that many rows takes."""
    return f"{4 * size * size / 1e6:.2g} MB in float32"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", required=True, metavar="FILE")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(figsize=(5.2, 3.7))
    draw(axes)
    figure.savefig(arguments.plot)
