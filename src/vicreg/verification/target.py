"""A user's own function through the same suite: its value, its gradient, and which term is off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vicreg.backends import Array
from vicreg.functions import LossFunction
from vicreg.verification.cases import CASES
from vicreg.verification.definition import TERMS
from vicreg.verification.suite import DTYPES, Measurement, Problem, Results, problem

__all__ = ["TARGET_CASES", "explanations", "run_target"]

Floats = npt.NDArray[np.float64]

#: A function of two arrays (n, d) has no positions.
TARGET_CASES = tuple(case for case in CASES if len(case.shape) == 2)

#: Directions along which a function without automatic differentiation is differenced.
_DIRECTIONS = 4
#: The length of a finite difference beside the size of a feature.
_STEP = 2.0**-10
#: Up to this residual, beside the largest of the terms, factors explain a function.
_FITTED = 1e-6
#: A factor's difference from 1 that is seen at least: that of a float64's own rounding.
_SEEN = 1e-13


def run_target(
    functions: Sequence[LossFunction],
    dtypes: Sequence[str],
    convention: str,
    seed: int = 0,
    on_case: Callable[[str], None] = lambda _: None,
) -> Results:
    """Run a function of two arrays, in one library or several, through the suite.

    Parameters
    ----------
    functions : sequence of LossFunction
        The function, once for each library.
    dtypes : sequence of str
        What it is given.
    convention : str
        What it is held to.
    seed : int
        Of the inputs.
    on_case : callable
        Called with a line before each case: for progress.

    Returns
    -------
    Results
        The gradient is "autodiff gradient", or "finite difference" where the library has no
        automatic differentiation. Where it has, a function that it cannot differentiate fails.

    Raises
    ------
    FunctionError
        The function raises, or returns no number.
    """
    results = Results(seed)
    for dtype in dtypes:
        for function in functions:
            if dtype not in function.backend.dtypes:
                continue
            for case in TARGET_CASES:
                on_case(f"{function.name} on {function.backend} {dtype}: {case}")
                given = problem(case, dtype, convention, seed, own_code=True)
                results.measurements.append(_measured(function, given))
    return results


def _measured(function: LossFunction, given: Problem) -> Measurement:
    where = (str(function.backend), given.dtype, given.case.name, given.convention)
    value = function(*given.views, dtype=given.dtype)
    errors = {"loss": given.value_error("loss", value)}
    if not function.backend.differentiates:
        errors["finite difference"] = _finite_difference_error(function, given)
        return Measurement(*where, errors, _changed(function, given))
    try:
        gradients = _gradients(function, given)
    except _NoGradientError as error:
        return Measurement(*where, errors, str(error))
    errors["autodiff gradient"] = given.gradient_error(gradients)
    return Measurement(*where, errors, _changed(function, given))


def _changed(function: LossFunction, given: Problem) -> str:
    """Return the complaint that the function changes its arrays; empty where it does not."""
    backend = function.backend
    with backend.active():
        arrays = [backend.asarray(view, given.dtype) for view in given.views]
        function.on_arrays(*arrays)
        kept = [backend.to_numpy(array) for array in arrays]
    same = all(np.array_equal(a, b) for a, b in zip(kept, given.views, strict=True))
    return "" if same else "it changes the arrays that it is given"


class _NoGradientError(Exception):
    """The library differentiates, and not this function."""


def _gradients(function: LossFunction, given: Problem) -> tuple[Floats, ...]:
    """Return the gradients by automatic differentiation."""
    backend = function.backend

    def scalar(*views: Array) -> Array:
        value = function.on_arrays(*views)
        return value if tuple(value.shape) == () else value.reshape(())

    with backend.active():
        arrays = [backend.asarray(view, given.dtype) for view in given.views]
        try:
            _, gradients = backend.differentiate(scalar, arrays)
        except Exception as error:  # a value without its graph, an operation without derivative
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise _NoGradientError(f"it has no gradient: {lines[0]}") from error
        return tuple(backend.to_numpy(gradient) for gradient in gradients)


def _finite_difference_error(function: LossFunction, given: Problem) -> float:
    """Return the error of central differences of the function, 1.0 being their bound.

    Held against the same difference of the truth, so that nothing is lost to the step's length:
    what is left is the rounding of the two values, over twice the step.
    """
    largest = 0.0
    for forwards, backwards in _around(given):
        errors, bounds = [], []
        for point in (forwards, backwards):
            value = function(*point.views, dtype=given.dtype)
            exact = point.truth["loss"][0]
            errors.append((value - float(exact.high)) - float(exact.low))
            bounds.append(point.bounds["loss"][0])
        error = abs(errors[0] - errors[1]) / sum(bounds)
        largest = max(largest, float("inf") if np.isnan(error) else error)
    return largest


def _around(given: Problem) -> Iterator[tuple[Problem, Problem]]:
    """Yield the problem a step forwards and a step backwards, along random directions."""
    rng = np.random.default_rng(given.views[0].size)
    views = np.stack(given.views)
    spread = np.std(views, axis=1, keepdims=True)
    for _ in range(_DIRECTIONS):
        direction = _STEP * rng.standard_normal((2, *given.case.shape))
        step = direction * np.where(spread > 0, spread, 1.0)
        ahead, behind = views + step, views - step
        yield given.moved_to((ahead[0], ahead[1])), given.moved_to((behind[0], behind[1]))


@dataclass(frozen=True)
class _Fit:
    """Factors of the terms that make up a function, and what they leave unexplained."""

    factors: dict[str, float]
    residual: float
    missing: int  # cases in which there is no number


def explanations(
    function: LossFunction, convention: str, results: Results, seed: int = 0
) -> list[str]:
    """Return which term is off and by what factor, one line each; empty where nothing is off.

    Parameters
    ----------
    function : LossFunction
        What was run.
    convention : str
        What it was held to.
    results : Results
        What came out.
    seed : int
        Of the inputs.

    Returns
    -------
    list of str
    """
    here = [one for one in results.measurements if one.backend == str(function.backend)]
    dtype = next(dtype for dtype in DTYPES if any(one.dtype == dtype for one in here))
    problems = [problem(case, dtype, convention, seed, own_code=True) for case in TARGET_CASES]
    lines = []
    if _failed(here, "loss"):
        values = [function(*given.views, dtype=dtype) for given in problems]
        fit = _fit_values(problems, values)
        lines += _told(fit, convention, "term", "value")
    if _failed(here, "autodiff gradient"):
        try:
            gradients = [_gradients(function, given) for given in problems]
        except _NoGradientError:  # it is among the complaints
            return lines
        lines += _told(
            _fit_gradients(problems, gradients), convention, "term's gradient", "gradient"
        )
    return lines


def _failed(measurements: Sequence[Measurement], quantity: str) -> bool:
    return any(one.errors.get(quantity, 0.0) > 1.0 for one in measurements)


def _fit_values(problems: Sequence[Problem], values: Sequence[float]) -> _Fit:
    """Return the factors of the terms that best make up the values, each case counting alike."""
    rows = [
        [weight * float(given.truth[term][0].high) for term, weight in _weighted_terms(given)]
        for given in problems
    ]
    return _fit(
        [np.asarray([row]) for row in rows],
        [np.asarray([value]) for value in values],
        _names(problems[0]),
    )


def _fit_gradients(problems: Sequence[Problem], gradients: Sequence[tuple[Floats, ...]]) -> _Fit:
    """Return the factors of the terms' gradients that best make up the gradients."""
    rows = [
        np.stack(
            [
                np.concatenate([weight * exact.high.ravel() for exact in given.truth[term][1]])
                for term, weight in _weighted_terms(given)
            ],
            axis=1,
        )
        for given in problems
    ]
    columns = [np.concatenate([g.ravel() for g in each]) for each in gradients]
    return _fit(rows, columns, _names(problems[0]))


