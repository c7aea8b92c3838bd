"""The conformance suite: every library through every case, held to the truth and to each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from vicreg import vicreg_terms, vicreg_value_and_grad
from vicreg.backends import Backend
from vicreg.core.layout import dtype_name
from vicreg.verification.bounds import UNIT_ROUNDOFF, Rounding, rounding_bounds
from vicreg.verification.cases import CASES, Case, rounded_to
from vicreg.verification.definition import (
    DEFINITIONS,
    TERMS,
    Definition,
    Exact,
    SampleSets,
    exact_terms,
)

__all__ = [
    "DTYPES",
    "VALUES",
    "Measurement",
    "Problem",
    "Results",
    "error_in_bounds",
    "measured",
    "problem",
    "run_suite",
]

Floats = npt.NDArray[np.float64]

DTYPES = ("float64", "float32", "bfloat16", "float16")
_HALF = ("bfloat16", "float16")
_LARGEST = {"float16": 65504.0, "bfloat16": (2.0 - 2.0**-7) * 2.0**127}

#: The quantities that are values; the others are gradients.
VALUES = ("loss", *TERMS)


@dataclass(frozen=True)
class Problem:
    """One case in one dtype and one convention, with its truth and the bounds of rounding."""

    case: Case
    dtype: str
    convention: str
    rounding: Rounding
    views: tuple[Floats, Floats]
    truth: dict[str, tuple[Exact, tuple[Exact, ...]]]
    bounds: dict[str, tuple[float, tuple[Floats, ...]]]

    @property
    def definition(self) -> Definition:
        """The formula."""
        return DEFINITIONS[self.convention]

    @property
    def settings(self) -> dict[str, Any]:
        """What the public functions are called with."""
        names = (f"{term}_weight" for term in TERMS)
        weights = zip(names, self.definition.weights, strict=True)
        return {"convention": self.convention, **dict(weights)}

    @property
    def value_dtype(self) -> str:
        """The dtype that values are returned in."""
        return "float32" if self.dtype in _HALF else self.dtype

    def value_error(self, quantity: str, value: float) -> float:
        """Return the error of a value, 1.0 being the bound."""
        exact, bound = self.truth[quantity][0], self.bounds[quantity][0]
        return error_in_bounds(exact, np.asarray(value), np.asarray(bound), self.value_dtype)

    def gradient_error(self, gradients: Sequence[Floats]) -> float:
        """Return the largest error of the loss's gradient, 1.0 being the bound of its entry."""
        truth, bounds = self.truth["loss"][1], self.gradient_bounds
        return max(
            error_in_bounds(exact, gradient, bound, self.dtype)
            for exact, gradient, bound in zip(truth, gradients, bounds, strict=True)
        )

    def moved_to(self, views: tuple[Floats, Floats]) -> Problem:
        """Return the same problem with other views, rounded to the dtype."""
        sets = _rounded_sets(views, self.dtype)
        return _stated(self.case, self.dtype, self.convention, self.rounding, sets)

    @property
    def gradient_bounds(self) -> tuple[Floats, ...]:
        """The bound of each entry of the loss's gradient, with its rounding to the dtype."""
        once_more = UNIT_ROUNDOFF[self.dtype] if self.dtype in _HALF else 0.0
        return tuple(
            bound + once_more * np.abs(exact.high)
            for bound, exact in zip(self.bounds["loss"][1], self.truth["loss"][1], strict=True)
        )


def problem(
    case: Case, dtype: str, convention: str, seed: int = 0, own_code: bool = False
) -> Problem:
    """Return one problem.

    Parameters
    ----------
    case : Case
        The input.
    dtype : str
        Of the input, and of what is computed, but for half precision: that is in float32.
    convention : str
        The formula.
    seed : int
        Of the input.
    own_code : bool
        Whether the bound is that of somebody's own code, which centres plainly and computes in
        `dtype`.

    Returns
    -------
    Problem
    """
    computed_in = "float32" if dtype in _HALF and not own_code else dtype
    rounding = Rounding(computed_in, dtype, plain=own_code)
    return _stated(case, dtype, convention, rounding, _input(case, dtype, seed))


