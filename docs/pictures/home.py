"""Draw the spectra of four encoders of `vicreg demo`: what each term keeps from collapsing.

    python docs/pictures/home.py --plot home.svg
"""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
import numpy as np

from vicreg.tools.demo.study import NO_COVARIANCE, NO_VARIANCE, VICREG, run_study

EPOCHS, SEED = 60, 0
FLOOR = 1e-6  # of the largest value; below it there is rounding

LABELS = {
    VICREG: "all three terms",
    NO_COVARIANCE: "no covariance term",
    NO_VARIANCE: "no variance term",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", required=True, metavar="FILE")
    file = parser.parse_args().plot
    outcomes = run_study(epochs=EPOCHS, seed=SEED).outcomes
    figure, axis = plt.subplots()
    for name, label in LABELS.items():
        values = outcomes[name].singular_values / outcomes[VICREG].singular_values[0]
        shown = np.where(values > FLOOR, values, FLOOR / 3)
        axis.plot(np.arange(1, len(values) + 1), shown, label=label)
    ranks = {label: outcomes[name].effective_rank for name, label in LABELS.items()}
    assert ranks["all three terms"] > 2 * max(list(ranks.values())[1:])  # what the title says
    axis.set_yscale("log")
    axis.set(
        title="With all three terms, the embeddings\nfill every direction",
        xlabel="direction, the largest first",
        ylabel="share of the largest singular value",
    )
    for line, (label, rank) in zip(axis.get_lines(), ranks.items(), strict=True):
        line.set_label(f"{label}: effective rank {rank:.1f}")
    figure.legend(loc="outside lower center", ncols=1)
    figure.savefig(file)


if __name__ == "__main__":
    main()
