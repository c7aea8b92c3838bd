"""Centring, sums of squares, and the hinge on the variance with its slope."""

from __future__ import annotations

from typing import Any

from vicreg.core.objective import Objective

Array = Any
Namespace = Any


def centred(xp: Namespace, z: Array) -> Array:
    """Return `z`, ``(..., n, d)``, with each feature's mean over the samples removed.

    The first sample is subtracted before the mean is taken. So the mean is rounded on the scale
    of the spread, not of a common offset, and a constant feature gives exact zeros.
    """
    shifted = z - z[..., :1, :]
    return shifted - xp.mean(shifted, axis=-2, keepdims=True)


def deviations(xp: Namespace, z: Array) -> Array:
    """Return z_0 − z_1 of two views ``(2, ...)``; of more, ``(k, ...)``, each minus their mean."""
    if z.shape[0] == 2:
        return z[0, ...] - z[1, ...]
    # From the first view, so that the mean is rounded on the scale of the differences.
    shifted = z - z[:1, ...]
    return shifted - xp.mean(shifted, axis=0, keepdims=True)


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
    active = xp.logical_and(xp.sqrt(shifted) < objective.gamma, shifted > 0)
    # The inner where keeps 1/0 out of the derivative of this slope as well.
    root = xp.sqrt(xp.where(active, shifted, xp.ones_like(shifted)))
    return xp.where(active, -1.0 / (m * root), xp.zeros_like(shifted))
