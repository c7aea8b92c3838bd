"""One figure of a study: the training, the spectra and the correlations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vicreg.tools.demo.study import NO_COVARIANCE, NO_VARIANCE, TRAINED, UNTRAINED, VICREG, Study
from vicreg.tools.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

__all__ = ["draw", "save_plot"]

# The colours of Okabe and Ito, which the colour-blind can tell apart.
_COLOURS = {VICREG: "#0072B2", NO_VARIANCE: "#D55E00", NO_COVARIANCE: "#009E73", UNTRAINED: "0.45"}
_TERMS = {
    "invariance": "Invariance term:\ndistance of the views",
    "variance": "Variance term: what\nfeatures' stds lack to 1",
    "covariance": "Covariance term: how far\nfeatures vary together",
}
_TITLE = 10.5
#: Up to this many epochs each is marked by a dot, so that a single one is visible.
_FEW_EPOCHS = 10
#: Singular values below this share of the largest are rounding errors: the axis ends there.
_SPECTRUM_FLOOR = 1e-8


def save_plot(study: Study, file: Path) -> None:
    """Draw `study`, and replace `file` by the figure once it is complete.

    Parameters
    ----------
    study : Study
        The study to draw.
    file : path
        The file; its suffix determines the format.

    Raises
    ------
    ToolError
        The figure cannot be written; an existing `file` is left unchanged.
    """
    with replacing(file) as unfinished:
        draw(study).savefig(unfinished, dpi=150)


def draw(study: Study) -> Figure:
    """Return the figure of a study.

    Parameters
    ----------
    study : Study
        The study to draw.

    Returns
    -------
    matplotlib.figure.Figure
        Above, the three terms by epoch and the spectrum of the embeddings; below, the
        correlations of the embeddings' features, one matrix per variant.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # So wide that its text, of 10 points and more, reads at the width of a page.
    figure = Figure(figsize=(10.4, 6.9), layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.05))
    axes = figure.subplots(2, 4, height_ratios=(1, 1.05))
    for axis, (term, title) in zip(axes[0], _TERMS.items(), strict=False):
        _draw_term(axis, study, term, title)
    _draw_spectra(axes[0, 3], study)
    for axis, name in zip(axes[1], study.outcomes, strict=True):
        image = _draw_correlations(axis, study, name)
    bar = figure.colorbar(image, ax=axes[1], shrink=0.75, aspect=25, pad=0.01, ticks=(-1, 0, 1))
    bar.set_label("correlation of features")
    handles, labels = axes[0, 3].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(_headline(study), fontsize=14)
    return figure


def _headline(study: Study) -> str:
    epochs = f"{study.epochs} epoch{'' if study.epochs == 1 else 's'}"
    return f"What each term of VICReg does: digits, {study.backend}, {epochs}, seed {study.seed}"


def _draw_term(axis: Axes, study: Study, term: str, title: str) -> None:
    marker = "o" if study.epochs <= _FEW_EPOCHS else ""
    epochs = np.arange(1, study.epochs + 1)
    for name in TRAINED:
        values = np.array([getattr(terms, term) for terms in study.outcomes[name].history])
        axis.plot(epochs, values, color=_COLOURS[name], marker=marker, lw=2)
    axis.set(xlabel="epoch")
    axis.set_title(title, fontsize=_TITLE)
    if term == "variance":
        # Show both ends, 0 (no hinge acts) and 1 (collapsed).
        axis.set_ylim(-0.03, 1.03)
    else:
        # A logarithmic axis cannot show the exact 0 of a full collapse.
        axis.set_yscale("log", nonpositive="mask")
    _tidy(axis)


def _draw_spectra(axis: Axes, study: Study) -> None:
    for name, outcome in study.outcomes.items():
        values = outcome.singular_values
        style: dict[str, Any] = {"ls": "--"} if name == UNTRAINED else {}
        ranks = np.arange(1, len(values) + 1)
        axis.plot(ranks, values, color=_COLOURS[name], lw=2, label=name, **style)
    axis.set_title("Singular values: how many\ndirections embeddings fill", fontsize=_TITLE)
    axis.set_yscale("log", nonpositive="mask")
    largest = max(outcome.singular_values[0] for outcome in study.outcomes.values())
    axis.set_ylim(_SPECTRUM_FLOOR * largest, 3 * largest)
    axis.set(xlabel="largest first")
    _tidy(axis)


def _tidy(axis: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_correlations(axis: Axes, study: Study, name: str) -> AxesImage:
    from matplotlib import colormaps

    outcome = study.outcomes[name]
    colours = colormaps["RdBu_r"].with_extremes(bad="0.8")
    # Each entry as a square of its own: smoothed ones would look less correlated than they are.
    image = axis.imshow(
        outcome.correlations, cmap=colours, vmin=-1, vmax=1, interpolation="nearest"
    )
    measured = f"std {outcome.mean_std:.2g}, rank {outcome.effective_rank:.1f}"
    if np.isnan(outcome.correlations).any():
        measured += "\ngrey: constant features"
    axis.set_title(f"{name}\n{measured}", color=_COLOURS[name], fontsize=_TITLE)
    axis.set(xlabel="feature", xticks=(), yticks=())
    return image
