"""How far a batch has collapsed: the spread of each feature, the spectrum, the correlations.

Correlations and ranks do not depend on the scale of a feature or of the batch. So each feature is
first divided by its largest deviation: of what comes out no square overflows or vanishes,
whatever the units of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from vicreg.core.layout import core_order, in_computing_dtype, indices, transposed
from vicreg.core.sizes import DEFAULT_SIZES
from vicreg.core.statistics import centred_and_mean, energies

Array = Any
Namespace = Any

#: A feature is dead where no sample is further from the first than this many of the units in
#: which its largest value is rounded: each of the two may be two of them off.
_DEAD_WITHIN = 4

#: How many rows of the correlation matrix there are at a time: never the d × d of them.
_BLOCK = 256


class Measures(NamedTuple):
    """What is measured of one batch ``(n, d)``; 0-d but for the first and the last."""

    std: Array  # (d,)
    mean_std: Array
    min_std: Array
    dead_features: Array
    mean_abs_correlation: Array
    effective_rank: Array
    participation_ratio: Array
    singular_values: Array  # (min(n - 1, d),)


class _Deviations(NamedTuple):
    """The centred batch as ``scaled * reach``; both are zero at dead features."""

    scaled: Array  # (n, d), of order 1
    energies: Array  # (d,), the sums of the squares of `scaled`
    reach: Array  # (d,), the largest distance from the first sample
    size: Array  # (d,), the largest magnitude of the batch itself
    alive: Array  # (d,), 1 or 0


def measure(
    xp: Namespace, z: Array, feature_axis: int, svdvals: Callable[[Array], Array]
) -> Measures:
    """Return the measures of `z`, two axes with the features on `feature_axis`.

    Values that are not finite make NaN of every measure they have a part in.
    """
    z = transposed(xp, z, core_order(2, feature_axis))
    epsilon = float(xp.finfo(z.dtype).eps)
    n, d = z.shape
    deviations = _deviations(xp, in_computing_dtype(xp, z), epsilon)
    norms = xp.sqrt(deviations.energies)
    std = deviations.reach * norms / math.sqrt(n - 1)
    living = xp.sum(deviations.alive)

    values, unit = _spectrum(xp, deviations, epsilon, svdvals)
    directions = deviations.scaled / _or_one(xp, norms)
    correlation = _sum_of_abs_correlations(xp, directions) / _or_one(xp, living * (living - 1) / 2)
    return Measures(
        std,
        xp.mean(std),
        xp.min(std),
        # Counted in floating point: not every device has the integers that a sum of them takes.
        xp.astype(d - living, xp.int32),
        xp.minimum(correlation, xp.ones_like(correlation)),
        _effective_rank(xp, values),
        _participation_ratio(xp, values),
        values * unit,
    )


def _deviations(xp: Namespace, z: Array, epsilon: float) -> _Deviations:
    # Infinity has no distance from another value, and says so in every library as NaN alone.
    z = xp.where(xp.isfinite(z), z, xp.full_like(z, math.nan))
    shifted = z - z[:1, :]
    reach = xp.max(xp.abs(shifted), axis=0)
    size = xp.max(xp.abs(z), axis=0)
    dead = reach <= _DEAD_WITHIN * epsilon * size  # never so where there is a NaN
    reach = xp.where(dead, xp.zeros_like(reach), reach)
    size = xp.where(dead, xp.zeros_like(size), size)
    shifted = xp.where(dead, xp.zeros_like(shifted), shifted)
    relative = shifted / _or_one(xp, reach)
    scaled, _ = centred_and_mean(xp, relative, DEFAULT_SIZES)
    alive = xp.astype(xp.logical_not(dead), z.dtype)
    return _Deviations(scaled, energies(xp, scaled, DEFAULT_SIZES), reach, size, alive)


def _spectrum(
    xp: Namespace,
    deviations: _Deviations,
    epsilon: float,
    svdvals: Callable[[Array], Array],
) -> tuple[Array, Array]:
    """Return the singular values of the centred batch, and the unit they are in.

    The batch was rounded before it came: independent errors of half an `epsilon` of each value
    reach singular values of that times √n + √d. What is not above it, nor above the rounding of
    the decomposition, is 0.
    """
    scaled, _, reach, size, _ = deviations
    n, d = scaled.shape
    unit = _or_one(xp, xp.max(reach))
    batch = scaled * (reach / unit)
    # Decompositions raise, or do not end, where a value is not finite.
    finite = xp.all(xp.isfinite(batch))
    values = svdvals(xp.where(finite, batch, xp.zeros_like(batch)))
    # Of n centred samples the last direction is empty, but for rounding.
    values = values[: min(n - 1, d)]

    relative = size / unit
    of_values = xp.sqrt(xp.mean(relative * relative)) * (math.sqrt(n) + math.sqrt(d)) * epsilon / 2
    of_decomposition = 4 * float(xp.finfo(values.dtype).eps) * values[0]
    rounding = xp.maximum(of_values, of_decomposition)
    rounding = xp.minimum(rounding, values[0])  # where anything varies, something is counted
    values = xp.where(values < rounding, xp.zeros_like(values), values)
    return xp.where(finite, values, xp.full_like(values, math.nan)), unit


def _sum_of_abs_correlations(xp: Namespace, directions: Array) -> Array:
    """Return Σ_{i<j} |r_ij| of features ``(n, d)`` of norm 1, or of 0, in O(n d + d) memory."""
    d = directions.shape[-1]
    feature = indices(xp, d, like=directions)
    total = xp.zeros_like(directions[0, 0])
    for start in range(0, d, _BLOCK):
        block = slice(start, min(start + _BLOCK, d))
        rows = xp.matrix_transpose(directions[:, block])
        found = xp.abs(xp.matmul(rows, directions[:, start:]))
        # Each pair once, and no feature with itself.
        later = feature[start:] > feature[block][:, None]
        total = total + xp.sum(xp.where(later, found, xp.zeros_like(found)))
    return total


def _effective_rank(xp: Namespace, values: Array) -> Array:
    """Return exp(−Σ p ln p), p being the shares of the singular values."""
    shares = values / _or_one(xp, xp.sum(values))
    entropy = -xp.sum(shares * xp.log(_or_one(xp, shares)))
    return _as_rank(xp, xp.exp(entropy), values)


def _participation_ratio(xp: Namespace, values: Array) -> Array:
    """Return (Σ λ)² / Σ λ², λ being the squares of the singular values."""
    relative = values / _or_one(xp, values[0])
    variances = relative * relative
    total = xp.sum(variances)
    return _as_rank(xp, total * total / _or_one(xp, xp.sum(variances * variances)), values)


def _as_rank(xp: Namespace, rank: Array, values: Array) -> Array:
    """Return `rank` from 1 to what it can be, but for rounding it is; 0 where nothing varies."""
    limit = float(values.shape[0])
    rank = xp.minimum(xp.maximum(rank, xp.ones_like(rank)), xp.full_like(rank, limit))
    return xp.where(values[0] == 0, xp.zeros_like(rank), rank)


def _or_one(xp: Namespace, array: Array) -> Array:
    """Return `array` with 1 for 0: a divisor where the dividend is 0 too, or a logarithm's."""
    return xp.where(array == 0, xp.ones_like(array), array)
