"""The plots of a study: how time grows; how computations, compilers and devices compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vicreg.tools.benchmark.computations import PRODUCTS, PUBLISHED, VICREG
from vicreg.tools.benchmark.report import UNCERTAIN, short
from vicreg.tools.benchmark.study import Result, Study
from vicreg.tools.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Panel", "draw", "draw_panel", "panels", "save_plot"]

# The colours of Okabe and Ito, which the colour-blind can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES: dict[str, dict[str, Any]] = {
    VICREG: {"ls": "-", "lw": 2.2, "marker": "o", "ms": 5},
    PUBLISHED: {"ls": "--", "lw": 1.4, "marker": "s", "ms": 4},
    PRODUCTS: {"ls": ":", "lw": 1.4, "marker": "", "ms": 0},
}
#: With more marks than this they have no numbers, which would overlap.
_MOST_LABELS = 27
_LABELS = {VICREG: "vicreg", PUBLISHED: "published formula", PRODUCTS: "bare products"}


@dataclass(frozen=True)
class Panel:
    """One plot.

    Parameters
    ----------
    title : str
        The title.
    caption : str
        How to read the plot.
    draw : callable or None
        Draws it on axes; None if it was not measured.
    lacking : str
        What was missing for it, to be read after "for want of".
    """

    title: str
    caption: str
    draw: Callable[[Axes], None] | None
    lacking: str = ""


def panels(study: Study) -> list[Panel]:
    """Return the plots of a study, each of the dtype of its first result.

    Parameters
    ----------
    study : Study
        With at least one result.

    Returns
    -------
    list of Panel
        Always the same plots, those included that could not be measured.
    """
    dtype = study.results[0].problem.dtype
    results = [one for one in study.results if one.problem.dtype == dtype]
    colours = _colours(results)
    usual = [one for one in results if not one.problem.compiled or one.always_compiled]
    return [
        _faster(usual, colours),
        _memory(usual, colours),
        _growth(usual, colours, "n"),
        _growth(usual, colours, "d"),
        _compilers(results),
        _devices(usual),
    ]


def save_plot(study: Study, file: Path) -> None:
    """Draw all plots, and replace `file` by them once they are complete.

    Parameters
    ----------
    study : Study
        With at least one result.
    file : path
        The file; its suffix determines the format.

    Raises
    ------
    ToolError
        The figure cannot be written; an existing `file` is left unchanged.
    """
    with replacing(file) as unfinished:
        draw(study).savefig(unfinished, dpi=130)


def draw(study: Study) -> Figure:
    """Return one figure with all plots.

    Parameters
    ----------
    study : Study
        With at least one result.

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib.figure import Figure

    every = panels(study)
    drawn = [panel for panel in every if panel.draw is not None]
    rows = max(1, math.ceil(len(drawn) / 2))
    figure = Figure(figsize=(15, 1.2 + 4.8 * rows), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.12)  # type: ignore[union-attr,call-arg]
    axes = list(figure.subplots(rows, 2).flat)
    for axis, panel in zip(axes, drawn, strict=False):
        _draw_on(axis, panel)
    for axis in axes[len(drawn) :]:
        axis.set_axis_off()
    lacking = [f"{one.title}: not measured, for want of {one.lacking}" for one in every]
    figure.supxlabel(
        "\n".join(line for line, one in zip(lacking, every, strict=True) if one.draw is None),
        fontsize=10,
        color="0.35",
    )
    problem = study.results[0].problem
    figure.suptitle(
        f"vicreg {study.made_with['vicreg']}, {problem.mode}, {problem.dtype}, "
        f"{problem.views} views; {study.made_with['processor']}",
        fontsize=13,
        parse_math=False,
    )
    return figure


