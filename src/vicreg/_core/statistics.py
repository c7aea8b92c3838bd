"""Centring, sums of squares, and the hinge on the variance with its slope."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from vicreg._core import owned
from vicreg._core.blocks import split
from vicreg._core.objective import Objective
from vicreg._core.sizes import Sizes

Array = Any
Namespace = Any


def centred_and_mean(xp: Namespace, z: Array, sizes: Sizes) -> tuple[Array, Array]:
    """Return `z`, ``(..., n, d)``, with each feature's mean removed, and what `centred` takes.

    The first is a new array, the second, ``(..., 1, d)``, the mean of the views less their first
    sample.
    """
    shifted = _shifted(z)
    mean = sum_over_samples(xp, shifted, sizes)[..., None, :] / z.shape[-2]
    return owned.subtract(xp, shifted, mean), mean


def centred(xp: Namespace, z: Array, mean: Array) -> Array:
    """Return what `centred_and_mean` made of `z` and gave `mean` with, as a new array."""
    return owned.subtract(xp, _shifted(z), mean)


def _shifted(z: Array) -> Array:
    """Return `z` with its first sample subtracted, as a new array.

    So its mean is rounded on the scale of the spread and not of a common offset, and a constant
    feature gives exact zeros.
    """
    return z - z[..., :1, :]


def deviations(xp: Namespace, views: Sequence[Array]) -> list[Array]:
    """Return ``[z_0 − z_1]`` of two views; of more, each minus their mean: new arrays."""
    first, *others = views
    if len(others) == 1:
        return [first - others[0]]
    # From the first view, so that the mean is rounded on the scale of the differences.
    from_first = [view - first for view in others]
    mean = functools.reduce(operator.add, from_first) / len(views)
    return [-mean, *(owned.subtract(xp, array, mean) for array in from_first)]


def squared_deviations(xp: Namespace, deviations: Sequence[Array], sizes: Sizes) -> Array:
    """Return the sum of the squares of every element of the `deviations`, 0-d."""
    return total([sum_of_squares(xp, array, sizes) for array in deviations])


def energies(xp: Namespace, zc: Array, sizes: Sizes) -> Array:
    """Return the sum of the squares of each feature of `zc`, ``(..., d)``.

    Libraries that need no array of squares for it offer it as ``energies``.
    """
    offered = getattr(xp, "energies", None)
    if offered is not None:
        return _in_runs(xp, zc, offered, sizes)

    def of_run(run: Array) -> Array:
        return xp.sum(run * run, axis=-2)

    found = [_in_runs(xp, block, of_run, sizes) for block in split(xp, zc, -1, sizes)]
    return found[0] if len(found) == 1 else xp.concat(found, axis=-1)


def sum_of_squares(xp: Namespace, array: Array, sizes: Sizes) -> Array:
    """Return the sum of the squares of every element, 0-d.

    Libraries that need no array of squares for it offer it as ``sum_of_squares``.
    """
    offered = getattr(xp, "sum_of_squares", None)
    if offered is not None:
        return offered(array)
    return total([sum_all(xp, block * block, sizes) for block in split(xp, array, -1, sizes)])


def sum_over_samples(xp: Namespace, array: Array, sizes: Sizes) -> Array:
    """Return the sum over the axis before the last, ``(..., n, d)`` to ``(..., d)``.

    Libraries that have the samples in several places offer it as ``sum_over_samples``.
    """
    offered = getattr(xp, "sum_over_samples", None)
    if offered is not None:
        return offered(array)
    return _in_runs(xp, array, functools.partial(xp.sum, axis=-2), sizes)


def sum_all(xp: Namespace, array: Array, sizes: Sizes) -> Array:
    """Return the sum of every element, 0-d."""
    if _sums_well(xp) or math.prod(array.shape) < 2 * sizes.summed:
        return xp.sum(array)
    rows = sum_over_samples(xp, array, sizes) if array.ndim > 1 else array
    return xp.sum(sum_over_samples(xp, xp.reshape(rows, (-1, 1)), sizes))


def _in_runs(xp: Namespace, array: Array, of_run: Callable[[Array], Array], sizes: Sizes) -> Array:
    """Return the sum of `of_run`, ``(..., n, d)`` to ``(..., d)``, over runs of the samples.

    A sum is wrong by the roundings that each number goes through, here those of a few short sums
    instead of one long one.
    """
    *sets, n, d = array.shape
    length = sizes.summed
    if _sums_well(xp) or n < 2 * length:
        return of_run(array)
    whole = n - n % length
    runs = xp.reshape(array[..., :whole, :], (*sets, whole // length, length, d))
    found = sum_over_samples(xp, of_run(runs), sizes)
    return found if whole == n else found + of_run(array[..., whole:, :])


def _sums_well(xp: Namespace) -> bool:
    """Whether the library's own sums are of sums, as its namespace says by ``sums_pairwise``."""
    return getattr(xp, "sums_pairwise", False)


def total(values: Sequence[Any]) -> Any:
    """Return the sum of one or more values."""
    return functools.reduce(operator.add, values)


def hinge(xp: Namespace, hinged: Array, objective: Objective) -> Array:
    """Return ``max(0, gamma - s)`` of each feature, s being `hinged`."""
    short = objective.gamma - hinged
    return xp.maximum(short, xp.zeros_like(short))


def hinged(xp: Namespace, energies: Array, n: int, objective: Objective) -> Array:
    """Return what the hinge is on: the std or the variance of each feature."""
    variance = energies / _degrees(n, objective)
    if objective.convention.hinge_on == "variance":
        return variance
    shifted = variance + objective.eps
    if not _may_be_zero(objective):
        return xp.sqrt(shifted)
    # The inner where keeps the root of 0 out of the derivative.
    alive = shifted > 0
    root = xp.sqrt(xp.where(alive, shifted, xp.ones_like(shifted)))
    return xp.where(alive, root, xp.zeros_like(root))


def hinge_slope(xp: Namespace, hinged: Array, n: int, objective: Objective) -> Array:
    """Return the row w such that the hinge's derivative by z is ``centred * w``.

    Where the std is 0 (a dead feature, and no ε) its centred values are 0 too, and w is 0 rather
    than their quotient's limit, which has none.
    """
    m = _degrees(n, objective)
    active = hinged < objective.gamma
    if objective.convention.hinge_on == "variance":
        return (-2.0 / m) * xp.astype(active, hinged.dtype)
    std = hinged
    if _may_be_zero(objective):
        alive = hinged > 0
        active = xp.logical_and(active, alive)
        std = xp.where(alive, hinged, xp.ones_like(hinged))
    return xp.where(active, (-1.0 / m) / std, xp.zeros_like(std))


def _degrees(n: int, objective: Objective) -> int:
    """Return what the variance divides the sum of `n` squares by."""
    return n - objective.convention.variance_correction


def _may_be_zero(objective: Objective) -> bool:
    """Whether a variance with ε added may be 0 in some dtype of the computation."""
    return objective.eps < _SMALLEST_NORMAL


#: Of float32, the narrowest of them.
_SMALLEST_NORMAL = 2.0**-126
