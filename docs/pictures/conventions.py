"""The loss of the same two views in each convention, with the same weights, in its three terms.

python docs/pictures/conventions.py --plot conventions.svg
"""

from __future__ import annotations

import argparse

import numpy as np
from matplotlib.figure import Figure

from vicreg import conventions, vicreg_terms

#: Four samples of three features.
Z1 = np.array([[2.0, 1.5, 0.3], [-1.0, -2.0, 0.5], [0.5, 1.0, 0.2], [-1.5, -0.5, -0.2]])
Z2 = np.array([[1.5, 2.0, 0.1], [-0.5, -1.5, 0.1], [0.0, 1.5, 0.1], [-2.0, -0.5, 0.1]])
#: Of invariance, variance and covariance.
WEIGHTS = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}
#: What lies behind a label.
BEHIND = {"facecolor": "#fdfdfd", "linewidth": 0, "pad": 1}


def weighted_terms(convention: str) -> dict[str, float]:
    """Return the terms times their weights."""
    weights = {f"{name}_weight": weight for name, weight in WEIGHTS.items()}
    if conventions[convention].invariance == "none":
        weights["invariance_weight"] = 0.0
    terms = vicreg_terms(Z1, Z2, convention=convention, **weights)
    return {name: weight * float(getattr(terms, name)) for name, weight in WEIGHTS.items()}


def draw() -> Figure:
    """Return a bar for each convention, and the official value as a line."""
    figure = Figure(figsize=(5.2, 4.6))
    axes = figure.subplots()
    names = list(conventions)
    terms = [weighted_terms(name) for name in names]
    losses = np.zeros(len(names))
    for place, term in enumerate(WEIGHTS):
        widths = np.array([each[term] for each in terms])
        axes.barh(
            names, widths, left=losses, height=0.62, color=f"C{place}", ec="#fdfdfd", label=term
        )
        losses += widths
    for name, loss in zip(names, losses, strict=True):
        axes.text(loss + 0.4, name, f"{loss:.2f}", va="center", size=9.5, bbox=BEHIND)
    axes.axvline(losses[0], color="#6e7781", lw=1, ls=":", zorder=1)
    axes.set_title("The same two views and weights,\nten conventions: ten losses", pad=24)
    place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.97), "ncols": 3}
    axes.legend(**place, handlelength=0.9, columnspacing=1.2, fontsize=9.5)
    axes.set(xlabel="loss, with weights 25, 25, 1 (no unit)", xlim=(0, losses.max() * 1.16))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    return figure


def main() -> None:
    """Draw into the file that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", metavar="FILE", required=True)
    draw().savefig(parser.parse_args().plot)


if __name__ == "__main__":
    main()
