"""Draw the architecture: the rooms of the package, from those that users import down to the data.

    python docs/pictures/architecture.py --plot architecture.svg

A room that the import contract in pyproject.toml does not know, or one that it knows and that is
missing here, is an error.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

INK, LINE, BEHIND = "#1f2328", "#6e7781", "#fdfdfd"
WIDTH, GAP = 10.0, 0.12

#: From the top: the colour of a row, its rooms, and what the row does in a few words.
ROWS: list[tuple[str, list[str], str]] = [
    ("C4", ["testing", "tools"], "verify, identify, bench, demo, the command"),
    (
        "C0",
        ["lightning", "torch", "jax", "distributed"],
        "what users import, beside vicreg itself",
    ),
    ("C3", ["_monitor", "_diagnostics", "_verdicts"], "has the model collapsed?"),
    ("C0", ["_losses", "_checks"], "the public functions, and their arguments"),
    ("C1", ["_adapters"], "one per library, where it needs one: no mathematics"),
    ("C2", ["_core"], "samples × terms × routes: every formula, once"),
    ("C4", ["_conventions", "_typing"], "what each published formula chose, as data"),
]


def layers() -> set[str]:
    """Return the rooms of the import contract."""
    contracts = tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]["contracts"]
    return {room for layer in contracts[0]["layers"] for room in layer.split(" | ")}


def draw_row(axis: Axes, y: float, colour: str, rooms: list[str], what: str) -> None:
    width = (WIDTH - GAP * (len(rooms) - 1)) / len(rooms)
    for place, room in enumerate(rooms):
        left = place * (width + GAP)
        box = FancyBboxPatch(
            (left, y), width, 0.62, boxstyle="round,pad=0,rounding_size=0.1", lw=1.6
        )
        box.set(edgecolor=colour, facecolor=BEHIND)
        axis.add_patch(box)
        axis.text(left + width / 2, y + 0.31, room, ha="center", va="center", family="monospace")
    axis.text(0, y - 0.1, what, va="top", fontsize=9.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", required=True, metavar="FILE")
    file = parser.parse_args().plot
    drawn = {room for _, rooms, _ in ROWS for room in rooms}
    if drawn != layers():
        raise SystemExit(f"not in both the picture and the contract: {drawn ^ layers()}")
    figure, axis = plt.subplots(figsize=(5.2, 5.6))
    for place, row in enumerate(reversed(ROWS)):
        draw_row(axis, 1.25 * place, *row)
    axis.annotate(
        "",
        xy=(WIDTH + 0.35, -0.2),
        xytext=(WIDTH + 0.35, 1.25 * len(ROWS) - 0.63),
        arrowprops={"arrowstyle": "-|>", "color": LINE, "lw": 1.4},
    )
    axis.set(xlim=(-0.05, WIDTH + 0.6), ylim=(-0.55, 1.25 * len(ROWS) - 0.4))
    axis.set_title("Imports go down only, and the core\nimports no array library")
    axis.set_axis_off()
    figure.savefig(file)


if __name__ == "__main__":
    main()
