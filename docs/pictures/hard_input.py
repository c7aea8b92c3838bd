"""The errors on each family of hard input, beside those of the plain definition.

python docs/pictures/hard_input.py --plot hard_input.svg

Of each family the largest ratio of the two errors, over the loss and the three terms, in float32.
Errors are from exact arithmetic (tests/hard_errors.py). Those within the last places of the
result, four roundings of a value and two of a gradient, count as that.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from backends import Backend
from hard_errors import CHOICES, Wanted, exactly, given, in_numpy, settings
from hard_input import FAMILIES, Family
from plain import plain

from vicreg import vicreg_value_and_grad

LIBRARIES = {"numpy": "NumPy", "torch": "PyTorch", "jax": "JAX"}
STYLES = ({"marker": "o"}, {"marker": "x"}, {"marker": "+"})
LAST_PLACES = np.asarray([4, 2]) * 2.0**-24
LOWEST = 0.1  # ratios below it are drawn there


def ratios(library: Backend, family: Family) -> np.ndarray:
    """Return the largest ratios of a family: of the values, and of the gradients."""
    of_choices = []
    for weights in CHOICES.values():
        ours, plainly = [], []
        for draw in range(family.draws):
            views = [library.asarray(view, "float32") for view in given(family, "float32", draw)]
            wanted = Wanted(exactly(family, "float32", draw), weights)
            yardstick = plain(library, views)
            result = vicreg_value_and_grad(*views, **settings(library, weights))
            lost = wanted.underflow(family.shape[1])
            ours.append(np.subtract(wanted.errors(*in_numpy(library, *result)), lost))
            written = yardstick.loss(weights), yardstick.gradient(weights)
            plainly.append(wanted.errors(*in_numpy(library, *written)))
        largest = np.max(ours, axis=0), np.max(plainly, axis=0)
        of_choices.append(largest[0] / np.maximum(largest[1], LAST_PLACES))
    return np.max(of_choices, axis=0)


def draw(of_value: Axes, of_gradient: Axes, measured: dict[str, np.ndarray]) -> None:
    """Draw a row for each family, in two panels."""
    rows = np.arange(len(FAMILIES))
    for place, (ax, title) in enumerate(((of_value, "Values"), (of_gradient, "Gradients"))):
        for (name, values), style in zip(measured.items(), STYLES, strict=True):
            ax.scatter(
                np.maximum(values[:, place], LOWEST), rows, s=14, label=LIBRARIES[name], **style
            )
        ax.axvline(4, color="#6e7781", linewidth=1)
        ax.set_xscale("log")
        ax.set_xlim(LOWEST * 0.85, 14)
        ax.set_xticks([0.1, 1, 4, 10], ["≤ 0.1", "1", "4", "10"])
        ax.minorticks_off()
        ax.tick_params(axis="x", top=True, labeltop=True)
        ax.grid(visible=True, axis="x")
        ax.set_title(title)
    of_value.set_yticks(rows, [str(family) for family in FAMILIES], fontsize=7.5)
    of_value.set_ylim(len(rows) - 0.3, -0.7)


def measure() -> dict[str, Any]:
    """Return the ratios of every family on each library."""
    return {
        name: np.stack([ratios(Backend(name), family) for family in FAMILIES])
        for name in LIBRARIES
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", required=True, metavar="FILE")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, at the ends of the dtype
    measured = measure()
    for name, values in measured.items():
        for place, what in enumerate(("value", "gradient")):
            row = int(np.argmax(values[:, place]))
            print(f"{LIBRARIES[name]}, {what}: {values[row, place]:.2g} ({FAMILIES[row]})")
    figure, (left, right) = plt.subplots(1, 2, figsize=(5.8, 13), sharey=True)
    draw(left, right, measured)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, handletextpad=0.1)
    figure.savefig(arguments.plot)