def _fit(rows: Sequence[Floats], columns: Sequence[Floats], names: Sequence[str]) -> _Fit:
    sizes = [max(float(np.max(np.abs(row))), np.finfo(float).tiny) for row in rows]
    parts = [
        (row / size, column / size)
        for row, column, size in zip(rows, columns, sizes, strict=True)
        if np.all(np.isfinite(column))
    ]
    # A case without a number is a failure of its own, and no part of a sum.
    missing = len(rows) - len(parts)
    if not parts:
        return _Fit({}, float("inf"), missing)
    matrix, wanted = (np.concatenate(each) for each in zip(*parts, strict=True))
    factors, *_ = np.linalg.lstsq(matrix, wanted)
    residual = float(np.max(np.abs(matrix @ factors - wanted)))
    return _Fit(dict(zip(names, map(float, factors), strict=True)), residual, missing)


def _weighted_terms(given: Problem) -> list[tuple[str, float]]:
    weights = zip(TERMS, given.definition.weights, strict=True)
    return [(term, weight) for term, weight in weights if weight]


def _names(given: Problem) -> list[str]:
    return [term for term, _ in _weighted_terms(given)]


def _told(fit: _Fit, convention: str, subject: str, whole: str) -> list[str]:
    lines = []
    if fit.missing:
        lines.append(f"the {whole} is no finite number in {fit.missing} of the cases")
    if not fit.residual <= _FITTED:
        return [*lines, f"no factors of the three terms of {convention} make up the {whole}"]
    seen = max(_SEEN, 8 * fit.residual)
    off = []
    for term, factor in fit.factors.items():
        if abs(factor) <= seen:
            off.append(f"the {term} {subject} of {convention} is missing")
        elif abs(factor - 1) > seen:
            off.append(f"the {term} {subject} is {_factor(factor)} that of {convention}")
    if off or fit.missing:
        return lines + off
    return [
        f"each {subject} is that of {convention}, but the {whole} is rounded by more than its "
        "bound: a difference that cancels?"
    ]


def _factor(factor: float) -> str:
    if abs(factor - 1) < 1e-4:
        return f"1 {'+' if factor > 1 else '-'} {abs(factor - 1):.3g} times"
    return f"{factor:.6g} times"
