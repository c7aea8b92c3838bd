"""The report of a run of the suite: tables for the terminal, Markdown, JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from vicreg.tools.verification.paths import AS_CALLED, PATHS
from vicreg.tools.verification.suite import Measurement, Results

__all__ = [
    "PATHS_CAPTION",
    "UNIT",
    "as_json",
    "as_markdown",
    "failures",
    "in_common",
    "pairs_table",
    "paths_table",
    "results_table",
]

UNIT = (
    "Errors are multiples of the bound of rounding: the dtype's unit roundoff times the size and "
    "the condition of the problem. Up to 1 is a pass, in every dtype. In half precision a "
    "gradient is rounded once more at the end, which alone may take it near 1."
)
PAIRS = (
    "The distance between two libraries, in the same unit: values above the diagonal, gradients "
    "below it."
)
PATHS_CAPTION = (
    "The largest error on each path that the code chooses by size and by device: small views "
    "stacked, as on a GPU, in parts, and in parts with each view by itself, with small inputs "
    "that are made to take that path; and large inputs as called. In full precision."
)
#: The dtypes in the tables of paths and pairs, if any of them ran: half precision adds nothing but
#: one rounding.
_FULL = ("float64", "float32")
_SHOWN_FAILURES = 12
_SHOWN_QUANTITIES = 2


@dataclass(frozen=True)
class _Worst:
    """The largest error of some quantities, and where it occurred."""

    error: float
    quantity: str
    case: str
    convention: str
    path: str


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
            _worst([(one, one.values) for one in group]),
            _worst([(one, one.gradients) for one in group]),
            all(one.passed for one in group),
            len(group),
        )
        for (backend, dtype), group in sorted(groups.items(), key=lambda g: order.index(g[0][0]))
    ]


def _worst(group: Iterable[tuple[Measurement, Mapping[str, float]]]) -> _Worst:
    errors_of_group = [
        _Worst(error, name, one.case, one.convention, one.path)
        for one, errors in group
        for name, error in (errors or _of_nothing(one)).items()
    ]
    nothing = _Worst(0.0, "", "", "", "")
    return max(errors_of_group, key=lambda worst: worst.error, default=nothing)


def _of_nothing(one: Measurement) -> dict[str, float]:
    """Return an infinite error for a measurement that failed without any number."""
    return {"": math.inf} if one.complaint and not one.errors else {}


def results_table(results: Results, title: str) -> Table:
    """Return the table of the libraries by dtype, 80 columns wide.

    Parameters
    ----------
    results : Results
        The results of the run.
    title : str
        The title of the table.

    Returns
    -------
    rich.table.Table
    """
    table = _empty_table(title)
    table.add_column("Library", overflow="fold")
    table.add_column("dtype", no_wrap=True)
    for heading in ("Value", "Gradient"):
        table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("worst in", no_wrap=True, style="dim", max_width=15)
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


def _shown_dtypes(dtypes: set[str]) -> set[str]:
    return dtypes & set(_FULL) or dtypes


def _by_path(results: Results) -> dict[tuple[str, str], float]:
    """Return the largest error of each library on each path, in full precision if it ran."""
    errors: dict[tuple[str, str], float] = {}
    dtypes = _shown_dtypes({one.dtype for one in results.measurements})
    for one in results.measurements:
        if one.path and one.dtype in dtypes:
            error = max((one.errors or _of_nothing(one)).values(), default=0.0)
            key = (one.backend, one.path)
            errors[key] = max(errors.get(key, 0.0), error)
    return errors


def paths_table(results: Results) -> Table | None:
    """Return the table of the libraries by path; None if fewer than two paths ran.

    Parameters
    ----------
    results : Results
        The results of the run.

    Returns
    -------
    rich.table.Table or None
    """
    errors = _by_path(results)
    names = [str(path) for path in (*PATHS, AS_CALLED)]
    names = [name for name in names if any(name == path for _, path in errors)]
    if len(names) < 2:
        return None
    table = _empty_table("Each path through the code")
    table.add_column("Library", overflow="fold", min_width=18)
    for name in names:
        table.add_column(_HEADINGS.get(name, name), justify="right")
    for backend in dict.fromkeys(backend for backend, _ in errors):
        cells = [
            _number(errors[backend, name]) if (backend, name) in errors else "" for name in names
        ]
        table.add_row(backend, *cells)
    return table


#: With a line break where the terminal would otherwise choose one.
_HEADINGS = {
    "as on a device": "as on\na device",
    "one by one, in parts": "one by one,\nin parts",
    "as called": "large,\nas called",
}


def pairs_table(results: Results) -> Table | None:
    """Return the table of the pairs of libraries; None if fewer than two ran.

    Parameters
    ----------
    results : Results
        The results of the run.

    Returns
    -------
    rich.table.Table or None
    """
    names = list(dict.fromkeys(name for a, b, _ in results.distances for name in (a, b)))
    if len(names) < 2:
        return None
    shown = _shown_dtypes({dtype for _, _, dtype in results.distances})
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
    distances = [pair[1 if of_gradient else 0] for pair in both if pair is not None]
    return _number(max(distances)) if distances else ""


def failures(results: Results) -> list[str]:
    """Return one line per failure: the worst of each library and path first.

    Parameters
    ----------
    results : Results
        The results of the run.

    Returns
    -------
    list of str
        At most a dozen lines, and one with the number of the others.
    """
    failed = [one for one in results.measurements if not one.passed]
    failed.sort(key=_badness, reverse=True)
    firsts: list[Measurement] = []
    others: list[Measurement] = []
    for one in failed:
        met = any((one.backend, one.path) == (other.backend, other.path) for other in firsts)
        (others if met else firsts).append(one)
    lines = [f"{_place(one)}: {_fault(one)}" for one in (*firsts, *others)]
    if len(lines) > _SHOWN_FAILURES:
        more = len(lines) - _SHOWN_FAILURES
        lines = [*lines[:_SHOWN_FAILURES], f"and {more} more (--json FILE has them all)"]
    return lines


def _badness(one: Measurement) -> float:
    return math.inf if one.complaint else max(one.errors.values())


def _place(one: Measurement) -> str:
    way = "; ".join(filter(None, (one.path, one.route)))
    return f"{one.backend} {one.dtype}, {one.convention}, {one.case}{f' ({way})' if way else ''}"


def _fault(one: Measurement) -> str:
    if one.complaint:
        return one.complaint
    off = sorted(
        ((error, name) for name, error in one.errors.items() if not error <= 1.0),
        key=lambda pair: -pair[0],
    )
    said = [f"the {name} is {_times(error)}" for error, name in off[:_SHOWN_QUANTITIES]]
    more = len(off) - len(said)
    return ", ".join(said) + (f", and {more} more" if more else "")


def _times(error: float) -> str:
    return "no number" if math.isinf(error) else f"off by {error:.3g} times its bound"


def in_common(results: Results) -> str:
    """Return what all failures have in common and not all measurements; empty if nothing.

    Parameters
    ----------
    results : Results
        The results of the run.

    Returns
    -------
    str
    """
    failed = [one for one in results.measurements if not one.passed]
    common = []
    for name in _PLACES:
        everywhere = {getattr(one, name) for one in results.measurements}
        there = {getattr(one, name) for one in failed}
        if len(there) == 1 < len(everywhere):
            (place,) = there
            common.append(place)
    return "; ".join(common)


_PLACES = ("backend", "dtype", "convention", "path", "route", "case")


def as_json(results: Results, made_with: Mapping[str, str]) -> dict[str, Any]:
    """Return all results as data.

    Parameters
    ----------
    results : Results
        The results of the run.
    made_with : mapping of str to str
        The versions of the libraries and the machine.

    Returns
    -------
    dict
        An infinite error is None.
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
        "paths": [
            {"library": backend, "path": path, "error": _finite(error)}
            for (backend, path), error in _by_path(results).items()
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
                "path": one.path,
                "route": one.route,
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
        "path": worst.path,
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def as_markdown(results: Results, made_with: Mapping[str, str], title: str) -> str:
    """Return the report as Markdown.

    Parameters
    ----------
    results : Results
        The results of the run.
    made_with : mapping of str to str
        The versions of the libraries and the machine.
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
                    _described(row.value),
                    _number(row.gradient.error),
                    _described(row.gradient),
                    "pass" if row.passed else "**FAIL**",
                )
                for row in _rows(results)
            ],
        )
    )
    by_path = _by_path(results)
    if by_path:
        blocks += ["## Each path through the code", PATHS_CAPTION]
        rows = [(*key, _number(error)) for key, error in by_path.items()]
        blocks.append(_markdown_table(("library", "path", "largest error"), rows))
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


def _described(worst: _Worst) -> str:
    where: Sequence[str] = (worst.convention, worst.path, worst.quantity)
    return f"{worst.case} ({', '.join(filter(None, where))})"


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
