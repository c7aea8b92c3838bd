"""Print the figures that the project wants beside the measured ones.

    python benchmarks/wanted.py

First the wanted figures, then times: PyTorch's compiler, VCReg's layer and others, the loss of
pytorch-metric-learning, the growth with samples, features and views, and a call without its
arithmetic. The exit status is always 0, since figures depend on the machine.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from rich import box
from rich.console import Console
from rich.table import Table

from vicreg import conventions, vicreg_loss
from vicreg._adapters.dispatch import adapter_for
from vicreg.tools.backends import Backend, backends_of, find_backends
from vicreg.tools.benchmark.computations import PRODUCTS, PUBLISHED, VICREG, Problem, build_call
from vicreg.tools.benchmark.report import milliseconds, short
from vicreg.tools.benchmark.study import SIZES, Result, Study, problems, run_study
from vicreg.tools.benchmark.timing import FULL, Quartiles, Times, ratio, time_in_turns
from vicreg.tools.progress import steps_progress

LIBRARIES = ("torch", "jax", "numpy")

#: Value and gradient, float32, two views, on two cores. Times faster than published, at least.
FASTER = {
    (32, 64): {"torch": 1.8, "jax": 1.5},
    (256, 2048): {"torch": 16.0, "jax": 20.0},
    (256, 8192): {"torch": 95.0, "jax": 70.0},
    (2048, 2048): {"torch": 1.7, "jax": 1.7},
    (4096, 512): {"torch": 1.8, "jax": 1.8},
}
#: The time divided by that of the bare matrix products, at most.
OVER_PRODUCTS = {
    (256, 2048): {"torch": 1.35, "jax": 1.4, "numpy": 1.4},
    (256, 8192): {"torch": 1.35, "jax": 1.5, "numpy": 1.4},
    (2048, 2048): {"torch": 1.1, "jax": 1.1, "numpy": 1.15},
    (4096, 512): {"torch": 1.2, "jax": 1.2, "numpy": 1.25},
}
#: The time under ``torch.compile`` divided by that without it, at most.
COMPILED_OVER_EAGER = 1.0
PEAK_AT = (256, 8192)
PEAK_MEBIBYTES = {"torch": 24.0, "jax": 40.0, "numpy": 40.0}
#: By the (n · positions, d) of the representation, the time of `vicreg.torch.VCReg`, forward and
#: backward, divided by that of its products, at most.
LAYER_OVER_PRODUCTS = {(4096, 512): 1.3, (256, 4096): 1.2}
CHECKS_MICROSECONDS = {"torch": 40.0, "numpy": 15.0}
IMPORT_MILLISECONDS = 30.0

#: What grows, and its sizes.
GROWTH = {
    "d = 512, n grows": {f"n = {n}": Problem(n, 512) for n in (32, 128, 512, 2048)},
    "n = 256, d grows": {f"d = {d}": Problem(256, d) for d in (32, 128, 512, 2048, 8192)},
    "256 x 1024, views grow": {f"{v} views": Problem(256, 1024, views=v) for v in (2, 4, 8)},
}

LAYER_WEIGHTS = {"variance_weight": 1.0, "covariance_weight": 1.0}

#: Functions that are timed in turns, by name, and their times.
Calls = Mapping[str, Callable[[], Any]]
Timed = dict[str, Times]

_VERDICTS = {True: "[green]met[/green]", False: "[red]missed[/red]", None: ""}


@dataclass(frozen=True)
class Figure:
    """One figure; `wanted` is a minimum if `at_least`, otherwise a maximum."""

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
    """Measure, and print both tables."""
    console = Console(highlight=False)
    backends, left_out = find_backends((*LIBRARIES, "cupy"))
    of_cpu = [one for one in backends if one.device == "cpu"]
    wanted = problems(SIZES, ["float32"], "value-and-grad", with_compiled=False)
    with steps_progress(Console(stderr=True), len(of_cpu) * (len(wanted) + 1)) as on_step:
        study = run_study(of_cpu, wanted, FULL, _watched, on_step=on_step)
    checks = {str(one): _checks_times(one) for one in backends}
    layers, metric_learning, compiled = {}, {}, {}
    for torch in (one for one in of_cpu if one.name == "torch"):
        layers = {size: timed(layer_calls(*size)) for size in LAYER_OVER_PRODUCTS}
        metric_learning = _metric_learning_times(torch, study)
        compiled = {size: _compiled_times(torch, Problem(*size)) for size in SIZES}
    figures = [
        *(*_of_study(study), *_of_compiled(compiled), *_of_layer(layers)),
        *_of_checks(checks),
        _of_import(),
    ]
    console.print(_figures_table(figures))
    groups = {
        **{f"{n} x {d} torch.compile": times for (n, d), times in compiled.items()},
        **{f"{n} x {d} VCReg's layer": times for (n, d), times in layers.items()},
        **metric_learning,
        **{f"{one} {what}": times for one in backends for what, times in _growth_times(one)},
        **{f"{name} checks and dispatch": {"": times} for name, times in checks.items()},
    }
    console.print(_times_table(groups))
    for what, why in [*left_out.items(), *study.not_measured]:
        console.print(f"not measured: {what}: {why}", markup=False, soft_wrap=True)
    made_with = ", ".join(f"{name} {which}" for name, which in study.made_with.items())
    console.print(made_with, markup=False)


def on_cpu(library: str) -> Backend:
    """Return the library `library` on the CPU."""
    return next(one for one in backends_of(library) if one.device == "cpu")


def timed(calls: Calls, synchronise: Callable[[Any], None] = lambda _: None) -> Timed:
    """Return the times of `calls`, after a first call of each."""
    for call in calls.values():
        synchronise(call())
    return time_in_turns(calls, synchronise, FULL)


# The study of `vicreg bench`.


def _watched(problem: Problem) -> tuple[str, ...]:
    return (VICREG,) if (problem.n, problem.d) == PEAK_AT else ()


def _of_study(study: Study) -> Iterator[Figure]:
    results = {(one.library, one.problem.n, one.problem.d): one for one in study.results}
    for size in SIZES:
        for library in LIBRARIES:
            yield from _of_result(size, library, results.get((library, *size)))
    for library, wanted in PEAK_MEBIBYTES.items():
        one = results.get((library, *PEAK_AT))
        peak = one.peaks.get(VICREG) if one else None
        mebibytes = None if peak is None else peak / 2**20
        yield Figure("256 x 8192 peak above the inputs", library, wanted, mebibytes, "MiB")


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


def _median(quartiles: Quartiles | None) -> float | None:
    return None if quartiles is None else quartiles.median


# PyTorch's compiler.


def _compiled_times(torch: Backend, problem: Problem) -> Timed:
    """Return the times of the loss with its gradient, eager and compiled."""
    with torch.active(), torch.full_precision():
        torch.forget_compiled()
        arrays = problem.arrays(torch)
        ways = {"eager": problem, "compiled": replace(problem, compiled=True)}
        calls = {name: build_call(VICREG, torch, one, arrays) for name, one in ways.items()}
        return timed(calls, torch.synchronise)


def _of_compiled(compiled: Mapping[tuple[int, int], Timed]) -> Iterator[Figure]:
    for (n, d), times in compiled.items():
        measured = ratio(times["compiled"], times["eager"]).median
        what = f"{n} x {d} compiled over eager"
        yield Figure(what, "torch", COMPILED_OVER_EAGER, measured, "x")


# VCReg's layer in PyTorch.


def layer_calls(n: int, d: int) -> Calls:
    """Return calls of the layer and of others, forward and backward, and of its products."""
    import torch

    from vicreg.torch import VCReg

    class Published(torch.autograd.Function):
        """The pseudocode of arXiv 2306.13292, which has a gradient and no loss."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, incoming: torch.Tensor) -> torch.Tensor:
            (x,) = ctx.saved_tensors
            x = x - x.mean(dim=0)
            covariance = x.T @ x / (n - 1)
            std = torch.sqrt(torch.diag(covariance) + conventions["vcreg"].eps)
            hinge = -LAYER_WEIGHTS["variance_weight"] / (d * (n - 1)) * x * (std < 1) / std
            covariance.fill_diagonal_(0)
            pull = 4 * LAYER_WEIGHTS["covariance_weight"] / (d * (d - 1)) * x @ covariance
            return incoming + hinge + pull

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator).requires_grad_()
    incoming = torch.randn(n, d, generator=generator) / n
    plain = x.detach()

    def passes(layer: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], torch.Tensor]:
        return lambda: torch.autograd.grad(layer(x), x, incoming)[0]

    def products() -> torch.Tensor:
        return (plain @ plain.T) @ plain if n <= d else plain @ (plain.T @ plain)

    return {
        VICREG: passes(VCReg(**LAYER_WEIGHTS, covariance_gradient="published")),
        PUBLISHED: passes(Published.apply),
        "BatchNorm1d": passes(torch.nn.BatchNorm1d(d)),
        PRODUCTS: products,
    }


