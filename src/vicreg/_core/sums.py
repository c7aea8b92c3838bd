"""Sums of many numbers, right to a few roundings on every library.

A library that adds one number after another rounds each of them as often as there are numbers.
Here a long sum is one of short ones, of runs; a library whose own sums are such says so by
``sums_pairwise``, one of which only those of whole arrays are by ``sums_whole_pairwise``.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

Array = Any
Library = Any  # vicreg._core.library.Library, whose defaults these functions are


def over_samples(xp: Library, array: Array, run: int) -> Array:
    """Return the sum over the axis before the last, ``(..., n, d)`` to ``(..., d)``."""
    return _in_runs(xp, array, run, functools.partial(xp.sum, axis=-2))


def squares_over_samples(xp: Library, array: Array, run: int) -> Array:
    """Return the sum of the squares over the axis before the last."""
    return _in_runs(xp, array, run, lambda part: xp.sum(part * part, axis=-2))


def everything(xp: Library, array: Array, run: int) -> Array:
    """Return the sum of every element, 0-d."""
    if xp.sums_whole_pairwise or xp.sums_pairwise or math.prod(array.shape) < 2 * run:
        return xp.sum(array)
    rows = xp.sum_over_samples(array, run) if array.ndim > 1 else array
    return xp.sum(xp.sum_over_samples(xp.reshape(rows, (-1, 1)), run))


def of_each_set(xp: Library, array: Array, run: int) -> Array:
    """Return the sum over the last two axes, ``(..., a, b)`` to ``(...)``."""
    if xp.sums_whole_pairwise or xp.sums_pairwise:
        return xp.sum(array, axis=(-2, -1))
    rows = xp.sum_over_samples(array, run)
    return xp.sum_over_samples(rows[..., None], run)[..., 0]


def _in_runs(xp: Library, array: Array, run: int, summed: Callable[[Array], Array]) -> Array:
    *sets, n, d = array.shape
    if xp.sums_pairwise or n < 2 * run:
        return summed(array)
    whole = n - n % run
    parts = xp.reshape(array[..., :whole, :], (*sets, whole // run, run, d))
    total = xp.sum_over_samples(summed(parts), run)
    return total if whole == n else total + summed(array[..., whole:, :])


def of_products(xp: Library, array: Array, factors: Array, run: int) -> Array:
    """Return the sum of the rows, each times its factor ``(..., n, 1)``, as ``(..., 1, d)``.

    A product adds one number after another: each is of a run.
    """
    runs = (slice(start, start + run) for start in range(0, array.shape[-2], run))
    return total(
        xp.matmul(xp.matrix_transpose(factors[..., rows, :]), array[..., rows, :]) for rows in runs
    )


def plus(*values: Any) -> Any:
    """Return the sum of `values`, each an array, a number, or None, which counts as nothing."""
    return total(value for value in values if value is not None)


def total(values: Iterable[Any]) -> Any:
    """Return the sum of `values`, None if there are none."""
    first = None
    for value in values:
        first = value if first is None else operator.add(first, value)
    return first
