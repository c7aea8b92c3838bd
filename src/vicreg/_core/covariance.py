"""The squared off-diagonal covariances, by two routes to the same number.

Both take ``zc``, the centred views ``(..., n, d)``, and a scale s. With C = s zcᵀ zc, of which s
is 1/m times the square root of whatever multiplies the term, they return

    E = Σ_{i≠j} C_ij²        (all sample sets together)

and in ``factors`` what its derivative is formed from, by ``product`` and ``diagonal_row``. The
root of the multiplier is in s so that E overflows only where the term itself does.

covariance route    O = C with a zero diagonal
                    E = Σ O²,             ∂E/∂z = 4s zc O
Gram route          K = s zc zcᵀ
                    E = Σ K² − Σ C_jj²,   ∂E/∂z = 4s (K zc − zc ∘ diag C)

The Gram route's difference cancels where a few features are far larger than the rest, so it keeps
the largest ones apart: with A those columns of zc, B = zc with them set to zero, and M = s Aᵀ zc
with each of those features' products with itself set to zero,

    E      = Σ (s B Bᵀ)² − Σ_{j∉A} C_jj² + 2 Σ_{j∉A} M_·j² + Σ_{j∈A} M_·j²
    ∂E/∂z  = 4s ((s B Bᵀ) zc − B ∘ diag C + A M)

in which no difference involves a kept-apart feature. What is left to the difference is wrong by
about u Σ_{j∉A} C_jj², u being the unit roundoff: nothing beside E unless more features than are
kept apart are both far larger than the rest and uncorrelated. ``method="covariance"`` has no such
difference.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from vicreg._core import owned
from vicreg._core.blocks import part, updated
from vicreg._core.layout import indices, is_large
from vicreg._core.sizes import Sizes
from vicreg._core.statistics import sum_all, sum_of_squares

Array = Any
Namespace = Any


class CovarianceFactors(NamedTuple):
    """What the covariance route's derivative is formed from."""

    offdiagonal: Array  # O, (..., d, d)


class GramFactors(NamedTuple):
    """What the Gram route's derivative is formed from."""

    kernel: Array  # s B Bᵀ, (..., n, n)
    diagonal: Array  # diag C, zero at the kept-apart features, (..., d)
    columns: Array  # A, (..., n, r)
    rows: Array  # M, (..., r, d)
    rest: Array  # 0 at the kept-apart features and 1 at the others, (..., d)


class PenaltyFactors(NamedTuple):
    """What smooth L1's derivative is formed from, and its value, which that does not tell."""

    value: Array  # (), of all sample sets together
    slope: Array  # T, half the penalty's derivative, (..., d, d)


class ProductFactors(NamedTuple):
    """The product itself, where what it is formed from would take more than it does."""

    value: Array  # (), of all sample sets together
    product: Array  # zc T, (..., n, d)


Factors = CovarianceFactors | GramFactors | PenaltyFactors | ProductFactors


def covariance_route(xp: Namespace, zc: Array, scale: float, sizes: Sizes) -> CovarianceFactors:
    """Return the factors from the d × d covariance matrix: the plain definition."""
    c = feature_matrix(xp, zc, sizes)
    return CovarianceFactors(offdiagonal(xp, owned.multiply(xp, c, scale)))


def offdiagonal(xp: Namespace, c: Array, columns: slice = slice(None)) -> Array:
    """Return `c`, those `columns` of C, with the diagonal of C set to zero.

    Set, not subtracted from the sum: nothing is lost where C is almost diagonal.
    """
    feature = indices(xp, c.shape[-2], like=c)
    return xp.where(feature[:, None] == feature[columns], xp.zeros_like(c), c)


def gram_route(
    xp: Namespace, zc: Array, energies: Array, scale: float, sizes: Sizes
) -> GramFactors:
    """Return the factors from the n × n Gram matrix.

    `energies`, ``(..., d)``, is the sum of the squares of each column of `zc`.
    """
    apart = kept_apart(xp, zc, energies, sizes)
    products = owned.multiply(xp, xp.matmul(xp.matrix_transpose(apart.columns), zc), scale)
    rows = _without_own_products(xp, products, apart)
    kernel = owned.multiply(xp, _gram_of_rest(xp, zc, apart, sizes), scale)
    # Chosen, not multiplied by 0: the energy of a kept-apart feature may be infinite.
    diagonal = xp.where(apart.rest > 0, scale * energies, xp.zeros_like(energies))
    return GramFactors(kernel, diagonal, apart.columns, rows, apart.rest)