def _of_layer(layers: Mapping[tuple[int, int], Timed]) -> Iterator[Figure]:
    for (n, d), wanted in LAYER_OVER_PRODUCTS.items():
        times = layers.get((n, d))
        measured = ratio(times[VICREG], times[PRODUCTS]).median if times else None
        yield Figure(f"{n} x {d} layer over its products", "torch", wanted, measured, "x")


# The loss of pytorch-metric-learning, which is the default's function.


def _metric_learning_times(torch: Backend, study: Study) -> dict[str, Timed]:
    try:
        from pytorch_metric_learning.losses import VICRegLoss
    except ImportError:
        study.not_measured.append(("pytorch-metric-learning", "it is not installed"))
        return {}
    theirs = VICRegLoss()
    losses = {VICREG: vicreg_loss, "theirs": lambda x, y: theirs(x, ref_emb=y)}

    def calls(problem: Problem) -> Calls:
        views = problem.arrays(torch)
        return {
            name: lambda loss=loss: torch.differentiate(loss, views)
            for name, loss in losses.items()
        }

    every = [Problem(*size) for size in SIZES]
    return {f"{one} pytorch-metric-learning": timed(calls(one)) for one in every}


# Growth.


def _growth_times(backend: Backend) -> Iterator[tuple[str, Timed]]:
    """Yield times of the loss with its gradient as n, d or the number of views grows."""
    for what, every in GROWTH.items():
        with backend.active(), backend.full_precision():
            backend.forget_compiled()
            calls = {
                name: build_call(VICREG, backend, one, one.arrays(backend))
                for name, one in every.items()
            }
            yield what, timed(calls, backend.synchronise)


