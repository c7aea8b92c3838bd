"""Why a function fails: from what size on, which term is off, and by what factor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vicreg.tools.functions import LossFunction
from vicreg.tools.verification.cases import SIZES, ZEROS, Case, case_of_size
from vicreg.tools.verification.definition import TERMS, Three
from vicreg.tools.verification.problems import DTYPES, Problem
from vicreg.tools.verification.target import (
    TARGET_CASES,
    NoGradientError,
    TargetResults,
    gradient_by_autodiff,
    target_problem,
    value_of,
)

__all__ = ["explanations"]

Floats = npt.NDArray[np.float64]

#: Up to this residual, beside the largest of the terms, factors explain a function: what float32
#: rounds is more than what they can leave of one in float64.
_FITTED = {"float64": 1e-6, "float32": 1e-4}
#: A factor's difference from 1 that is seen at least: that of a float64's own rounding, and of the
#: sums of a truth that is in float64 itself.
_SEEN, _SEEN_IN_FLOATS = 1e-13, 1e-10
_UNITS: tuple[Three, ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def explanations(
    function: LossFunction, convention: str, results: TargetResults, seed: int = 0
) -> list[str]:
    """Return where it is off, which term is and by what factor, one line each.

    Parameters
    ----------
    function : LossFunction
        What was run.
    convention : str
        What it was held to.
    results : TargetResults
        What came out.
    seed : int
        Of the inputs.

    Returns
    -------
    list of str
        Empty where nothing is off.
    """
    name = str(function.backend)
    here = [one for one in results.measurements if one.backend == name]
    there = [one.dtype for one in here if not one.passed] or [one.dtype for one in here]
    dtype = next(dtype for dtype in DTYPES if dtype in there)
    cases = {case.name: case for case in TARGET_CASES}
    of_dtype = {cases[one.case]: one for one in here if one.dtype == dtype}
    returned = {case: results.returned[name, dtype, case] for case in of_dtype}

    def stated(case: Case) -> Problem:
        return target_problem(case, dtype, convention, seed)

    def value_fails(case: Case) -> bool:
        given = stated(case)
        return given.value_error(given.definition.weights, value_of(function, given)[0]) > 1.0

    def gradient_fails(case: Case) -> bool:
        given = stated(case)
        gradients = gradient_by_autodiff(function, given)
        return given.gradient_error(given.definition.weights, gradients) > 1.0

    lines = []
    of_values = {case: one.values["loss"] > 1.0 for case, one in of_dtype.items()}
    if any(of_values.values()):
        values = {case: value for case, (value, _) in returned.items()}
        place, fit = _explained(of_values, values, stated, _OfValues(), value_fails)
        lines += _told(fit, convention, "term", "value", place)
    of_gradients = {
        case: one.gradients["autodiff gradient"] > 1.0
        for case, one in of_dtype.items()
        if "autodiff gradient" in one.gradients
    }
    if any(of_gradients.values()):
        gradients = {case: gradient for case, (_, gradient) in returned.items()}
        try:
            place, fit = _explained(
                of_gradients, gradients, stated, _OfGradients(), gradient_fails
            )
        except NoGradientError:  # it is among the complaints
            return lines
        lines += _told(fit, convention, "term's gradient", "gradient", place)
    return lines


def _explained(
    failed: dict[Case, bool],
    found: dict[Case, Any],
    stated: Callable[[Case], Problem],
    quantity: _Quantity,
    fails: Callable[[Case], bool],
) -> tuple[str, _Fit]:
    """Return where a value or a gradient is off, in words, and the factors of the terms there."""

    def fit_of(cases: Sequence[Case]) -> _Fit:
        return _fit(quantity, [stated(case) for case in cases], [found[case] for case in cases])

    sizes = {case: is_off for case, is_off in failed.items() if case in SIZES}
    of_size = _of_size(sizes)
    if of_size is not None:
        fit = fit_of([case for case, is_off in sizes.items() if is_off])
        right = [stated(case) for case, is_off in sizes.items() if not is_off]
        # With the same factors the other sizes would have failed too, if they had them.
        if not fit.explains or all(quantity.would_fail(given, fit) for given in right):
            return of_size.words(fails), fit
    off = [case for case, is_off in failed.items() if is_off]
    if all(case in ZEROS for case in off):
        return f"only on {', '.join(repr(case.name) for case in off)}:", fit_of(off)
    return "", fit_of(list(failed))


@dataclass(frozen=True)
class _Size:
    """A condition on the size, in words; with a limit that is yet to be found between two."""

    said: str
    axis: int | None = None
    low: int = 0
    high: int = 0
    high_is_off: bool = True

    def words(self, fails: Callable[[Case], bool]) -> str:
        """Return the condition, its limit found by what `fails` there."""
        if self.axis is None:
            return self.said
        low, high = self.low, self.high
        while high - low > 1:
            middle = (low + high) // 2
            if fails(_of_length(middle, self.axis)) == self.high_is_off:
                high = middle
            else:
                low = middle
        if self.high_is_off:
            return f"for {self.said} above {low} (right at {self.said} = {low}, off at {high})"
        return f"for {self.said} below {high} (off at {self.said} = {low}, right at {high})"


def _of_size(sizes: dict[Case, bool]) -> _Size | None:
    """Return which sizes fail; None where no condition tells them from the others."""
    if not any(sizes.values()) or all(sizes.values()):
        return None
    for axis, name in ((-1, "d"), (0, "n")):
        off = [case.shape[axis] for case, is_off in sizes.items() if is_off]
        right = [case.shape[axis] for case, is_off in sizes.items() if not is_off]
        if max(right) < min(off):
            return _Size(name, axis, max(right), min(off))
        if max(off) < min(right):
            return _Size(name, axis, max(off), min(right), high_is_off=False)
    for words, condition in _CONDITIONS.items():
        if all(condition(*case.shape) == is_off for case, is_off in sizes.items()):
            return _Size(f"for {words}")
    off = [case.n * case.d for case, is_off in sizes.items() if is_off]
    right = [case.n * case.d for case, is_off in sizes.items() if not is_off]
    if max(right) < min(off):
        return _Size(f"for n·d above a limit between {max(right)} and {min(off)}")
    return None


_CONDITIONS: dict[str, Callable[[int, int], bool]] = {
    "odd d": lambda n, d: d % 2 == 1,
    "even d": lambda n, d: d % 2 == 0,
    "odd n": lambda n, d: n % 2 == 1,
    "even n": lambda n, d: n % 2 == 0,
    "n ≤ d": lambda n, d: n <= d,
    "n < d": lambda n, d: n < d,
    "n > d": lambda n, d: n > d,
    "n ≥ d": lambda n, d: n >= d,
}


def _of_length(length: int, axis: int) -> Case:
    """Return a case of so many features, or samples, and as many of the other as `SIZES` has."""
    return case_of_size(length, 6) if axis == 0 else case_of_size(12, length)


@dataclass(frozen=True)
class _Fit:
    """Factors of the terms that make up a function, and what they leave unexplained."""

    factors: dict[str, float]
    residual: float
    limit: float  # up to which they explain it
    missing: int  # cases in which there is no number
    is_one: bool = True  # no other factors would do as well
    seen: float = _SEEN  # from which difference on a factor is not 1

    @property
    def explains(self) -> bool:
        """Whether the factors, and no others, leave nothing."""
        return self.is_one and self.residual <= self.limit


class _Quantity(ABC):
    """A value, or a gradient: what it is made of, and when it is off."""

    @abstractmethod
    def of_terms(self, given: Problem) -> Floats:
        """Return the terms, each with its weight, a column each."""

    @abstractmethod
    def flat(self, found: Any) -> Floats:
        """Return what was found as such a column."""

    @abstractmethod
    def error(self, given: Problem, column: Floats) -> float:
        """Return the error of a column."""

    def would_fail(self, given: Problem, fit: _Fit) -> bool:
        """Whether the terms times their factors are further from the truth than rounding."""
        factors = [fit.factors.get(name, 1.0) for name in _names(given)]
        return self.error(given, self.of_terms(given) @ np.asarray(factors)) > 1.0


class _OfValues(_Quantity):
    def of_terms(self, given: Problem) -> Floats:
        terms = [w * float(given.terms.value(unit).high) for unit, w in _weighted(given)]
        return np.asarray([terms])

    def flat(self, found: Any) -> Floats:
        return np.asarray([found])

    def error(self, given: Problem, column: Floats) -> float:
        return given.value_error(given.definition.weights, float(column[0]))


class _OfGradients(_Quantity):
    def of_terms(self, given: Problem) -> Floats:
        columns = [
            np.concatenate([w * exact.high.ravel() for exact in given.terms.gradients(unit)])
            for unit, w in _weighted(given)
        ]
        return np.stack(columns, axis=1)

    def flat(self, found: Any) -> Floats:
        return np.concatenate([gradient.ravel() for gradient in found])

    def error(self, given: Problem, column: Floats) -> float:
        gradients = column.reshape(len(given.views), *given.case.shape)
        return given.gradient_error(given.definition.weights, list(gradients))


def _fit(quantity: _Quantity, problems: Sequence[Problem], found: Sequence[Any]) -> _Fit:
    """Return the factors of the terms that best make up what was found, each case alike."""
    rows = [quantity.of_terms(given) for given in problems]
    columns = [quantity.flat(one) for one in found]
    sizes = [max(float(np.max(np.abs(row))), np.finfo(float).tiny) for row in rows]
    parts = [
        (row / size, column / size)
        for row, column, size in zip(rows, columns, sizes, strict=True)
        if np.all(np.isfinite(column))
    ]
    # A case without a number is a failure of its own, and no part of a sum.
    missing, limit = len(rows) - len(parts), _FITTED[problems[0].dtype]
    if not parts:
        return _Fit({}, float("inf"), limit, missing)
    matrix, wanted = (np.concatenate(each) for each in zip(*parts, strict=True))
    # A term that is 0 in all of them has no factor.
    there = np.any(matrix != 0, axis=0)
    factors, *_ = np.linalg.lstsq(matrix[:, there], wanted)
    residual = float(np.max(np.abs(matrix[:, there] @ factors - wanted)))
    names = [name for name, is_there in zip(_names(problems[0]), there, strict=True) if is_there]
    is_one = int(np.linalg.matrix_rank(matrix[:, there])) == len(names)
    by_name = dict(zip(names, map(float, factors), strict=True))
    exact = all(given.case.exactly for given in problems)
    seen = max(_SEEN if exact else _SEEN_IN_FLOATS, 8 * residual)
    return _Fit(by_name, residual, limit, missing, is_one, seen)


def _weighted(given: Problem) -> list[tuple[Three, float]]:
    weights = zip(_UNITS, given.definition.weights, strict=True)
    return [(unit, weight) for unit, weight in weights if weight]


def _names(given: Problem) -> list[str]:
    weights = zip(TERMS, given.definition.weights, strict=True)
    return [term for term, weight in weights if weight]


def _told(fit: _Fit, convention: str, subject: str, whole: str, place: str) -> list[str]:
    before = f"{place} " if place else ""
    lines = []
    if fit.missing:
        lines.append(f"{before}the {whole} is no finite number in {fit.missing} of the cases")
    if not fit.is_one:
        return [*lines, f"{before}the {whole} is off; which term is it does not tell"]
    if not fit.explains:
        said = f"no factors of the three terms of {convention} make up the {whole}"
        return [*lines, before + said]
    off = []
    for term, factor in fit.factors.items():
        if abs(factor) <= fit.seen:
            off.append(f"{before}the {term} {subject} of {convention} is missing")
        elif abs(factor - 1) > fit.seen:
            off.append(f"{before}the {term} {subject} is {_factor(factor)} that of {convention}")
    if off or fit.missing:
        return lines + off
    return [
        f"{before}each {subject} is that of {convention}, but the {whole} is rounded by more than "
        "its bound: a difference that cancels?"
    ]


def _factor(factor: float) -> str:
    if abs(factor - 1) < 1e-4:
        return f"1 {'+' if factor > 1 else '-'} {abs(factor - 1):.3g} times"
    return f"{factor:.6g} times"
