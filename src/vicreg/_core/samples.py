"""The samples of views: how many there are, their mean, and every sum and product over them.

Nothing else in the core sums over samples. What it means to sum over them is decided here, and in
`ranks` where they are spread over several processes, and known to no term.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vicreg._core import memory, sums
from vicreg._core.largest import Features
from vicreg._core.library import Library
from vicreg._core.sample_weights import SampleWeights
from vicreg._core.sizes import Sizes

Array = Any


class Samples:
    """The samples of one view, or of several that are stacked.

    Parameters
    ----------
    xp : Library
        Of the arrays.
    z : array, shape (..., n, d)
        The view, in the dtype of the computation. Each element of the axes before the last two,
        a position or one of several views, has samples of its own.
    sizes : Sizes
        From which size on products and sums are formed in parts.
    mean : array, shape (..., 1, d), optional
        What ``mean`` was of the same view, so that it is not computed again.
    weights : SampleWeights, optional
        Of the samples. Where a weight is 0, so is that sample in `z`.

    Attributes
    ----------
    count, features : int
        n and d.
    """

    def __init__(
        self,
        xp: Library,
        z: Array,
        sizes: Sizes,
        mean: Array | None = None,
        weights: SampleWeights | None = None,
    ) -> None:
        self.xp, self.z, self.sizes, self.weights = xp, z, sizes, weights
        self.count, self.features = z.shape[-2:]
        self._mean = mean
        self._centred: Array | None = None
        self._energies: Array | None = None

    @property
    def shift(self) -> Array:
        """What is subtracted of each sample before their mean is taken, ``(..., 1, d)``.

        It is the first sample: of few samples, and where each call costs the library much.
        Otherwise it is, of each feature, the median of the values of the first, the middle and the
        last sample. If a sample far from all others were subtracted, each of the n differences
        would be rounded on the scale of that one, and such samples often are side by side. Of
        samples with weights it is the first of the largest weight, 0 where none counts.
        """
        if self.weights is None:
            return self._first_or_middle()
        if self.weights.is_mask:  # what is absent is a copy of the first that counts
            return self.z[..., :1, :]
        if self.z.shape[-2] == 0:  # a rank without rows
            return self.z
        if self.xp.take_sample is not None:  # where none counts all are 0
            return self.weights.take_heaviest(self.z)
        # All else is 0, so that the sum is exact.
        return self._sum_of(self.z, self.xp.astype(self.weights.is_heaviest, self.z.dtype))

    @property
    def mean(self) -> Array:
        """The mean of the samples less `shift`, ``(..., 1, d)``."""
        if self._mean is None:
            self._centred = self._centre()
        return self._mean

    def assume_mean(self, mean: Array | None) -> None:
        """Use `mean`, which was computed before, as ``mean``; None lets it be computed."""
        self._mean = mean

    @property
    def centred(self) -> Array:
        """The samples less their mean, ``(..., n, d)``, each times the root of its weight."""
        if self._centred is None:
            self._centred = self._centre()
        return self._centred

    def _centre(self) -> Array:
        # With a sample subtracted the mean is rounded on the scale of the spread and not of a
        # common offset, and a constant feature gives exact zeros.
        shifted = self.z - self.shift
        if self._mean is None:
            self._mean = self._mean_of(shifted)
        return self._less(self._mean, shifted)

    def _less(self, mean: Array, shifted: Array) -> Array:
        """Return `shifted`, which must not be used again, less its `mean`: ``centred``."""
        xp, weights = self.xp, self.weights
        if weights is None:
            return memory.subtract(xp, shifted, mean)
        # A sample that counts may be NaN in a position without statistics. Times 0 it stays so.
        mean = weights.in_statistics(mean)
        if weights.is_mask:  # what is absent is 0, and shall stay so
            return xp.minus_products(shifted, weights.each, mean)
        return self.in_statistics(memory.subtract(xp, shifted, mean))

    def _first_or_middle(self) -> Array:
        xp, z, sizes = self.xp, self.z, self.sizes
        first = z[..., :1, :]
        # Of a number of samples that stands for any nothing is asked.
        if not sizes.asks_samples or sizes.on_device or xp.stacks:
            return first
        if z.shape[-2] <= sizes.first_subtracted:
            return first
        half = z.shape[-2] // 2
        middle, last = z[..., half : half + 1, :], z[..., -1:, :]
        larger = xp.maximum(first, middle)
        return xp.maximum(xp.minimum(first, middle), xp.minimum(larger, last))

    def _mean_of(self, array: Array) -> Array:
        if self.weights is None:
            return self.xp.mean_over_samples(array, self.sizes.summed)
        if self.weights.is_mask:
            total = self.xp.sum_over_samples(array, self.sizes.summed)[..., None, :]
            return total / self.weights.number
        return self._sum_of(array, self.weights.shares)

    def _sum_of(self, array: Array, factors: Array) -> Array:
        """Return the sum of the rows, each times its factor ``(..., n, 1)``: ``(..., 1, d)``."""
        if array.shape[-2] <= self.xp.sums_by_products:
            return sums.of_products(self.xp, array, factors, self.sizes.summed)
        parts = (
            self.xp.sum_over_samples(rows * factor, self.sizes.summed)
            for rows, factor in self.blocks(array, factors)
        )
        return sums.total(parts)[..., None, :]

    def in_statistics(self, array: Array) -> Array:
        """Return `array`, ``(..., n, d)``, each sample times the root of its weight.

        Where a position has no statistics it is 0. `array` must not be used again. It is what is
        centred, or a gradient: with a mask it is 0 where it has to be.
        """
        if self.weights is None or self.weights.is_mask:
            return array
        return memory.multiply(self.xp, array, self.weights.roots_in_statistics)

    def of_each(self, number: Any) -> Any:
        """Return `number` times each sample's part in all weights, ``(..., n, 1)``.

        It is `number` where samples have no weights.
        """
        return number if self.weights is None else number * self.weights.parts(self.sizes.summed)

    def give_centred(self) -> Array:
        """Return `centred` for the caller to update in place: here it is forgotten."""
        centred = self.centred
        self.forget_centred()
        return centred

    def forget_centred(self) -> None:
        """Let the memory of `centred` go: asked for again, it is computed anew."""
        self._centred = None

    @property
    def everyone(self) -> Samples:
        """The samples of all ranks: these, where there is one rank."""
        return self

    @property
    def energies(self) -> Array:
        """The sum of the squares of each centred feature, ``(..., d)``."""
        if self._energies is None:
            self._energies = self.xp.centred_energies(self)
        return self._energies

    def total(self, array: Array) -> Array:
        """Return the sum of an array ``(..., n, anything)`` over the samples and all else, 0-d."""
        return sums.everything(self.xp, array, self.sizes.summed)

    def sums_of_squares(self, array: Array) -> Array:
        """Return the sum over the samples of the squares of each feature, ``(..., d)``."""
        run = self.sizes.summed
        blocks = self.blocks(array)
        return sums.total(self.xp.sum_squares_over_samples(rows, run) for (rows,) in blocks)

    def total_of_squares(self, arrays: Sequence[Array]) -> Array:
        """Return `total` of the squares of `arrays`, each sample times its part in all weights."""
        run = self.sizes.summed
        if self.weights is None:
            blocks = itertools.chain.from_iterable(map(self.blocks, arrays))
            return sums.total(self.xp.total_of_squares(rows, run) for (rows,) in blocks)
        parts = self.weights.parts(run)
        blocks = itertools.chain.from_iterable(self.blocks(array, parts) for array in arrays)
        square = self.xp.weighted_total_of_squares
        return sums.total(square(rows, of_rows, run) for rows, of_rows in blocks)

    def is_one_block(self, array: Array) -> bool:
        """Whether `array`, ``(..., n, anything)``, is not cut into blocks of samples."""
        # Of a size that stands for any, as an exporter has, nothing may be asked.
        if not self.xp.blocks_of_samples:
            return True
        is_small: bool = math.prod(array.shape) <= self.sizes.block
        return is_small or array.shape[-2] < 2

    def blocks(self, array: Array, *others: Array) -> Iterator[tuple[Array, ...]]:
        """Yield the same block of samples of each array, ``(..., n, anything)``, one by one.

        What is formed of a block of the first stays in a processor's cache.
        """
        if self.is_one_block(array):
            yield (array, *others)
            return
        rows = array.shape[-2]
        size = max(self.sizes.block * rows // math.prod(array.shape), 1)
        for start in range(0, rows, size):
            block = slice(start, min(start + size, rows))
            yield tuple(each[..., block, :] for each in (array, *others))

    def squares_of_each_set(self, array: Array) -> Array:
        """Return the sum of the squares over the samples and the last axis, ``(...)``."""
        return self.xp.squares_of_each_set(array, self.sizes.summed)

    def centred_products(self, scale: Any) -> Array:
        """Return the products of the centred features times `scale`, ``(..., d, d)``, new."""
        return self.xp.centred_products(self, scale)

    def feature_products(self, array: Array, scale: Any) -> Array:
        """Return ``arrayᵀ array`` times `scale`, ``(..., d, d)``, new: a sum over the samples."""
        return _times_own_transpose(self.xp, array, self.sizes, scale, features=True)

    def products_with(self, array: Array) -> Array:
        """Return ``centredᵀ array``, ``(..., d, a)``: a sum over the samples."""
        return self.xp.matmul(self.xp.matrix_transpose(self.centred), array)

    def sample_products(self, array: Array, scale: Any) -> Array:
        """Return the products of these samples with all times `scale`, ``(..., n, n)``, new.

        `array` is ``centred``, or that with 0 in some of its columns.
        """
        return _times_own_transpose(self.xp, array, self.sizes, scale, features=False)

    def own_columns(self, columns: Array, features: Features) -> Array:
        """Return what is of these samples in the `columns` of some `features` of all samples."""
        return columns


class CentredSamples(Samples):
    """Samples of which nothing is known but their ``centred`` and their ``energies``."""

    def __init__(self, xp: Library, centred: Array, energies: Array, sizes: Sizes) -> None:
        super().__init__(xp, centred, sizes)
        self._centred, self._energies = centred, energies


class ShiftedSamples(Samples):
    """Samples less `shift`, which `z` are: their memory becomes that of ``centred``."""

    def _centre(self) -> Array:
        if self._mean is None:
            self._mean = self._mean_of(self.z)
        return self._less(self._mean, self.z)

    def give_centred(self) -> Array:
        """As in `Samples`; there is nothing left then."""
        centred = self.centred
        self.z = self._centred = None
        return centred

    def forget_centred(self) -> None:
        """Do nothing: it could not be computed anew."""


def _times_own_transpose(
    xp: Library, array: Array, sizes: Sizes, scale: Any, features: bool
) -> Array:
    """Return ``arrayᵀ array`` if `features`, else ``array arrayᵀ``, times `scale`.

    Where the library is said to gain by it, a large one is formed in strips of rows, each from
    the diagonal on: what is left of them is a mirror image.
    """
    size = array.shape[-1 if features else -2]

    def strip(start: int, end: int) -> Array:
        if features:
            rows = array if end - start == size else array[..., start:end]
            columns = array if start == 0 else array[..., start:]
            return xp.scaled_product(xp.matrix_transpose(rows), columns, scale)
        rows = array if end - start == size else array[..., start:end, :]
        columns = array if start == 0 else array[..., start:, :]
        return xp.scaled_product(rows, xp.matrix_transpose(columns), scale)

    length = xp.strip_length and (sizes.strip_length or xp.strip_length)
    # Of a size that stands for any nothing is asked: there is one strip.
    if sizes.strips == 1 or not length or size < 2 * length:
        return strip(0, size)
    return _from_strips(xp, strip, size, min(sizes.strips, size // length))


def _from_strips(xp: Library, strip: Callable[[int, int], Array], size: int, count: int) -> Array:
    edges = [size * i // count for i in range(count + 1)]
    strips = [strip(start, end) for start, end in itertools.pairwise(edges)]

    def mirrored(above: int, start: int, end: int) -> Array:
        return xp.matrix_transpose(strips[above][..., start - edges[above] : end - edges[above]])

    rows = [
        xp.concat([*(mirrored(above, *edges[i : i + 2]) for above in range(i)), right], axis=-1)
        for i, right in enumerate(strips)
    ]
    return xp.concat(rows, axis=-2)
