"""What the value and the gradient of the Gram route are formed from, and what is formed once."""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

#: A box: where its middle is, its text, and the colour of what it is.
BOXES = {
    "view": ((0.08, 0.87), "view z,\ncentred", "C2"),
    "gram": ((0.46, 0.87), "first product\nK = z zᵀ / m", "C0"),
    "product": ((0.84, 0.87), "second product\nK z", "C0"),
    "value": ((0.46, 0.47), "value\nΣ K² − Σ C²ⱼⱼ", "C1"),
    "variances": ((0.08, 0.09), "variances\nCⱼⱼ", "C2"),
    "gradient": ((0.84, 0.09), "gradient\n4/m (K z − z ∘ diag C)", "C1"),
}
ARROWS = (
    ("view", "gram"),
    ("view", "variances"),
    ("gram", "product"),
    ("gram", "value"),
    ("variances", "value"),
    ("variances", "gradient"),
    ("product", "gradient"),
)


def draw(ax: Axes) -> None:
    """Draw the boxes and the arrows."""
    outlines = {}
    for name, ((x, y), text, color) in BOXES.items():
        # The same box twice: the transparency of its colour is not the text's.
        box = {"boxstyle": "round,pad=0.45", "linewidth": 1.5}
        filled = box | {"facecolor": color, "edgecolor": "none", "alpha": 0.3}
        ax.text(x, y, text, ha="center", va="center", color="none", bbox=filled)
        outline = box | {"facecolor": "none", "edgecolor": color}
        text_of_box = ax.text(x, y, text, ha="center", va="center", bbox=outline)
        outlines[name] = text_of_box.get_bbox_patch()
    for start, end in ARROWS:
        ax.annotate(
            "",
            xy=BOXES[end][0],
            xytext=BOXES[start][0],
            arrowprops={
                "arrowstyle": "-|>",
                "color": "#6e7781",
                "patchA": outlines[start],
                "patchB": outlines[end],
                "shrinkA": 3,
                "shrinkB": 3,
            },
        )
    ax.set(xlim=(-0.06, 1.06), ylim=(0, 1))
    ax.axis("off")
    ax.set_title("Two products give the value and the gradient", x=-0.02)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", required=True, metavar="FILE")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(figsize=(5.2, 3.4))
    draw(axes)
    figure.savefig(arguments.plot)