def _stated(
    case: Case, dtype: str, convention: str, rounding: Rounding, sets: SampleSets
) -> Problem:
    definition = DEFINITIONS[convention]
    truth = exact_terms(sets, definition)
    bounds = rounding_bounds(sets.views, definition, rounding)
    return Problem(case, dtype, convention, rounding, sets.views, truth, bounds)


@cache
def _input(case: Case, dtype: str, seed: int) -> SampleSets:
    return _rounded_sets(case.views(seed), dtype)


def _rounded_sets(views: tuple[Floats, Floats], dtype: str) -> SampleSets:
    return SampleSets((rounded_to(dtype, views[0]), rounded_to(dtype, views[1])))


def error_in_bounds(exact: Exact, values: Floats, bounds: Floats, dtype: str) -> float:
    """Return the largest error of `values`, each divided by its bound; infinite for a NaN."""
    with np.errstate(all="ignore"):
        errors = exact.error_of(values) / bounds
        if dtype in _LARGEST:
            # What is beyond the dtype's largest number is rightly infinite.
            beyond = np.abs(exact.high) + bounds > _LARGEST[dtype]
            right = np.isinf(values) & (np.sign(values) == np.sign(exact.high))
            errors = np.where(beyond & right, 0.0, errors)
    return float(np.max(np.where(np.isnan(errors), np.inf, errors), initial=0.0))


@dataclass(frozen=True)
class Measurement:
    """What one library returned for one problem, and how far from the truth it is.

    Parameters
    ----------
    backend, dtype, case, convention : str
        Where it is from.
    errors : dict of str to float
        By quantity: "loss", a term, "gradient" (in closed form) and "autodiff gradient"; in
        multiples of the bound, which is u times the size of the problem times its condition.
    complaint : str
        What is wrong but no number: an exception, a wrong dtype. Empty where nothing is.
    """

    backend: str
    dtype: str
    case: str
    convention: str
    errors: dict[str, float]
    complaint: str = ""

    @property
    def passed(self) -> bool:
        """Whether every error is within its bound."""
        return not self.complaint and all(error <= 1.0 for error in self.errors.values())


# What a library returned: the values by name, and the gradients of the loss.
_Returned = dict[str, Any]


def measured(backend: Backend, given: Problem) -> tuple[Measurement, _Returned]:
    """Return what `backend` makes of one problem, with what it returned, in NumPy."""
    where = (str(backend), given.dtype, given.case.name, given.convention)
    try:
        with np.errstate(all="ignore"), backend.active():
            returned = _computed(backend, given)
    except _ComplaintError as error:
        return Measurement(*where, {}, str(error)), {}
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a library under test raises anything
        lines = str(error).strip().splitlines() or [""]
        return Measurement(*where, {}, f"raised {type(error).__name__}: {lines[0]}"), {}
    errors = {name: given.value_error(name, returned[name]) for name in VALUES}
    for name in ("gradient", "autodiff gradient"):
        if name in returned:
            errors[name] = given.gradient_error(returned[name])
    return Measurement(*where, errors), returned


class _ComplaintError(Exception):
    """What was returned is not what the interface says, whatever its numbers."""


def _computed(backend: Backend, given: Problem) -> _Returned:
    arrays = [backend.asarray(view, given.dtype) for view in given.views]
    returned: _Returned = {}

    def of_terms(*views: Any) -> Any:
        return vicreg_terms(*views, **given.settings)

    if backend.differentiates:
        terms, gradients = backend.differentiate(of_terms, arrays)
        returned["autodiff gradient"] = _gradients(backend, given, gradients)
    else:
        terms = of_terms(*arrays)
    for name, term in zip(VALUES, terms, strict=True):
        returned[name] = _value(backend, given, name, term)
    loss, gradients = vicreg_value_and_grad(*arrays, **given.settings)
    of_gradient = _value(backend, given, "loss", loss)
    if not _same(of_gradient, returned["loss"]) and given.value_error("loss", of_gradient) > 1:
        raise _ComplaintError(f"vicreg_value_and_grad's loss is wrong: {of_gradient!r}")
    returned["gradient"] = _gradients(backend, given, gradients)
    for array, view in zip(arrays, given.views, strict=True):
        if not np.array_equal(backend.to_numpy(array), view):
            raise _ComplaintError("the views were changed")
    return returned


def _same(a: float, b: float) -> bool:
    return a == b or (np.isnan(a) and np.isnan(b))