def draw_panel(panel: Panel) -> Figure:
    """Return the figure of one plot.

    Parameters
    ----------
    panel : Panel
        One that was measured.

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 4.6), layout="constrained")
    _draw_on(figure.subplots(), panel)
    return figure


def _draw_on(axis: Axes, panel: Panel) -> None:
    axis.set_title(panel.title, fontsize=11)
    if panel.draw is not None:
        panel.draw(axis)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _place(one: Result) -> str:
    return one.library if one.device == "cpu" else f"{one.library} {one.device}"


def _colours(results: Sequence[Result]) -> dict[str, str]:
    places = dict.fromkeys(_place(one) for one in results)
    return {place: _COLOURS[i % len(_COLOURS)] for i, place in enumerate(places)}


def _faster(results: Sequence[Result], colours: dict[str, str]) -> Panel:
    measured = [one for one in results if one.faster is not None]

    def draw_marks(axis: Axes) -> None:
        bars = {
            place: {
                str(one.problem): one.faster.median
                for one in measured
                if _place(one) == place and one.faster is not None
            }
            for place in dict.fromkeys(_place(one) for one in measured)
        }
        uncertain = [
            (_place(one), str(one.problem)) for one in measured if one.is_uncertain(one.faster)
        ]
        shades = [colours[place] for place in bars]
        _compare(axis, bars, shades, "times faster (log)", base=1, uncertain=uncertain)
        axis.axhline(1, color="0.3", lw=1)

    return Panel(
        "How many times faster than the published formula",
        "Above 1 the loss is faster than the published formula in the same library on the same "
        f"device; sizes are samples x features. Pale bars with a {UNCERTAIN} are uncertain.",
        draw_marks if measured else None,
        "the published formula beside the loss",
    )


def _memory(results: Sequence[Result], colours: dict[str, str]) -> Panel:
    measured = [one for one in results if one.peaks.get(VICREG)]

    def draw_marks(axis: Axes) -> None:
        bars: dict[str, dict[str, float]] = {}
        shades = []
        for place in dict.fromkeys(_place(one) for one in measured):
            for name in (VICREG, PUBLISHED):
                ratios = {
                    str(one.problem): one.peaks[name] / 2**20
                    for one in measured
                    if _place(one) == place and one.peaks.get(name)
                }
                if ratios:
                    bars[f"{place}, {_LABELS[name]}"] = ratios
                    shades.append(colours[place] + ("" if name == VICREG else "66"))
        _compare(axis, bars, shades, "MiB above the inputs (log)")

    return Panel(
        "Peak memory of a call above its inputs",
        "Lower is better; pale marks are the published formula. Outputs are counted.",
        draw_marks if measured else None,
        "the memory of a call",
    )


def _growth(results: Sequence[Result], colours: dict[str, str], by: str) -> Panel:
    fixed = "d" if by == "n" else "n"
    groups: dict[int, set[int]] = {}
    for one in results:
        values = {"n": one.problem.n, "d": one.problem.d}
        groups.setdefault(values[fixed], set()).add(values[by])
    at = max(groups, key=lambda value: len(groups[value]), default=0)
    is_measured = len(groups.get(at, ())) > 1

    def draw_lines(axis: Axes) -> None:
        _draw_growth(axis, results, colours, by, fixed, at)

    title = f"Time against {by}, the number of {'samples' if by == 'n' else 'features'}"
    return Panel(
        f"{title}, at {fixed} = {at}" if is_measured else title,
        "Both axes are logarithmic; bands are the quartiles. Solid lines are the loss, dashed "
        "the published formula, dotted the bare matrix products.",
        draw_lines if is_measured else None,
        f"two sizes of one {fixed}",
    )


def _draw_growth(
    axis: Axes, results: Sequence[Result], colours: dict[str, str], by: str, fixed: str, at: int
) -> None:
    chosen = [one for one in results if getattr(one.problem, fixed) == at]
    chosen.sort(key=lambda one: int(getattr(one.problem, by)))
    for place in dict.fromkeys(_place(one) for one in chosen):
        for name, style in _STYLES.items():
            here = [one for one in chosen if _place(one) == place and name in one.times]
            if not here:
                continue
            x = [getattr(one.problem, by) for one in here]
            quartiles = [one.times[name].quartiles for one in here]
            colour = colours[place]
            label = place if name == VICREG else None
            middle = [1e3 * s.median for s in quartiles]
            axis.plot(x, middle, color=colour, label=label, **style)
            low, high = [1e3 * s.low for s in quartiles], [1e3 * s.high for s in quartiles]
            axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    for name in (PUBLISHED, PRODUCTS):
        if any(name in one.times for one in chosen):
            axis.plot([], [], color="0.3", label=_LABELS[name], **_STYLES[name])
    axis.set_xscale("log", base=2)
    _log_axis(axis)
    ticks = sorted({getattr(one.problem, by) for one in chosen})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set(xlabel=by, ylabel="ms per call (log)")
    axis.legend(frameon=False, fontsize=9)


def _compilers(results: Sequence[Result]) -> Panel:
    eager = {(_place(one), str(one.problem)): one for one in results if not one.problem.compiled}
    pairs = [
        (eager[key], one)
        for one in results
        if one.problem.compiled and (key := (_place(one), str(one.problem))) in eager
    ]

    def draw_marks(axis: Axes) -> None:
        marks, shades = _pair_marks(pairs, _place, ("eager", "compiled"))
        _compare(axis, marks, shades, "ms per call (log)")

    return Panel(
        "The loss eager and compiled",
        "Pale marks are eager, full ones under the library's compiler. JAX is always compiled.",
        draw_marks if pairs else None,
        "--compile, or of a library that has a compiler",
    )


def _devices(results: Sequence[Result]) -> Panel:
    on_cpu = {(one.library, str(one.problem)): one for one in results if one.device == "cpu"}
    pairs = [
        (on_cpu[key], one)
        for one in results
        if one.device != "cpu" and (key := (one.library, str(one.problem))) in on_cpu
    ]

    def draw_marks(axis: Axes) -> None:
        marks, shades = _pair_marks(pairs, lambda one: one.library, ("cpu", ""))
        _compare(axis, marks, shades, "ms per call (log)")

    return Panel(
        "The loss on the CPU and on the GPU",
        "Pale marks are the CPU.",
        draw_marks if pairs else None,
        "a library on the CPU and on a GPU",
    )


def _pair_marks(
    pairs: Sequence[tuple[Result, Result]],
    name: Callable[[Result], str],
    words: tuple[str, str],
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return two marks per size for each library, the first one pale, and their colours."""
    bars: dict[str, dict[str, float]] = {}
    colours: dict[str, str] = {}
    libraries = list(dict.fromkeys(name(second) for _, second in pairs))
    for pair in pairs:
        base = _COLOURS[libraries.index(name(pair[1])) % len(_COLOURS)]
        for one, word, shade in zip(pair, words, ("66", ""), strict=True):
            label = f"{name(pair[1])} {word or one.device}"
            bars.setdefault(label, {})[str(one.problem)] = 1e3 * one.times[VICREG].quartiles.median
            colours[label] = base + shade
    return bars, [colours[label] for label in bars]


