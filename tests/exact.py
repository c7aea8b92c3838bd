"""The terms of VICReg in exact arithmetic, fast enough for views of some hundred features.

Every number is a fraction of integers, and only roots and reciprocals are rounded, to 512 binary
places; the results are rounded to float64 once. Without rounding the two routes of the covariance
give the same number, so the smaller products are taken: ``test_hard_input.py`` checks that against
the definition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from vicreg.tools.verification.rationals import Rationals, exact, reciprocal, root, where

__all__ = ["TERMS", "Truth", "integer_product", "truth"]

Floats = np.ndarray
Integers = np.ndarray  # Python integers of any size
TERMS = ("invariance", "variance", "covariance")


@dataclass(frozen=True)
class Truth:
    """Of each term the value, and the gradient by each view."""

    values: tuple[float, ...]
    gradients: tuple[list[Floats], ...]
    #: The part of γ that the hinge adds up, of which the variance is what is left.
    hinged: float


def truth(
    views: Sequence[Floats], eps: float = 1e-4, sample_weight: Floats | None = None
) -> Truth:
    """Return the terms of two views ``(n, d)`` by the convention "official"."""
    count, d = views[0].shape
    z = [Rationals.of(np.asarray(view, np.float64)) for view in views]
    each = np.ones(count) if sample_weight is None else sample_weight
    w = Rationals.of(np.asarray(each, np.float64)[:, None])
    n = Fraction(int(w.numerators.sum()), w.denominator)
    difference = z[0] - z[1]
    along = _rounded(2 * w * difference / (n * d))
    invariance = float(_rounded((w * difference * difference).sum() / (n * d)))
    variances, covariances = (
        [_variance(one, w, n, eps) for one in z],
        [_covariance(one, w, n) for one in z],
    )
    return Truth(
        (invariance, *(sum(part[0] for part in of) for of in (variances, covariances))),
        ([along, -along], [part[1] for part in variances], [part[1] for part in covariances]),
        sum(part[2] for part in variances),
    )


def _variance(z: Rationals, w: Rationals, n: Fraction, eps: float) -> tuple[float, Floats, float]:
    d = z.shape[1]
    zc = _centred(z, w, n)
    std = root((w * zc * zc).sum(axis=0) / (n - 1) + eps)
    short = 1 - std
    value = where(short > 0, short).sum() / (2 * d)
    # Rounded before they are multiplied: each of the three factors to float64.
    slopes = _rounded(where(short > 0, reciprocal(std)) / (2 * d * (n - 1)))
    return (
        float(_rounded(value)),
        -_rounded(w) * _rounded(zc) * slopes,
        float(np.count_nonzero(short > 0)) / (2 * d),
    )


def _covariance(z: Rationals, w: Rationals, n: Fraction) -> tuple[float, Floats]:
    d, zc = z.shape[1], _centred(z, w, n)
    if z.shape[0] < d:
        energies = (w * zc * zc).sum(axis=0)
        k = product(zc, zc.T)
        squares = (w * k * k * w.T).sum() - (energies * energies).sum()
        times = product(k * w.T, zc) - zc * energies
    else:
        o = product((w * zc).T, zc)
        np.fill_diagonal(o.numerators, 0)
        squares = (o * o).sum()
        times = product(zc, o)
    divisor = (n - 1) ** 2 * d
    return float(_rounded(squares / divisor)), _rounded(4 * w * times / divisor)


def _centred(z: Rationals, w: Rationals, n: Fraction) -> Rationals:
    return z - (w * z).sum(axis=0) / n


def _rounded(x: Rationals) -> Floats:
    return exact(x, twice=False).high


def product(a: Rationals, b: Rationals) -> Rationals:
    """Return ``a @ b``."""
    whole = integer_product(a.numerators, b.numerators)
    return Rationals(whole, a.denominator * b.denominator)


def integer_product(a: Integers, b: Integers) -> Integers:
    """Return ``a @ b``, by products of float64 that are exact.

    Each number is cut into digits so short that a sum of products of them stays below 2^53.
    """
    bits = (52 - a.shape[1].bit_length()) // 2
    total = np.zeros((a.shape[0], b.shape[1]), dtype=object)
    of_b = list(_digits(b, bits))
    for i, left in enumerate(_digits(a, bits)):
        for j, right in enumerate(of_b):
            total += (left @ right).astype(np.int64).astype(object) << bits * (i + j)
    return total


def _digits(x: Integers, bits: int) -> Iterator[Floats]:
    sign, left = np.where(x < 0, -1.0, 1.0), abs(x)
    while np.any(left != 0):
        yield sign * (left & (1 << bits) - 1).astype(np.float64)
        left = left >> bits