def _value(backend: Backend, given: Problem, name: str, array: Any) -> float:
    if tuple(array.shape) != ():
        raise _ComplaintError(f"{name} must be 0-d; it has shape {tuple(array.shape)}")
    _check_dtype(name, array, given.value_dtype)
    return float(backend.to_numpy(array))


def _gradients(backend: Backend, given: Problem, gradients: Sequence[Any]) -> tuple[Floats, ...]:
    for gradient in gradients:
        if tuple(gradient.shape) != given.case.shape:
            raise _ComplaintError(
                f"a gradient must have shape {given.case.shape}; it has {tuple(gradient.shape)}"
            )
        _check_dtype("a gradient", gradient, given.dtype)
    return tuple(backend.to_numpy(gradient) for gradient in gradients)


def _check_dtype(name: str, array: Any, wanted: str) -> None:
    if dtype_name(array) != wanted:
        raise _ComplaintError(f"{name} must be {wanted}; it is {dtype_name(array)}")


@dataclass
class Results:
    """What a run of the suite found.

    Parameters
    ----------
    seed : int
        Of the inputs.
    measurements : list of Measurement
        In the order they were taken.
    distances : dict
        How far apart two libraries are, in a dtype: of the value and of the gradient, the largest
        difference in multiples of the bound that each is held to.
    left_out : dict of str to str
        What did not run, and why.
    """

    seed: int
    measurements: list[Measurement] = field(default_factory=list)
    distances: dict[tuple[str, str, str], tuple[float, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether something ran, and all of it is within the bounds."""
        return bool(self.measurements) and all(one.passed for one in self.measurements)


def run_suite(
    backends: Sequence[Backend],
    dtypes: Sequence[str] = DTYPES,
    conventions: Sequence[str] = tuple(DEFINITIONS),
    cases: Sequence[Case] = CASES,
    seed: int = 0,
    on_case: Callable[[str], None] = lambda _: None,
) -> Results:
    """Run every library through every case.

    Parameters
    ----------
    backends : sequence of Backend
        The libraries.
    dtypes, conventions, cases : sequences
        What they are run through.
    seed : int
        Of the inputs.
    on_case : callable
        Called with a line before each case of each library in each dtype: for progress.

    Returns
    -------
    Results
    """
    results = Results(seed)
    for dtype in dtypes:
        here = [backend for backend in backends if dtype in backend.dtypes]
        for case in cases:
            problems = [problem(case, dtype, convention, seed) for convention in conventions]
            returned: dict[str, list[_Returned]] = {}
            for backend in here:
                on_case(f"{backend} {dtype}: {case}")
                outcomes = [measured(backend, given) for given in problems]
                results.measurements += [measurement for measurement, _ in outcomes]
                returned[str(backend)] = [values for _, values in outcomes]
            for pair, distance in _distances(problems, returned):
                value, gradient = results.distances.get((*pair, dtype), (0.0, 0.0))
                further = max(value, distance[0]), max(gradient, distance[1])
                results.distances[*pair, dtype] = further
    return results


def _distances(
    problems: Sequence[Problem], returned: dict[str, list[_Returned]]
) -> Iterator[tuple[tuple[str, str], tuple[float, float]]]:
    for a, b in itertools.combinations(returned, 2):
        apart = [
            _apart(given, *each)
            for given, *each in zip(problems, returned[a], returned[b], strict=True)
        ]
        yield (a, b), (max(value for value, _ in apart), max(grad for _, grad in apart))


def _apart(given: Problem, a: _Returned, b: _Returned) -> tuple[float, float]:
    """Return how far apart two libraries' values and gradients are; infinite where one failed."""
    if not a or not b:
        return np.inf, np.inf
    values = [
        _difference(np.asarray(a[name]), np.asarray(b[name]), np.asarray(given.bounds[name][0]))
        for name in VALUES
    ]
    gradients = [
        _difference(*three)
        for three in zip(a["gradient"], b["gradient"], given.gradient_bounds, strict=True)
    ]
    return max(values), max(gradients)


def _difference(a: Floats, b: Floats, bounds: Floats) -> float:
    with np.errstate(all="ignore"):
        apart = np.where(a == b, 0.0, np.abs(a - b) / bounds)
    return float(np.max(np.where(np.isnan(apart), np.inf, apart), initial=0.0))
