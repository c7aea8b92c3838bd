"""The published formula as users write it, in any library and in the dtype of the views.

That is the mean, z less the mean, ``zc.T @ zc / (n - 1)`` and the squares off its diagonal. The
gradient is what automatic differentiation makes of it, one operation after another, backwards;
``test_hard_input.py`` checks that with PyTorch's. Nothing of the package is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from backends import Backend

__all__ = ["Plain", "plain"]

Array = Any
EPS = 1e-4


class Plain(NamedTuple):
    """Of each term the value, and the gradient by each view, in the library's arrays."""

    values: tuple[Array, Array, Array]
    gradients: tuple[list[Array], list[Array], list[Array]]

    def loss(self, weights: Sequence[float]) -> Array:
        """Return the sum of the terms, each times its weight."""
        first, second, third = (w * v for w, v in zip(weights, self.values, strict=True))
        return first + second + third

    def gradient(self, weights: Sequence[float]) -> list[Array]:
        """Return the gradient of that."""
        return [
            weights[0] * first + weights[1] * second + weights[2] * third
            for first, second, third in zip(*self.gradients, strict=True)
        ]


def plain(library: Backend, views: Sequence[Array], weight: Array | None = None) -> Plain:
    """Return the terms of two views in the convention "official".

    `weight`, ``(n, 1)``, is how often each sample occurs.
    """
    n, d = views[0].shape
    difference = views[0] - views[1]
    square = difference * difference
    along = 2 * difference / (n * d)
    if weight is not None:
        total = library.xp.sum(weight)
        square, along = weight * square * (n / total), along * weight * (n / total)
    invariance = library.xp.mean(square)
    parts = [_of_view(library, z, weight) for z in views]
    return Plain(
        (
            invariance,
            parts[0][0] / 2 + parts[1][0] / 2,
            parts[0][2] + parts[1][2],
        ),
        ([along, -along], [part[1] for part in parts], [part[3] for part in parts]),
    )


def _of_view(library: Backend, z: Array, weight: Array | None) -> tuple[Array, ...]:
    """Return variance and covariance of a view, each followed by its gradient."""
    xp, (n, d) = library.xp, z.shape

    def mean(array: Array) -> Array:
        if weight is None:
            return xp.mean(array, axis=0)
        return xp.sum(weight * array, axis=0) / xp.sum(weight)

    def sent_back(gradient: Array) -> Array:
        """Return the gradient by z of what has this one by z - mean(z)."""
        if weight is None:
            return gradient - xp.mean(gradient, axis=0)
        return gradient - weight * (xp.sum(gradient, axis=0) / xp.sum(weight))

    divisor = n - 1 if weight is None else xp.sum(weight) - 1
    centred = z - mean(z)
    again = centred - mean(centred)  # as a variance does
    counted, counted_again = (x if weight is None else weight * x for x in (centred, again))
    std = xp.sqrt(xp.sum(again * counted_again, axis=0) / divisor + EPS)
    zeros = xp.zeros_like(std)
    variance = xp.mean(xp.maximum(1 - std, zeros))
    by_std = xp.where(std < 1, zeros - 1 / (2 * d), zeros)
    by_centred = by_std / (2 * std) * (2 * counted_again) / divisor

    c = (counted.T @ centred) / divisor
    o = xp.where(library.asarray(np.eye(d), "float32") > 0.5, xp.zeros_like(c), c)
    covariance = xp.sum(o * o) / d
    by_c = 2 * o / d / divisor
    by_product = counted @ (by_c + by_c.T)
    return variance, sent_back(by_centred), covariance, sent_back(by_product)
