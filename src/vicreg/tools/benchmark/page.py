"""A study as one self-contained page of HTML."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable

from vicreg.tools.benchmark.computations import COMPUTATIONS, PUBLISHED, VICREG
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

_STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --page: #fff; --quiet: #555; --line: #ddd;
        --code: #f3f3f3; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --page: #16181b; --quiet: #a8adb3; --line: #3a3f45; --code: #24282d; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: var(--text); background: var(--page); }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
figure { margin: 1.5rem 0; } figure svg { width: 100%; height: auto; fill: currentColor; }
figcaption, .note { color: var(--quiet); } figcaption, p.note { font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, dt { text-align: left; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 1.2rem; }
code { background: var(--code); padding: .1rem .3rem; }
"""

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
        _paragraph(_WHAT),
        _paragraph(f"Measured: {with_gradient}, {problem.views} views."),
        *(f"<p>{html.escape(line)}</p>" for line in _findings(study)),
        f"<p>Repeat it with <code>{html.escape(command)}</code></p>",
        "<h2>Plots</h2>",
        *(_figure(panel) for panel in panels(study)),
        "<h2>All figures</h2>",
        _paragraph("Times in milliseconds: medians, with quartiles in brackets."),
        *map(_paragraph, uncertainties(study)),
        _results(study.results),
        "<h2>Not measured</h2>",
        _definitions(study.not_measured) or _paragraph("Nothing was left out."),
        "<h2>How it was measured</h2>",
        _paragraph(METHOD),
        "<h2>On what</h2>",
        _definitions(study.made_with.items()),
    ]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>vicreg: measured figures</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


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


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


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
    head = "".join(f"<th>{html.escape(text)}</th>" for text in headings)
    lines = "\n".join(f"<tr>{''.join(map(_data_cell, row))}</tr>" for row in rows)
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody>\n</table></div>"
    )


def _data_cell(text: str) -> str:
    note = ' class="note"' if text.startswith(UNCERTAIN) else ""
    return f"<td{note}>{html.escape(text)}</td>"


def _time(one: Result, name: str) -> str:
    return milliseconds(one.times[name]) if name in one.times else "-"


def _peak(one: Result, name: str) -> str:
    return f"{one.peaks[name] / 2**20:.1f}" if name in one.peaks else "-"


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    lines = "\n".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in pairs
    )
    return f"<dl>\n{lines}\n</dl>" if lines else ""
