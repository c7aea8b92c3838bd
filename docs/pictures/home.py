"""Draw what is left of the embeddings of `vicreg demo` without one of two terms.

python docs/pictures/home.py --plot home.svg
"""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from vicreg.tools.demo.study import NO_COVARIANCE, NO_VARIANCE, VICREG, run_study

EPOCHS, SEED = 60, 0

LABELS = {
    VICREG: "all three terms",
    NO_VARIANCE: "no variance term",
    NO_COVARIANCE: "no covariance term",
}


def draw_bars(axis: Axes, values: dict[str, float], title: str, xlabel: str) -> None:
    for place, (label, value) in enumerate(values.items()):
        axis.barh(label, value, color=f"C{place}", height=0.62)
        axis.annotate(
            f"{value:.2g}", (value, place), xytext=(5, 0), textcoords="offset points", va="center"
        )
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.15)
    axis.set(xlabel=xlabel)
    axis.set_title(title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", required=True, metavar="FILE")
    file = parser.parse_args().plot
    study = run_study(epochs=EPOCHS, seed=SEED)
    outcomes = {label: study.outcomes[name] for name, label in LABELS.items()}
    stds = {label: outcome.mean_std for label, outcome in outcomes.items()}
    ranks = {label: outcome.effective_rank for label, outcome in outcomes.items()}
    # What the titles say.
    assert 50 * stds["no variance term"] < min(stds["all three terms"], stds["no covariance term"])
    assert 2 * ranks["no covariance term"] < ranks["all three terms"]
    figure, axes = plt.subplots(2, figsize=(5.2, 4.6))
    draw_bars(
        axes[0],
        stds,
        "Without the variance term,\nall embeddings are nearly the same",
        "mean std of a feature",
    )
    draw_bars(
        axes[1],
        ranks,
        "Without the covariance term,\nfew directions are used",
        f"effective rank, of {outcomes['all three terms'].rank_limit}",
    )
    figure.savefig(file)


if __name__ == "__main__":
    main()
