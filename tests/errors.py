"""Tolerances of the tests, derived from the unit roundoff and the sums behind a result."""

from __future__ import annotations

import numpy as np

from vicreg.tools.dtypes import HALF, UNIT_ROUNDOFF

__all__ = ["UNIT_ROUNDOFF", "largest_error", "rounding"]


def rounding(dtype: str, n: int, d: int) -> float:
    """Return a bound of the relative rounding error of a well-conditioned loss or gradient.

    A covariance is a sum of n products of centred values, each of which is rounded twice; the
    loss sums the squares of d² of them and the gradient d (or n) products with one. By the
    standard bound, k u for a sum of k terms, that is n + d + a few roundings on each of two
    levels. Half precision is computed in float32 and rounded once at the end.
    """
    if dtype in HALF:
        return UNIT_ROUNDOFF[dtype] + rounding("float32", n, d)
    return 2 * (n + d + 8) * UNIT_ROUNDOFF[dtype]


def largest_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest difference, relative to the largest value of `wanted`."""
    got, wanted = np.asarray(got, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    assert got.shape == wanted.shape
    scale = np.max(np.abs(wanted))
    difference = np.max(np.abs(got - wanted))
    assert not np.isnan(difference)
    return float(difference / scale) if scale else float(difference)
