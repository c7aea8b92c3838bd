"""One input in one dtype and one formula: the true results, and bounds of their rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from vicreg._core.sizes import DEFAULT_SIZES, Sizes
from vicreg.tools.dtypes import DTYPES, FULL, HALF, LARGEST, UNDERFLOW, UNIT_ROUNDOFF
from vicreg.tools.verification.bounds import (
    PLAIN_FLOAT64,
    Bound,
    Rounding,
    curvature_bounds,
    rounding_bounds,
)
from vicreg.tools.verification.cases import Case, rounded_to
from vicreg.tools.verification.definition import TERMS, Definition, Terms, Three, Views
from vicreg.tools.verification.rationals import Exact

__all__ = ["DTYPES", "FULL", "HALF", "Problem", "error_in_bounds", "problem"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Input:
    """The views of a case in a dtype, with cached results and bounds."""

    case: Case
    views: tuple[Floats, ...]
    dtype: str
    seed: int

    @cached_property
    def _views(self) -> Views:
        return Views(self.views, self.case.exactly, twice=self.dtype == "float64")

    @cached_property
    def _known(self) -> dict[Definition, Terms]:
        return {}

    @cached_property
    def _bounds(self) -> dict[tuple[Definition, Rounding], dict[str, Bound]]:
        return {}

    def terms(self, definition: Definition) -> Terms:
        """Return the true terms."""
        if definition not in self._known:
            self._known[definition] = Terms(self._views, definition)
        return self._known[definition]

    def bounds(self, definition: Definition, rounding: Rounding) -> dict[str, Bound]:
        """Return the bounds of each term, including the error of the truth itself."""
        key = (definition, rounding)
        if key not in self._bounds:
            bounds = rounding_bounds(self.views, definition, rounding)
            if not self.case.exactly and rounding != PLAIN_FLOAT64:
                of_truth = self.bounds(definition, PLAIN_FLOAT64)
                bounds = {term: _added(bounds[term], of_truth[term]) for term in TERMS}
            self._bounds[key] = bounds
        return self._bounds[key]

    def alone(self, view: int) -> Input:
        """Return the input that consists of one of the views."""
        if view not in self._alone:
            case = Case(f"{self.case.name}, view {view + 1}", self.case.shape, count=1)
            self._alone[view] = Input(case, (self.views[view],), self.dtype, self.seed)
        return self._alone[view]

    @cached_property
    def _alone(self) -> dict[int, Input]:
        return {}

    @cached_property
    def directions(self) -> tuple[Floats, ...]:
        """One direction per view."""
        drawn = self.case.directions(self.seed)
        return tuple(rounded_to(self.dtype, direction) for direction in drawn)


def _added(a: Bound, b: Bound) -> Bound:
    return a[0] + b[0], [one + other for one, other in zip(a[1], b[1], strict=True)]


@dataclass(frozen=True)
class Problem:
    """One input in one dtype, with one formula.

    Parameters
    ----------
    input : Input
        The views.
    dtype : str
        The dtype of the views.
    convention : str
        The name of the formula.
    definition : Definition
        The formula.
    rounding : Rounding
        How the result under test is computed.
    """

    input: Input
    dtype: str
    convention: str
    definition: Definition
    rounding: Rounding

    @property
    def case(self) -> Case:
        """The input's case."""
        return self.input.case

    @property
    def views(self) -> tuple[Floats, ...]:
        """The views, of shape ``(n, ..., d)``."""
        return self.input.views

    @property
    def value_dtype(self) -> str:
        """The dtype that values are returned in."""
        return "float32" if self.dtype in HALF else self.dtype

    @property
    def terms(self) -> Terms:
        """The true terms."""
        return self.input.terms(self.definition)

    def alone(self, view: int) -> Problem:
        """Return the problem that consists of one of the views."""
        return Problem(
            self.input.alone(view), self.dtype, self.convention, self.definition, self.rounding
        )

    def moved_to(self, views: Sequence[Floats]) -> Problem:
        """Return the same problem with other views, rounded to the dtype."""
        there = tuple(rounded_to(self.dtype, view) for view in views)
        moved = Input(self.case, there, self.dtype, self.input.seed)
        return Problem(moved, self.dtype, self.convention, self.definition, self.rounding)

    def value_bound(self, weights: Three) -> float:
        """Return the bound of a weighted sum of the terms."""
        bounds = self.input.bounds(self.definition, self.rounding)
        bound = sum(abs(w) * bounds[term][0] for w, term in zip(weights, TERMS, strict=True))
        return bound + 4 * UNDERFLOW[self.rounding.computed_in]

    def gradient_bounds(self, weights: Three) -> tuple[Floats, ...]:
        """Return the bound of each entry of its gradient with respect to each view."""
        bounds = self.input.bounds(self.definition, self.rounding)
        weighted = _weighted([bounds[term][1] for term in TERMS], weights)
        return self._returned(weighted, self.terms.gradients(weights))

    def _returned(
        self, bounds: Sequence[Floats], gradients: Sequence[Exact]
    ) -> tuple[Floats, ...]:
        """Add the error of the last rounding, and of underflow."""
        once_more = UNIT_ROUNDOFF[self.dtype] if self.dtype in HALF else 0.0
        below = 4 * UNDERFLOW[self.rounding.returned_in]
        return tuple(
            bound + once_more * np.abs(exact.high) + below
            for bound, exact in zip(bounds, gradients, strict=True)
        )

    def value_error(self, weights: Three, value: float) -> float:
        """Return the error of a value, divided by its bound."""
        exact, bound = self.terms.value(weights), np.asarray(self.value_bound(weights))
        return error_in_bounds(exact, np.asarray(value), bound, self.value_dtype)

    def gradient_error(
        self,
        weights: Three,
        gradients: Sequence[Floats | None],
        beside: Sequence[Floats] | None = None,
    ) -> float:
        """Return the largest error of an entry of a gradient, divided by its bound.

        A gradient that was not computed is None. The arrays in `beside` have been added to the
        gradients, in their dtype.
        """
        exact, bounds = self.terms.gradients(weights), self.gradient_bounds(weights)
        if beside is not None:
            u = UNIT_ROUNDOFF[self.dtype]
            bounds = tuple(
                bound + 2 * u * (np.abs(other) + np.abs(one.high))
                for bound, one, other in zip(bounds, exact, beside, strict=True)
            )
            gradients = [
                None if gradient is None else gradient - other
                for gradient, other in zip(gradients, beside, strict=True)
            ]
        return self._largest(exact, bounds, gradients)

    def change_error(self, weights: Three, change: float) -> float:
        """Return the error of the derivative along the directions of the input."""
        directions = self.input.directions
        sizes = _sizes(self.terms, weights)
        u, sets = self.rounding.u, len(directions) * directions[0].size
        n, *_, d = directions[0].shape
        summed = u * (sets + n + d + 16)
        bound = 4 * UNDERFLOW[self.rounding.computed_in] + sum(
            float(((bound + summed * size) * np.abs(direction)).sum())
            for bound, size, direction in zip(
                self.gradient_bounds(weights), sizes, directions, strict=True
            )
        )
        exact = self.terms.change(weights, directions)
        return error_in_bounds(exact, np.asarray(change), np.asarray(bound), self.value_dtype)

    def curvature_error(
        self,
        weights: Three,
        changes: Sequence[Floats | None],
        moving: Sequence[bool] | None = None,
    ) -> float:
        """Return the largest error of the gradient's derivative along the directions.

        If `moving` is given, the directions of views for which it is false are 0.
        """
        directions = self.input.directions
        if moving is not None:
            directions = tuple(
                direction * float(moves)
                for direction, moves in zip(directions, moving, strict=True)
            )
        bounds = curvature_bounds(self.views, directions, self.definition, self.rounding)
        exact = self.terms.change_of_gradients(weights, directions)
        of_weights = _weighted([bounds[term] for term in TERMS], weights)
        return self._largest(exact, self._returned(of_weights, exact), changes)

    def _largest(
        self,
        exact: Sequence[Exact],
        bounds: Sequence[Floats],
        gradients: Sequence[Floats | None],
    ) -> float:
        return max(
            error_in_bounds(one, gradient, bound, self.dtype)
            for one, bound, gradient in zip(exact, bounds, gradients, strict=True)
            if gradient is not None
        )


