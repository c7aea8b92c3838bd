"""One figure of a diagnosis: the spectrum of a batch, and the stds of its features."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vicreg._diagnostics import Diagnosis
from vicreg.tools.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "save_plot"]

Floats = npt.NDArray[np.float64]

# The colours of Okabe and Ito, which the colour-blind can tell apart.
_BATCH, _REFERENCE, _DEAD = "#0072B2", "#D55E00", "0.55"
#: Up to this many values each is marked by a dot, so that a single one is visible.
_FEW = 40
#: The γ of the hinge, and the multiple of it from which on the axis is logarithmic.
_GAMMA, _FAR = 1.0, 10.0
#: Singular values below this share of the largest are left out: the axis ends there.
_SPECTRUM_FLOOR = 1e-6


def save_plot(diagnosis: Diagnosis, name: str, file: Path) -> None:
    """Draw `diagnosis`, and replace `file` by the figure once it is complete.

    Parameters
    ----------
    diagnosis : Diagnosis
        The diagnosis, with finite arrays that NumPy can read.
    name : str
        The name of the batch.
    file : path
        The file; its suffix determines the format.

    Raises
    ------
    ToolError
        The figure cannot be written; an existing `file` is left unchanged.
    """
    with replacing(file) as unfinished:
        draw(diagnosis, name).savefig(unfinished, dpi=150)


def draw(diagnosis: Diagnosis, name: str) -> Figure:
    """Return the figure of a diagnosis.

    Parameters
    ----------
    diagnosis : Diagnosis
        The diagnosis, with finite arrays that NumPy can read.
    name : str
        The name of the batch.

    Returns
    -------
    matplotlib.figure.Figure
        The spectrum beside that of a whitened batch, and the standard deviations of the
        features beside the hinge, or beside the most that they can be at unit norm. The verdict
        is the title; the other numbers are below.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(11, 5.2), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.12))
    spectrum, stds = figure.subplots(1, 2)
    _draw_spectrum(spectrum, diagnosis)
    _draw_stds(stds, diagnosis)
    # matplotlib would read a name with $ as a formula.
    figure.suptitle(diagnosis.verdict, fontsize=14, fontweight="bold", parse_math=False)
    figure.supxlabel(_caption(diagnosis, name), fontsize=10, parse_math=False)
    return figure


def _caption(diagnosis: Diagnosis, name: str) -> str:
    terms = {"variance": diagnosis.variance, "covariance": diagnosis.covariance}
    if diagnosis.invariance is not None:
        terms = {"invariance": diagnosis.invariance, **terms}
    shown = ", ".join(f"{term} {float(value):.3g}" for term, value in terms.items())
    of_norm = ", each of norm 1" if diagnosis.unit_norm else ""
    return (
        f"{name}: {diagnosis.n} samples of {diagnosis.d} "
        f"feature{'' if diagnosis.d == 1 else 's'}{of_norm}\n"
        f"mean |correlation| {float(diagnosis.mean_abs_correlation):.2g}; "
        f"terms ({diagnosis.convention}): {shown}"
    )


def _draw_spectrum(axis: Axes, diagnosis: Diagnosis) -> None:
    values = np.asarray(diagnosis.singular_values, dtype=np.float64)
    limit = diagnosis.rank_limit
    axis.set_title(
        f"How many directions the batch fills:\neffective rank "
        f"{float(diagnosis.effective_rank):.1f} of {limit}, participation ratio "
        f"{float(diagnosis.participation_ratio):.1f}",
        fontsize=11,
    )
    axis.set(xlabel="singular value of the centred batch, largest first", ylabel="singular value")
    _tidy(axis, limit)
    largest = values.max()
    if not largest > 0:
        _say(axis, "every singular value is 0:\nthe samples are all the same")
        return
    # The same total variance, spread evenly.
    whitened = float(np.linalg.norm(values / largest)) * largest / math.sqrt(limit)
    counted = values[values > _SPECTRUM_FLOOR * largest]
    axis.axhline(
        whitened, color=_REFERENCE, ls="--", lw=1.8, label="whitened: all directions alike"
    )
    _draw_sorted(axis, counted, "this batch")
    _set_log_scale(axis, min(counted[-1], whitened), max(largest, whitened))
    if len(counted) < limit:
        _mark_rest(axis, len(counted), limit, "nothing here:\n{} of {} directions\nare empty")
    _add_legend(axis)


def _draw_stds(axis: Axes, diagnosis: Diagnosis) -> None:
    std = np.sort(np.asarray(diagnosis.std, dtype=np.float64))[::-1]
    dead, d = int(diagnosis.dead_features), diagnosis.d
    axis.set_title(
        f"How far each feature varies:\nstd {float(diagnosis.mean_std):.3g} on average, "
        f"{dead} of {d} feature{'' if d == 1 else 's'} dead",
        fontsize=11,
    )
    axis.set(xlabel="feature, the most varying first", ylabel="standard deviation")
    _tidy(axis, d)
    alive = std[std > 0]
    reference, label = _GAMMA, "γ = 1: the hinge acts below"
    if diagnosis.unit_norm:
        reference = diagnosis._judge.most_at_unit_norm
        label = f"{reference:.3g}: the most at unit norm, on average"
    axis.axhline(reference, color=_REFERENCE, ls="--", lw=1.8, label=label)
    if len(alive):
        _draw_sorted(axis, alive, "this batch")
    top = max(reference, std.max())
    if top > _FAR * reference:
        _set_log_scale(axis, min(reference, alive[-1]), top)
    else:
        # Start at 0, a collapsed feature.
        axis.set_ylim(-0.03 * top, 1.1 * top)
    if dead:
        _mark_rest(axis, d - dead, d, "dead:\n{} of {} features\nare constant")
    _add_legend(axis)


def _draw_sorted(axis: Axes, values: Floats, label: str) -> None:
    marker: dict[str, Any] = {"marker": "o", "ms": 4} if len(values) <= _FEW else {}
    axis.plot(np.arange(1, len(values) + 1), values, color=_BATCH, lw=2, label=label, **marker)


def _mark_rest(axis: Axes, counted: int, limit: int, text: str) -> None:
    """Shade the positions after `counted`, and label them with `text`."""
    axis.axvspan(counted + 0.5, limit + 0.5, color=_DEAD, alpha=0.18, lw=0)
    shown = text.format(limit - counted, limit)
    # In the shaded area if there is room, otherwise beside it.
    inside = limit - counted > 0.3 * limit
    place = (counted + limit + 1) / 2 if inside else counted + 0.5 - 0.02 * limit
    axis.text(
        place,
        0.5,
        shown,
        transform=axis.get_xaxis_transform(),
        ha="center" if inside else "right",
        va="center",
        color="0.3",
        bbox={"facecolor": "white", "lw": 0},
    )


def _set_log_scale(axis: Axes, low: float, high: float) -> None:
    """Make the axis of the values logarithmic, from below `low` to above `high`."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_yscale("log")
    axis.set_ylim(low / 2, high * 2)
    # Within two decades the powers of ten are too few as labels.
    narrow = high < 25 * low
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _add_legend(axis: Axes) -> None:
    # Below the axes, since a curve may pass through any corner within them.
    axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)


def _say(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", fontsize=12)
    axis.set_yticks([])


def _tidy(axis: Axes, count: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_xlim(0.5, count + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
