"""The published formulas in exact integer arithmetic: a truth that shares nothing with the core.

Why it exists: a result can only be judged by something that is not made of what it judges. So
this module writes each convention out again from its source, with the d × d covariance matrix and
the derivative by the definition, and imports nothing of the package. It is slow, and used on small
inputs alone.

A float is an integer times a power of two. So the samples are integers Z over 2^s, and without any
rounding n·zc = n·Z − ΣZ, and n²·zcᵀzc its product with itself. Only a division and a square root
end the exactness: both are taken to `FRACTION_BITS` binary places, over 150 decimal digits. What
comes out is a pair of floats whose sum is the number to twice the precision of a float.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DEFINITIONS", "TERMS", "Definition", "Exact", "SampleSets", "exact_terms"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.object_]  # Python's integers, which have no largest

#: Binary places of what is divided or rooted.
FRACTION_BITS = 512

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
        Whether two views' terms are added, or averaged.
    divide : callable
        What the squared off-diagonal entries are divided by, for d features.
    weights : tuple of three floats
        The published weights; ones where none are published.
    """

    invariance: str | None
    std: bool
    eps: float
    n_variance: int
    n_covariance: int
    sum_variance: bool
    sum_covariance: bool
    divide: Callable[[int], int]
    weights: tuple[float, float, float]


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


@dataclass(frozen=True)
class Exact:
    """Numbers to twice the precision of a float: ``high + low``."""

    high: Floats
    low: Floats

    def error_of(self, values: Floats) -> Floats:
        """Return how far `values` are from these numbers, absolute, to full precision."""
        with np.errstate(invalid="ignore"):  # an infinity is as far as can be, or in its place
            difference = np.abs((values - self.high) - self.low)
        return np.where(values == self.high, np.abs(self.low), difference)


class _View:
    """One view of one sample set, exactly: integers over a power of two."""

    def __init__(self, z: Floats) -> None:
        self.n, self.d = z.shape
        self.integers, self.shift = _integers(z)
        # n · zc, still integers.
        self.centred: Integers = self.n * self.integers - self.integers.sum(axis=0)

    @cached_property
    def products(self) -> Integers:
        """n² · zcᵀzc."""
        products: Integers = self.centred.T @ self.centred
        return products

    @cached_property
    def off_diagonal(self) -> Integers:
        """The same with a zero diagonal."""
        return np.where(np.eye(self.d, dtype=bool), 0, self.products)

    @cached_property
    def times_off_diagonal(self) -> Integers:
        """n³ · zc O."""
        times: Integers = self.centred @ self.off_diagonal
        return times

    def variance(self, feature: int, correction: int) -> Fraction:
        """Return the variance of one feature."""
        m = self.n - correction
        return Fraction(self.products[feature, feature], m * self.n**2 << 2 * self.shift)


class SampleSets:
    """Two views, and what is exact of them: made once, for every convention.

    Parameters
    ----------
    views : two arrays of float64, shape (n, d) or (n, ..., d)
        Each position on the middle axes is a sample set of its own.
    """

    def __init__(self, views: tuple[Floats, Floats]) -> None:
        n, *_, d = views[0].shape
        self.views = views
        self.shape = views[0].shape
        flat = [view.reshape(n, -1, d) for view in views]
        self.sets = [
            [_View(view[:, position, :]) for view in flat] for position in range(flat[0].shape[1])
        ]


def exact_terms(
    sets: SampleSets, definition: Definition, gamma: float = 1.0
) -> dict[str, tuple[Exact, tuple[Exact, ...]]]:
    """Return the loss and each term, unweighted, with the gradient by each view.

    Parameters
    ----------
    sets : SampleSets
        The views.
    definition : Definition
        The formula.
    gamma : float
        γ.

    Returns
    -------
    dict
        "loss" and each of `TERMS`: the value, 0-d, and one gradient a view, of its shape.
    """
    parts = {
        "invariance": _over_positions(sets, lambda views: _invariance(views, definition)),
        "variance": _over_positions(sets, lambda views: _variance(views, definition, gamma)),
        "covariance": _over_positions(sets, lambda views: _covariance(views, definition)),
    }
    weighted = [
        _times(part, Fraction(weight))
        for part, weight in zip(parts.values(), definition.weights, strict=True)
    ]
    parts["loss"] = _added(weighted)
    return {
        name: (_exact(np.asarray(value, dtype=object)), tuple(map(_exact, gradients)))
        for name, (value, gradients) in parts.items()
    }


# A term of one sample set, or of all: its value, and its gradient by each view, both in units of
# 2^-FRACTION_BITS.
_Part = tuple[int, list[Integers]]

_ONE = 1 << FRACTION_BITS


