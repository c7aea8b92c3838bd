"""The published formulas, from their sources: a truth that shares nothing with the core.

Why it exists: a result can only be judged by something that is not made of what it judges. So
this module writes each convention out again, with the d × d covariance matrix and the derivative
by the definition, and imports nothing of the package but the numbers that it computes with.

Those are integers over a denominator (`rationals`), where nothing is rounded but a root and a
reciprocal, and what comes out is a pair of floats whose sum is the number to twice the precision
of a float. It is slow, and for small inputs alone. For large ones the same lines run over NumPy's
float64, whose own error `bounds` adds to that of what is judged.
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
        The squared difference averaged over everything, or its norm averaged over the samples.
    std : bool
        Whether the hinge is on the standard deviation (with ε under the root), or the variance.
    eps : float
        ε.
    n_variance, n_covariance : int
        What is subtracted from n in the variance and in the covariance.
    sum_variance, sum_covariance : bool
        Whether two views' terms are added, or averaged. Of k views a sum is twice the average;
        one view alone has nothing to add.
    divide : callable
        What the squared off-diagonal entries are divided by, for d features.
    weights : tuple of three floats
        The published weights; ones where none are published.
    gamma : float
        γ.
    delta : float or None
        Where the off-diagonal entries count linearly, 2δ|c| − δ² for c²; None is nowhere.
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
#: tensorflow/similarity; Zhu et al. 2023.
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
    "vcreg": Definition(None, True, 1e-5, 1, 1, False, False, _pairs, (0.0, 1.0, 1.0)),
}


class _View:
    """One view of one sample set, and what the terms of every definition need of it."""

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
            del self.products  # a large matrix, whose sum of squares is known by now
        return product


class Views:
    """The views of an input, and what is known of them: made once, for every definition.

    Parameters
    ----------
    views : sequence of arrays of float64, shape (n, d) or (n, ..., d)
        Each position on the middle axes is a sample set of its own.
    exactly : bool
        Whether to compute in exact numbers, or in float64.
    twice : bool
        Whether what comes out is wanted to twice the precision of a float: to judge what is
        narrower than float64 one float is enough.
    """

    def __init__(self, views: Sequence[Floats], exactly: bool = True, twice: bool = True) -> None:
        self.shape, self.twice = views[0].shape, twice
        number = Rationals.of if exactly else np.asarray
        self._make([[number(one) for one in self._sets(view)] for view in views])

    def moved(self, directions: Sequence[Floats], step: Rationals) -> Views:
        """Return the views, exactly, a step along the directions."""
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
    """A term of one sample set: its value, and its gradient by each view once it is wanted."""

    def __init__(self, value: Numbers, gradients: Callable[[], list[Numbers]]) -> None:
        self.value = to_places(value)
        self._form = gradients

    @cached_property
    def gradients(self) -> list[Numbers]:
        return [to_places(gradient) for gradient in self._form()]


class Terms:
    """The terms of some views by a definition, and every weighted sum of them.

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
        """Return its gradient by each view."""
        if weights not in self._known:
            self._known[weights] = self._placed(self._gradients(weights))
        return self._known[weights]

    def change(self, weights: Three, directions: Sequence[Floats]) -> Exact:
        """Return its derivative along directions, one a view."""
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

        By a central difference: the step is 2^-100 and the gradients have `PLACES` places, so
        that what it leaves out is far below a float's last digit.
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
        """Return the gradient by each view, of each sample set."""
        count = len(self._of_sets)
        return [
            [
                _weighted(of_view, weights) / count
                for of_view in zip(*(term.gradients for term in terms), strict=True)
            ]
            for terms in self._of_sets
        ]

    def _placed(self, gradients: list[list[Numbers]]) -> tuple[Exact, ...]:
        """Return the gradients of all sample sets, each in its place."""
        shape = self._views.shape
        found = []
        for of_view in zip(*gradients, strict=True):
            pairs = [exact(gradient, self._views.twice) for gradient in of_view]
            high, low = (
                np.stack([getattr(pair, part) for pair in pairs], axis=1).reshape(shape)
                for part in ("high", "low")
            )
            found.append(Exact(high, low))
        return tuple(found)


def _weighted(numbers: Sequence[Numbers], weights: Three) -> Numbers:
    parts = [weight * each for weight, each in zip(weights, numbers, strict=True) if weight]
    return _total(parts) if parts else 0.0 * numbers[0]


def _invariance(views: Sequence[_View], definition: Definition) -> _Term:
    """The squared difference of each pair of views, 2 (z − z') its derivative."""
    n, d = views[0].n, views[0].d
    nothing = 0 * views[0].z
    pairs = list(itertools.combinations(range(len(views)), 2))
    if definition.invariance is None or not pairs:
        return _Term(nothing.sum(), lambda: [nothing for _ in views])
    divisor = len(pairs) * (n * d if definition.invariance == "mean" else n)
    differences = [views[a].z - views[b].z for a, b in pairs]
    squares = [(difference * difference).sum() for difference in differences]

    def gradients() -> list[Numbers]:
        found = [nothing for _ in views]
        for (a, b), difference in zip(pairs, differences, strict=True):
            slope = 2 * difference / divisor
            found[a], found[b] = found[a] + slope, found[b] - slope
        return found

    return _Term(_total(squares) / divisor, gradients)


def _variance(views: Sequence[_View], definition: Definition) -> _Term:
    """max(0, γ − s) averaged over the features; the slope of s by z is zc/(m s), or 2 zc/m."""
    factor, divisor = _over_views(views, definition.sum_variance, views[0].d)
    m = views[0].n - definition.n_variance
    spreads = [view.energies / m for view in views]
    if definition.std:
        spreads = [root(spread + definition.eps) for spread in spreads]
    shorts = [definition.gamma - spread for spread in spreads]

    def gradients() -> list[Numbers]:
        if definition.std:
            # A feature of no spread at all has no slope: its deviations are zeros.
            slopes = [reciprocal(m * spread) for spread in spreads]
        else:
            slopes = [(0 * spread + 2) / m for spread in spreads]
        return [
            -factor * view.centred * where(short > 0, slope) / divisor
            for view, short, slope in zip(views, shorts, slopes, strict=True)
        ]

    value = _total([where(short > 0, short).sum() for short in shorts])
    return _Term(factor * value / divisor, gradients)


def _covariance(views: Sequence[_View], definition: Definition) -> _Term:
    """Σ O² over the divisor, O the covariance without its diagonal; 4 zc O / m its derivative.

    Or, of the smooth L1, Σ T (2 O − T) and 4 zc T / m, T being O within ±δ.
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
    """Return what a sum over the views and over `each` is multiplied and divided by."""
    return (2 if is_sum and len(views) > 1 else 1), len(views) * each
