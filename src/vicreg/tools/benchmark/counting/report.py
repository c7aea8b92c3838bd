"""The report of what was counted: tables for the terminal, and JSON."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from vicreg.tools.benchmark.computations import PUBLISHED
from vicreg.tools.benchmark.counting.estimate import Gpu
from vicreg.tools.benchmark.counting.study import Row, Study
from vicreg.tools.benchmark.report import short

__all__ = ["COUNTS", "as_json", "counts_table", "estimates", "estimates_table"]

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


def counts_table(rows: list[Row], title: str) -> Table:
    """Return the table of what was counted, 80 columns wide at most.

    Parameters
    ----------
    rows : list of Row
        What was counted.
    title : str
        The title of the table.

    Returns
    -------
    rich.table.Table
    """
    table = _table(title, "calls", "bytes,\nviews", "over\nproducts")
    for row, label in zip(rows, _labels(rows), strict=True):
        table.add_row(
            *label,
            str(row.counts.calls),
            short(row.views_moved),
            short(row.over_products),
        )
    return table


def estimates_table(rows: list[Row], title: str) -> Table:
    """Return the table of the estimated times of those of `rows` that have one.

    Parameters
    ----------
    rows : list of Row
        What was counted.
    title : str
        The title of the table.

    Returns
    -------
    rich.table.Table
    """
    table = _table(title, "calls", "bytes", "products", "in all", "faster")
    rows = [row for row in rows if row.estimate is not None]
    published = {
        (row.library, row.problem): row.estimate.seconds
        for row in rows
        if row.estimate is not None and row.computation == PUBLISHED
    }
    for row, label in zip(rows, _labels(rows), strict=True):
        if row.estimate is None:
            continue
        parts = row.estimate.launches, row.estimate.bytes_moved, row.estimate.products
        theirs = published.get((row.library, row.problem))
        table.add_row(
            *label,
            *map(_milliseconds, (*parts, row.estimate.seconds)),
            "-" if theirs is None else f"{short(theirs / row.estimate.seconds)}x",
        )
    return table


def _milliseconds(seconds: float) -> str:
    return short(1e3 * seconds) if seconds >= 1e-5 else "<0.01"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("Library", no_wrap=True)
    table.add_column("n x d", justify="right", no_wrap=True)
    table.add_column("computation", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _labels(rows: list[Row]) -> list[tuple[str, str, str]]:
    """Return the first cells of each row, empty where they are those of the row above."""
    labels, before = [], ("", "")
    for row in rows:
        library, size = row.label, str(row.problem)
        is_same = library == before[0]
        labels.append(
            (
                "" if is_same else library,
                "" if is_same and size == before[1] else size,
                row.computation,
            )
        )
        before = (library, size)
    return labels


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
