"""Least squares: by which factors given terms add up to given values."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vicreg.tools.backends import Floats

__all__ = ["Fit", "fit"]


class Fit(NamedTuple):
    """The factors that come nearest, and how near they come."""

    #: One factor per term, NaN for a term that is too small to have one.
    factors: Floats
    #: What the terms add up to with these factors.
    values: Floats
    #: The largest difference from the given values, divided by `sizes`.
    residual: float
    #: Whether no other factors come as near.
    unique: bool


def fit(terms: Floats, values: Floats, sizes: Floats | float = 1.0, smallest: float = 0.0) -> Fit:
    """Return the factors of `terms`, shape (values, terms), that come nearest to `values`.

    Each value counts in units of its size. Terms of at most `smallest` everywhere are left out.
    """
    sizes = np.broadcast_to(sizes, values.shape)
    acts = np.max(np.abs(terms), axis=0) > smallest
    best, _, rank, _ = np.linalg.lstsq(terms[:, acts] / sizes[:, None], values / sizes)
    factors = np.full(len(acts), np.nan)
    factors[acts] = best
    model = terms[:, acts] @ factors[acts]
    residual = float(np.max(np.abs(model - values) / sizes))
    return Fit(factors, model, residual, int(rank) == np.count_nonzero(acts))
