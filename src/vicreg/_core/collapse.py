"""How far a batch has collapsed: the spread of each feature, the spectrum, the correlations.

Correlations and ranks do not depend on the scale of a feature or of the batch. So each feature is
first divided by its largest deviation: of what comes out no square overflows or vanishes,
whatever the units of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from vicreg._core import sums
from vicreg._core.largest import indices
from vicreg._core.layout import Axes
from vicreg._core.library import Library
from vicreg._core.samples import Samples
from vicreg._core.sizes import DEFAULT_SIZES

Array = Any

#: The mean square of rounding errors, which are even over one unit in the last place.
_ROUNDING_VARIANCE = 1 / 12
#: How many times their mean square the errors of one batch may have.
_ROUNDING_SLACK = 2


class Measures(NamedTuple):
    """What is measured of one batch ``(n, d)``; 0-d unless a shape is given."""

    std: Array  # (d,)
    mean_std: Array
    min_std: Array
    dead_features: Array
    mean_abs_correlation: Array
    effective_rank: Array
    participation_ratio: Array
    singular_values: Array  # (min(n - 1, d),)
    unit_norm: Array  # a boolean


class _Deviations(NamedTuple):
    """The centred batch as ``scaled * reach``; all but `alive` are zero at dead features."""

    scaled: Array  # (n, d), of order 1
    energies: Array  # (d,), the sums of the squares of `scaled`
    reach: Array  # (d,), the largest distance from the first sample
    size: Array  # (d,), the largest magnitude of the batch itself
    units: Array  # (d,), the mean square of the values' units in the last place, over reach²
    alive: Array  # (d,), 1 or 0
    unit_norm: Array  # whether each sample of the batch itself has norm 1
    known: tuple[Array, ...]  # all that `scaled` is formed from, except the batch


def measure(
    xp: Library,
    z: Array,
    axes: Axes,
    svdvals: Callable[[Array], Array],
    block: int = 256,
) -> Measures:
    """Return the measures of `z`, whose axes hold samples and features alone.

    Values that are not finite make NaN of every measure they have a part in. Of the correlation
    matrix `block` rows are formed at a time, never d of them: no measure depends on how many.
    """
    epsilon = float(xp.finfo(z.dtype).eps)
    z = axes.laid_out(xp, z)
    n, d = z.shape
    deviations = _deviations(xp, z, epsilon)
    norms = xp.sqrt(deviations.energies)
    std = deviations.reach * norms / math.sqrt(n - 1)
    living = xp.sum(deviations.alive)

    values, unit = _spectrum(xp, deviations, epsilon, svdvals)
    correlation = _sum_of_abs_correlations(xp, deviations.scaled, norms, block)
    values, correlation = xp.in_another_pass((values, correlation), deviations.known)
    correlation = correlation / _or_one(xp, living * (living - 1) / 2)
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
        deviations.unit_norm,
    )


def _have_unit_norm(xp: Library, z: Array, epsilon: float) -> Array:
    """Return whether each sample has norm 1, as rounding to `epsilon` leaves it."""
    # Up to 2, so that no square overflows.
    magnitude = xp.minimum(xp.abs(z), xp.full_like(z[:1, :], 2.0))
    squares = xp.sum(magnitude * magnitude, axis=1)
    # The norm was rounded, and each quotient by it; then the squares here, and their sum.
    bound = 4 * epsilon + 4 * math.sqrt(z.shape[1]) * float(xp.finfo(z.dtype).eps)
    return xp.all(xp.abs(squares - 1.0) <= bound)


def _deviations(xp: Library, z: Array, epsilon: float) -> _Deviations:
    # Infinity has no distance from another value, and says so in every library as NaN alone.
    z = xp.where(xp.isfinite(z), z, xp.full_like(z[:1, :], math.nan))
    shifted = z - z[:1, :]
    reach = xp.max(xp.abs(shifted), axis=0)
    size = xp.max(xp.abs(z), axis=0)
    # A feature that varies by one unit in the last place varies: at 1e7 that is 1 in float32.
    dead = reach == 0  # never so where there is a NaN
    size = xp.where(dead, xp.zeros_like(size), size)
    divisor = _or_one(xp, reach)
    shifted = shifted / divisor
    samples = Samples(xp, shifted, DEFAULT_SIZES)
    in_units = xp.where(dead, xp.zeros_like(divisor), epsilon / divisor)
    units = sums.total(
        xp.sum_squares_over_samples(_power_of_two_below(xp, rows) * in_units, DEFAULT_SIZES.summed)
        for rows in samples.blocks(z)
    )
    units = units / z.shape[0]
    unit_norm = _have_unit_norm(xp, z, epsilon)
    known = (z[:1, :], samples.first, reach, size, unit_norm)
    totals = xp.in_another_pass((samples.mean, samples.energies, units), known)
    mean, energies, units = totals
    samples.forget_centred()
    samples.assume_mean(mean)
    alive = xp.astype(xp.logical_not(dead), z.dtype)
    known += totals
    return _Deviations(samples.centred, energies, reach, size, units, alive, unit_norm, known)


def _power_of_two_below(xp: Library, z: Array) -> Array:
    """Return the largest power of two up to the magnitude of each value, 0 for 0."""
    magnitude = xp.abs(z)
    power = 2.0 ** xp.floor(xp.log2(_or_one(xp, magnitude)))
    return xp.where(magnitude == 0, magnitude, power)


def _spectrum(
    xp: Library,
    deviations: _Deviations,
    epsilon: float,
    svdvals: Callable[[Array], Array],
) -> tuple[Array, Array]:
    """Return the singular values of the centred batch, and the unit they are in.

    What is not above the rounding of the decomposition is 0, and what `_of_stored_values` says.
    """
    scaled, _, reach, *_ = deviations
    n, d = scaled.shape
    unit = _or_one(xp, xp.max(reach))
    relative = reach / unit
    batch = scaled * relative
    # Decompositions raise, or do not end, where a value is not finite; nor is its reach then.
    finite = xp.all(xp.isfinite(reach))
    values = svdvals(xp.where(finite, batch, xp.zeros_like(relative)))
    # Of n centred samples the last direction is empty, except for rounding.
    values = values[: min(n - 1, d)]

    of_decomposition = 4 * float(xp.finfo(values.dtype).eps) * values[0]
    rounding = xp.maximum(
        of_decomposition, _of_stored_values(xp, values, deviations, epsilon, unit)
    )
    # Where anything varies, something is counted.
    rounding = xp.minimum(rounding, values[0])
    values = xp.where(values < rounding, xp.zeros_like(values), values)
    return xp.where(finite, values, xp.full_like(values, math.nan)), unit


def svdvals_in_float64(xp: Library, batch: Array) -> Array:
    """Return the singular values of `batch`: of one in float32 by the smaller Gram matrix.

    The eigenvalues λ = σ² of the Gram matrix are wrong by some u λ₁, u being the unit roundoff of
    what it is computed in, and so σ by the smaller of some u σ₁² / σ and √u σ₁. In float64 that is
    at most 2e-8 σ₁, where the decomposition of the batch in float32 is wrong by 6e-8 σ₁: nothing
    is lost. Of a batch in float64 all singular values below 1e-8 σ₁ would be; it is decomposed.
    """
    if batch.dtype == xp.float64:
        return xp.linalg.svdvals(batch)
    tall = batch if batch.shape[0] >= batch.shape[1] else xp.matrix_transpose(batch)
    n, size = tall.shape
    # In blocks no larger than the result, so that no second batch is in memory.
    blocks = (xp.astype(tall[i : min(i + size, n), :], xp.float64) for i in range(0, n, size))
    gram = sums.total(xp.matmul(xp.matrix_transpose(rows), rows) for rows in blocks)
    eigenvalues = xp.flip(xp.linalg.eigvalsh(gram), axis=-1)
    return xp.astype(xp.sqrt(xp.maximum(eigenvalues, xp.zeros_like(eigenvalues))), batch.dtype)


def _of_stored_values(
    xp: Library, values: Array, deviations: _Deviations, epsilon: float, unit: Array
) -> Array:
    """Return the size below which singular values are the rounding of the batch's own values.

    A batch of few directions was rounded when it was stored, which fills all others. Independent
    errors of half an `epsilon` of each value reach singular values of that times √n + √d. But a
    batch whose features vary by few units in the last place may be no larger in any direction.
    So what is below is taken for rounding only where together it is no more than rounding leaves,
    and where other directions stand out from it.
    """
    n, d = deviations.scaled.shape
    size = deviations.size / unit
    bound = xp.sqrt(xp.mean(size * size)) * (math.sqrt(n) + math.sqrt(d)) * epsilon / 2
    below = values < bound
    left = xp.where(below, values, xp.zeros_like(values))
    above = values.shape[0] - xp.sum(xp.astype(below, values.dtype))
    # Whatever those directions are, the others have the rounding of d - above features at least.
    relative = deviations.reach / unit
    squares = xp.sort(deviations.units * relative * relative)
    kept = indices(xp, d, like=squares) < xp.astype(d - above, xp.int32)
    least = xp.where(kept, squares, xp.zeros_like(squares))
    explained = (n - 1 - above) * _ROUNDING_VARIANCE * xp.sum(least)
    is_rounding = xp.logical_and(above > 0, xp.sum(left * left) <= _ROUNDING_SLACK * explained)
    return xp.where(is_rounding, bound, xp.zeros_like(bound))


def _sum_of_abs_correlations(xp: Library, scaled: Array, norms: Array, block: int) -> Array:
    """Return Σ_{i<j} |r_ij| of centred features ``(n, d)`` of `norms`, in O(d) more memory."""
    d = scaled.shape[-1]
    feature = indices(xp, d, like=scaled)
    norms = _or_one(xp, norms)
    total = xp.zeros_like(scaled[0, 0])
    for start in range(0, d, block):
        these = slice(start, min(start + block, d))
        rows = xp.matrix_transpose(scaled[:, these])
        products = xp.abs(xp.matmul(rows, scaled[:, start:]))
        correlations = products / norms[these][:, None] / norms[start:]
        # Each pair once, and no feature with itself.
        later = feature[start:] > feature[these][:, None]
        total = total + xp.sum(xp.where(later, correlations, xp.zeros_like(correlations)))
    return total


def _effective_rank(xp: Library, values: Array) -> Array:
    """Return exp(−Σ p ln p), p being the shares of the singular values."""
    shares = values / _or_one(xp, xp.sum(values))
    entropy = -xp.sum(shares * xp.log(_or_one(xp, shares)))
    return _as_rank(xp, xp.exp(entropy), values)


def _participation_ratio(xp: Library, values: Array) -> Array:
    """Return (Σ λ)² / Σ λ², λ being the squares of the singular values."""
    relative = values / _or_one(xp, values[0])
    variances = relative * relative
    total = xp.sum(variances)
    return _as_rank(xp, total * total / _or_one(xp, xp.sum(variances * variances)), values)


def _as_rank(xp: Library, rank: Array, values: Array) -> Array:
    """Return `rank` kept from 1 to the most it can be; 0 where nothing varies."""
    limit = float(values.shape[0])
    rank = xp.minimum(xp.maximum(rank, xp.ones_like(rank)), xp.full_like(rank, limit))
    return xp.where(values[0] == 0, xp.zeros_like(rank), rank)


def _or_one(xp: Library, array: Array) -> Array:
    """Return `array` with 1 for 0: a divisor where the dividend is 0 too, or a logarithm's."""
    return xp.where(array == 0, xp.ones_like(array), array)
