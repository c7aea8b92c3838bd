"""A user's own function in the suite: its value and its gradient, on inputs of many sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from vicreg.tools.backends import Array, Floats
from vicreg.tools.backends.numpy import NumpyBackend
from vicreg.tools.functions import FunctionError, LossFunction
from vicreg.tools.verification.cases import CASES, SIZES, ZEROS, Case
from vicreg.tools.verification.definition import DEFINITIONS
from vicreg.tools.verification.problems import Problem, problem
from vicreg.tools.verification.suitable import Suitable
from vicreg.tools.verification.suite import Measurement, Results

__all__ = [
    "TARGET_CASES",
    "NoGradientError",
    "TargetResults",
    "gradient_by_autodiff",
    "run_target",
    "target_problem",
    "value_of",
]

#: The inputs of two views of shape (n, d): a function of two such arrays takes no others.
TARGET_CASES = (
    *(case for case in CASES if len(case.shape) == 2 and case.feature_axis == -1),
    *ZEROS,
    *SIZES,
)

#: How many random directions the finite differences take. One for `SIZES`, which has many inputs.
_DIRECTIONS, _DIRECTIONS_OF_SIZES = 4, 1
#: The step of a finite difference, in standard deviations of a feature.
_STEP = 2.0**-10


Returned = dict[str, Sequence[Floats]]


@dataclass
class TargetResults(Results):
    """The results for a user's function, with what it returned.

    Parameters
    ----------
    returned : dict
        By backend, dtype and case: the value and, with automatic differentiation, the gradients,
        under the names that their errors have.
    """

    returned: dict[tuple[str, str, Case], Returned] = field(default_factory=dict)


def run_target(
    functions: Sequence[LossFunction],
    dtypes: Sequence[str],
    convention: str,
    seed: int = 0,
    on_case: Callable[[str], None] = lambda _: None,
    cases: Sequence[Case] = TARGET_CASES,
) -> TargetResults:
    """Run a function of two arrays through the suite, in one library or several.

    Parameters
    ----------
    functions : sequence of LossFunction
        The function, once for each library.
    dtypes : sequence of str
        The dtypes of its inputs; those that a library lacks are skipped there.
    convention : str
        The convention that it should compute.
    seed : int
        The seed of the inputs.
    on_case : callable
        Called with one line of text before each case, to show progress.
    cases : sequence of Case
        The inputs, as far as `Suitable` has them.

    Returns
    -------
    TargetResults
        The gradient is "autodiff gradient", or "finite difference" if the library has no
        automatic differentiation. If it has, a function that it cannot differentiate fails.

    Raises
    ------
    FunctionError
        The function raises for every shape that is tried, or does not return a number.
    """
    results = TargetResults(seed)
    with ExitStack() as stack:
        stack.enter_context(NumpyBackend("numpy", "cpu", ()).on_one_thread())
        for function in functions:
            stack.enter_context(function.backend.on_one_thread())
        for function in functions:
            name = str(function.backend)
            here = [dtype for dtype in dtypes if dtype in function.backend.dtypes]
            suitable = Suitable(function, here, cases)
            for case in suitable.cases():
                for dtype in suitable.dtypes:  # one truth of a large input serves all dtypes
                    on_case(f"{function.name} on {name} {dtype}: {case}")
                    given = target_problem(case, dtype, convention, seed)
                    measurement, returned = _measured(function, given)
                    results.measurements.append(measurement)
                    results.returned[name, dtype, case] = returned
            results.left_out |= suitable.left_out
    return results


def target_problem(case: Case, dtype: str, convention: str, seed: int) -> Problem:
    """Return the problem that a user's function is given."""
    return problem(case, dtype, convention, DEFINITIONS[convention], seed=seed, own_code=True)


def _measured(function: LossFunction, given: Problem) -> tuple[Measurement, Returned]:
    weights = given.definition.weights
    value, complaint, errors = np.nan, "", dict[str, float]()
    returned: Returned = {}
    try:
        value, complaint = value_of(function, given)
        if not function.backend.differentiates:
            errors["finite difference"] = _finite_difference_error(function, given)
        else:
            gradients = gradient_by_autodiff(function, given)
            errors["autodiff gradient"] = given.gradient_error(weights, gradients)
            returned["autodiff gradient"] = gradients
    except (FunctionError, NoGradientError) as error:  # the shape is one that it takes
        complaint = str(error)
    returned["loss"] = [np.asarray(value)]
    where = (str(function.backend), given.dtype, given.case.name, given.convention)
    values = {"loss": given.value_error(weights, value)}
    measurement = Measurement(*where, values=values, gradients=errors, complaint=complaint)
    return measurement, returned


def value_of(function: LossFunction, given: Problem) -> tuple[float, str]:
    """Return the value, and a complaint if the function changed its arrays."""
    backend = function.backend
    with backend.active():
        arrays = function.arrays(given.views, given.dtype)
        before = [np.copy(backend.to_numpy(array)) for array in arrays]
        value = function.number(function.on_arrays(*arrays))
        after = [backend.to_numpy(array) for array in arrays]
    same = all(map(np.array_equal, before, after))
    return value, "" if same else "it changes the arrays that it is given"


class NoGradientError(Exception):
    """The library has automatic differentiation, but cannot differentiate this function."""


def gradient_by_autodiff(function: LossFunction, given: Problem) -> tuple[Floats, ...]:
    """Return the gradient with respect to each view, by automatic differentiation."""
    backend = function.backend

    def scalar(*views: Array) -> Array:
        value = function.on_arrays(*views)
        if not hasattr(value, "shape"):
            raise TypeError(f"it returns a {type(value).__name__}, not an array of {backend.name}")
        return value if tuple(value.shape) == () else value.reshape(())

    with backend.active():
        arrays = function.arrays(given.views, given.dtype)
        try:
            _, gradients = backend.differentiate(scalar, arrays)
        except Exception as error:  # a detached value, an operation without a derivative
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise NoGradientError(f"it has no gradient: {lines[0]}") from error
        return tuple(
            function.axes.restored(backend.to_numpy(gradient), *given.case.shape)
            for gradient in gradients
        )


def _finite_difference_error(function: LossFunction, given: Problem) -> float:
    """Return the largest error of central differences; 1.0 is their bound.

    They are compared with the same differences of the exact loss, so the step may be long. What
    remains is the rounding of two values, divided by twice the step.
    """
    largest, weights = 0.0, given.definition.weights
    for points in _steps(given):
        errors, bounds = [], []
        for point in points:
            first, second = point.views
            value = function(first, second, dtype=given.dtype)
            exact = point.terms.value(weights)
            errors.append((value - float(exact.high)) - float(exact.low))
            bounds.append(point.value_bound(weights))
        error = abs(errors[0] - errors[1]) / sum(bounds)
        largest = max(largest, float("inf") if np.isnan(error) else error)
    return largest


def _steps(given: Problem) -> Iterator[tuple[Problem, Problem]]:
    """Yield the problem one step forwards and one step backwards, along random directions."""
    rng = np.random.default_rng(given.views[0].size)
    views = np.stack(given.views)
    std = np.std(views, axis=1, keepdims=True)
    for _ in range(_DIRECTIONS_OF_SIZES if given.case.is_of_size else _DIRECTIONS):
        direction = _STEP * rng.standard_normal((2, *given.case.shape))
        step = direction * np.where(std > 0, std, 1.0)
        ahead, behind = views + step, views - step
        yield given.moved_to((ahead[0], ahead[1])), given.moved_to((behind[0], behind[1]))
