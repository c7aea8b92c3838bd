"""Centring, sums of squares, and the hinge on the variance with its slope."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

from vicreg.core import owned
from vicreg.core.objective import Objective

Array = Any
Namespace = Any


def mean_and_energies(xp: Namespace, z: Array) -> tuple[Array, Array]:
    """Return what `centred` takes, and the sum of the squares of each centred feature.

    The shapes are ``(..., 1, d)`` and ``(..., d)``. The centred array is squared in place and
    made anew where it is needed: to allocate another costs more.
    """
    shifted = _shifted(z)
    mean = xp.mean(shifted, axis=-2, keepdims=True)
    zc = owned.subtract(xp, shifted, mean)
    return mean, xp.sum(owned.multiply(xp, zc, zc), axis=-2)


def centred(xp: Namespace, z: Array, mean: Array) -> Array:
    """Return `z`, ``(..., n, d)``, with each feature's mean removed, as a new array."""
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


def squared_deviations(xp: Namespace, views: Sequence[Array]) -> Array:
    """Return the sum of the squares of every element of the deviations, 0-d."""
    squares = [owned.multiply(xp, array, array) for array in deviations(xp, views)]
    return functools.reduce(operator.add, [xp.sum(array) for array in squares])


def sum_of_squares(xp: Namespace, array: Array) -> Array:
    """Return the sum of the squares of every element, 0-d."""
    return xp.sum(array * array)


def hinge(xp: Namespace, variance: Array, objective: Objective) -> Array:
    """Return ``max(0, gamma - s)`` of each feature, s its std or its variance."""
    if objective.convention.hinge_on == "variance":
        spread = variance
    else:
        spread = xp.sqrt(variance + objective.eps)
    short = objective.gamma - spread
    return xp.maximum(short, xp.zeros_like(short))


def hinge_slope(xp: Namespace, variance: Array, m: int, objective: Objective) -> Array:
    """Return the row w such that the hinge's derivative by z is ``centred * w``.

    `m` is n minus the variance's correction. Where the std is 0 (a dead feature, and no ε) its
    centred values are 0 too, and w is 0 rather than their quotient's limit, which has none.
    """
    if objective.convention.hinge_on == "variance":
        return (-2.0 / m) * xp.astype(variance < objective.gamma, variance.dtype)
    shifted = variance + objective.eps
    alive = shifted > 0
    # The inner where keeps 1/0 out of the derivative of this slope as well.
    root = xp.sqrt(xp.where(alive, shifted, xp.ones_like(shifted)))
    active = xp.logical_and(root < objective.gamma, alive)
    return xp.where(active, (-1.0 / m) / root, xp.zeros_like(shifted))