def _invariance(views: Sequence[_View], definition: Definition) -> _Part:
    """Over two views: the squared difference, 2 (z − z') its derivative."""
    if definition.invariance is None:
        return 0, [np.zeros((view.n, view.d), dtype=object) for view in views]
    n, d = views[0].n, views[0].d
    divisor = n * d if definition.invariance == "mean" else n
    value, pairs = 0, list(itertools.combinations(range(len(views)), 2))
    gradients: list[Integers] = [np.zeros((n, d), dtype=object) for _ in views]
    for a, b in pairs:
        shift = max(views[a].shift, views[b].shift)
        difference = (views[a].integers << shift - views[a].shift) - (
            views[b].integers << shift - views[b].shift
        )
        value += (int((difference * difference).sum()) << FRACTION_BITS) // (
            divisor * len(pairs) << 2 * shift
        )
        slope = (2 * difference << FRACTION_BITS) // (divisor * len(pairs) << shift)
        gradients[a] = gradients[a] + slope
        gradients[b] = gradients[b] - slope
    return value, gradients


def _variance(views: Sequence[_View], definition: Definition, gamma: float) -> _Part:
    """max(0, γ − s) averaged over the features; the slope of s by z is zc/(m s), or 2 zc/m."""
    share = Fraction(2 if definition.sum_variance else 1, len(views) * views[0].d)
    value = Fraction(0)
    gradients: list[Integers] = []
    for view in views:
        m = view.n - definition.n_variance
        slopes = []
        for feature in range(view.d):
            variance = view.variance(feature, definition.n_variance)
            if definition.std:
                spread = _root(variance + Fraction(definition.eps))
                # A feature of no spread at all has no slope: its deviations are zeros.
                slope = Fraction(1) / (m * spread) if spread else Fraction(0)
            else:
                spread, slope = variance, Fraction(2, m)
            short = Fraction(gamma) - spread
            value += max(short, Fraction(0)) * share
            slopes.append(_fixed(-slope * share) if short > 0 else 0)
        # n 2^s zc, over n 2^s.
        gradients.append(view.centred * np.array(slopes, dtype=object) // (view.n << view.shift))
    return _fixed(value), gradients


def _covariance(views: Sequence[_View], definition: Definition) -> _Part:
    """Σ O² over the divisor, O the covariance without its diagonal; 4 zc O / m its derivative."""
    n, d = views[0].n, views[0].d
    m = n - definition.n_covariance
    share = Fraction(2 if definition.sum_covariance else 1, len(views) * definition.divide(d))
    value, gradients = 0, []
    for view in views:
        squares = int((view.off_diagonal * view.off_diagonal).sum())
        value += _fixed(Fraction(squares, (m * n**2) ** 2 << 4 * view.shift) * share)
        numerator = 4 * share.numerator * view.times_off_diagonal << FRACTION_BITS
        gradients.append(numerator // (share.denominator * m**2 * n**3 << 3 * view.shift))
    return value, gradients


def _over_positions(sets: SampleSets, term: Callable[[Sequence[_View]], _Part]) -> _Part:
    """Return the average of a term over the sample sets, each one's gradient in its place."""
    parts = [term(views) for views in sets.sets]
    count = len(parts)
    gradients = []
    for view in range(len(parts[0][1])):
        stacked = np.stack([gradients[view] for _, gradients in parts], axis=1)
        gradients.append((stacked // count).reshape(sets.shape))
    return sum(value for value, _ in parts) // count, gradients


def _times(part: _Part, weight: Fraction) -> _Part:
    value, gradients = part
    p, q = weight.numerator, weight.denominator
    return value * p // q, [gradient * p // q for gradient in gradients]


def _added(parts: Sequence[_Part]) -> _Part:
    gradients = [sum(each[1:], each[0]) for each in zip(*(g for _, g in parts), strict=True)]
    return sum(value for value, _ in parts), gradients


def _integers(z: Floats) -> tuple[Integers, int]:
    """Return integers and a shift s such that `z` is exactly the integers over 2^s."""
    ratios = [float(x).as_integer_ratio() for x in z.ravel()]
    shift = max(denominator.bit_length() - 1 for _, denominator in ratios)
    whole = [p << shift - (q.bit_length() - 1) for p, q in ratios]
    return np.array(whole, dtype=object).reshape(z.shape), shift


def _root(x: Fraction) -> Fraction:
    """Return √x to `FRACTION_BITS` places."""
    scaled = (x.numerator << 2 * FRACTION_BITS) // x.denominator
    return Fraction(math.isqrt(scaled), _ONE)


def _fixed(x: Fraction) -> int:
    return (x.numerator << FRACTION_BITS) // x.denominator


def _exact(fixed: Integers) -> Exact:
    """Return whole multiples of 2^-FRACTION_BITS as pairs of floats."""
    pairs = [_pair(number) for number in fixed.ravel()]
    high, low = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return Exact(high.reshape(fixed.shape), low.reshape(fixed.shape))


def _pair(number: Any) -> tuple[float, float]:
    high = number / _ONE  # of two integers, correctly rounded
    low = (number - int(math.ldexp(high, FRACTION_BITS))) / _ONE
    return high, low
