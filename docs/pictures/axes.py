"""Which axes of an array are samples, features and positions, for three choices."""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

#: What is on each axis of (B, C, T, H, W), and by which arguments.
CHOICES = {
    "feature_axis=1, sample_axis=(0, 2, 3, 4)": "sfsss",
    "feature_axis=(1, 3, 4), sample_axis=0": "sfpff",
    "feature_axis=1, sample_axis=0": "sfppp",
}
NAMES = {"s": "samples", "f": "features", "p": "positions"}
COLORS = {"s": "C0", "f": "C1", "p": "C3"}


def draw(ax: Axes) -> None:
    """Draw a row of five axes for each choice."""
    for row, (arguments, kinds) in enumerate(CHOICES.items()):
        y = -1.6 * row
        ax.text(-0.44, y + 0.54, arguments, va="bottom", family="monospace", fontsize=10)
        for column, (letter, kind) in enumerate(zip("BCTHW", kinds, strict=True)):
            corner = (column - 0.44, y - 0.44)
            for look in (
                {"facecolor": COLORS[kind], "alpha": 0.3, "edgecolor": "none"},
                {"facecolor": "none", "edgecolor": COLORS[kind], "linewidth": 1.5},
            ):
                box = FancyBboxPatch(corner, 0.88, 0.88, boxstyle="round,pad=0,rounding_size=0.1")
                box.set(**look)
                ax.add_patch(box)
            ax.text(column, y + 0.16, letter, ha="center", va="center", weight="bold")
            ax.text(column, y - 0.2, NAMES[kind], ha="center", va="center", fontsize=9.5)
    ax.set(xlim=(-0.5, 4.5), ylim=(-3.7, 0.95))
    ax.axis("off")
    ax.set_title("You say what each axis of a view holds", x=0.01)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", required=True, metavar="FILE")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(figsize=(5.2, 4.2))
    draw(axes)
    figure.savefig(arguments.plot)