def _weighted(of_terms: Sequence[Sequence[Floats]], weights: Three) -> list[Floats]:
    return [
        np.sum([abs(w) * each for w, each in zip(weights, of_view, strict=True)], axis=0)
        for of_view in zip(*of_terms, strict=True)
    ]


def _sizes(terms: Terms, weights: Three) -> list[Floats]:
    """Return the sum of the absolute values of the terms' gradients."""
    units: tuple[Three, ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    each = [[np.abs(exact.high) for exact in terms.gradients(unit)] for unit in units]
    return _weighted(each, weights)


def problem(
    case: Case,
    dtype: str,
    convention: str,
    definition: Definition,
    *,
    seed: int = 0,
    method: str = "auto",
    sizes: Sizes = DEFAULT_SIZES,
    own_code: bool = False,
) -> Problem:
    """Return one problem.

    Parameters
    ----------
    case : Case
        The input.
    dtype : str
        The dtype of the input. The computation has the same, except that half precision is
        computed in float32.
    convention : str
        The name of the formula.
    definition : Definition
        The formula.
    seed : int
        The seed of the input.
    method, sizes : optional
        As in `Rounding`.
    own_code : bool
        Whether the bound is that of a user's function, which centres directly and computes in
        `dtype`.

    Returns
    -------
    Problem
    """
    computed_in = "float32" if dtype in HALF and not own_code else dtype
    rounding = Rounding(computed_in, dtype, own_code, method, sizes)
    return Problem(_input(case, dtype, seed), dtype, convention, definition, rounding)


def _input(case: Case, dtype: str, seed: int) -> Input:
    return _small_input(case, dtype, seed) if case.exactly else _large_input(case, seed)


@cache
def _small_input(case: Case, dtype: str, seed: int) -> Input:
    views = tuple(rounded_to(dtype, view) for view in case.views(seed))
    return Input(case, views, dtype, seed)


@lru_cache(maxsize=2)  # each takes up to half a GB with its cached results
def _large_input(case: Case, seed: int) -> Input:
    # Both full dtypes have its numbers, so that they share one truth.
    return Input(case, case.views(seed), "float32", seed)


def error_in_bounds(exact: Exact, values: Floats, bounds: Floats, dtype: str) -> float:
    """Return the largest error of `values`, divided by its bound; infinity for a NaN."""
    with np.errstate(all="ignore"):
        errors = exact.error_of(values) / bounds
        if dtype in LARGEST:
            # Numbers beyond the largest one of the dtype should be infinite.
            beyond = np.abs(exact.high) + bounds > LARGEST[dtype]
            right = np.isinf(values) & (np.sign(values) == np.sign(exact.high))
            errors = np.where(beyond & right, 0.0, errors)
    return float(np.max(np.where(np.isnan(errors), np.inf, errors), initial=0.0))
