"""An array library as the core calls it: the standard's functions, and what some have beyond.

Everything that one library does differently from another is declared in `Library`, with the
standard's way as the default. An adapter makes one `Library` and changes what its library does
better; the core asks nothing else about where its arrays come from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vicreg._core import largest, sums

Array = Any
Part = Callable[[Any, Array, Array, Any], Array]


class Library:
    """The functions of the array API standard as attributes, and what libraries have beyond it.

    Parameters
    ----------
    standard : namespace
        Where the standard's functions are.
    functions : mapping of str to callable, optional
        Functions to be called instead of those of `standard`.

    Attributes
    ----------
    updates_in_place : bool
        Whether the core may update arrays that it has made. False where the library records what
        the core does, to differentiate it, or batches it. Where ``a += b`` is a new array and
        nothing is recorded it is True.
    sums_pairwise : bool
        Whether the library's own long sums are sums of short ones. Where they are not, a float32
        sum of a million numbers is wrong in its fourth digit, and the core sums in runs.
    strip_length : int
        How many rows a strip of a product of a matrix with its own transpose has at least; 0 if
        such products are formed whole. Strips pay where the library sees no symmetry.
    squares_in_blocks : bool
        Whether squares that are summed, or samples times their weights, are formed a block of
        samples at a time. It pays where each product is an array in memory.
    stacks : bool
        Whether views of any size are stacked, since each call costs the library much.
    top_k_indices : callable or None
        ``top_k_indices(values, k)``: the indices of the k largest values along the last axis, in
        any order.
    """

    updates_in_place: bool = True
    sums_pairwise: bool = False
    strip_length: int = 0
    squares_in_blocks: bool = False
    stacks: bool = False
    top_k_indices: Callable[[Array, int], Array] | None = None

    def __init__(self, standard: Any, functions: dict[str, Any] | None = None) -> None:
        self._standard = standard
        vars(self).update(functions or {})

    def __getattr__(self, name: str) -> Any:
        # Called for what is not set yet. Kept, since most are called many times.
        function = getattr(self._standard, name)
        setattr(self, name, function)
        return function

    def in_another_pass(
        self, outputs: tuple[Array, ...], known: tuple[Array, ...]
    ) -> tuple[Array, ...]:
        """Return `outputs`, which take another pass over the samples once all is `known`.

        A library that streams reads the samples anew for it; it keeps none of them until then.
        """
        return outputs

    def without_gradient(self, array: Array) -> Array:
        """Return `array` as a constant of differentiation."""
        return array

    def kept(self, array: Array, where: Array) -> Array:
        """Return `array`, ``(..., n, a)``, where `where` is true, and 0 elsewhere.

        Nor does anything get through elsewhere that it is differentiated with, be it NaN.
        """
        # One 0 that broadcasts: an array as large would be one more to write.
        return self.where(where, array, self.zeros_like(array[..., :1, :1]))

    def can_ask(self, array: Array) -> bool:
        """Whether a truth value of `array` is had at once, without waiting for a device."""
        return False

    def can_choose(self, array: Array) -> bool:
        """Whether `sum_of_blocks` can choose by values of `array`, at once or on its device."""
        return self.can_ask(array)

    def sum_of_blocks(
        self, wanted: Array, otherwise: Array, array: Array, part: Part, length: int
    ) -> Array:
        """Return a sum over blocks of columns if it is `wanted`, and `otherwise` if not.

        The derivative is that of `otherwise` in both cases. The default asks for the value of
        `wanted`.

        Parameters
        ----------
        wanted : boolean array, shape ()
            Whether the sum is returned.
        otherwise : array, shape ()
            What is returned if the sum is not wanted.
        array : array, shape (..., n, d)
            Its columns are taken a block at a time.
        part : callable
            ``part(xp, array, block, start)``, of shape (): what a block, whose first column is
            column `start` of `array`, adds to the sum.
        length : int
            The number of columns in a block, except the last.
        """
        if not wanted:
            return otherwise
        d = array.shape[-1]
        return sums.total(
            part(self, array, array[..., start : min(start + length, d)], start)
            for start in range(0, d, length)
        )

    def sum_over_samples(self, array: Array, run: int) -> Array:
        """Return the sum over the axis before the last, ``(..., n, d)`` to ``(..., d)``."""
        return sums.over_samples(self, array, run)

    def sum_squares_over_samples(self, array: Array, run: int) -> Array:
        """Return the sum of the squares over the axis before the last."""
        return sums.squares_over_samples(self, array, run)

    def centred_energies(self, samples: Any) -> Array:
        """Return the sum of the squares of each centred feature of `Samples`, ``(..., d)``."""
        return samples.sums_of_squares(samples.centred)

    def centred_products(self, samples: Any) -> Array:
        """Return the products of the centred features of `Samples`, ``(..., d, d)``."""
        return samples.feature_products(samples.centred)

    def largest_features(
        self, array: Array, sizes: Array, count: int, run: int
    ) -> tuple[Array, Array]:
        """Return the `count` columns of `array`, ``(..., n, d)``, whose `sizes` are the largest.

        Returns
        -------
        columns : array, shape (..., n, count)
        one_hot : boolean array, shape (..., count, d)
            True where a row's column stands in `array`.
        """
        if self.top_k_indices is None:
            one_hot = largest.one_hot(self, sizes, count, run)
            numbers = self.astype(one_hot, array.dtype)
            return self.matmul(array, self.matrix_transpose(numbers)), one_hot
        places = self.top_k_indices(sizes, count)
        columns = self.take_along_axis(array, places[..., None, :], axis=-1)
        return columns, places[..., None] == largest.indices(self, array.shape[-1], like=sizes)
