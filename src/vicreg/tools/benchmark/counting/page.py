"""What was counted as one self-contained page of HTML."""

from __future__ import annotations

import html

from vicreg.tools.benchmark.counting.report import COUNTS, counts_cells, estimates, estimates_cells
from vicreg.tools.benchmark.counting.study import Study
from vicreg.tools.benchmark.elements import definitions, document, paragraph, table

__all__ = ["as_html"]

_WHAT = (
    "VICReg is a loss for learning representations without labels. It is computed from two "
    "batches of embeddings, each of n samples of d features. This page shows what one call of the "
    "package vicreg asks of an array library, beside the formula that its authors published: how "
    "many operations, how many bytes read and written, and how many multiply-adds. They are "
    "counted; nothing is measured."
)


def as_html(study: Study, command: str) -> str:
    """Return the page.

    Parameters
    ----------
    study : Study
        A study with at least one row.
    command : str
        The command that repeats it.

    Returns
    -------
    str
    """
    version = html.escape(study.made_with["vicreg"])
    counts, times = counts_cells(study.rows), estimates_cells(study.rows)
    parts = [
        f"<h1>vicreg {version}: what a call costs</h1>",
        paragraph(_WHAT),
        f"<p>Repeat it with <code>{html.escape(command)}</code></p>",
        "<h2>Counted</h2>",
        paragraph(COUNTS),
        table(*counts),
        *(
            ("<h2>Estimated for a GPU</h2>", paragraph(estimates(study.gpu)), table(*times))
            if times[1]
            else ()
        ),
        "<h2>Not counted</h2>",
        definitions(study.not_counted) or paragraph("Nothing was left out."),
        "<h2>With what</h2>",
        definitions(study.made_with.items()),
    ]
    return document("vicreg: what a call costs", parts)
