"""How far a batch has collapsed: the spread of each feature, the spectrum, the correlations.

Correlations and ranks do not depend on the scale of a feature or of the batch. So each feature is
first divided by its largest deviation: of what comes out no square overflows or vanishes,
whatever the units of the batch.

Where samples have weights, a sample counts as often as its weight says. With the root of its
weight on each centred row, sums over the rows are those over all that count; only how many there
are is asked for by name. A sample of weight 0 is replaced by the first of those that count, which
changes no extreme.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from vicreg._core import sums
from vicreg._core.largest import indices
from vicreg._core.layout import Axes
from vicreg._core.library import Library
from vicreg._core.sample_weights import SampleWeights, of_each, total_of
from vicreg._core.samples import Samples
from vicreg._core.sizes import DEFAULT_SIZES

Array = Any

#: The mean square of rounding errors, which are even over one unit in the last place.
_ROUNDING_VARIANCE = 1 / 12
#: How many times their mean square the errors of one batch may have.
_ROUNDING_SLACK = 2


class Measures(NamedTuple):
    """What is measured of one batch ``(n, d)``; 0-d unless a shape is given.

    The last two are None where samples have no weights: they are known without measuring.
    """

    std: Array  # (d,)
    mean_std: Array
    min_std: Array
    dead_features: Array
    mean_abs_correlation: Array
    effective_rank: Array
    participation_ratio: Array
    singular_values: Array  # (min(n - 1, d),)
    unit_norm: Array  # a boolean
    n: Array | None = None
    rank_limit: Array | None = None


class _Count(NamedTuple):
    """How many samples there are: numbers, or 0-d arrays where samples have weights."""

    samples: Any  # the sum of the weights; 2 where that is no more than 1
    rows: Any  # those that have a weight
    spanning: Any  # `samples`, but no fewer than `rows`
    has_statistics: Any = 1  # 0 where the weights sum to no more than 1


class _Deviations(NamedTuple):
    """The centred batch as ``scaled * reach``; all but `alive` are zero at dead features."""

    scaled: Array  # (n, d), of order 1, each row times the root of its weight
    energies: Array  # (d,), the sums of the squares of `scaled`
    reach: Array  # (d,), the largest distance from the first sample
    size: Array  # (d,), the largest magnitude of the batch itself
    units: Array  # (d,), the mean square of the values' units in the last place, over reach²
    alive: Array  # (d,), 1 or 0
    unit_norm: Array  # whether each sample of the batch itself has norm 1
    known: tuple[Array, ...]  # all that `scaled` is formed from, except the batch
    counted: _Count
    total: Array | None  # the sum of the weights, (1, 1)


def measure(
    xp: Library,
    z: Array,
    axes: Axes,
    svdvals: Callable[[Array], Array],
    block: int = 256,
    weight: Array | None = None,
) -> Measures:
    """Return the measures of `z`, whose axes hold samples and features alone.

    `weight` broadcasts to the shape of `z` without its features. Where the weights sum to no more
    than 1, nothing varies, and no feature is dead.

    Values that are not finite make NaN of every measure they have a part in. Of the correlation
    matrix `block` rows are formed at a time, never d of them: no measure depends on how many.
    """
    epsilon = float(xp.finfo(z.dtype).eps)
    each = None if weight is None else of_each(xp, weight, z, axes)
    z = axes.laid_out(xp, z)
    d = z.shape[1]
    deviations = _deviations(xp, z, each, epsilon)
    count = deviations.counted
    norms = xp.sqrt(deviations.energies)
    std = deviations.reach * norms / _root(xp, count.samples - 1)
    living = xp.sum(deviations.alive)

    values, unit = _spectrum(xp, deviations, epsilon, svdvals)
    correlation = _sum_of_abs_correlations(xp, deviations.scaled, norms, block)
    values, correlation = xp.in_another_pass((values, correlation), deviations.known)
    correlation = correlation / _or_one(xp, living * (living - 1) / 2)
    limit = _rank_limit(xp, count, d)
    return Measures(
        std,
        xp.mean(std),
        xp.min(std),
        # Counted in floating point: not every device has the integers that a sum of them takes.
        xp.astype((d - living) * count.has_statistics, xp.int32),
        xp.minimum(correlation, xp.ones_like(correlation)),
        _effective_rank(xp, values, limit),
        _participation_ratio(xp, values, limit),
        values * unit,
        deviations.unit_norm,
        *(
            ()
            if each is None
            else (xp.reshape(deviations.total, ()), limit * count.has_statistics)
        ),
    )


def _rank_limit(xp: Library, count: _Count, d: int) -> Any:
    """Return the most dimensions that the centred batch spans: a number, or 0-d array."""
    limit = count.spanning - 1
    return xp.minimum(limit, xp.full_like(limit, d)) if _is_array(limit) else min(limit, d)


def _have_unit_norm(xp: Library, z: Array, epsilon: float) -> Array:
    """Return whether each sample has norm 1, as rounding to `epsilon` leaves it."""
    # Up to 2, so that no square overflows.
    magnitude = xp.minimum(xp.abs(z), xp.full_like(z[:1, :], 2.0))
    squares = xp.sum(magnitude * magnitude, axis=1)
    # The norm was rounded, and each quotient by it; then the squares here, and their sum.
    bound = 4 * epsilon + 4 * math.sqrt(z.shape[1]) * float(xp.finfo(z.dtype).eps)
    return xp.all(xp.abs(squares - 1.0) <= bound)


class _Batch(NamedTuple):
    """A batch ``(n, d)`` of which each row may be looked at, and how many samples they are."""

    z: Array
    counted: _Count
    origin: Array  # (1, d), the sample that is subtracted from all
    weights: SampleWeights | None = None
    total: Array | None = None  # the sum of the weights, (1, 1)
    known: tuple[Array, ...] = ()  # what was found in a pass over the samples


def _weighted(xp: Library, z: Array, each: Array) -> _Batch:
    """Return `z` with a sample of the largest weight in the place of each of weight 0.

    That is 0 where there is none.
    """
    run = DEFAULT_SIZES.summed
    total = total_of(xp, each, run)
    weights = SampleWeights(xp, each, total, 1)
    # A sum, of which all else is 0, is exact; a product is rounded as the device likes.
    heaviest = xp.sum(xp.where(weights.is_heaviest, z, xp.zeros_like(z)), axis=0)[None, :]
    rows = total_of(xp, xp.astype(weights.is_present, each.dtype), run)
    counts = weights.counts(run)
    spanning = xp.maximum(counts.samples, rows)
    of_all = (counts.samples, rows, spanning, counts.is_counted)
    count = _Count(*(xp.reshape(array, ()) for array in of_all))
    z = xp.where(weights.is_present, z, heaviest)
    return _Batch(z, count, heaviest, weights, total, (heaviest, total))


def _deviations(xp: Library, z: Array, each: Array | None, epsilon: float) -> _Deviations:
    # Infinity has no distance from another value, and says so in every library as NaN alone.
    z = xp.where(xp.isfinite(z), z, xp.full_like(z[:1, :], math.nan))
    n = z.shape[0]
    batch = _Batch(z, _Count(n, n, n), z[:1, :]) if each is None else _weighted(xp, z, each)
    z, count, origin, weights, total, known = batch
    shifted = z - origin
    reach = xp.max(xp.abs(shifted), axis=0)
    size = xp.max(xp.abs(z), axis=0)
    unit_norm = _have_unit_norm(xp, z, epsilon)
    reach, size, unit_norm = xp.in_another_pass((reach, size, unit_norm), known)
    # A feature that varies by one unit in the last place varies: at 1e7 that is 1 in float32.
    dead = reach == 0  # never so where there is a NaN
    size = xp.where(dead, xp.zeros_like(size), size)
    divisor = _or_one(xp, reach)
    shifted = shifted / divisor
    samples = Samples(xp, shifted, DEFAULT_SIZES, weights=weights)
    in_units = xp.where(dead, xp.zeros_like(divisor), epsilon / divisor)
    units = _mean_square_of_units(xp, samples, z, in_units, count)
    known += (origin, samples.shift, reach, size, unit_norm)
    totals = xp.in_another_pass((samples.mean, samples.energies, units), known)
    mean, energies, units = totals
    samples.forget_centred()
    samples.assume_mean(mean)
    alive = xp.astype(xp.logical_not(dead), z.dtype)
    known += totals
    return _Deviations(
        samples.centred, energies, reach, size, units, alive, unit_norm, known, count, total
    )


def _mean_square_of_units(
    xp: Library, samples: Samples, z: Array, in_units: Array, count: _Count
) -> Array:
    """Return the mean square of the units in the last place of each feature of `z`, ``(d,)``."""
    roots = () if samples.weights is None else (samples.weights.roots_in_statistics,)
    units = (
        math.prod(of_samples, start=_power_of_two_below(xp, rows) * in_units)
        for rows, *of_samples in samples.blocks(z, *roots)
    )
    run = DEFAULT_SIZES.summed
    return sums.total(xp.sum_squares_over_samples(rows, run) for rows in units) / count.samples


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
    scaled, energies, reach, *_ = deviations
    n, d = scaled.shape
    unit = _or_one(xp, xp.max(reach))
    relative = reach / unit
    batch = scaled * relative
    # Decompositions raise, or do not end, where a value is not finite; nor is its reach then.
    finite = xp.all(xp.isfinite(reach))
    weighted = deviations.total is not None
    if weighted:  # nor need what weighs the rows be
        finite = xp.logical_and(finite, xp.all(xp.isfinite(energies)))
    values = svdvals(xp.where(finite, batch, xp.zeros_like(relative)))
    # Of n centred samples the last direction is empty, except for rounding.
    values = values[: min(n - 1, d)]
    if weighted:
        place = xp.astype(indices(xp, values.shape[0], like=values), values.dtype)
        is_left = place < deviations.counted.rows - 1
        values = xp.where(is_left, values, xp.zeros_like(values))

    of_decomposition = 4 * float(xp.finfo(values.dtype).eps) * values[0]
    rounding = xp.maximum(
        of_decomposition, _of_stored_values(xp, values, deviations, epsilon, unit)
    )
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
    d, count = deviations.scaled.shape[1], deviations.counted
    size = deviations.size / unit
    # 1, but for weights that are parts of 1: then of each error a part counts.
    share = count.samples / count.spanning
    reached = _root(xp, count.samples) + _root(xp, d * share)
    bound = xp.sqrt(xp.mean(size * size)) * reached * epsilon / 2
    below = values < bound
    left = xp.where(below, values, xp.zeros_like(values))
    above = values.shape[0] - xp.sum(xp.astype(below, values.dtype))
    # Whatever those directions are, the others have the rounding of d - above features at least.
    relative = deviations.reach / unit
    squares = xp.sort(deviations.units * relative * relative)
    kept = indices(xp, d, like=squares) < xp.astype(d - above, xp.int32)
    least = xp.where(kept, squares, xp.zeros_like(squares))
    explained = (count.spanning - 1 - above) * _ROUNDING_VARIANCE * xp.sum(least) * share
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


def _effective_rank(xp: Library, values: Array, limit: Any) -> Array:
    """Return exp(−Σ p ln p), p being the shares of the singular values."""
    shares = values / _or_one(xp, xp.sum(values))
    entropy = -xp.sum(shares * xp.log(_or_one(xp, shares)))
    return _as_rank(xp, xp.exp(entropy), values, limit)


def _participation_ratio(xp: Library, values: Array, limit: Any) -> Array:
    """Return (Σ λ)² / Σ λ², λ being the squares of the singular values."""
    variances = values * values  # in units of the largest deviation: none is out of range
    total = xp.sum(variances)
    rank = total * total / _or_one(xp, xp.sum(variances * variances))
    return _as_rank(xp, rank, values, limit)


def _as_rank(xp: Library, rank: Array, values: Array, limit: Any) -> Array:
    """Return `rank` kept from 1 to its `limit`; 0 where nothing varies."""
    most = xp.ones_like(rank) * limit
    rank = xp.minimum(xp.maximum(rank, xp.ones_like(rank)), most)
    return xp.where(values[0] == 0, xp.zeros_like(rank), rank)


def _or_one(xp: Library, array: Array) -> Array:
    """Return `array` with 1 for 0: a divisor where the dividend is 0 too, or a logarithm's."""
    return xp.where(array == 0, xp.ones_like(array), array)


def _root(xp: Library, number: Any) -> Any:
    """Return the root of a number, or of a 0-d array."""
    return xp.sqrt(number) if _is_array(number) else math.sqrt(number)


def _is_array(number: Any) -> bool:
    return hasattr(number, "dtype")
