"""How the cost of a value and gradient grows with the sizes of its views.

    python benchmarks/growth.py
    python benchmarks/growth.py --json FILE --plot FILE.svg

One size grows at a time: the samples, the features, the views, the positions. Of each size the
operations, bytes, multiply-adds and the peak of memory are counted, exactly and without a clock.
Times are medians in this process, the sizes of a series in turns. The peak of memory is measured
too, in new processes, of the largest views. A slope is the exponent of the growth over a stretch,
by least squares: 1 is in proportion, 2 with the square.

The model has no number that is fitted to these times. Multiply-adds are two products a view, bytes
and memory are in proportion to the views, and the time in PyTorch is

    calls x (time of a small call) + bytes / bandwidth + 2 multiply-adds / throughput,

with what is counted, and the three rates of this machine, which are measured first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vicreg import vicreg_value_and_grad
from vicreg.tools.backends import Backend, backend_named
from vicreg.tools.benchmark.computations import VICREG, Problem
from vicreg.tools.benchmark.counting import standard
from vicreg.tools.benchmark.counting import torch as counting
from vicreg.tools.benchmark.counting.counts import Counts
from vicreg.tools.benchmark.memory import peak_memory
from vicreg.tools.benchmark.timing import Effort, time_in_turns
from vicreg.tools.machine import description, load_per_core

LIBRARIES = ("torch", "numpy", "jax")
STYLE = Path(__file__).parents[1] / "docs" / "pictures" / "matplotlibrc"
EFFORT = Effort(rounds=7, sample=0.01, budget=1.0, fewest=3, patience=math.inf)


@dataclass(frozen=True)
class Size:
    """Views of shape ``(n, positions, d)``, or ``(n, d)`` of one position, in float32."""

    n: int
    d: int
    views: int = 2
    positions: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n, self.d) if self.positions == 1 else (self.n, self.positions, self.d)

    @property
    def bytes_of_views(self) -> int:
        return 4 * self.views * math.prod(self.shape)

    @property
    def multiply_adds(self) -> int:
        """Those of two products a view and position, which is the least."""
        return 2 * self.views * math.prod(self.shape) * min(self.n, self.d)


#: By what grows: the sizes.
SERIES = {
    "samples": [Size(n, 1024) for n in (64, 128, 256, 512, 1024, 2048, 4096, 8192)],
    "features": [Size(256, 4**i) for i in (3, 4, 5, 6, 7)],
    "views": [Size(256, 1024, views=k) for k in (2, 3, 4, 6, 8)],
    "positions": [Size(32, 256, positions=p) for p in (1, 4, 16, 49, 196)],
}
#: By the name of a stretch, its series and its first and last size.
STRETCHES = {
    "samples, up to d": ("samples", Size(64, 1024), Size(1024, 1024)),
    "samples, beyond d": ("samples", Size(1024, 1024), Size(8192, 1024)),
    "features, up to n": ("features", Size(256, 64), Size(256, 256)),
    "features, beyond n": ("features", Size(256, 256), Size(256, 16384)),
    "views": ("views", Size(256, 1024), Size(256, 1024, views=8)),
    "positions": ("positions", Size(32, 256), Size(32, 256, positions=196)),
}


# What is counted.


def counted(library: str, size: Size) -> Counts:
    """Return what is counted of one size: of "torch cpu", "torch gpu" or "cupy gpu"."""
    if library == "cupy gpu":
        return standard.count(vicreg_value_and_grad, [np.zeros(size.shape, "f")] * size.views)
    device = "meta" if library == "torch gpu" else "cpu"
    make = torch.empty if device == "meta" else torch.randn
    views = [make(size.shape, device=device) for _ in range(size.views)]
    return counting.count(lambda: vicreg_value_and_grad(*views))


COUNTED = ("torch cpu", "torch gpu", "cupy gpu")


# What is measured.


def rates() -> dict[str, float]:
    """Return what one operation of PyTorch, a byte and a multiply-add take, in seconds."""
    a, out = torch.randn(2, 2048, 2048)
    small, large = torch.ones(4, 4), torch.ones(2**24)
    calls = {
        "call": lambda: torch.add(small, small),
        "bytes": lambda: torch.add(large, large, out=large),
        "multiply_adds": lambda: torch.mm(a, a, out=out),
    }
    amounts = {"call": 1, "bytes": 2 * 4 * large.numel(), "multiply_adds": 2048**3}
    return {name: second / amounts[name] for name, (second, *_) in timed(calls).items()}


def timed(
    calls: dict[Any, Callable[[], Any]], synchronise: Callable[[Any], None] = lambda _: None
) -> dict[Any, tuple[float, float, float]]:
    """Return the median and the quartiles of the seconds of each call, after a first one."""
    for call in calls.values():
        synchronise(call())
    times = time_in_turns(calls, synchronise, EFFORT)
    quartiles = {name: times[name].quartiles for name in calls}
    return {name: (each.median, each.low, each.high) for name, each in quartiles.items()}


def times_of(backend: Backend, sizes: Sequence[Size]) -> dict[Size, tuple[float, float, float]]:
    function = vicreg_value_and_grad
    if backend.always_compiled:
        function = backend.compiled(function)

    def call_of(size: Size) -> Callable[[], Any]:
        draw = np.random.default_rng(0).standard_normal
        views = [backend.asarray(draw(size.shape), "float32") for _ in range(size.views)]
        return lambda: function(*views)

    with backend.active(), backend.full_precision():
        return timed({size: call_of(size) for size in sizes}, backend.synchronise)


def measured_peak(backend: Backend, size: Size) -> int:
    return peak_memory(VICREG, backend, Problem(size.n, size.d, views=size.views))


# The report.


def measure(libraries: Sequence[str], quick: bool) -> dict[str, Any]:
    """Return the report: of each size the counts, times and peaks, and the slopes."""
    backends, load = [backend_named(name) for name in libraries], load_per_core()
    speeds = rates()
    series = {}
    for what, every in SERIES.items():
        sizes = every[::2] if quick and what == "samples" else every
        if quick:
            sizes = [size for size in sizes if size.multiply_adds <= 2**34]
        times = {backend.name: times_of(backend, sizes) for backend in backends}
        series[what] = [_row(size, speeds, times) for size in sizes]
        if what != "positions" and not quick:
            peaks = {backend.name: measured_peak(backend, sizes[-1]) for backend in backends}
            series[what][-1]["peak_bytes_measured"] = peaks
    loads = [one for one in (load, load_per_core()) if one is not None]
    return {
        "made_with": description(backends),
        "threads": torch.get_num_threads(),
        "load_per_core": max(loads, default=None),
        "seconds_of_one": speeds,
        "series": series,
        "slopes": {name: _slopes(series, *ends) for name, ends in STRETCHES.items()},
    }


def _row(size: Size, speeds: dict[str, float], times: dict[str, Any]) -> dict[str, Any]:
    counts = {library: counted(library, size) for library in COUNTED}
    on_cpu = counts["torch cpu"]
    model = {
        "bytes": size.bytes_of_views,
        "multiply_adds": size.multiply_adds,
        "seconds": speeds["call"] * on_cpu.calls
        + speeds["bytes"] * on_cpu.bytes_moved
        + speeds["multiply_adds"] * on_cpu.multiply_adds,
    }
    seconds = {library: of[size] for library, of in times.items()}
    of_libraries = {library: asdict(one) for library, one in counts.items()}
    return {**asdict(size), "model": model, "counts": of_libraries, "seconds": seconds}


def _slopes(
    series: dict[str, list[dict[str, Any]]], what: str, first: Size, last: Size
) -> dict[str, float]:
    """Return the slope of each quantity over a stretch of sizes, by name."""
    reach = range(first.bytes_of_views, last.bytes_of_views + 1)
    sizes = {
        Size(*(row[key] for key in ("n", "d", "views", "positions"))): row for row in series[what]
    }
    rows = {size: row for size, row in sizes.items() if size.bytes_of_views in reach}
    grown = [size.bytes_of_views for size in rows]
    quantities = [_quantities(row) for row in rows.values()]
    return {name: slope(grown, [each[name] for each in quantities]) for name in quantities[0]}


def _quantities(row: dict[str, Any]) -> dict[str, float]:
    """Return everything in a row that grows, by name."""
    found = {f"model, {name}": number for name, number in row["model"].items()}
    for library, counts in row["counts"].items():
        for name in ("multiply_adds", "bytes_moved", "peak_bytes"):
            found[f"{library}, {name}"] = counts[name]
    return found | {f"{name}, seconds": times[0] for name, times in row["seconds"].items()}


def slope(grown: Sequence[float], numbers: Sequence[float]) -> float:
    """Return the exponent with which `numbers` grow with `grown`, by least squares."""
    if len(grown) < 2:
        return math.nan
    return statistics.linear_regression(
        [math.log(one) for one in grown], [math.log(one) for one in numbers]
    ).slope


#: The columns of the printed table: a heading, and what of the slopes it shows.
COLUMNS = (
    ("multiply-adds", ("model, multiply_adds", "torch gpu, multiply_adds")),
    ("bytes", ("model, bytes", "torch gpu, bytes_moved", "cupy gpu, bytes_moved")),
    ("peak", ("model, bytes", "torch cpu, peak_bytes", "torch gpu, peak_bytes")),
)


def printed(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the report for a terminal."""
    yield "slopes: of the model, and of what is counted and measured"
    libraries = [name for name in LIBRARIES if f"{name}, seconds" in report["slopes"]["views"]]
    columns = (*COLUMNS, ("time", ("model, seconds", *(f"{n}, seconds" for n in libraries))))
    shown = {
        "multiply-adds": "model torch",
        "bytes": "model torch cupy",
        "peak": "model cpu gpu",
        "time": " ".join(["model", *libraries]),
    }
    yield " " * 20 + "  ".join(f"{name:<{6 * len(keys)}}" for name, keys in columns)
    yield " " * 20 + "  ".join(
        "".join(f"{name:<6}" for name in shown[column].split()) for column, _ in columns
    )
    for name, slopes in report["slopes"].items():
        cells = ("".join(f"{slopes[key]:<6.2f}" for key in keys) for _, keys in columns)
        yield f"{name:<20}" + "  ".join(cells)
    yield ""
    yield "the largest of each series, in views: the peak above the inputs, counted and measured"
    for rows in report["series"].values():
        last = rows[-1]
        one = 4 * last["n"] * last["d"] * last["positions"]
        counts = (f"{lib} {last['counts'][lib]['peak_bytes'] / one:.1f}" for lib in COUNTED)
        measured = last.get("peak_bytes_measured", {})
        peaks = (f"{lib} {peak / one:.1f} measured" for lib, peak in measured.items())
        size = f"{last['n']} x {last['d']}, {last['views']} views, {last['positions']} positions"
        yield f"  {size}: {', '.join([*counts, *peaks])}"
    each = report["seconds_of_one"]
    yield (
        f"model: {1e6 * each['call']:.1f} us a call, {1e-9 / each['bytes']:.1f} GB/s, "
        f"{2e-9 / each['multiply_adds']:.0f} GFLOP/s; {report['threads']} threads"
    )
    yield ", ".join(f"{name} {which}" for name, which in report["made_with"].items())
    if report["load_per_core"] is not None:
        yield f"load per core: {report['load_per_core']:.2f}"


