"""Count what each library is asked for on each problem."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vicreg._losses.vicreg import vicreg_loss, vicreg_value_and_grad
from vicreg.tools.backends import Backend, backend_named
from vicreg.tools.benchmark.computations import MODES, PUBLISHED, Problem, UnavailableError
from vicreg.tools.benchmark.counting.counts import Counts
from vicreg.tools.benchmark.counting.estimate import H100, Estimate, Gpu, estimate
from vicreg.tools.benchmark.published import published_formula, published_formula_in
from vicreg.tools.benchmark.study import reason_of, room_lacking
from vicreg.tools.dtypes import BYTES
from vicreg.tools.machine import description
from vicreg.tools.requirements import RequirementError

__all__ = ["BACKWARD", "CLOSED_FORM", "COUNTED", "DEVICES", "VALUE", "Row", "Study", "count_study"]

CLOSED_FORM, BACKWARD, VALUE = "closed form", "backward", "value"

#: The libraries that are counted, and the devices.
COUNTED = ("torch", "cupy", "jax")
DEVICES = ("cpu", "gpu")

Function = Callable[..., Any]
#: The device that a computation is counted for, its name, and how to count it.
Counting = tuple[str, str, Callable[[], Counts]]


@dataclass(frozen=True)
class Row:
    """What one computation on one problem asks of a library.

    Parameters
    ----------
    library, device : str
        The library, and the device that it is counted for: "cpu" or "gpu".
    problem : Problem
        The problem.
    computation : {"closed form", "backward", "value", "published"}
        `vicreg_value_and_grad`; `vicreg_loss` and its backward pass; `vicreg_loss`; or the
        published formula, with its backward pass if the others have the gradient.
    counts : Counts
        What is asked for.
    estimate : Estimate or None
        The time on a GPU; None for what is counted for a CPU.
    """

    library: str
    device: str
    problem: Problem
    computation: str
    counts: Counts
    estimate: Estimate | None

    @property
    def label(self) -> str:
        """The name of the library and the device in the tables."""
        return f"{self.library} {self.device}"

    @property
    def views_moved(self) -> float:
        """The bytes read and written, in units of one view."""
        one = self.problem.n * self.problem.d * BYTES[self.problem.dtype]
        return self.counts.bytes_moved / one

    @property
    def over_products(self) -> float:
        """The multiply-adds over those of the products that are needed."""
        return self.counts.multiply_adds / self.problem.multiply_adds


@dataclass
class Study:
    """What was counted, what could not be and why, the GPU of the estimates, and the versions."""

    gpu: Gpu
    rows: list[Row] = field(default_factory=list)
    not_counted: list[tuple[str, str]] = field(default_factory=list)
    made_with: dict[str, str] = field(default_factory=dict)


def count_study(
    names: Sequence[str],
    problems: Sequence[Problem],
    gpu: Gpu = H100,
    devices: Sequence[str] = DEVICES,
    on_step: Callable[[str], None] = lambda _: None,
) -> Study:
    """Count each of `problems` on each library.

    Parameters
    ----------
    names : sequence of str
        Libraries of `COUNTED`.
    problems : sequence of Problem
        The problems. If one cannot be counted on a library, the reason is recorded.
    gpu : Gpu
        The GPU that the times are estimated for.
    devices : sequence of str
        The devices to count for, of `DEVICES`.
    on_step : callable
        Called with a line of text before each library and problem.

    Returns
    -------
    Study
    """
    study, used = Study(gpu), []
    for name in names:
        try:
            backend = backend_named("numpy" if name == "cupy" else name)
        except RequirementError as error:
            study.not_counted.append((name, str(error)))
            continue
        used.append(backend)
        before = len(study.rows) + len(study.not_counted)
        for problem in problems:
            on_step(f"{name} {problem} {problem.dtype}")
            if problem.dtype in backend.dtypes:
                _count(name, backend, problem, devices, study)
            else:
                study.not_counted.append((f"{name} {problem.dtype}", "it has no such dtype"))
        if len(study.rows) + len(study.not_counted) == before:
            study.not_counted.append((name, f"it is not counted for a {devices[0]} here"))
    study.not_counted = list(dict.fromkeys(study.not_counted))
    study.made_with = description(used)
    return study


def _count(
    name: str, backend: Backend, problem: Problem, devices: Sequence[str], study: Study
) -> None:
    for device, computation, count in _COUNTINGS[name](backend, problem):
        if device not in devices:
            continue
        try:
            if computation == PUBLISHED and problem.d < 2:
                raise UnavailableError("the published formula takes two features or more")
            with backend.active(), backend.full_precision():
                counts = count()
        except Exception as error:  # a library may raise anything
            why = str(error) if isinstance(error, UnavailableError) else reason_of(error)
            study.not_counted.append((f"{name} {problem} {problem.dtype}, {computation}", why))
            continue
        # What JAX compiles for a CPU has an estimate too: its compiler fuses alike for a GPU.
        is_estimated = device == "gpu" or name == "jax"
        time = estimate(counts, study.gpu) if is_estimated else None
        study.rows.append(Row(name, device, problem, computation, counts, time))


def _of_torch(backend: Backend, problem: Problem) -> Iterator[Counting]:
    """Yield what to count with values, as on a CPU, and without, as on a GPU."""
    import torch

    from vicreg.tools.benchmark.counting.torch import count

    def on_cpu(function: Function) -> Counts:
        lacking = room_lacking("its views and gradients", 3 * problem.bytes_of_views)
        if lacking:
            raise UnavailableError(lacking)
        views = problem.arrays(backend)
        return count(lambda: function(*views))

    def on_gpu(function: Function) -> Counts:
        # Tensors on "meta" have no values, so the package does with them what it does on a GPU.
        dtype = getattr(torch, problem.dtype)
        shape = (problem.n, problem.d)
        views = [torch.empty(shape, dtype=dtype, device="meta") for _ in range(problem.views)]
        return count(lambda: function(*views))

    functions = _functions(problem, published_formula("torch"), backend)
    for name, function in functions.items():
        if name != PUBLISHED:  # whose operations are the same on any device
            yield "cpu", name, functools.partial(on_cpu, function)
    for name, function in functions.items():
        yield "gpu", name, functools.partial(on_gpu, function)


def _of_cupy(backend: Backend, problem: Problem) -> Iterator[Counting]:
    """Yield what to count with arrays that pass for CuPy's; `backend` is NumPy."""
    from vicreg.tools.benchmark.counting.standard import count

    views = [np.zeros((problem.n, problem.d), problem.dtype)] * problem.views
    for name, function in _functions(problem, published_formula_in(np), backend).items():
        yield "gpu", name, functools.partial(count, function, views)


