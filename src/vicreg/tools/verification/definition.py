"""The published formulas, from their sources: the truth that ``vicreg verify`` compares with.

It is independent of the core. Each convention is written out again from its source, with the d × d
covariance matrix and the derivatives by the definition, and nothing of the package is imported
except for the numbers to compute with.

For small inputs these are fractions of integers (`rationals`), in which only roots and reciprocals
are rounded. The results are pairs of floats, whose sum has twice the precision of a float. Large
inputs would take too long: there the same code runs on NumPy's float64, and `bounds` accounts for
its error.

The tests check it against `tests/definition.py`, which is plainer: no closed-form gradients, one
kind of number at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from vicreg.tools.verification.rationals import (
    Exact,
    Rationals,
    clipped,
    exact,
    reciprocal,
    root,
    sum_of_squares,
    to_places,
    where,
    without_diagonal,
)

__all__ = ["DEFINITIONS", "TERMS", "Definition", "Terms", "Three", "Views"]

Floats = npt.NDArray[np.float64]
Numbers = Any  # Rationals, or an array of float64
Three = tuple[float, float, float]

TERMS = ("invariance", "variance", "covariance")


@dataclass(frozen=True)
class Definition:
    """One published formula, written out from its source.

    Parameters
    ----------
    invariance : {"mean", "norm"} or None
        The squared difference averaged over samples and features, or its norm over the features
        averaged over the samples.
    std : bool
        Whether the hinge is on the standard deviation, with ε under the root, or on the variance.
    eps : float
        ε.
    n_variance, n_covariance : int
        The number subtracted from n in the variance and in the covariance.
    sum_variance, sum_covariance : bool
        Whether the terms of two views are added or averaged. For k views a sum is twice the
        average; for a single view it is the average.
    divide : callable
        Returns the divisor of the sum of squared off-diagonal entries, for d features.
    weights : tuple of three floats
        The published weights, or ones if none are published.
    gamma : float
        γ.
    delta : float or None
        The δ of the smooth L1, in which c² is 2δ|c| − δ² for |c| > δ; None for squares.
    """

    invariance: str | None
    std: bool
    eps: float
    n_variance: int
    n_covariance: int
    sum_variance: bool
    sum_covariance: bool
    divide: Callable[[int], int]
    weights: Three
    gamma: float = 1.0
    delta: float | None = None


def _d(d: int) -> int:
    return d


def _pairs(d: int) -> int:
    return d * (d - 1)


#: facebookresearch/vicreg main_vicreg.py; Bardes, Ponce, LeCun 2022, equations 1 to 6; Algorithm 1
#: there; the article of that name; facebookresearch/VICRegL; jolibrain/vicreg-loss;
#: tensorflow/similarity; facebookresearch/eb_jepa; tensorflow/gnn; Zhu et al. 2023.
DEFINITIONS: Mapping[str, Definition] = {
    "official": Definition("mean", True, 1e-4, 1, 1, False, True, _d, (25.0, 25.0, 1.0)),
    "paper": Definition("norm", True, 1e-4, 1, 1, True, True, _d, (25.0, 25.0, 1.0)),
    "algorithm1": Definition("mean", True, 1e-4, 1, 1, True, True, _d, (25.0, 25.0, 1.0)),
    "article": Definition("norm", False, 0.0, 0, 0, True, True, _d, (25.0, 25.0, 1.0)),
    "vicregl": Definition("mean", True, 1e-4, 1, 1, False, False, _d, (25.0, 25.0, 1.0)),
    "jolibrain": Definition("mean", True, 0.0, 1, 1, False, False, _d, (25.0, 15.0, 1.0)),
    "tensorflow-similarity": Definition(
        "mean", True, 1e-4, 0, 1, False, True, _d, (25.0, 25.0, 1.0)
    ),
    "eb-jepa": Definition("mean", True, 1e-4, 1, 1, True, True, _pairs, (1.0, 1.0, 1.0)),
    "tensorflow-gnn": Definition("mean", True, 1e-4, 0, 0, True, True, _d, (25.0, 25.0, 1.0)),
    "vcreg": Definition(None, True, 1e-5, 1, 1, False, False, _pairs, (0.0, 1.0, 1.0)),
}


class _View:
    """One view of one sample set, with the quantities that several definitions need."""

    def __init__(self, z: Numbers) -> None:
        self.z = z
        self.n, self.d = z.shape

    @cached_property
    def centred(self) -> Numbers:
        return self.z - self.z.mean(axis=0)

    @cached_property
    def energies(self) -> Numbers:
        """The sum of the squares of each feature."""
        return (self.centred * self.centred).sum(axis=0)

    @cached_property
    def products(self) -> Numbers:
        """O, the products zcᵀ zc with a zero diagonal."""
        return without_diagonal(self.centred.T @ self.centred)

    @cached_property
    def squares(self) -> Numbers:
        """Σ O²."""
        return sum_of_squares(self.products)

    @cached_property
    def times_products(self) -> Numbers:
        """The product zc O."""
        product = self.centred @ self.products
        if not isinstance(product, Rationals):
            del self.products  # a large matrix that is no longer needed
        return product


class Views:
    """The views of an input, with cached quantities that all definitions share.

    Parameters
    ----------
    views : sequence of arrays of float64, shape (n, d) or (n, ..., d)
        The views. Each position on the middle axes is a separate sample set.
    exactly : bool
        Whether to compute in exact numbers or in float64.
    twice : bool
        Whether to return results with twice the precision of a float. One float is enough to check
        results in narrower dtypes than float64.
    """

    def __init__(self, views: Sequence[Floats], exactly: bool = True, twice: bool = True) -> None:
        self.shape, self.twice = views[0].shape, twice
        number = Rationals.of if exactly else np.asarray
        self._make([[number(one) for one in self._sets(view)] for view in views])

    def moved(self, directions: Sequence[Floats], step: Rationals) -> Views:
        """Return the views moved exactly by a step along the directions."""
        there = object.__new__(Views)
        there.shape, there.twice = self.shape, self.twice
        there._make(
            [
                [
                    views[place].z + Rationals.of(along) * step
                    for views, along in zip(self.sets, self._sets(direction), strict=True)
                ]
                for place, direction in enumerate(directions)
            ]
        )
        return there

    def _make(self, views: Sequence[Sequence[Numbers]]) -> None:
        self.sets = [[_View(z) for z in sets] for sets in zip(*views, strict=True)]

    def _sets(self, view: Floats) -> list[Floats]:
        """Return the sample sets of a view."""
        n, *_, d = self.shape
        flat = view.reshape(n, -1, d)
        return [flat[:, position, :] for position in range(flat.shape[1])]


class _Term:
    """A term of one sample set: its value, and its gradients, which are computed when needed."""

    def __init__(self, value: Numbers, gradients: Callable[[], list[Numbers]]) -> None:
        self.value = to_places(value)
        self._form = gradients

    @cached_property
    def gradients(self) -> list[Numbers]:
        return [to_places(gradient) for gradient in self._form()]


class Terms:
    """The terms of some views by a definition, and weighted sums of them.

    Parameters
    ----------
    views : Views
        The views.
    definition : Definition
        The formula.
    """

    def __init__(self, views: Views, definition: Definition) -> None:
        self._views, self._definition = views, definition
        self._known: dict[Three, tuple[Exact, ...]] = {}

    def value(self, weights: Three) -> Exact:
        """Return the weighted sum of the terms, 0-d."""
        return exact(self._value(weights), self._views.twice)

    def gradients(self, weights: Three) -> tuple[Exact, ...]:
        """Return the gradient of the weighted sum with respect to each view."""
        if weights not in self._known:
            self._known[weights] = self._placed(self._gradients(weights))
        return self._known[weights]

    def change(self, weights: Three, directions: Sequence[Floats]) -> Exact:
        """Return the derivative of the weighted sum along one direction per view."""
        moving = zip(*(self._views._sets(direction) for direction in directions), strict=True)
        change: Numbers = 0
        for gradients, along in zip(self._gradients(weights), moving, strict=True):
            for gradient, direction in zip(gradients, along, strict=True):
                change = change + (gradient * Rationals.of(direction)).sum()
        return exact(change, self._views.twice)

    def change_of_gradients(
        self, weights: Three, directions: Sequence[Floats]
    ) -> tuple[Exact, ...]:
        """Return the derivative of the gradients along directions.

        It is a central difference with a step of 2^-100 of gradients with `PLACES` binary places,
        whose error is far below the last digit of a float.
        """
        step = Rationals(1, 1 << 100)
        ahead, behind = (
            Terms(self._views.moved(directions, sign * step), self._definition) for sign in (1, -1)
        )
        return self._placed(
            [
                [(a - b) * (1 << 99) for a, b in zip(*both, strict=True)]
                for both in zip(ahead._gradients(weights), behind._gradients(weights), strict=True)
            ]
        )

    @cached_property
    def _of_sets(self) -> list[tuple[_Term, _Term, _Term]]:
        definition = self._definition
        return [
            (
                _invariance(views, definition),
                _variance(views, definition),
                _covariance(views, definition),
            )
            for views in self._views.sets
        ]

    def _value(self, weights: Three) -> Numbers:
        values = [_weighted([term.value for term in terms], weights) for terms in self._of_sets]
        return _total(values) / len(values)

    def _gradients(self, weights: Three) -> list[list[Numbers]]:
        """Return the gradients with respect to each view, for each sample set."""
        count = len(self._of_sets)
        return [
            [
                _weighted(of_view, weights) / count
                for of_view in zip(*(term.gradients for term in terms), strict=True)
            ]
            for terms in self._of_sets
        ]

    def _placed(self, gradients: list[list[Numbers]]) -> tuple[Exact, ...]:
        """Return the gradients of the views, assembled from those of the sample sets."""
        shape = self._views.shape
        placed = []
        for of_view in zip(*gradients, strict=True):
            pairs = [exact(gradient, self._views.twice) for gradient in of_view]
            high, low = (
                np.stack([getattr(pair, part) for pair in pairs], axis=1).reshape(shape)
                for part in ("high", "low")
            )
            placed.append(Exact(high, low))
        return tuple(placed)


def _weighted(numbers: Sequence[Numbers], weights: Three) -> Numbers:
    parts = [weight * each for weight, each in zip(weights, numbers, strict=True) if weight]
    return _total(parts) if parts else 0.0 * numbers[0]


def _invariance(views: Sequence[_View], definition: Definition) -> _Term:
    """Return the mean squared difference over the pairs; its derivative is in 2 (z − z')."""
    n, d = views[0].n, views[0].d
    nothing = 0 * views[0].z
    pairs = list(itertools.combinations(range(len(views)), 2))
    if definition.invariance is None or not pairs:
        return _Term(nothing.sum(), lambda: [nothing for _ in views])
    divisor = len(pairs) * (n * d if definition.invariance == "mean" else n)
    differences = [views[a].z - views[b].z for a, b in pairs]
    squares = [(difference * difference).sum() for difference in differences]

    def gradients() -> list[Numbers]:
        result = [nothing for _ in views]
        for (a, b), difference in zip(pairs, differences, strict=True):
            slope = 2 * difference / divisor
            result[a], result[b] = result[a] + slope, result[b] - slope
        return result

    return _Term(_total(squares) / divisor, gradients)


def _variance(views: Sequence[_View], definition: Definition) -> _Term:
    """Return the mean of max(0, γ − s) over features; ds/dz is zc/(m s), or 2 zc/m."""
    factor, divisor = _over_views(views, definition.sum_variance, views[0].d)
    m = views[0].n - definition.n_variance
    arguments = [view.energies / m for view in views]
    if definition.std:
        arguments = [root(argument + definition.eps) for argument in arguments]
    shorts = [definition.gamma - argument for argument in arguments]

    def gradients() -> list[Numbers]:
        if definition.std:
            # The gradient of a constant feature is 0, as its deviations are.
            slopes = [reciprocal(m * argument) for argument in arguments]
        else:
            slopes = [(0 * argument + 2) / m for argument in arguments]
        return [
            -factor * view.centred * where(short > 0, slope) / divisor
            for view, short, slope in zip(views, shorts, slopes, strict=True)
        ]

    value = _total([where(short > 0, short).sum() for short in shorts])
    return _Term(factor * value / divisor, gradients)


def _covariance(views: Sequence[_View], definition: Definition) -> _Term:
    """Return Σ O² over the divisor, with O the covariance without its diagonal.

    Its derivative is 4 zc O / m. For the smooth L1 they are Σ T (2 O − T) and 4 zc T / m, with T
    being O clipped to ±δ.
    """
    factor, divisor = _over_views(views, definition.sum_covariance, definition.divide(views[0].d))
    m = views[0].n - definition.n_covariance
    delta = definition.delta
    if delta is None:
        return _Term(
            factor * _total([view.squares for view in views]) / (m**2 * divisor),
            lambda: [4 * factor * view.times_products / (m**2 * divisor) for view in views],
        )
    covariances = [view.products / m for view in views]
    within = [clipped(o, delta) for o in covariances]
    pairs = zip(covariances, within, strict=True)
    penalties = _total([(t * (2 * o - t)).sum() for o, t in pairs])
    return _Term(
        factor * penalties / divisor,
        lambda: [
            4 * factor * (view.centred @ t) / (m * divisor)
            for view, t in zip(views, within, strict=True)
        ],
    )


def _total(numbers: Sequence[Numbers]) -> Numbers:
    return sum(numbers[1:], numbers[0])


def _over_views(views: Sequence[_View], is_sum: bool, each: int) -> tuple[int, int]:
    """Return the factor and the divisor of a sum over the views and over `each` entries."""
    return (2 if is_sum and len(views) > 1 else 1), len(views) * each
