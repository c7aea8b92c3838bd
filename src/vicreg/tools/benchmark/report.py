"""The report of a study: a table for the terminal, and JSON."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from vicreg.tools.benchmark.computations import PUBLISHED, VICREG
from vicreg.tools.benchmark.study import Result, Study
from vicreg.tools.benchmark.timing import Quartiles, Times

__all__ = [
    "CAPTION",
    "METHOD",
    "UNCERTAIN",
    "as_json",
    "milliseconds",
    "ratio_of",
    "results_table",
    "short",
    "uncertainties",
]

#: Stands before a ratio that may be above 1 or below.
UNCERTAIN = "~"

CAPTION = (
    "Medians (and quartiles) of a call. over products: the time divided by that of the bare "
    "matrix products. GFLOP/s: the products' operations divided by the time. MiB: the peak memory "
    "above the inputs, with the outputs. faster: how many times as fast as the published formula "
    "in the same library on the same device."
)
METHOD = (
    "Each computation is called once before it is timed. The computations take turns, so that "
    "changes of the machine affect all of them. A sample repeats a short call; after each call "
    "the device is synchronised. A ratio is the median of the ratios of the rounds. A slow "
    "computation gets fewer rounds. JAX is always under jit, and every library computes products "
    "in the precision of its inputs. The products are, for each view z (n, d), (z @ z.T) @ z for "
    "n <= d and z @ (z.T @ z) for n > d; for the value only, the first product. The memory is "
    "that of one call in a new process: on a CPU the resident memory of the process, on a GPU "
    "what the library has allocated."
)


def results_table(study: Study, dtype: str, title: str) -> Table:
    """Return the table of what was measured in `dtype`, 80 columns wide.

    Parameters
    ----------
    study : Study
        The study.
    dtype : str
        The dtype of the views.
    title : str
        The title of the table.

    Returns
    -------
    rich.table.Table
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("Library", overflow="fold", min_width=9)
    for heading in ("n x d", "ms a call", "over\nproducts", "GFLOP/s", "MiB", "faster"):
        table.add_column(heading, justify="right", no_wrap=True)
    before = None
    for one in study.results:
        if one.problem.dtype != dtype:
            continue
        table.add_row(
            "" if one.label == before else one.label,
            str(one.problem),
            milliseconds(one.times[VICREG]),
            _greyed(ratio_of(one, one.over_products)),
            short(one.gflops),
            _mebibytes(one, VICREG),
            _greyed(ratio_of(one, one.faster, "x")),
        )
        before = one.label
    return table


def milliseconds(times: Times) -> str:
    """Return the median of `times` in milliseconds, with the quartiles if it has several."""
    quartiles = times.quartiles
    if len(times.samples) == 1:
        return f"{short(1e3 * quartiles.median)} (once)"
    low, high = short(1e3 * quartiles.low), short(1e3 * quartiles.high)
    return f"{short(1e3 * quartiles.median)} ({low}-{high})"


def ratio_of(one: Result, quartiles: Quartiles | None, unit: str = "") -> str:
    """Return the median of a ratio of `one`, marked if it is uncertain; "-" if there is none."""
    if quartiles is None:
        return "-"
    mark = UNCERTAIN if one.is_uncertain(quartiles) else ""
    return f"{mark}{short(quartiles.median)}{unit}"


def _greyed(ratio: str) -> Text:
    return Text(ratio, style="dim" if ratio.startswith(UNCERTAIN) else "")


def uncertainties(study: Study) -> list[str]:
    """Return in sentences which ratios are uncertain and why, if any are."""
    lines = []
    ratios = [(one, ratio) for one in study.results for ratio in (one.over_products, one.faster)]
    if any(one.is_uncertain(ratio) and not one.is_busy for one, ratio in ratios):
        lines.append(
            f"{UNCERTAIN}: the quartiles of the ratio are on both sides of 1, so that neither is "
            "surely faster."
        )
    loads = [one.load for one in study.results if one.is_busy and one.load is not None]
    if loads:
        lines.append(
            f"{UNCERTAIN}: the machine was busy with other work (a load of {max(loads):.1f} a "
            f"core) for {len(loads)} of {len(study.results)} rows. Measure again when it is idle."
        )
    return lines


def _mebibytes(one: Result, name: str) -> str:
    return short(one.peaks[name] / 2**20) if name in one.peaks else "-"


def short(number: float) -> str:
    """Return `number` with about three digits, and with an exponent only if it is tiny.

    Parameters
    ----------
    number : float
        Not negative.

    Returns
    -------
    str
    """
    for least, digits in ((100, 0), (10, 1), (0.1, 2), (0.01, 3)):
        if number >= least:
            return f"{number:.{digits}f}"
    return f"{number:.2g}"


def as_json(study: Study) -> dict[str, Any]:
    """Return everything that was measured, as data.

    Parameters
    ----------
    study : Study
        What was measured.

    Returns
    -------
    dict
        Times in seconds, memory in bytes; None for a round without a sample.
    """
    return {
        "method": METHOD,
        "made_with": dict(study.made_with),
        "results": [_result_as_json(one) for one in study.results],
        "uncertain": uncertainties(study),
        "not_measured": [{"what": what, "why": why} for what, why in study.not_measured],
    }


def _result_as_json(one: Result) -> dict[str, Any]:
    problem = one.problem
    return {
        "library": one.library,
        "device": one.device,
        "n": problem.n,
        "d": problem.d,
        "views": problem.views,
        "dtype": problem.dtype,
        "mode": problem.mode,
        "compiled": problem.compiled,
        "flops_of_products": problem.flops,
        "gflops": one.gflops,
        "seconds": {name: _times_as_json(times) for name, times in one.times.items()},
        "load_per_core": one.load,
        "busy": one.is_busy,
        "over_products": _ratio_as_json(one, one.over_products),
        "faster_than_published": _ratio_as_json(one, one.faster),
        "peak_bytes_above_inputs": dict(one.peaks),
        "relative_difference_from_published": one.difference if PUBLISHED in one.times else None,
    }


def _times_as_json(times: Times) -> dict[str, Any]:
    return {
        **_quartiles_as_json(times.quartiles),
        "rounds": list(times.rounds),
        "calls_a_sample": times.calls,
    }


def _ratio_as_json(one: Result, ratio: Quartiles | None) -> dict[str, Any] | None:
    if ratio is None:
        return None
    return {**_quartiles_as_json(ratio), "uncertain": one.is_uncertain(ratio)}


def _quartiles_as_json(quartiles: Quartiles) -> dict[str, float]:
    return {
        "median": quartiles.median,
        "lower_quartile": quartiles.low,
        "upper_quartile": quartiles.high,
    }
