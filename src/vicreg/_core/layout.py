"""The views as arrays of one layout, and gradients back in the shape and dtype of each view.

The core works on one view at a time, ``(..., n, d)``: positions, samples, features. Each position
has samples of its own, so no formula mentions positions. Where positions are pooled, each position
of each sample is a sample: there is no axis of positions, and n counts them all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Array = Any
Namespace = Any


def laid_out(xp: Namespace, view: Array, feature_axis: int, pooled: bool = False) -> Array:
    """Return `view` as ``(..., n, d)`` in the dtype of the computation."""
    array = transposed(xp, view, core_order(view.ndim, feature_axis, pooled))
    if pooled and view.ndim > 2:
        array = xp.reshape(array, core_shape([view], feature_axis, pooled)[1:])
    return in_computing_dtype(xp, array)


def in_computing_dtype(xp: Namespace, array: Array) -> Array:
    """Return `array` in float32 where its dtype is narrower, unchanged otherwise."""
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


def like_view(
    xp: Namespace, gradient: Array, view: Array, feature_axis: int, pooled: bool = False
) -> Array:
    """Return `gradient`, laid out ``(..., n, d)``, in the shape and dtype of `view`."""
    order = core_order(view.ndim, feature_axis, pooled)
    if pooled and view.ndim > 2:
        gradient = xp.reshape(gradient, tuple(view.shape[axis] for axis in order))
    back = tuple(sorted(range(view.ndim), key=order.__getitem__))
    gradient = transposed(xp, gradient, back)
    return gradient if gradient.dtype == view.dtype else xp.astype(gradient, view.dtype)


def core_order(ndim: int, feature_axis: int, pooled: bool = False) -> tuple[int, ...]:
    """Return the permutation that takes a view's axes to ``(..., n, d)``.

    The features are on `feature_axis`; of the axes left, the first is the samples. It stays the
    first where positions are `pooled`: with the features last nothing has to be moved.
    """
    feature = feature_axis % ndim
    if ndim == 2:  # the common case, asked for several times a call
        return (0, 1) if feature else (1, 0)
    sample, *positions = (axis for axis in range(ndim) if axis != feature)
    return (sample, *positions, feature) if pooled else (*positions, sample, feature)


def core_shape(views: Sequence[Array], feature_axis: int, pooled: bool = False) -> tuple[int, ...]:
    """Return ``(k, ..., n, d)``, the shape of `views` as the core works on them."""
    order = core_order(views[0].ndim, feature_axis, pooled)
    *batch, d = (views[0].shape[axis] for axis in order)
    return (len(views), math.prod(batch), d) if pooled else (len(views), *batch, d)


def transposed(xp: Namespace, array: Array, order: tuple[int, ...]) -> Array:
    """Return `array` with its axes in `order`, itself where they are."""
    return array if order == tuple(range(array.ndim)) else xp.permute_dims(array, order)
