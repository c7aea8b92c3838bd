"""Estimates of how long the suite takes.

The numbers are seconds on the machine where they were measured, one core of a recent server. They
only need to be right up to a factor, since the progress corrects them by what each library takes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vicreg.tools.backends import Backend
from vicreg.tools.progress import Step
from vicreg.tools.verification.cases import CASES, Case
from vicreg.tools.verification.definition import DEFINITIONS, Terms, Views
from vicreg.tools.verification.plan import Setup
from vicreg.tools.verification.questions import EVALUATIONS, Question
from vicreg.tools.verification.suite import COMPILED_AHEAD

__all__ = ["expected_steps", "expected_target_steps", "pace_of_this_machine"]


@dataclass(frozen=True)
class _Costs:
    """The costs of a library: per evaluation, per million products in it, and to compile it.

    `beginning` is the additional time of its first step.
    """

    each: float
    product: float = 0.0
    compiling: float = 0.0
    beginning: float = 0.0


_COSTS = {
    "numpy": _Costs(0.00026, 0.00004),
    "torch": _Costs(0.0018, 0.0001, beginning=1.4),
    "jax": _Costs(0.0006, 0.0001, 0.039, beginning=0.5),
    "mlx": _Costs(0.0014, 0.0008),
    "cupy": _Costs(0.003),
    "dask": _Costs(0.05, 0.0002),
    "array_api_strict": _Costs(0.01, 0.0002),
    "ndonnx": _Costs(0.1, 0.0002),
    "mparray": _Costs(0.5, 10.0),
}
_OF_ANOTHER = _Costs(0.01, 0.001)
#: The cost of an exact truth.
_EXACT = 0.0047
#: The costs of a truth in float64: per million entries of views and of matrices, and products.
_ENTRIES, _MATRICES, _PRODUCTS = 0.19, 0.037, 0.00008
#: The time to compile without the optimisations, as a share of that with them.
_NOT_OPTIMISED = 0.5
#: How much longer a step takes while something is being compiled: both run in one interpreter.
_BESIDE_COMPILING = 2.1
_EXACT_TRUTH, _FLOAT_TRUTH = "the exact truth", "the truth in float64"


def expected_steps(backends: Sequence[Backend], planned: Sequence[Setup]) -> list[Step]:
    """Return the steps of `run_suite`, with their expected times.

    Parameters
    ----------
    backends : sequence of Backend
        The libraries.
    planned : sequence of Setup
        The setups.

    Returns
    -------
    list of Step
    """
    steps: list[Step] = []
    begun: set[str] = set()
    compiled: dict[tuple[int, str], float] = {}  # when what a setup needs will have been
    now = free = 0.0
    begun_to_compile = 0
    for place, setup in enumerate(planned):
        # What `run_suite` has compiled meanwhile.
        for ahead in range(begun_to_compile, min(place + 1 + COMPILED_AHEAD, len(planned))):
            for backend in filter(planned[ahead].is_for, backends):
                free = max(now, free) + _of_compiling(backend, planned[ahead])
                compiled[ahead, backend.name] = free
            begun_to_compile = ahead + 1
        asked = [backend for backend in backends if setup.is_for(backend)]
        if asked:
            kind = _EXACT_TRUTH if setup.cases[0].exactly else _FLOAT_TRUTH
            steps.append(Step(kind, sum(map(_of_truth, setup.cases))))
            now += steps[-1].seconds
        for backend in asked:
            seconds, kind = _of_step(backend, setup), backend.name
            if backend.name not in begun:
                begun.add(backend.name)
                # The first step includes imports, so it has a kind of its own.
                seconds, kind = seconds + _costs(backend).beginning, f"{kind}, its first step"
            seconds *= _BESIDE_COMPILING if now < free else 1
            seconds += max(compiled[place, backend.name] - now, 0.0)
            steps.append(Step(kind, seconds))
            now += seconds
    return steps


def _costs(backend: Backend) -> _Costs:
    return _COSTS.get(backend.name, _OF_ANOTHER)


def expected_target_steps(
    backends: Sequence[Backend], dtypes: Sequence[str], cases: Sequence[Case]
) -> list[Step]:
    """Return the steps of `run_target`, with their expected times.

    Parameters
    ----------
    backends : sequence of Backend
        The libraries in which the function is called.
    dtypes : sequence of str
        The dtypes of its inputs.
    cases : sequence of Case
        The inputs.

    Returns
    -------
    list of Step
    """
    return [
        Step(backend.name, _of_target(backend, case))
        for backend in backends
        for case in cases
        for dtype in dtypes
        if dtype in backend.dtypes
    ]


def _of_target(backend: Backend, case: Case) -> float:
    # Code that forms the covariance, and the truth; at several points for finite differences.
    points = 2 if backend.differentiates else 4
    product = case.count * case.n * case.d**2 / 1e6
    matrix = case.d**2 / 1e6
    exact = 5 * _EXACT if case.exactly else 0.0  # not computed before
    return points * (exact + 0.005 + 0.0003 * product + 0.06 * matrix)


def _of_truth(case: Case) -> float:
    if case.exactly:
        return _EXACT
    n, d = case.n, case.d
    return case.count * (n * d * _ENTRIES + d**2 * _MATRICES + n * d**2 * _PRODUCTS) / 1e6


def _of_step(backend: Backend, setup: Setup) -> float:
    costs = _costs(backend)
    seconds = 0.0
    for case in setup.cases:
        count = _evaluations(setup.questions_of(case, backend))
        products = case.count * case.n * case.d * min(case.n, case.d) / 1e6
        seconds += count * (costs.each + products * costs.product)
    return seconds


def _of_compiling(backend: Backend, setup: Setup) -> float:
    case = setup.cases[0]
    count = _evaluations(setup.questions_of(case, backend))
    part = 1.0 if setup.optimised else _NOT_OPTIMISED
    return _costs(backend).compiling * (8 + part * count * case.count**2 / 4)


def _evaluations(questions: Sequence[Question]) -> int:
    return sum(EVALUATIONS[question] for question in questions)


def pace_of_this_machine() -> float:
    """Return the time of this machine, relative to the one where the costs were measured."""
    views = CASES[0].views()
    taken = math.inf
    for _ in range(3):
        began = time.perf_counter()
        definition = DEFINITIONS["official"]
        Terms(Views(views), definition).gradients(definition.weights)
        taken = min(taken, time.perf_counter() - began)
    return taken / _EXACT_TRUTH_OF_FIRST


#: The time of that truth on the machine where the costs were measured.
_EXACT_TRUTH_OF_FIRST = 0.0145