# The picture.


def draw(report: dict[str, Any], file: str) -> None:
    """Draw a report: a row for each series, times on the left, bytes and memory on the right."""
    import matplotlib.pyplot as plt

    with plt.rc_context(fname=STYLE):
        figure, axes = plt.subplots(len(SERIES), 2, figsize=(7, 10.5))
        for (what, rows), (left, right) in zip(report["series"].items(), axes, strict=True):
            key = {"samples": "n", "features": "d"}.get(what, what)
            grown = [row[key] for row in rows]
            _draw_times(left, grown, rows)
            _draw_bytes(right, grown, rows)
            for ax in (left, right):
                ax.set_xscale("log", base=2)
                ax.set_yscale("log")
                ax.set_xticks(grown, [str(one) for one in grown], fontsize=8)
                ax.minorticks_off()
            left.set_title(_TITLES[what])
        labelled = [ax.get_legend_handles_labels() for ax in axes[0]]
        handles, labels = (list(itertools.chain(*each)) for each in zip(*labelled, strict=True))
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
        figure.savefig(file)
        plt.close(figure)


_TITLES = {
    "samples": "n samples of 1024 features",
    "features": "d features of 256 samples",
    "views": "views of 256 × 1024",
    "positions": "positions of 32 × 256",
}
_GREY = {"color": "#6e7781", "linestyle": "-", "linewidth": 4, "alpha": 0.4}


