"""Measure every library on every problem, and record why some could not be measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vicreg.tools.backends import Array, Backend
from vicreg.tools.benchmark.computations import (
    COMPUTATIONS,
    PRODUCTS,
    PUBLISHED,
    VICREG,
    Problem,
    UnavailableError,
    build_call,
    scalar_of,
)
from vicreg.tools.benchmark.memory import PeakUnknownError, available_memory, peak_memory
from vicreg.tools.benchmark.timing import Effort, Quartiles, Times, ratio, time_in_turns
from vicreg.tools.dtypes import BYTES
from vicreg.tools.libraries import names_where
from vicreg.tools.machine import description, load_per_core

__all__ = [
    "BUSY",
    "LIBRARIES",
    "QUICK_SIZES",
    "SIZES",
    "SWEEP",
    "Result",
    "Study",
    "is_quick",
    "problems",
    "reason_of",
    "room_lacking",
    "run_study",
]

#: The libraries to measure by default.
LIBRARIES = names_where("is_default")
SIZES = ((32, 64), (256, 2048), (256, 8192), (2048, 2048), (4096, 512))
QUICK_SIZES = ((32, 64), (256, 512))
#: Beside `SIZES`, for the lines of the plots: more n at d = 2048, more d at n = 256.
SWEEP = ((64, 2048), (1024, 2048), (256, 64), (256, 512))

#: A machine with a higher load per core is busy with other work. The computations themselves
#: make it 1 at most, about which the average fluctuates.
BUSY = 1.25

#: The number of d × d matrices that the published formula and its gradient hold at once, about.
_MATRICES = 8
#: The copies of the views in memory, about: the numbers drawn, the arrays, the gradients.
_COPIES = 3

_Reasons = list[tuple[str, str]]


@dataclass(frozen=True)
class Result:
    """One library on one problem.

    Parameters
    ----------
    library, device : str
        The library and the device.
    problem : Problem
        The problem. Its `compiled` is also True if the library is always used with its compiler.
    always_compiled : bool
        Whether the library is always used with its compiler.
    times : dict of str to Times
        The times by computation; "vicreg" is always among them.
    peaks : dict of str to int
        The peak memory above the inputs by computation, in bytes.
    difference : float or None
        The relative difference of the loss from the published formula.
    load : float or None
        The load per core, the larger of those before and after; None if it is unknown.
    """

    library: str
    device: str
    problem: Problem
    times: dict[str, Times]
    always_compiled: bool = False
    peaks: dict[str, int] = field(default_factory=dict)
    difference: float | None = None
    load: float | None = None

    @property
    def label(self) -> str:
        """The name of the library in the tables."""
        parts = [self.library]
        if self.device != "cpu":
            parts.append(self.device)
        if self.problem.compiled and not self.always_compiled:
            parts.append("compiled")
        return " ".join(parts)

    @property
    def over_products(self) -> Quartiles | None:
        """The time of the loss divided by that of the products."""
        if PRODUCTS not in self.times:
            return None
        return ratio(self.times[VICREG], self.times[PRODUCTS])

    @property
    def faster(self) -> Quartiles | None:
        """The time of the published formula divided by that of the loss."""
        if PUBLISHED not in self.times:
            return None
        return ratio(self.times[PUBLISHED], self.times[VICREG])

    @property
    def is_busy(self) -> bool:
        """Whether the machine was busy with other work, which makes every time uncertain."""
        return self.load is not None and self.load > BUSY

    def is_uncertain(self, ratio: Quartiles | None) -> bool:
        """Whether a ratio of times may be above 1 or below."""
        return ratio is not None and (self.is_busy or ratio.low < 1 < ratio.high)

    @property
    def gflops(self) -> float:
        """The operations of the products divided by the time of the loss, in 10⁹ per second."""
        return self.problem.flops / self.times[VICREG].quartiles.median / 1e9


@dataclass
class Study:
    """The results, what could not be measured and why, and the versions."""

    results: list[Result] = field(default_factory=list)
    not_measured: _Reasons = field(default_factory=list)
    made_with: dict[str, str] = field(default_factory=dict)


def is_quick(n: int, d: int) -> bool:
    """Return whether a size takes seconds at most, on two cores."""
    return n * d <= 2**24 and n * d * min(n, d) <= 2**34


def problems(
    sizes: Iterable[tuple[int, int]], dtypes: Iterable[str], mode: str, with_compiled: bool
) -> list[Problem]:
    """Return the problems of each size in each dtype.

    Parameters
    ----------
    sizes : iterable of (int, int)
        Pairs of n and d.
    dtypes : iterable of str
        The dtypes of the views.
    mode : str
        One of `vicreg.tools.benchmark.computations.MODES`.
    with_compiled : bool
        Whether to add each problem under the library's compiler.

    Returns
    -------
    list of Problem
    """
    plain = [Problem(n, d, dtype, mode) for dtype in dtypes for n, d in sizes]
    return plain + [replace(one, compiled=True) for one in plain if with_compiled]


def run_study(
    backends: Sequence[Backend],
    wanted: Sequence[Problem],
    effort: Effort,
    memory: Callable[[Problem], Iterable[str]] = lambda _: (VICREG, PUBLISHED),
    on_start: Callable[[int], None] = lambda _: None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Study:
    """Measure `wanted` on each of `backends`.

    Parameters
    ----------
    backends : sequence of Backend
        Libraries on their devices.
    wanted : sequence of Problem
        The problems. If a library cannot do one, the reason is recorded.
    effort : Effort
        The time to spend.
    memory : callable
        Returns the computations whose peak memory to measure, for a problem.
    on_start : callable
        Called once with the number of steps.
    on_step : callable
        Called with a line of text at the start of each step.

    Returns
    -------
    Study
    """
    study = Study(made_with=_made_with(backends))
    tasks = [
        (backend, problem)
        for backend in backends
        for problem in _possible(backend, wanted, study.not_measured)
    ]
    on_start(sum(1 + len(_watched(backend, problem, memory)) for backend, problem in tasks))
    for backend, problem in tasks:
        name = _name(backend, problem)
        on_step(name)
        result = _timed(backend, problem, effort, study.not_measured)
        for which in _watched(backend, problem, memory):
            on_step(f"{name}, memory of {which}")
            if result is not None and which in result.times:
                _watch(result, which, backend, problem, study.not_measured)
        if result is not None:
            study.results.append(result)
    return study


def _made_with(backends: Sequence[Backend]) -> dict[str, str]:
    named = description(backends)
    for backend in backends:
        if backend.device_name:
            named[f"device of {backend}"] = backend.device_name
        elif backend.device == "cpu":
            threads = backend.threads
            named[f"threads of {backend}"] = str(threads) if threads else "as it chooses itself"
    return named


def _possible(backend: Backend, wanted: Sequence[Problem], reasons: _Reasons) -> Iterator[Problem]:
    dtypes = dict.fromkeys(one.dtype for one in wanted if one.dtype not in backend.dtypes)
    reasons += [(f"{backend} {dtype}", "the library has no such dtype there") for dtype in dtypes]
    if any(one.compiled for one in wanted) and not backend.compiles:
        reasons.append((f"{backend} compiled", f"{backend.name} has no compiler"))
    elif any(one.compiled for one in wanted) and not backend.always_compiled:
        reasons.append((f"{backend} compiled, memory", "the compiler's own would be counted"))
    for problem in wanted:
        if problem.dtype not in backend.dtypes:
            continue
        if backend.always_compiled:
            if not problem.compiled:
                yield replace(problem, compiled=True)
        elif backend.compiles or not problem.compiled:
            yield problem


def _watched(
    backend: Backend, problem: Problem, memory: Callable[[Problem], Iterable[str]]
) -> list[str]:
    """Return the computations whose memory to measure."""
    if problem.compiled and not backend.always_compiled:
        return []  # the memory of the compiler would be counted
    return list(memory(problem))


def _name(backend: Backend, problem: Problem) -> str:
    compiled = " compiled" if problem.compiled and not backend.always_compiled else ""
    return f"{backend}{compiled} {problem} {problem.dtype}"


def _timed(backend: Backend, problem: Problem, effort: Effort, reasons: _Reasons) -> Result | None:
    where = _name(backend, problem)
    lacking = room_lacking("its views and gradients", _COPIES * problem.bytes_of_views)
    if lacking:
        reasons.append((where, lacking))
        return None
    load = load_per_core()
    with backend.active(), backend.full_precision():
        try:
            backend.forget_compiled()
            arrays = problem.arrays(backend)
            calls, losses = _warmed_up(backend, problem, arrays, effort, reasons)
            if VICREG not in calls:
                return None
            times = time_in_turns(calls, backend.synchronise, effort)
        except Exception as error:  # a library may raise anything, such as its own memory errors
            reasons.append((where, reason_of(error)))
            return None
    return Result(
        backend.name,
        backend.device,
        problem,
        times,
        backend.always_compiled,
        {},
        _difference(losses),
        max((one for one in (load, load_per_core()) if one is not None), default=None),
    )


def _warmed_up(
    backend: Backend,
    problem: Problem,
    arrays: Sequence[Array],
    effort: Effort,
    reasons: _Reasons,
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Call each computation once; return those that succeeded, and their losses."""
    calls: dict[str, Callable[[], Any]] = {}
    losses: dict[str, float] = {}
    for name in COMPUTATIONS:
        what = f"{_name(backend, problem)}, {name}"
        lacking = _room_for_matrices_lacking(name, backend, problem)
        if lacking:
            reasons.append((what, lacking))
            continue
        try:
            call = build_call(name, backend, problem, arrays)
            start = time.perf_counter()
            output = call()
            backend.synchronise(output)
            seconds = time.perf_counter() - start
            if name != PRODUCTS:
                losses[name] = _loss_of(backend, problem, output)
        except UnavailableError as error:
            reason = (f"{backend}, {name}", str(error))
            if reason not in reasons:  # once for all sizes
                reasons.append(reason)
            continue
        except Exception as error:
            reasons.append((what, reason_of(error)))
            continue
        if name != VICREG and not problem.compiled and seconds > effort.patience:
            reasons.append((what, f"a call took {seconds:.0f} s, beyond {effort.patience:.0f}"))
            continue
        calls[name] = call
    return calls, losses