# Checks and dispatch, and the import.


class _NoArithmetic:
    """An adapter that computes nothing."""

    @staticmethod
    def evaluate(views: Any, objective: Any, weights: Any) -> tuple[Any]:
        return (views[0],)


def _dispatched(library: str) -> type[_NoArithmetic]:
    adapter_for(library)  # the lookup is part of the time
    return _NoArithmetic


@contextmanager
def checks_alone(backend: Backend) -> Iterator[Callable[[], Any]]:
    """Yield a call of the loss that does its checks and dispatch, and no arithmetic."""
    views = Problem(32, 64).arrays(backend)
    if backend.name == "torch":
        views = [view.requires_grad_() for view in views]
    with mock.patch("vicreg._losses.vicreg.adapter_for", _dispatched):
        if vicreg_loss(*views) is not views[0]:
            raise RuntimeError("the loss was evaluated: it is not the checks that are timed")
        yield lambda: vicreg_loss(*views)


def _checks_times(backend: Backend) -> Times:
    with backend.active(), checks_alone(backend) as call:
        return timed({"": call})[""]


def _of_checks(checks: Mapping[str, Times]) -> Iterator[Figure]:
    for library, wanted in CHECKS_MICROSECONDS.items():
        measured = 1e6 * checks[library].quartiles.median if library in checks else None
        yield Figure("checks and dispatch of a call", library, wanted, measured, "us")


def _of_import() -> Figure:
    """Return how long ``import vicreg`` takes in addition to the start of Python."""

    def start(code: str) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, "-P", "-c", code], check=True)

    times = timed({code: start(code) for code in ("pass", "import vicreg")})
    both = zip(times["pass"].rounds, times["import vicreg"].rounds, strict=True)
    beyond = Quartiles.of([b - a for a, b in both if a is not None and b is not None])
    what = "import vicreg, beyond Python's start"
    return Figure(what, "", IMPORT_MILLISECONDS, max(0.0, 1e3 * beyond.median), "ms")


# The tables.


def empty_table(title: str, *headings: str) -> Table:
    """Return a table without rows, whose first column has no heading."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("", *headings):
        table.add_column(heading, no_wrap=True)
    return table


def _figures_table(figures: Sequence[Figure]) -> Table:
    title = "Wanted and measured: value and gradient, float32, two views"
    table = empty_table(title, "library", "wanted", "measured", "")
    for column in table.columns[2:4]:
        column.justify = "right"
    for one in figures:
        wanted = f"{'>=' if one.at_least else '<='} {one.wanted:g} {one.unit}"
        measured = "-" if one.measured is None else f"{short(one.measured)} {one.unit}"
        table.add_row(one.what, one.library, wanted, measured, _VERDICTS[one.is_met])
    return table


def _times_table(groups: Mapping[str, Timed]) -> Table:
    table = empty_table("Times: a group's take turns", "", "ms a call (quartiles)")
    for what, group in groups.items():
        for number, (name, times) in enumerate(group.items()):
            table.add_row("" if number else what, name, milliseconds(times))
    return table


if __name__ == "__main__":
    main()