def _compare(
    axis: Axes,
    marks: dict[str, dict[str, float]],
    colours: Sequence[str],
    heading: str,
    base: float | None = None,
    uncertain: Collection[tuple[str, str]] = (),
) -> None:
    """Draw one mark per label and size: bars from `base`, or dots without one.

    On a logarithmic axis a bar would have no zero to start from. Bars whose label and size are in
    `uncertain` are pale.
    """
    sizes = list(dict.fromkeys(size for values in marks.values() for size in values))
    width = 0.82 / max(1, len(marks))
    for number, ((label, values), colour) in enumerate(zip(marks.items(), colours, strict=True)):
        offset = (number - (len(marks) - 1) / 2) * width
        at = [sizes.index(size) + offset for size in values]
        heights = list(values.values())
        if base is None:
            axis.plot(at, heights, "o", ms=8, color=colour, label=label)
        else:
            over = [height - base for height in heights]
            bars = axis.bar(at, over, width * 0.92, bottom=base, color=colour, label=label)
            for bar, size in zip(bars, values, strict=True):
                bar.set_alpha(0.4 if (label, size) in uncertain else 1)
        if len(marks) * len(sizes) > _MOST_LABELS:
            continue
        for x, (size, height) in zip(at, values.items(), strict=True):
            mark = UNCERTAIN if (label, size) in uncertain else ""
            shift = -11 if base is not None and height < base else 5
            axis.annotate(
                mark + short(height), (x, height), xytext=(0, shift), textcoords="offset points",
                ha="center", fontsize=7,
            )  # fmt: skip
    # Many sizes do not fit on one line.
    names = [size.replace(" x", "\nx") for size in sizes] if len(sizes) > 5 else sizes
    axis.set_xticks(range(len(sizes)), names)
    axis.set_xlim(-0.5, len(sizes) - 0.5)
    axis.set(ylabel=heading)
    _log_axis(axis)
    axis.margins(y=0.15)
    axis.legend(frameon=False, fontsize=9, ncols=2 if len(marks) > 4 else 1)


def _log_axis(axis: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