def _without_own_products(xp: Namespace, products: Array, apart: KeptApart) -> Array:
    """Return `products`, ``(..., r, d)``, with each kept-apart feature's with itself set to 0."""
    if apart.places is None:
        return xp.where(apart.one_hot, xp.zeros_like(products), products)
    owned.replace_columns(xp, products, xp.matrix_transpose(apart.places), 0.0)
    return products


def _gram_of_rest(xp: Namespace, zc: Array, apart: KeptApart, sizes: Sizes) -> Array:
    """Return B Bᵀ.

    Where a library can replace columns in place a large `zc` is B itself for a moment, rather than
    copied; it is left as it was.
    """
    if apart.places is None or not is_large(zc.shape, sizes):
        return gram_matrix(xp, zc * apart.rest[..., None, :], sizes)
    owned.replace_columns(xp, zc, apart.places, 0.0)
    gram = gram_matrix(xp, zc, sizes)
    owned.replace_columns(xp, zc, apart.places, apart.columns)
    return gram


def value(xp: Namespace, factors: Factors, sizes: Sizes) -> Array:
    """Return E, 0-d."""
    if isinstance(factors, (PenaltyFactors, ProductFactors)):
        return factors.value
    if isinstance(factors, CovarianceFactors):
        return sum_of_squares(xp, factors.offdiagonal, sizes)
    # A pair with both features kept apart stands twice in M, one with one of them once.
    counted = (1.0 + factors.rest)[..., None, :]
    pairs = sum_all(xp, factors.rows * factors.rows * counted, sizes)
    whole = sum_of_squares(xp, factors.kernel, sizes) + pairs
    # A sum of squares: overflow may not make it inf - inf, nor rounding take it below 0.
    twice = sum_of_squares(xp, factors.diagonal, sizes)
    found = whole - xp.where(xp.isinf(whole), xp.zeros_like(twice), twice)
    return xp.maximum(found, xp.zeros_like(found))


class KeptApart(NamedTuple):
    """The largest features, by their indices or, without such, by where they are."""

    columns: Array  # A, (..., n, r)
    rest: Array  # 0 at these features and 1 at the others, (..., d)
    places: Array | None = None  # (..., 1, r)
    one_hot: Array | None = None  # (..., r, d)


def kept_apart(xp: Namespace, zc: Array, energies: Array, sizes: Sizes) -> KeptApart:
    """Return the features of `zc` with the largest `energies`.

    Libraries that have the indices of the largest values offer them as ``top_k_indices``, and
    those that replace columns in place, at indices ``(..., 1, r)``, do as ``replace_columns``.
    """
    n, d = zc.shape[-2:]
    # n centred samples span n - 1 dimensions: among more large features than that some are
    # correlated, and E is as large as what the difference is of.
    count = min(sizes.kept_apart, d)
    if sizes.asks_samples:
        count = min(count, n - 1)
    top_k = getattr(xp, "top_k_indices", None)
    if top_k is None:
        # The standard finds no largest values, and some devices have no integers to index with.
        one_hot = largest(xp, energies, count, sizes.run)
        columns = xp.matmul(zc, xp.matrix_transpose(xp.astype(one_hot, zc.dtype)))
    else:
        found = top_k(energies, count)
        places = found[..., None, :]
        columns = xp.take_along_axis(zc, places, axis=-1)
        if owned.replaces_columns(xp):
            rest = xp.ones_like(energies)
            owned.replace_columns(xp, rest[..., None, :], places, 0.0)
            return KeptApart(columns, rest, places=places)
        one_hot = found[..., None] == indices(xp, zc.shape[-1], like=energies)
    rest = xp.astype(xp.logical_not(xp.any(one_hot, axis=-2)), zc.dtype)
    return KeptApart(columns, rest, one_hot=one_hot)


def gram_matrix(xp: Namespace, a: Array, sizes: Sizes) -> Array:
    """Return a aᵀ as a new array."""
    size = a.shape[-2]

    def strip(start: int, end: int) -> Array:
        rows = a if end - start == size else a[..., start:end, :]
        columns = a if start == 0 else a[..., start:, :]
        return xp.matmul(rows, xp.matrix_transpose(columns))

    return _symmetric(xp, strip, size, sizes)


def feature_matrix(xp: Namespace, a: Array, sizes: Sizes) -> Array:
    """Return aᵀ a as a new array."""
    size = a.shape[-1]

    # Slices are transposed, not a transpose sliced, of which XLA would make copies.
    def strip(start: int, end: int) -> Array:
        rows = a if end - start == size else a[..., start:end]
        columns = a if start == 0 else a[..., start:]
        return xp.matmul(xp.matrix_transpose(rows), columns)

    return _symmetric(xp, strip, size, sizes)


