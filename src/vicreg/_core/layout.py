"""The views as arrays of one layout, and gradients back in the shape and dtype of each view.

The core works on one view at a time, ``(..., n, d)``: positions, samples, features. Each position
has samples of its own, so no formula mentions positions. Several axes of samples become one, and
so do several of features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

Array = Any
Namespace = Any
Places = tuple[int, ...]  # of axes


@dataclass(frozen=True)
class Axes:
    """Which axes of a view hold its features and which its samples; the others are positions.

    Parameters
    ----------
    features : tuple of int
        One or more, in the order in which they become one.
    samples : tuple of int, or None
        Likewise. None is the first axis that holds no features.
    pooled : bool
        Whether None means every axis that holds no features instead.
    """

    features: Places
    samples: Places | None = None
    pooled: bool = False

    def split(self, ndim: int) -> tuple[Places, Places, Places]:
        """Return the axes of positions, of samples and of features among `ndim`."""
        if ndim == 2:  # the common case, asked for several times a call
            return ((), (0,), (1,)) if self.features[0] % 2 else ((), (1,), (0,))
        features = tuple(axis % ndim for axis in self.features)
        others = tuple(axis for axis in range(ndim) if axis not in features)
        if self.samples is None:
            samples = others if self.pooled else others[:1]
        else:
            samples = tuple(axis % ndim for axis in self.samples)
        return tuple(axis for axis in others if axis not in samples), samples, features

    def order(self, ndim: int) -> Places:
        """Return the permutation that takes a view's axes to positions, samples, features."""
        positions, samples, features = self.split(ndim)
        return positions + samples + features

    def core_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return ``(..., n, d)``, the shape in which the core works on a view of `shape`."""
        positions, samples, features = self.split(len(shape))
        if len(shape) == 2:
            return shape[samples[0]], shape[features[0]]
        return (
            *[shape[axis] for axis in positions],
            math.prod([shape[axis] for axis in samples]),
            math.prod([shape[axis] for axis in features]),
        )

    def laid_out(self, xp: Namespace, view: Array) -> Array:
        """Return `view` as ``(..., n, d)`` in the dtype of the computation."""
        return as_computed(xp, self.in_order(xp, view))

    def in_order(self, xp: Namespace, view: Array) -> Array:
        """Return `view` as ``(..., n, d)``."""
        array = transposed(xp, view, self.order(view.ndim))
        return array if view.ndim == 2 else xp.reshape(array, self.core_shape(view.shape))

    def of_samples(self, xp: Namespace, array: Array, shape: tuple[int, ...]) -> Array:
        """Return what broadcasts to a view's `shape` without its features as ``(..., n, 1)``."""
        positions, samples, features = self.split(len(shape))
        others = [axis for axis in range(len(shape)) if axis not in features]
        whole = xp.broadcast_to(array, tuple(shape[axis] for axis in others))
        whole = transposed(xp, whole, tuple(others.index(axis) for axis in positions + samples))
        return xp.reshape(whole, (*self.core_shape(shape)[:-1], 1))

    def like_view(self, xp: Namespace, gradient: Array, view: Array) -> Array:
        """Return `gradient`, laid out ``(..., n, d)``, in the shape and dtype of `view`."""
        order = self.order(view.ndim)
        if gradient.ndim < view.ndim:
            gradient = xp.reshape(gradient, tuple(view.shape[axis] for axis in order))
        back = tuple(sorted(range(view.ndim), key=order.__getitem__))
        gradient = transposed(xp, gradient, back)
        return gradient if gradient.dtype == view.dtype else xp.astype(gradient, view.dtype)


def transposed(xp: Namespace, array: Array, order: Places) -> Array:
    """Return `array` with its axes in `order`, itself where they are."""
    return array if order == tuple(range(array.ndim)) else xp.permute_dims(array, order)


def as_computed(xp: Namespace, array: Array) -> Array:
    """Return `array` in the dtype in which the core computes with it."""
    return xp.astype(array, xp.float32) if dtype_name(array) in HALF_PRECISION else array


def computing_dtype(xp: Namespace, array: Array) -> Any:
    """Return the dtype in which the core computes with `array`."""
    return xp.float32 if dtype_name(array) in HALF_PRECISION else array.dtype


HALF_PRECISION = ("float16", "bfloat16")


def dtype_name(array: Array) -> str:
    """Return the standard's name of the dtype of `array`: "float32" of any library."""
    # NumPy's dtypes have a name, which leaves out the byte order; elsewhere str ends with it.
    dtype = array.dtype
    name = getattr(dtype, "name", None)
    return (name if isinstance(name, str) else str(dtype)).rpartition(".")[2].lower()
