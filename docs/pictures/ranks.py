"""What a rank sends and computes, by `vicreg.distributed.plan`: a model, no measurement."""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from vicreg.distributed import plan

ROWS, D = 64, 8192
RANKS = [2**power for power in range(1, 11)]
STYLES = {"gram": ("C0", "-"), "covariance": ("C1", "--")}


def draw(sent: Axes, computed: Axes) -> None:
    """Draw both routes, with a dot where one is taken."""
    plans = [plan(ROWS, D, ranks) for ranks in RANKS]
    for route, (color, style) in STYLES.items():
        costs = [each.cost_of(route) for each in plans]
        taken = [route == each.route for each in plans]
        for ax, values in (
            (sent, [cost.bytes_sent / 1e6 for cost in costs]),
            (computed, [2 * cost.multiply_adds / 1e9 for cost in costs]),
        ):
            ax.loglog(RANKS, values, color=color, linestyle=style)
            ax.loglog(RANKS, values, "o", color=color, markevery=taken, linestyle="none")
    sent.text(8, 1300, "covariance", color="C1", va="bottom", ha="center")
    sent.text(14, 25, "gram", color="C0")
    computed.text(6, 42, "covariance", color="C1", va="bottom", ha="center")
    computed.text(14, 1.5, "gram", color="C0")
    sent.set_ylabel("MB that a rank sends")
    sent.set_title("Gram, until samples are as many as features")
    computed.set_ylabel("GFLOP of a rank")
    computed.set_xlabel(f"ranks, {ROWS} samples each;  d = {D:,}")
    computed.set_title("A model: the dots are the route taken")
    computed.set_xticks(RANKS[::3], [f"{ranks:,}" for ranks in RANKS[::3]])
    computed.minorticks_off()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", required=True, metavar="FILE")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(2, figsize=(5.2, 5.6), sharex=True)
    draw(*axes)
    figure.savefig(arguments.plot)