def _draw_times(ax: Any, grown: Sequence[int], rows: Sequence[dict[str, Any]]) -> None:
    model = [1e3 * row["model"]["seconds"] for row in rows]
    ax.plot(grown, model, label="model, PyTorch", **_GREY)
    for library in rows[0]["seconds"]:
        times = [1e3 * row["seconds"][library][0] for row in rows]
        ax.plot(grown, times, marker="o", markersize=3, label=library)
    ax.set_ylabel("ms")


def _draw_bytes(ax: Any, grown: Sequence[int], rows: Sequence[dict[str, Any]]) -> None:
    ax.plot(grown, [row["model"]["bytes"] / 2**20 for row in rows], label="the views", **_GREY)
    for library, name, label in (
        ("torch gpu", "bytes_moved", "moved, torch"),
        ("cupy gpu", "bytes_moved", "moved, cupy"),
        ("torch gpu", "peak_bytes", "peak, torch gpu"),
        ("torch cpu", "peak_bytes", "peak, torch cpu"),
    ):
        ax.plot(grown, [row["counts"][library][name] / 2**20 for row in rows], label=label)
    for index, row in enumerate(rows):
        if "torch" in row.get("peak_bytes_measured", {}):
            peak = row["peak_bytes_measured"]["torch"] / 2**20
            ax.plot(grown[index], peak, "o", color="#1f2328", label="peak, measured")
    ax.set_ylabel("MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", action="append", choices=LIBRARIES, help="whose times")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, and no processes")
    parser.add_argument("--report", metavar="FILE", help="show this report; measure nothing")
    parser.add_argument("--json", metavar="FILE", help="write the report")
    parser.add_argument("--plot", metavar="FILE", help="draw the picture")
    given = parser.parse_args()
    if given.report:
        report = json.loads(Path(given.report).read_text())
    else:
        report = measure(given.library or LIBRARIES, given.quick)
    print(*printed(report), sep="\n")
    if given.json:
        Path(given.json).write_text(json.dumps(report, indent=1) + "\n")
    if given.plot:
        draw(report, given.plot)


if __name__ == "__main__":
    main()