def _symmetric(
    xp: Namespace, strip: Callable[[int, int], Array], size: int, sizes: Sizes
) -> Array:
    """Return the symmetric matrix whose rows ``start:end`` are, from the diagonal on, `strip`'s.

    Where the namespace is marked ``strips``, since its library multiplies any two matrices, a
    large one is computed in strips: what is below their diagonal blocks is a mirror image. NumPy
    does half the work by itself.
    """
    count = min(sizes.strips, size // sizes.strip_length)
    if count < 2 or not getattr(xp, "strips", False):
        return strip(0, size)
    edges = [size * i // count for i in range(count + 1)]
    strips = [strip(start, end) for start, end in itertools.pairwise(edges)]

    def mirrored(above: int, start: int, end: int) -> Array:
        return xp.matrix_transpose(strips[above][..., start - edges[above] : end - edges[above]])

    rows = [
        xp.concat([*(mirrored(above, *edges[i : i + 2]) for above in range(i)), right], axis=-1)
        for i, right in enumerate(strips)
    ]
    return xp.concat(rows, axis=-2)


def largest(xp: Namespace, values: Array, count: int, run: int) -> Array:
    """Return where the `count` largest of `values`, ``(..., d)``, are: one-hot, (..., count, d).

    Of those equal to the smallest of them the first are taken. Where a value is NaN there is no
    order, and nothing need be found. They are looked for in runs of `run` values.
    """
    candidates = _candidates(xp, values, count, run)
    threshold = xp.sort(candidates, axis=-1)[..., -count:][..., :1]
    above = xp.astype(values > threshold, values.dtype)
    equal = xp.astype(values == threshold, values.dtype)
    # Places from 1: those above first, wherever they stand, then the equal ones.
    place_above = xp.cumulative_sum(above, axis=-1)
    place_equal = place_above[..., -1:] + xp.cumulative_sum(equal, axis=-1)
    place = above * place_above + equal * place_equal
    wanted = xp.astype(indices(xp, count, like=values), values.dtype) + 1.0
    return place[..., None, :] == wanted[:, None]


def _candidates(xp: Namespace, values: Array, count: int, run: int) -> Array:
    """Return some of `values` with the `count` largest among them.

    Sorting many short runs and then what is left of them costs less than sorting one long one.
    """
    *sets, d = values.shape
    runs = d // run
    if runs < 2:
        return values
    in_runs = xp.reshape(values[..., : runs * run], (*sets, runs, run))
    largest_of_runs = xp.sort(in_runs, axis=-1)[..., -count:]
    kept = xp.reshape(largest_of_runs, (*sets, runs * count))
    return xp.concat([kept, values[..., runs * run :]], axis=-1)


def gradient(
    xp: Namespace, zc: Array, factors: Factors, alpha: Any, row: Array | None, sizes: Sizes
) -> Array:
    """Return `alpha` times ∂E/∂z / 4s, plus zc * `row` where there is one; `zc` is used up.

    Each block of features (Gram route) or samples (covariance route) of it depends on no other
    block of `zc`, and takes its place.
    """
    if isinstance(factors, GramFactors):
        diagonal = (-alpha) * factors.diagonal
        row = diagonal if row is None else row + diagonal
    product = _product(xp, factors, alpha)
    if row is None:
        return product(zc, slice(None))
    axis = -1 if isinstance(factors, GramFactors) else -2

    def update(block: Array, where: slice) -> Array:
        added = product(block, where)
        along = row[..., None, where] if axis == -1 else row[..., None, :]
        return owned.add(xp, owned.multiply(xp, block, along), added)

    return updated(xp, zc, axis, update, sizes)


def _product(xp: Namespace, factors: Factors, alpha: Any) -> Callable[[Array, slice], Array]:
    """Return what makes of a block of zc `alpha` times (zc O) or (K zc + A M), a new array.

    The one product as large as the forward pass's own; `alpha` goes on the small factors.
    """
    if isinstance(factors, ProductFactors):
        return lambda block, where: alpha * part(factors.product, where, -2)
    if isinstance(factors, GramFactors):
        kernel, rows = alpha * factors.kernel, alpha * factors.rows

        def of_features(block: Array, where: slice) -> Array:
            product = xp.matmul(kernel, block)
            return owned.add_product(xp, product, factors.columns, part(rows, where, -1))

        return of_features
    weights = factors.offdiagonal if isinstance(factors, CovarianceFactors) else factors.slope
    weights = alpha * weights
    return lambda block, where: xp.matmul(block, weights)
