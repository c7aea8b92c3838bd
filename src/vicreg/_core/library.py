"""An array library as the core calls it: the standard's functions, and what some have beyond.

Everything that one library does differently from another is declared in `Library`, with the
standard's way as the default. An adapter makes one `Library` and changes what its library does
better; the core asks nothing else about where its arrays come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from vicreg._core import largest, memory, sums
from vicreg._core.sizes import Sizes

Array = Any
Arrays = tuple[Array, ...]
Part = Callable[[Any, Array, Array, Any, Any], Array]


class Product(NamedTuple):
    """``factor * (left @ right)``, of which one is multiplied by the factor: the smaller one."""

    left: Array
    right: Array
    factor: Any
    smaller: Literal["left", "right"] = "left"
    is_thin: bool = False  # whether `left` has few columns

    # No property: the compiler of PyTorch 2.7 knows none of a named tuple.
    def operands(self) -> tuple[Array, Array]:
        """Return what is multiplied where the factor is not part of the product's call."""
        if self.smaller == "left":
            return self.factor * self.left, self.right
        return self.left, self.factor * self.right


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
    name : str
        The name of `standard`.
    updates_in_place : bool
        Whether the core may update arrays that it has made. False where the library records what
        the core does, to differentiate it, or batches it. Where ``a += b`` is a new array and
        nothing is recorded it is True.
    fuses : bool
        Whether a compiler forms what is only added where it is added, and keeps no array of it.
    sums_pairwise : bool
        Whether the library's own long sums are sums of short ones. Where they are not, a float32
        sum of a million numbers is wrong in its fourth digit, and the core sums in runs.
    sums_whole_pairwise : bool
        Whether that is so of the sum of a whole array, be it not so of a sum over one axis. Sums
        of equal numbers, added one after another, are rounded the same way each time.
    strip_length : int
        How many rows a strip of a product of a matrix with its own transpose has at least; 0 if
        such products are formed whole. Strips pay where the library sees no symmetry.
    blocks_of_samples : bool
        Whether what is only formed to be summed or added, such as squares and the differences of
        views, is formed a block of samples at a time. It pays where each is an array in memory.
    fills_masked : bool
        Whether what a mask hides is filled with the first sample that counts, so that less is
        multiplied by the mask. It pays where each product is an array in memory, and takes
        `take_sample`.
    stacks : bool
        Whether views of any size are stacked, since each call costs the library much.
    stacked_products : int
        Where not all are, views of any size without positions are stacked if the products of one,
        n × n or d × d, are at most so many numbers.
    sums_by_products : int
        Of up to so many samples a sum of each times its weight is formed of products, in runs. It
        pays where a compiler writes the weights out to the shape of the samples before it
        multiplies by them. Products must be in the precision of their inputs.
    take_sample : callable or None
        ``take_sample(array, place)``: the sample at `place`, ``(..., 1, 1)``, of each set of
        samples in `array`, ``(..., n, d)``, of as many sets: an array ``(..., 1, d)``.
    put_samples : callable or None
        ``put_samples(array, places, n)``: an array ``(n, d)`` with the samples of `array` at
        `places` and 0 elsewhere. With it, absent samples are left out: see `present_samples`.
    top_k_indices : callable or None
        ``top_k_indices(values, k)``: the indices of the k largest values along the last axis, in
        any order.
    put_along_axis : callable or None
        ``put_along_axis(array, indices, values)``: set the values of `array`, in place, at these
        indices along its last axis. The other axes are broadcast.
    """

    updates_in_place: bool = True
    fuses: bool = False
    sums_pairwise: bool = False
    sums_whole_pairwise: bool = False
    strip_length: int = 0
    blocks_of_samples: bool = False
    fills_masked: bool = False
    stacks: bool = False
    stacked_products: int = 0
    sums_by_products: int = 0
    take_sample: Callable[[Array, Array], Array] | None = None
    put_samples: Callable[[Array, Array, int], Array] | None = None
    top_k_indices: Callable[[Array, int], Array] | None = None
    put_along_axis: Callable[[Array, Array, Any], None] | None = None

    def __init__(self, standard: Any, functions: dict[str, Any] | None = None) -> None:
        self._standard = standard
        self.name: str = getattr(standard, "__name__", repr(standard))
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

    def has_operations(self, array: Array) -> bool:
        """Whether `operation` is there for `array`.

        A compiled program can ask for no value of its own, but an operation that the compiler
        does not look into can.
        """
        return False

    def operation(self, name: str, arrays: Arrays, sizes: Sizes) -> Arrays:
        """Return what a function does with `arrays`, as one operation of a compiled program.

        Parameters
        ----------
        name : str
            Of one of ``terms.OPERATIONS``, which says what the function is called with.
        arrays : tuple of array
            What it works on. The results are new arrays, and are not differentiated.
        sizes : Sizes
            From which size on it works in parts.
        """
        raise NotImplementedError

    def sum_of_blocks(
        self, wanted: Array, otherwise: Array, array: Array, scale: Any, part: Part, length: int
    ) -> Array:
        """Return a sum over blocks of columns if it is `wanted`, and `otherwise` if not.

        The derivative is that of `otherwise` in both cases.

        Parameters
        ----------
        wanted : boolean array, shape ()
            Whether the sum is returned.
        otherwise : array, shape ()
            What is returned if the sum is not wanted.
        array : array, shape (..., n, d)
            Its columns are taken a block at a time.
        scale : number, or array of shape (..., 1, 1)
            What `part` is given too.
        part : callable
            ``part(xp, array, block, start, scale)``, of shape (): what a block, whose first column
            is column `start` of `array`, adds to the sum.
        length : int
            The number of columns in a block, except the last.
        """
        raise NotImplementedError

    def stack_of_differences(self, arrays: Sequence[Array], rows: Sequence[Array]) -> Array:
        """Return each array less its row, as one array: ``(..., n, d)`` to ``(k, ..., n, d)``."""
        return self.stack([array - row for array, row in zip(arrays, rows, strict=True)])

    def sum_over_samples(self, array: Array, run: int) -> Array:
        """Return the sum over the axis before the last, ``(..., n, d)`` to ``(..., d)``."""
        return sums.over_samples(self, array, run)

    def mean_over_samples(self, array: Array, run: int) -> Array:
        """Return the mean over the axis before the last, ``(..., n, d)`` to ``(..., 1, d)``."""
        return self.sum_over_samples(array, run)[..., None, :] / array.shape[-2]

    def sum_squares_over_samples(self, array: Array, run: int) -> Array:
        """Return the sum of the squares over the axis before the last."""
        return sums.squares_over_samples(self, array, run)

    def centred_energies(self, samples: Any) -> Array:
        """Return the sum of the squares of each centred feature of `Samples`, ``(..., d)``."""
        return samples.sums_of_squares(samples.centred)

    def centred_products(self, samples: Any, scale: Any) -> Array:
        """Return the products of the centred features of `Samples` times `scale`."""
        return samples.feature_products(samples.centred, scale)

    def minus_products(self, array: Array, column: Array, row: Array) -> Array:
        """Return `array`, which must not be used again, less each product of `column` and `row`.

        Of shapes ``(..., n, d)``, ``(..., n, 1)`` and ``(..., 1, d)``.
        """
        return memory.subtract(self, array, column * row)

    def nonnegative(self, array: Array) -> Array:
        """Return `array` with 0 for what is less; what is NaN stays so."""
        return self.maximum(array, self.zeros_like(array))

    def total_of_squares(self, array: Array, run: int) -> Array:
        """Return the sum of the squares of every element, 0-d."""
        return sums.everything(self, array * array, run)

    def weighted_total_of_squares(self, array: Array, weights: Array, run: int) -> Array:
        """Return the sum of the squares of ``(..., n, d)``, each times its sample's weight, 0-d.

        The weights are of shape ``(..., n, 1)``.
        """
        return sums.everything(self, memory.multiply(self, array * array, weights), run)

    def squares_of_each_set(self, array: Array, run: int) -> Array:
        """Return the sum of the squares over the last two axes, ``(..., a, b)`` to ``(...)``."""
        return sums.of_each_set(self, array * array, run)

    def thin_product(self, left: Array, right: Array) -> Array:
        """Return ``left @ right``, `left` having few columns, to be added to other products."""
        return self.matmul(left, right)

    def scaled_product(self, left: Array, right: Array, scale: Any) -> Array:
        """Return ``scale * (left @ right)``, a new array."""
        return memory.multiply(self, self.matmul(left, right), scale)

    def scaled_rows_and_products(
        self, array: Array, row: Array | None, products: Sequence[Product], part: int
    ) -> Array | None:
        """Return ``array * row`` plus the products; None where there is neither.

        Parameters
        ----------
        array : array, shape (..., n, d)
            It must not be used again.
        row : array, shape (..., d), or None
            None is 0.
        products : sequence of Product
            `array` may be in them.
        part : int
            How many numbers a library may form at a time where there are more, so that no other
            array is as large.
        """
        total = None
        for product_of in products:
            form = self.thin_product if product_of.is_thin else self.matmul
            product = form(*product_of.operands())
            total = product if total is None else memory.add(self, total, product)
        if row is None:
            return total
        scaled = memory.multiply(self, array, row[..., None, :])
        return scaled if total is None else memory.add(self, scaled, total)

    def with_zero_diagonal(self, array: Array, start: Any = 0) -> Array:
        """Return the columns of a square matrix from `start` on with 0 on its diagonal.

        Set, not subtracted: nothing is lost of a matrix that is almost diagonal. `array`, of shape
        ``(..., d, columns)``, must not be used again. It may have some rows of the matrix alone:
        `start` is then counted from the first of them, and the diagonal may be outside.
        """
        rows, columns = (largest.indices(self, length, like=array) for length in array.shape[-2:])
        return self.where(rows[:, None] == start + columns, self.zeros_like(array), array)

    def largest_features(self, sizes: Array, count: int, run: int) -> largest.Features:
        """Return the `count` features whose `sizes`, ``(..., d)``, are the largest."""
        if self.top_k_indices is None:
            return largest.Marked(self, largest.one_hot(self, sizes, count, run))
        places = self.top_k_indices(sizes, count)
        if self.put_along_axis is not None and self.updates_in_place:
            return largest.Placed(self, places)
        marks = places[..., None] == largest.indices(self, sizes.shape[-1], like=sizes)
        return largest.Marked(self, marks, places)
