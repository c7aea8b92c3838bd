"""Why a function fails: from which size on, which term is wrong, and by what factor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from vicreg.tools.backends import Floats
from vicreg.tools.dtypes import DTYPES
from vicreg.tools.functions import FunctionError, LossFunction
from vicreg.tools.identification.fitting import Fit, fit
from vicreg.tools.verification.cases import ZEROS, Case, case_of_size
from vicreg.tools.verification.definition import TERMS, Three
from vicreg.tools.verification.problems import Problem
from vicreg.tools.verification.rationals import Exact
from vicreg.tools.verification.target import (
    NoGradientError,
    TargetResults,
    gradient_by_autodiff,
    target_problem,
    value_of,
)

__all__ = ["explanations"]

#: Factors explain a function if the residual is at most this share of the largest term: more than
#: the rounding of float32.
_EXPLAINED = {"float64": 1e-6, "float32": 1e-4}
#: The smallest difference of a factor from 1 that counts, if the truth is exact, and if it was
#: computed in float64.
_SEEN, _SEEN_IN_FLOATS = 1e-13, 1e-10
_ZEROS = frozenset(case.name for case in ZEROS)


def explanations(
    function: LossFunction, convention: str, results: TargetResults, seed: int = 0
) -> list[str]:
    """Return why a function failed in `run_target`, one sentence for each fault.

    The list is empty if its value and its gradient are right. The arguments are those of
    `run_target`; results of other libraries than the function's are ignored.
    """
    name = str(function.backend)
    here = [one for one in results.measurements if one.backend == name]
    candidates = [one.dtype for one in here if not one.passed] or [one.dtype for one in here]
    dtype = next(dtype for dtype in DTYPES if dtype in candidates)
    cases = {case.name: case for of, used, case in results.returned if (of, used) == (name, dtype)}
    errors = {cases[one.case]: one.errors for one in here if one.dtype == dtype}

    def problem_of(case: Case) -> Problem:
        return target_problem(case, dtype, convention, seed)

    lines = []
    for quantity in (_Value(function), _Gradient(function)):
        key = quantity.key
        failed = {case: of_case[key] > 1.0 for case, of_case in errors.items() if key in of_case}
        arrays = {case: results.returned[name, dtype, case][key] for case in failed}
        if any(failed.values()):
            with suppress(NoGradientError):  # already reported as a complaint
                place, factors = _explained(quantity, failed, arrays, problem_of)
                lines += [place + sentence for sentence in factors.sentences()]
    return lines


class _Value:
    """The value of the function: how to compute it, its terms, and its error."""

    key, part, whole = "loss", "term", "value"

    def __init__(self, function: LossFunction) -> None:
        self._function = function

    def computed(self, problem: Problem) -> Sequence[Floats]:
        """Return the value of the function for a problem."""
        return [np.asarray(value_of(self._function, problem)[0])]

    def exact(self, problem: Problem, weights: Three) -> Sequence[Exact]:
        """Return the truth of a weighted sum of the terms."""
        return [problem.terms.value(weights)]

    def fails(self, problem: Problem, arrays: Sequence[Floats]) -> bool:
        """Return whether the error of `arrays` exceeds the bound of rounding."""
        return problem.value_error(problem.definition.weights, float(arrays[0])) > 1.0


class _Gradient(_Value):
    """The gradient by automatic differentiation, with the same methods."""

    key, part, whole = "autodiff gradient", "term's gradient", "gradient"

    def computed(self, problem: Problem) -> Sequence[Floats]:
        return gradient_by_autodiff(self._function, problem)

    def exact(self, problem: Problem, weights: Three) -> Sequence[Exact]:
        return problem.terms.gradients(weights)

    def fails(self, problem: Problem, arrays: Sequence[Floats]) -> bool:
        return problem.gradient_error(problem.definition.weights, arrays) > 1.0


def _explained(
    quantity: _Value,
    failed: Mapping[Case, bool],
    arrays: Mapping[Case, Sequence[Floats]],
    problem_of: Callable[[Case], Problem],
) -> tuple[str, _Factors]:
    """Return in words where a quantity is wrong, and the factors of the terms there."""

    def factors_in(cases: Sequence[Case]) -> _Factors:
        problems = [problem_of(case) for case in cases]
        return _factors(quantity, problems, [arrays[case] for case in cases])

    def fails(case: Case) -> bool:
        problem = problem_of(case)
        return quantity.fails(problem, quantity.computed(problem))

    off = [case for case, is_off in failed.items() if is_off]
    sizes = [case for case in off if case.is_of_size]
    right = [case for case, is_off in failed.items() if case.is_of_size and not is_off]
    if sizes and right:
        factors = factors_in(sizes)
        # Sizes that pass cannot have these factors, if they would have failed with them.
        if not factors.explain or all(factors.would_fail(problem_of(case)) for case in right):
            condition = _size_condition(right, sizes, fails)
            if condition is not None:
                return f"for {condition} ", factors
    if all(case.name in _ZEROS for case in off):
        return f"only on {', '.join(repr(case.name) for case in off)}: ", factors_in(off)
    return "", factors_in(list(failed))


# --- sizes --------------------------------------------------------------------------------

_CONDITIONS: Mapping[str, Callable[[int, int], bool]] = {
    "odd d": lambda n, d: d % 2 == 1,
    "even d": lambda n, d: d % 2 == 0,
    "odd n": lambda n, d: n % 2 == 1,
    "even n": lambda n, d: n % 2 == 0,
    "n ≤ d": lambda n, d: n <= d,
    "n < d": lambda n, d: n < d,
    "n > d": lambda n, d: n > d,
    "n ≥ d": lambda n, d: n >= d,
}


def _size_condition(
    passed: Sequence[Case], failed: Sequence[Case], fails: Callable[[Case], bool]
) -> str | None:
    """Return a condition on n and d that exactly the failed cases meet; None if there is none."""
    for name, axis in (("d", -1), ("n", 0)):
        right, off = ([case.shape[axis] for case in cases] for cases in (passed, failed))
        at = partial(_beside, failed, axis)
        if max(right) < min(off):
            low, high = _limit(max(right), min(off), at(min(off)), fails, low_fails=False)
            return f"{name} above {low} (right at {name} = {low}, off at {high})"
        if max(off) < min(right):
            low, high = _limit(max(off), min(right), at(max(off)), fails, low_fails=True)
            return f"{name} below {high} (off at {name} = {low}, right at {high})"
    for words, condition in _CONDITIONS.items():
        met = {case for case in (*passed, *failed) if condition(case.n, case.d)}
        if met == set(failed):
            return words
    right, off = ([case.n * case.d for case in cases] for cases in (passed, failed))
    if max(right) < min(off):
        return f"n·d above a limit between {max(right)} and {min(off)}"
    return None


def _beside(failed: Sequence[Case], axis: int, length: int) -> Callable[[int], Case]:
    """Return the cases of other lengths than that of a failed one, by the length."""
    case = next(case for case in failed if case.shape[axis] == length)
    return lambda other: case_of_size(case.n, other) if axis else case_of_size(other, case.d)


def _limit(
    low: int,
    high: int,
    case_of: Callable[[int], Case],
    fails: Callable[[Case], bool],
    *,
    low_fails: bool,
) -> tuple[int, int]:
    """Return neighbouring lengths of which only one fails, by bisection from `low` to `high`.

    They are further apart if the function takes none between them.
    """
    with suppress(FunctionError):
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fails(case_of(middle)) == low_fails else (low, middle)
    return low, high


# --- factors ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Factors:
    """The factors of the terms that fit a quantity best in several cases."""

    quantity: _Value
    convention: str
    names: Sequence[str]  # of the terms that the convention has
    fit: Fit
    limit: float  # the largest residual of an explanation
    seen: float  # the smallest difference of a factor from 1 that counts
    missing: int  # the number of cases without a finite number

    @property
    def explain(self) -> bool:
        """Whether only these factors leave no more than rounding."""
        return self.fit.unique and self.fit.residual <= self.limit

    def would_fail(self, problem: Problem) -> bool:
        """Return whether a function with these factors would fail."""
        by_name = dict(zip(self.names, np.nan_to_num(self.fit.factors, nan=1.0), strict=True))
        weights = zip(TERMS, problem.definition.weights, strict=True)
        first, second, third = (w * float(by_name.get(term, 0.0)) for term, w in weights)
        exact = self.quantity.exact(problem, (first, second, third))
        return self.quantity.fails(problem, [one.high for one in exact])

    def sentences(self) -> list[str]:
        """Return the factors in words."""
        part, whole, convention = self.quantity.part, self.quantity.whole, self.convention
        lines = []
        if self.missing:
            lines.append(f"the {whole} is no finite number in {self.missing} of the cases")
        if not self.fit.unique:
            return [*lines, f"the {whole} is off; which term is it does not tell"]
        if not self.explain:
            return [*lines, f"no factors of the three terms of {convention} make up the {whole}"]
        for term, factor in zip(self.names, self.fit.factors, strict=True):
            if abs(factor) <= self.seen:
                lines.append(f"the {term} {part} of {convention} is missing")
            elif abs(factor - 1) > self.seen:
                lines.append(f"the {term} {part} is {_in_words(factor)} that of {convention}")
        return lines or [
            f"each {part} is that of {convention}, but the {whole} is rounded by more than its "
            "bound, as by a difference that cancels"
        ]


def _factors(
    quantity: _Value, problems: Sequence[Problem], arrays: Sequence[Sequence[Floats]]
) -> _Factors:
    """Return the factors with which the terms fit the arrays of all problems best."""
    first, second, third = problems[0].definition.weights
    each = ((first, 0.0, 0.0), (0.0, second, 0.0), (0.0, 0.0, third))
    alone = {term: weights for term, weights in zip(TERMS, each, strict=True) if any(weights)}
    terms, values, sizes = [], [], []
    for problem, returned in zip(problems, arrays, strict=True):
        value = _flat(returned)
        if not np.all(np.isfinite(value)):
            continue  # reported separately
        exact = [quantity.exact(problem, weights) for weights in alone.values()]
        columns = [_flat([one.high for one in each]) for each in exact]
        terms.append(np.stack(columns, axis=1))
        values.append(value)
        largest = max(float(np.max(np.abs(columns))), np.finfo(float).tiny)
        sizes.append(np.full(len(value), largest))
    if values:
        best = fit(np.concatenate(terms), np.concatenate(values), np.concatenate(sizes))
    else:
        best = Fit(np.full(len(alone), np.nan), np.empty(0), np.inf, True)
    exactly = all(problem.case.exactly for problem in problems)
    return _Factors(
        quantity,
        problems[0].convention,
        tuple(alone),
        best,
        limit=_EXPLAINED[problems[0].dtype],
        seen=max(_SEEN if exactly else _SEEN_IN_FLOATS, 8 * best.residual),
        missing=len(problems) - len(values),
    )


def _flat(arrays: Sequence[Floats]) -> Floats:
    return np.concatenate([array.ravel() for array in arrays])


def _in_words(factor: float) -> str:
    if abs(factor - 1) < 1e-4:
        return f"1 {'+' if factor > 1 else '-'} {abs(factor - 1):.3g} times"
    return f"{factor:.6g} times"
