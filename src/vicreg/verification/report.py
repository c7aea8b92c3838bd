"""What a run of the suite says: tables for the terminal, Markdown, JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from vicreg.verification.suite import VALUES, Measurement, Results

__all__ = [
    "UNIT",
    "as_json",
    "as_markdown",
    "failures",
    "pairs_table",
    "results_table",
]

UNIT = (
    "Errors are multiples of what rounding alone can do: the dtype's unit roundoff times the size "
    "and the condition of the problem. 1 is the bound; a pass means the same in every dtype. In "
    "half precision a gradient is rounded once more at the end, which alone may take it near 1."
)
PAIRS = (
    "How far two libraries are apart, in the same unit: values above the diagonal, gradients "
    "below it."
)
#: Where these ran, the pairs in the terminal are those in full precision: what half precision
#: adds is one rounding.
_FULL = ("float64", "float32")
_SHOWN_FAILURES = 12


@dataclass(frozen=True)
class _Worst:
    """The largest error of some quantities, and where it was."""

    error: float
    quantity: str
    case: str
    convention: str


@dataclass(frozen=True)
class _Row:
    """One library in one dtype."""

    backend: str
    dtype: str
    value: _Worst
    gradient: _Worst
    passed: bool
    count: int


def _rows(results: Results) -> list[_Row]:
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for one in results.measurements:
        groups.setdefault((one.backend, one.dtype), []).append(one)
    order = list(dict.fromkeys(backend for backend, _ in groups))
    return [
        _Row(
            backend,
            dtype,
            _worst(group, lambda name: name in VALUES),
            _worst(group, lambda name: name not in VALUES),
            all(one.passed for one in group),
            len(group),
        )
        for (backend, dtype), group in sorted(groups.items(), key=lambda g: order.index(g[0][0]))
    ]


def _worst(group: Iterable[Measurement], is_of: Callable[[str], bool]) -> _Worst:
    found = [
        _Worst(error, name, one.case, one.convention)
        for one in group
        for name, error in (one.errors or {"loss": math.inf, "gradient": math.inf}).items()
        if is_of(name)
    ]
    return max(found, key=lambda worst: worst.error)


def results_table(results: Results, title: str) -> Table:
    """Return the table of the libraries by dtype, 80 columns wide.

    Parameters
    ----------
    results : Results
        What came out.
    title : str
        Above the table.

    Returns
    -------
    rich.table.Table
    """
    table = _empty_table(title)
    table.add_column("Library", overflow="fold")
    table.add_column("dtype", no_wrap=True)
    for heading in ("Value", "Gradient"):
        table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("worst in", no_wrap=True, style="dim")
    table.add_column("", no_wrap=True)
    before = None
    for row in _rows(results):
        table.add_row(
            "" if row.backend == before else row.backend,
            row.dtype,
            _number(row.value.error),
            row.value.case,
            _number(row.gradient.error),
            row.gradient.case,
            "[green]pass[/green]" if row.passed else "[bold red]FAIL[/bold red]",
        )
        before = row.backend
    return table


def _empty_table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def pairs_table(results: Results) -> Table | None:
    """Return the table of the pairs of libraries; None where fewer than two ran.

    Parameters
    ----------
    results : Results
        What came out.

    Returns
    -------
    rich.table.Table or None
    """
    names = list(dict.fromkeys(name for a, b, _ in results.distances for name in (a, b)))
    if len(names) < 2:
        return None
    dtypes = {dtype for _, _, dtype in results.distances}
    shown = dtypes & set(_FULL) or dtypes
    title = f"Each pair of libraries, in {' and '.join(sorted(shown, reverse=True))}"
    table = _empty_table(title)
    table.add_column("Library", overflow="fold", min_width=18)
    for number in range(1, len(names) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    for row, name in enumerate(names):
        cells = [
            "-" if row == column else _pair_cell(results, names, row, column, shown)
            for column in range(len(names))
        ]
        table.add_row(f"{row + 1} {name}", *cells)
    return table


def _pair_cell(
    results: Results, names: list[str], row: int, column: int, dtypes: Iterable[str]
) -> str:
    a, b = names[min(row, column)], names[max(row, column)]
    of_gradient = row > column
    both = [results.distances.get((a, b, dtype)) for dtype in dtypes]
    found = [pair[1 if of_gradient else 0] for pair in both if pair is not None]
    return _number(max(found)) if found else ""


def failures(results: Results) -> list[str]:
    """Return what failed, a line each, the worst first.

    Parameters
    ----------
    results : Results
        What came out.

    Returns
    -------
    list of str
        At most a dozen lines and one that counts the others.
    """
    failed = [one for one in results.measurements if not one.passed]
    failed.sort(key=lambda one: -max(one.errors.values(), default=math.inf))
    lines = [f"{_place(one)}: {_fault(one)}" for one in failed]
    if len(lines) > _SHOWN_FAILURES:
        more = len(lines) - _SHOWN_FAILURES
        lines = [*lines[:_SHOWN_FAILURES], f"and {more} more (--json FILE has them all)"]
    return lines


def _place(one: Measurement) -> str:
    return f"{one.backend} {one.dtype}, {one.convention}, {one.case}"


def _fault(one: Measurement) -> str:
    if one.complaint:
        return one.complaint
    return ", ".join(
        f"the {name} is {_times(error)}" for name, error in one.errors.items() if error > 1.0
    )


def _times(error: float) -> str:
    return "no number" if math.isinf(error) else f"off by {error:.3g} times its bound"


def as_json(results: Results, made_with: Mapping[str, str]) -> dict[str, Any]:
    """Return everything that was found, as data.

    Parameters
    ----------
    results : Results
        What came out.
    made_with : mapping of str to str
        The versions of everything.

    Returns
    -------
    dict
        An error that is no number is None.
    """
    return {
        "passed": results.passed,
        "unit": UNIT,
        "seed": results.seed,
        "versions": dict(made_with),
        "libraries": [
            {
                "library": row.backend,
                "dtype": row.dtype,
                "passed": row.passed,
                "problems": row.count,
                "value": _worst_as_json(row.value),
                "gradient": _worst_as_json(row.gradient),
            }
            for row in _rows(results)
        ],
        "pairs": [
            {"libraries": [a, b], "dtype": dtype, "value": _finite(v), "gradient": _finite(g)}
            for (a, b, dtype), (v, g) in results.distances.items()
        ],
        "left_out": dict(results.left_out),
        "failures": [
            {
                "library": one.backend,
                "dtype": one.dtype,
                "convention": one.convention,
                "case": one.case,
                "errors": {name: _finite(error) for name, error in one.errors.items()},
                "complaint": one.complaint,
            }
            for one in results.measurements
            if not one.passed
        ],
    }


def _worst_as_json(worst: _Worst) -> dict[str, Any]:
    return {
        "error": _finite(worst.error),
        "of": worst.quantity,
        "case": worst.case,
        "convention": worst.convention,
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def as_markdown(results: Results, made_with: Mapping[str, str], title: str) -> str:
    """Return the report as Markdown.

    Parameters
    ----------
    results : Results
        What came out.
    made_with : mapping of str to str
        The versions of everything.
    title : str
        The heading.

    Returns
    -------
    str
    """
    blocks = [f"# {title}", "All agree." if results.passed else "**Not all agree.**", UNIT]
    blocks.append(
        _markdown_table(
            ("library", "dtype", "value", "worst in", "gradient", "worst in", "result"),
            [
                (
                    row.backend,
                    row.dtype,
                    _number(row.value.error),
                    f"{row.value.case} ({row.value.convention}, {row.value.quantity})",
                    _number(row.gradient.error),
                    f"{row.gradient.case} ({row.gradient.convention})",
                    "pass" if row.passed else "**FAIL**",
                )
                for row in _rows(results)
            ],
        )
    )
    if results.distances:
        blocks += ["## Each pair of libraries", "How far apart they are, in the same unit."]
        blocks.append(
            _markdown_table(
                ("library", "library", "dtype", "value", "gradient"),
                [(*key, *map(_number, apart)) for key, apart in results.distances.items()],
            )
        )
    for heading, lines in (
        ("What failed", failures(results)),
        ("What did not run", [f"{name}: {why}" for name, why in results.left_out.items()]),
        ("Made with", [f"{name} {which}" for name, which in made_with.items()]),
    ):
        if lines:
            blocks += [f"## {heading}", "\n".join(f"- {line}" for line in lines)]
    blocks.append(f"Seed {results.seed}.")
    return "\n\n".join(blocks) + "\n"


def _markdown_table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    headings = list(headings)
    lines = [headings, ["---"] * len(headings), *map(list, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _number(error: float) -> str:
    if math.isinf(error):
        return "none"
    if error >= 1e4:
        return f"{error:.0e}"
    if 0 < error < 0.005:
        return "<.01"
    return f"{error:.2f}" if 0 < error < 10 else f"{error:.0f}"
