"""The elements of which the pages of HTML are made, each self-contained."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

__all__ = ["definitions", "document", "paragraph", "table"]

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


def document(title: str, parts: Iterable[str]) -> str:
    """Return a page with these elements in its body."""
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], noted: str | None = None) -> str:
    """Return a table; cells that begin with `noted` are in a quiet colour."""

    def cell(text: str) -> str:
        note = ' class="note"' if noted and text.startswith(noted) else ""
        return f"<td{note}>{html.escape(text)}</td>"

    head = "".join(f"<th>{html.escape(text)}</th>" for text in headings)
    lines = "\n".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody>\n</table></div>"
    )


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names with what is said of each; nothing where there are none."""
    lines = "\n".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in pairs
    )
    return f"<dl>\n{lines}\n</dl>" if lines else ""
