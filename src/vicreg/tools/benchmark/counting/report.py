"""The report of what was counted: tables for the terminal, and JSON."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from vicreg.tools.benchmark.computations import PUBLISHED
from vicreg.tools.benchmark.counting.estimate import Gpu
from vicreg.tools.benchmark.counting.study import Row, Study
from vicreg.tools.benchmark.report import short

__all__ = ["COUNTS", "as_json", "as_table", "counts_cells", "estimates", "estimates_cells"]

COUNTS = (
    "calls: operations that compute or copy; for jax, the instructions of the compiled program. "
    "bytes: read and written, in units of one view. over products: the multiply-adds of all "
    "matrix products over those of the two a view (for the value, one) that are needed. torch "
    "gpu: with tensors that have no values, as on a GPU. cupy gpu: with arrays that pass for "
    "CuPy's. closed form: vicreg_value_and_grad. backward: vicreg_loss and its backward pass. "
    "published: the published formula, with its backward pass beside the other two."
)


def estimates(gpu: Gpu) -> str:
    """Return what the estimated times are, in sentences."""
    return (
        f"milliseconds, from {gpu.launch_us:g} us to launch a call, {gpu.bandwidth_tbs:g} "
        f"TB/s and {gpu.tflops:g} TFLOP/s (--launch-us, --bandwidth-tbs, --tflops; by default "
        "an H100's in float32). The program launches while the GPU moves the bytes and then forms "
        "the products: in all it takes the longer of the two. faster: than the published formula. "
        "Nothing was measured: see the documentation for what the model leaves out."
    )


def counts_cells(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the cells of the table of what was counted."""
    headings = [*_LABELS, "calls", "bytes,\nviews", "over\nproducts"]
    cells = [
        [*_label(row), str(row.counts.calls), short(row.views_moved), short(row.over_products)]
        for row in rows
    ]
    return headings, cells


def estimates_cells(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Return those of the table of the estimated times, of the rows that have one."""
    headings = [*_LABELS, "calls", "bytes", "products", "in all", "faster"]
    published = {
        (row.library, row.problem): row.estimate.seconds
        for row in rows
        if row.estimate is not None and row.computation == PUBLISHED
    }
    cells = []
    for row in rows:
        if (time := row.estimate) is None:
            continue
        parts = time.launches, time.bytes_moved, time.products, time.seconds
        theirs = published.get((row.library, row.problem))
        faster = "-" if theirs is None else f"{short(theirs / time.seconds)}x"
        cells.append([*_label(row), *map(_milliseconds, parts), faster])
    return headings, cells


def as_table(headings: list[str], cells: list[list[str]], title: str) -> Table:
    """Return a table for the terminal, 80 columns wide at most.

    A label that is that of the row above is left out.

    Parameters
    ----------
    headings : list of str
        One a column.
    cells : list of lists of str
        One list a row.
    title : str
        The title of the table.

    Returns
    -------
    rich.table.Table
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        is_text = heading in ("library", "computation")
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=True)
    before = ["", ""]
    for library, size, *others in cells:
        is_same = library == before[0]
        table.add_row(
            "" if is_same else library, "" if [library, size] == before else size, *others
        )
        before = [library, size]
    return table


_LABELS = ("library", "n x d", "computation")


def _label(row: Row) -> tuple[str, str, str]:
    return row.label, str(row.problem), row.computation


def _milliseconds(seconds: float) -> str:
    return short(1e3 * seconds) if seconds >= 1e-5 else "<0.01"


def as_json(study: Study) -> dict[str, Any]:
    """Return everything that was counted and estimated, as data.

    Parameters
    ----------
    study : Study
        What was counted.

    Returns
    -------
    dict
        Bytes and multiply-adds as they are, and times in seconds.
    """
    return {
        "method": f"{COUNTS} Times: {estimates(study.gpu)}",
        "made_with": dict(study.made_with),
        "gpu": {
            "launch_us": study.gpu.launch_us,
            "bandwidth_tbs": study.gpu.bandwidth_tbs,
            "tflops": study.gpu.tflops,
        },
        "results": [_row_as_json(row) for row in study.rows],
        "not_counted": [{"what": what, "why": why} for what, why in study.not_counted],
    }


def _row_as_json(row: Row) -> dict[str, Any]:
    problem, counts, time = row.problem, row.counts, row.estimate
    return {
        "library": row.library,
        "device": row.device,
        "n": problem.n,
        "d": problem.d,
        "views": problem.views,
        "dtype": problem.dtype,
        "mode": problem.mode,
        "computation": row.computation,
        "calls": counts.calls,
        "bytes": counts.bytes_moved,
        "bytes_in_views": row.views_moved,
        "multiply_adds": counts.multiply_adds,
        "over_products": row.over_products,
        "estimated_seconds": time
        and {
            "launches": time.launches,
            "bytes": time.bytes_moved,
            "products": time.products,
            "call": time.seconds,
            "bound_by": time.bound_by,
        },
    }
