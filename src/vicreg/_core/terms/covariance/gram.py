"""The Gram route: the n × n products of the samples instead of the d × d covariance.

    K = s zc zcᵀ,   E = Σ K² − Σ_j C_jj²,   ∂E/∂z = 4s (K zc − zc ∘ diag C)

The difference cancels where a few features are far larger than the rest. There the largest ones
are kept apart. With A those columns of zc, B = zc with them set to zero, and M = s Aᵀ zc with each
of those features' product with itself set to zero,

    E      = Σ (s B Bᵀ)² − Σ_{j∉A} C_jj² + 2 Σ_{j∉A} M_·j² + Σ_{j∈A} M_·j²
    ∂E/∂z  = 4s ((s B Bᵀ) zc − B ∘ diag C + A M)

in which no difference involves a feature that is kept apart. What is left to the difference is
wrong by about u Σ_{j∉A} C_jj², u being the unit roundoff: nothing beside an E of that size. Where
E turns out smaller than a quarter of it, with more features far larger than the rest than are kept
apart, E is summed by the definition.

That is a choice by values. Where a library can be asked at once, features are kept apart only if
the plain difference cancels, and the gradient is by the definition too where E is. Where it can
only choose on its device, some always are kept apart. Where it can do neither, more of them always
are: nothing cancels unless even more are far larger than the rest and uncorrelated. A compiled
program may have operations that ask for values, whose results are of the same shapes whatever the
values: there E is found as where a library can be asked, with as many features kept apart as where
it cannot, and the gradient is not by the definition.

The gradient is a difference too, K zc - zc ∘ diag C. Of uncorrelated features that are far larger
than the rest the definition's own gradient is all rounding, of sums of n numbers each; by K, whose
entries are sums of d, it has up to some √(d/n) times as much.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

from vicreg._core import memory, sums
from vicreg._core.library import Arrays, Library, Product
from vicreg._core.samples import CentredSamples, Samples
from vicreg._core.sizes import Sizes
from vicreg._core.terms.base import Factors, Linear, Term, is_number, of_features
from vicreg._core.terms.covariance.definition import of_columns, part_of_columns

Array = Any


@dataclass(frozen=True)
class Gram(Term):
    """E by the Gram route, at `scale` s."""

    scale: Any  # a number, or (..., 1, 1)
    sizes: Sizes

    factors = 4  # K of B, diag C with zeros for A, A, and M

    def of_view(self, samples: Samples, differentiated: bool) -> tuple[Array, Factors]:
        """Return E of one view, and what its gradient is formed from."""
        xp, zc, sizes = samples.xp, samples.everyone.centred, self.sizes
        part = functools.partial(part_of_columns, summed=sizes.summed)
        if self._asks_within(xp, zc):
            return self._in_one_operation(samples)
        if not sizes.sees_values or not xp.can_choose(zc):
            return self._keeping_apart(samples, sizes.kept_apart_unseen).result(xp)
        if xp.can_ask(zc):
            parts = self._keeping_nothing_apart(samples)
            if parts.cancel(xp, sizes):
                parts = self._keeping_apart(samples, sizes.kept_apart)
                if parts.cancel(xp, sizes):
                    return self._by_definition(samples, differentiated)
            return parts.result(xp)
        parts = self._keeping_apart(samples, sizes.kept_apart)
        wanted, difference = parts.cancel(xp, sizes), parts.value(xp)
        value = xp.sum_of_blocks(wanted, difference, zc, self.scale, part, sizes.columns)
        return value, parts.factors

    def _asks_within(self, xp: Library, array: Array) -> bool:
        """Whether a compiled program has operations that ask for values."""
        return self.sizes.sees_values and xp.has_operations(array)

    def _in_one_operation(self, samples: Samples) -> tuple[Array, Factors]:
        xp, scale = samples.xp, self.scale
        if is_number(scale):
            scale = xp.full((), scale, dtype=xp.float64)
        arrays = samples.centred, samples.energies, scale
        value, *factors = xp.operation(VALUE, arrays, self.sizes)
        return value, tuple(factors)

    def of_any_values(self, samples: Samples) -> Arrays:
        """Return E, and what its gradient is formed from, in shapes that no value changes.

        A and M are 0 unless the plain difference cancels.
        """
        xp, sizes = samples.xp, self.sizes
        count = self._count_apart(samples, sizes.kept_apart_unseen)
        parts = self._keeping_nothing_apart(samples, zeros=count)
        if not xp.can_ask(samples.centred) or not parts.cancel(xp, sizes):
            return (parts.value(xp), *parts.factors)
        parts = self._keeping_apart(samples, count)
        value = parts.value(xp)
        if parts.cancel(xp, sizes):
            value, _ = self._by_definition(samples, differentiated=False)
        return (value, *parts.factors)

    def _keeping_nothing_apart(self, samples: Samples, zeros: int = 0) -> _Parts:
        """Form what E is the difference of as it stands, with so many `zeros` for A and M."""
        xp, zc = samples.xp, samples.centred
        filled = xp.zeros_like if zeros else xp.empty_like
        k = samples.sample_products(zc, self.scale)
        diagonal = of_features(self.scale) * samples.energies
        return _Parts(
            samples.squares_of_each_set(k),
            xp.squares_of_each_set(diagonal[..., None, :], self.sizes.summed),
            # Arrays of their own: a slice would keep the whole alive.
            (k, diagonal, filled(zc[..., :zeros]), filled(zc[..., :zeros, :])),
        )

    def _count_apart(self, samples: Samples, count: int) -> int:
        """Return how many features to keep apart, if not more than `count`."""
        count = min(count, samples.features)
        if not self.sizes.asks_samples:
            return count
        # n centred samples span n − 1 dimensions: among more large features than that some are
        # correlated, and E is as large as what the difference is of.
        most: int = samples.count - 1
        return min(count, most)

    def _keeping_apart(self, samples: Samples, count: int) -> _Parts:
        count = self._count_apart(samples, count)
        xp, zc, scale, run = samples.xp, samples.everyone.centred, self.scale, self.sizes.summed
        apart = xp.largest_features(samples.energies, count, self.sizes.sorted)
        a = apart.columns(zc)
        m = apart.with_own_cleared(xp.scaled_product(xp.matrix_transpose(a), zc, scale))
        products = functools.partial(samples.sample_products, scale=scale)
        own = samples.own_columns(a, apart)
        k = apart.product_of_rest(samples.centred, own, products)
        diagonal = apart.with_value(of_features(scale) * samples.energies, 0.0)
        # A pair stands in M once for each of its features in A, and counts twice.
        twice = apart.with_value(xp.full_like(diagonal, 2.0), 1.0)
        pairs = sums.of_each_set(xp, memory.multiply(xp, m * m, twice[..., None, :]), run)
        return _Parts(
            samples.squares_of_each_set(k) + pairs,
            xp.squares_of_each_set(diagonal[..., None, :], run),
            (k, diagonal, own, m),
        )

    def _by_definition(self, samples: Samples, differentiated: bool) -> tuple[Array, Factors]:
        """Return E by the definition, and in the place of K what its gradient is a multiple of.

        C is formed a block of columns at a time: it may be far larger than a view.
        """
        xp, zc, sizes = samples.xp, samples.everyone.centred, self.sizes
        values, products = [], []
        for start in range(0, samples.features, sizes.columns):
            columns = zc[..., start : min(start + sizes.columns, samples.features)]
            o = of_columns(xp, zc, columns, start, self.scale)
            values.append(xp.total_of_squares(o, sizes.summed))
            if differentiated:
                products.append(xp.matmul(samples.centred, o))
        product = xp.concat(products, axis=-1) if differentiated else zc[..., :0]
        nothing = xp.empty_like(zc[..., :0])
        return sums.total(values), (product, nothing, nothing, nothing)

    def gradient_of_view(self, samples: Samples, factors: Factors, cotangent: Any) -> Linear:
        """Return the gradient: one product as large as the value's own, and a thin one.

        By the definition it is formed already.
        """
        k, diagonal, a, m = factors
        factor = 4.0 * self.scale * cotangent
        if not diagonal.shape[-1]:
            return Linear(added=factor * k)
        row = -of_features(factor) * diagonal
        products = [Product(k, samples.everyone.centred, factor)]
        if a.shape[-1]:
            products.append(Product(a, m, factor, is_thin=True))
        xp = samples.xp
        if len(products) < 2 or not self._asks_within(xp, k):
            return Linear(row=row, products=tuple(products))
        operands = itertools.chain.from_iterable(product.operands() for product in products)
        (added,) = xp.operation(PRODUCT, tuple(operands), self.sizes)
        return Linear(row=row, added=added)


class _Parts(NamedTuple):
    """What E is the difference of, in each set of samples, and what its gradient needs."""

    whole: Array  # (...)
    own: Array  # (...), the part that is subtracted
    factors: Factors

    def value(self, xp: Library) -> Array:
        """Return E of all sets together.

        It is a sum of squares: overflow may not make it inf - inf, nor rounding take it below 0.
        """
        value = self.whole - xp.where(xp.isinf(self.whole), xp.zeros_like(self.own), self.own)
        return xp.sum(xp.nonnegative(value))

    def result(self, xp: Library) -> tuple[Array, Factors]:
        """Return E, and what its gradient is formed from."""
        return self.value(xp), self.factors

    def cancel(self, xp: Library, sizes: Sizes) -> Array:
        """Return whether the difference is wrong by more than a few roundings, or overflows."""
        small = self.whole < (1.0 + sizes.cancels) * self.own
        return xp.any(xp.logical_or(small, xp.isinf(self.own)))


# What a compiled program does as one operation: see `Library.operation`.


def _value(xp: Library, arrays: Arrays, sizes: Sizes) -> Arrays:
    """Return what `of_any_values` does, of centred samples, their ``energies`` and the scale."""
    centred, energies, scale = arrays
    return Gram(scale, sizes).of_any_values(CentredSamples(xp, centred, energies, sizes))


def _product(xp: Library, arrays: Arrays, sizes: Sizes) -> Arrays:
    """Return ``k @ zc``, and ``a @ m`` added to it unless A is 0."""
    k, zc, a, m = arrays
    product = xp.matmul(k, zc)
    if xp.can_ask(a) and xp.any(a != 0):
        product = memory.add(xp, product, xp.matmul(a, m))
    return (product,)


VALUE, PRODUCT = "gram_value", "gram_product"
OPERATIONS = {VALUE: _value, PRODUCT: _product}