def _of_jax(backend: Backend, problem: Problem) -> Iterator[Counting]:
    """Yield what to count in the programs that are compiled for JAX's default device."""
    import jax
    import jax.numpy as jnp

    from vicreg.tools.benchmark.counting.jax import count

    def compiled(function: Function) -> Counts:
        structure: Any = jax.ShapeDtypeStruct
        view = structure((problem.n, problem.d), jnp.dtype(problem.dtype))
        return count(function, [view] * problem.views)

    for name, function in _functions(problem, published_formula("jax"), backend).items():
        device = "cpu" if backend.device == "cpu" else "gpu"
        yield device, name, functools.partial(compiled, function)


_COUNTINGS = {"torch": _of_torch, "cupy": _of_cupy, "jax": _of_jax}


def _functions(problem: Problem, published: Function, backend: Backend) -> dict[str, Function]:
    """Return the computations of two views by name."""
    if problem.mode != MODES[0]:
        return {VALUE: vicreg_loss, PUBLISHED: published}
    if not backend.differentiates:
        return {CLOSED_FORM: vicreg_value_and_grad}
    return {
        CLOSED_FORM: vicreg_value_and_grad,
        BACKWARD: lambda *views: backend.differentiate(vicreg_loss, views),
        PUBLISHED: lambda *views: backend.differentiate(published, views),
    }