def _room_for_matrices_lacking(name: str, backend: Backend, problem: Problem) -> str | None:
    if name != PUBLISHED or backend.device != "cpu":
        return None  # a full GPU raises an exception
    return room_lacking("its d x d matrices", _MATRICES * problem.d**2 * BYTES[problem.dtype])


def room_lacking(what: str, needed: int) -> str | None:
    """Return why `what` does not fit into the memory; None if it does."""
    available = available_memory()
    if available is None or needed <= available:
        return None
    return f"{what} take about {needed / 2**30:.0f} GiB, and {available / 2**30:.0f} are available"


def _loss_of(backend: Backend, problem: Problem, output: Any) -> float:
    # With gradients the output is a pair, the loss first.
    return float(backend.to_numpy(scalar_of(output)))


def _difference(losses: dict[str, float]) -> float | None:
    if VICREG not in losses or PUBLISHED not in losses:
        return None
    difference = abs(losses[VICREG] - losses[PUBLISHED]) / abs(losses[PUBLISHED])
    return difference if difference < float("inf") else None


def _watch(
    result: Result, name: str, backend: Backend, problem: Problem, reasons: _Reasons
) -> None:
    try:
        result.peaks[name] = peak_memory(name, backend, problem)
    except PeakUnknownError as error:
        reasons.append((f"{_name(backend, problem)}, memory of {name}", str(error)))


def reason_of(error: Exception) -> str:
    """Return an error of a library in one line."""
    lines = str(error).strip().splitlines()
    return ": ".join([f"raised {type(error).__name__}", *lines[:1]])
