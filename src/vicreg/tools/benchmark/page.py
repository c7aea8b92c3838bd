"""A study as one self-contained page of HTML."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable

from vicreg.tools.benchmark.computations import COMPUTATIONS, PUBLISHED, VICREG
from vicreg.tools.benchmark.elements import definitions, document, paragraph, table
from vicreg.tools.benchmark.plots import Panel, draw_panel, panels
from vicreg.tools.benchmark.report import (
    METHOD,
    UNCERTAIN,
    milliseconds,
    ratio_of,
    uncertainties,
)
from vicreg.tools.benchmark.study import Result, Study

__all__ = ["as_html"]

_WHAT = (
    "VICReg is a loss for learning representations without labels. It is computed from two "
    "batches of embeddings, each of n samples of d features. This page compares the time and "
    "memory of the package vicreg with the formula that its authors published, written in the "
    "same library, and with the matrix products that every implementation needs."
)


def as_html(study: Study, command: str) -> str:
    """Return the page.

    Parameters
    ----------
    study : Study
        A study with at least one result.
    command : str
        The command that repeats it.

    Returns
    -------
    str
    """
    problem = study.results[0].problem
    with_gradient = "the value and its gradient" if problem.products == 2 else "the value only"
    parts = [
        f"<h1>vicreg {html.escape(study.made_with['vicreg'])}: how fast, and in how much memory"
        "</h1>",
        paragraph(_WHAT),
        paragraph(f"Measured: {with_gradient}, {problem.views} views."),
        *(f"<p>{html.escape(line)}</p>" for line in _findings(study)),
        f"<p>Repeat it with <code>{html.escape(command)}</code></p>",
        "<h2>Plots</h2>",
        *(_figure(panel) for panel in panels(study)),
        "<h2>All figures</h2>",
        paragraph("Times in milliseconds: medians, with quartiles in brackets."),
        *map(paragraph, uncertainties(study)),
        _results(study.results),
        "<h2>Not measured</h2>",
        definitions(study.not_measured) or paragraph("Nothing was left out."),
        "<h2>How it was measured</h2>",
        paragraph(METHOD),
        "<h2>On what</h2>",
        definitions(study.made_with.items()),
    ]
    return document("vicreg: measured figures", parts)


def _findings(study: Study) -> list[str]:
    """Return, for each library, the range of its speed relative to the published formula."""
    groups: dict[str, list[Result]] = {}
    for one in study.results:
        groups.setdefault(one.label, []).append(one)
    lines = []
    for label, group in groups.items():
        known = [(one.faster.median, str(one.problem)) for one in group if one.faster is not None]
        if known:
            (low, where_low), (high, where_high) = min(known), max(known)
            lines.append(
                f"{label}: {low:.3g} times as fast as the published formula at {where_low}, "
                f"{high:.3g} times at {where_high}."
            )
    return lines


def _figure(panel: Panel) -> str:
    if panel.draw is None:
        said = f"{panel.title}: not measured, for want of {panel.lacking}."
        return f'<p class="note">{html.escape(said)}</p>'
    title = html.escape(panel.title)
    return (
        f'<figure role="img" aria-label="{title}">\n{_svg(panel)}\n'
        f"<figcaption>{html.escape(panel.caption)}</figcaption>\n</figure>"
    )


def _svg(panel: Panel) -> str:
    """Return the plot as an element of the page, without the header of an SVG file."""
    written = io.StringIO()
    draw_panel(panel).savefig(written, format="svg", transparent=True)
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # What is black, or nearly so, has the colour of the page's text, which may be light on dark.
    text = re.sub(r"#000000|#4c4c4c", "currentColor", text)
    # HTML needs no namespace declarations.
    return re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text).strip()


def _results(results: Iterable[Result]) -> str:
    headings = [
        "library", "n x d", "dtype", *COMPUTATIONS, "/ products", "GFLOP/s", "faster",
        "MiB", "MiB, published",
    ]  # fmt: skip
    rows = [
        [
            one.label,
            str(one.problem),
            one.problem.dtype,
            *(_time(one, name) for name in COMPUTATIONS),
            ratio_of(one, one.over_products),
            f"{one.gflops:.3g}",
            ratio_of(one, one.faster, "x"),
            *(_peak(one, name) for name in (VICREG, PUBLISHED)),
        ]
        for one in results
    ]
    return table(headings, rows, noted=UNCERTAIN)


def _time(one: Result, name: str) -> str:
    return milliseconds(one.times[name]) if name in one.times else "-"


def _peak(one: Result, name: str) -> str:
    return f"{one.peaks[name] / 2**20:.1f}" if name in one.peaks else "-"
