"""Print what the project wants of itself with what is measured here beside it.

    python benchmarks/wanted.py

It fails nothing: a figure is of the machine that it was measured on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from layer import SIZES as LAYER_SIZES
from layer import over_products
from overhead import checks_alone, import_milliseconds, microseconds
from rich import box
from rich.console import Console
from rich.table import Table

from vicreg.tools.backends import Backend, find_backends
from vicreg.tools.benchmark.report import short
from vicreg.tools.benchmark.sides import VICREG, Problem
from vicreg.tools.benchmark.study import SIZES, Result, Study, problems, run_study
from vicreg.tools.benchmark.timing import FULL, Spread
from vicreg.tools.progress import steps_progress

LIBRARIES = ("torch", "jax", "numpy")

#: Value and gradient, float32, two views, on two cores. Times faster than published, at least.
FASTER = {
    (32, 64): {"torch": 2.0, "jax": 1.5},
    (256, 2048): {"torch": 20.0, "jax": 20.0},
    (256, 8192): {"torch": 90.0, "jax": 90.0},
    (2048, 2048): {"torch": 1.7, "jax": 1.7},
    (4096, 512): {"torch": 1.8, "jax": 1.8},
}
#: Time over the bare matrix products, at most.
OVER_PRODUCTS = {
    (256, 2048): {"torch": 1.4, "jax": 1.4, "numpy": 1.6},
    (256, 8192): {"torch": 1.4, "jax": 1.4, "numpy": 1.6},
    (2048, 2048): {"torch": 1.1, "jax": 1.1, "numpy": 1.2},
    (4096, 512): {"torch": 1.2, "jax": 1.2, "numpy": 1.3},
}
#: Forwards and backwards of `vicreg.torch.VCReg` over its products, at most.
LAYER_OVER_PRODUCTS = 1.3
PEAK_AT = (256, 8192)
PEAK_MEBIBYTES = 64.0  # in PyTorch
CHECKS_MICROSECONDS = {"torch": 40.0, "numpy": 15.0}
IMPORT_MILLISECONDS = 30.0

_VERDICTS = {True: "[green]met[/green]", False: "[red]missed[/red]", None: "not measured"}


@dataclass(frozen=True)
class Figure:
    """One figure: `wanted` is the least where `at_least`, or else the most."""

    what: str
    library: str
    wanted: float
    measured: float | None
    unit: str
    at_least: bool = False

    @property
    def is_met(self) -> bool | None:
        if self.measured is None:
            return None
        if self.at_least:
            return self.measured >= self.wanted
        return self.measured <= self.wanted


def main() -> None:
    """Measure, and print a row a figure."""
    console = Console(highlight=False)
    found, left_out = find_backends(LIBRARIES, ["cpu"])
    wanted = problems(SIZES, ["float32"], "value-and-grad", with_compiled=False)
    with steps_progress(Console(stderr=True), len(found) * (len(wanted) + 1)) as on_step:
        study = run_study(found, wanted, FULL, _watched, on_step=on_step)
    console.print(_table([*_of_study(study), *_of_layer(found), *_of_overhead(found)]))
    for what, why in [*left_out.items(), *study.not_measured]:
        console.print(f"not measured: {what}: {why}", markup=False, soft_wrap=True)
    made_with = ", ".join(f"{name} {which}" for name, which in study.made_with.items())
    console.print(made_with, markup=False)


def _watched(problem: Problem) -> tuple[str, ...]:
    return (VICREG,) if (problem.n, problem.d) == PEAK_AT else ()


def _of_study(study: Study) -> Iterator[Figure]:
    results = {(one.library, one.problem.n, one.problem.d): one for one in study.results}
    for size in SIZES:
        for library in LIBRARIES:
            yield from _of_result(size, library, results.get((library, *size)))
    one = results.get(("torch", *PEAK_AT))
    peak = one.peaks.get(VICREG) if one else None
    mebibytes = None if peak is None else peak / 2**20
    yield Figure("256 x 8192 peak above the inputs", "torch", PEAK_MEBIBYTES, mebibytes, "MiB")


def _of_result(size: tuple[int, int], library: str, one: Result | None) -> Iterator[Figure]:
    name = f"{size[0]} x {size[1]}"
    if library in FASTER.get(size, {}):
        measured = _median(one.faster if one else None)
        wanted = FASTER[size][library]
        yield Figure(f"{name} faster than published", library, wanted, measured, "x", True)
    if library in OVER_PRODUCTS.get(size, {}):
        measured = _median(one.over_products if one else None)
        wanted = OVER_PRODUCTS[size][library]
        yield Figure(f"{name} time over the products", library, wanted, measured, "x")


def _median(spread: Spread | None) -> float | None:
    return None if spread is None else spread.median


def _of_layer(found: list[Backend]) -> Iterator[Figure]:
    is_there = any(backend.name == "torch" for backend in found)
    for n, d in LAYER_SIZES:
        measured = over_products(n, d, FULL).median if is_there else None
        what = f"{n} x {d} layer over its products"
        yield Figure(what, "torch", LAYER_OVER_PRODUCTS, measured, "x")


def _of_overhead(found: list[Backend]) -> Iterator[Figure]:
    by_name = {backend.name: backend for backend in found}
    for library, wanted in CHECKS_MICROSECONDS.items():
        measured = None
        if library in by_name:
            with checks_alone(by_name[library]) as call:
                measured = microseconds(call)
        yield Figure("checks and dispatch of a call", library, wanted, measured, "us")
    measured = import_milliseconds()
    yield Figure("import vicreg, beyond Python's start", "", IMPORT_MILLISECONDS, measured, "ms")


def _table(figures: list[Figure]) -> Table:
    title = "Wanted and measured: value and gradient, float32, two views"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("", "library"):
        table.add_column(heading, no_wrap=True)
    for heading in ("wanted", "measured"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for one in figures:
        wanted = f"{'>=' if one.at_least else '<='} {one.wanted:g} {one.unit}"
        measured = "-" if one.measured is None else f"{short(max(0.0, one.measured))} {one.unit}"
        table.add_row(one.what, one.library, wanted, measured, _VERDICTS[one.is_met])
    return table


if __name__ == "__main__":
    main()
