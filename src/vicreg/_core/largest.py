"""The largest features: which they are, and what is done with some of many columns.

`Marked` does it by the standard's functions alone, which have no top-k and update nothing by
indices. `Placed` is for libraries that do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Array = Any
Namespace = Any


class Features(Protocol):
    """Some of the features of an array: r of d."""

    def columns(self, array: Array) -> Array:
        """Return these columns of `array`, ``(..., n, d)`` to ``(..., n, r)``."""

    def with_value(self, row: Array, value: float) -> Array:
        """Return `row`, ``(..., d)``, a new array, with `value` for these features."""

    def with_own_cleared(self, array: Array) -> Array:
        """Return `array`, ``(..., r, d)``, with 0 where a row is that of the column's feature.

        `array` must not be used again.
        """

    def product_of_rest(
        self, array: Array, columns: Array, product: Callable[[Array], Array]
    ) -> Array:
        """Return `product` of `array`, ``(..., n, d)``, with 0 in these columns of it.

        `array` is left as it was.
        """


class Marked:
    """Some of the features, each marked in a row of its own.

    Parameters
    ----------
    xp : Namespace
        Of the arrays.
    marks : boolean array, shape (..., r, d)
        True where a row's feature is.
    places : integer array, shape (..., r), optional
        Where it is, if the library takes what is at such places.
    """

    def __init__(self, xp: Namespace, marks: Array, places: Array | None = None) -> None:
        self._xp, self._marks, self._places = xp, marks, places
        self._any = xp.any(marks, axis=-2)

    def columns(self, array: Array) -> Array:
        """As in `Features`."""
        xp = self._xp
        if self._places is not None:
            return xp.take_along_axis(array, self._places[..., None, :], axis=-1)
        return xp.matmul(array, xp.matrix_transpose(xp.astype(self._marks, array.dtype)))

    def with_value(self, row: Array, value: float) -> Array:
        """As in `Features`."""
        # Chosen, not multiplied by 0: what is there may be infinite.
        return self._xp.where(self._any, self._xp.full_like(row, value), row)

    def with_own_cleared(self, array: Array) -> Array:
        """As in `Features`."""
        return self._xp.where(self._marks, self._xp.zeros_like(array), array)

    def product_of_rest(
        self, array: Array, columns: Array, product: Callable[[Array], Array]
    ) -> Array:
        """As in `Features`."""
        rest = self._xp.astype(self._xp.logical_not(self._any), array.dtype)
        return product(array * rest[..., None, :])


class Placed:
    """Some of the features, by their places, for libraries that update arrays at such places.

    Parameters
    ----------
    xp : Library
        Of the arrays.
    places : integer array, shape (..., r)
        Where the features are.
    """

    def __init__(self, xp: Any, places: Array) -> None:
        self._xp, self._places = xp, places

    def columns(self, array: Array) -> Array:
        """As in `Features`."""
        return self._xp.take_along_axis(array, self._places[..., None, :], axis=-1)

    def with_value(self, row: Array, value: float) -> Array:
        """As in `Features`."""
        self._xp.put_along_axis(row, self._places, value)
        return row

    def with_own_cleared(self, array: Array) -> Array:
        """As in `Features`."""
        self._xp.put_along_axis(array, self._places[..., None], 0.0)
        return array

    def product_of_rest(
        self, array: Array, columns: Array, product: Callable[[Array], Array]
    ) -> Array:
        """As in `Features`."""
        # In place, and back after it: a copy would be as large as the view.
        places = self._places[..., None, :]
        self._xp.put_along_axis(array, places, 0.0)
        result = product(array)
        self._xp.put_along_axis(array, places, columns)
        return result


def indices(xp: Namespace, count: int, like: Array) -> Array:
    """Return 0, 1, ..., count - 1 on the device of `like`."""
    # JAX's tracers and MLX's arrays have no device to name.
    device = getattr(like, "device", None)
    # int32 is enough for any axis, and there on devices that have no wider integers.
    if device is None:
        return xp.arange(count, dtype=xp.int32)
    return xp.arange(count, dtype=xp.int32, device=device)


def one_hot(xp: Namespace, values: Array, count: int, run: int) -> Array:
    """Return where the `count` largest of `values`, ``(..., d)``, are: ``(..., count, d)``.

    Of several equal to the smallest of them the first are taken. Where a value is NaN there is no
    order, and any result will do. Sorting costs less in runs of `run` values.
    """
    candidates = _candidates(xp, values, count, run)
    threshold = xp.sort(candidates, axis=-1)[..., -count:][..., :1]
    above = xp.astype(values > threshold, values.dtype)
    equal = xp.astype(values == threshold, values.dtype)
    # Places from 1: first those above the threshold, wherever they stand, then the equal ones.
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
