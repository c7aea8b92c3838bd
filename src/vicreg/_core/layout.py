"""The views as arrays of one layout, and gradients back in the shape and dtype of each view.

The core works on groups of views, ``(..., n, d)``: the views of the group if it has several,
positions, samples, features. Views and positions are both batches of independent sample sets, so
no formula mentions either. Where positions are pooled, each position of each sample is a sample:
there is no axis of positions, and n counts them all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vicreg._core.sizes import Sizes

Array = Any
Namespace = Any


def laid_out(xp: Namespace, view: Array, feature_axis: int, pooled: bool = False) -> Array:
    """Return `view` as ``(..., n, d)`` in the dtype of the computation."""
    array = transposed(xp, view, core_order(view.ndim, feature_axis, pooled))
    if pooled and view.ndim > 2:
        array = xp.reshape(array, core_shape([view], feature_axis, pooled)[1:])
    return in_computing_dtype(xp, array)


def group_sizes(shape: Sequence[int], sizes: Sizes, stacks: bool = False) -> tuple[int, ...]:
    """Return how many views each group has, for views laid out as `shape`, ``(k, ..., n, d)``.

    Small views are stacked to one group, since there each call of a library costs more than its
    work. A large one is a group by itself: nothing is copied, and what is computed of one view
    leaves its memory to the next; unless the library `stacks`, that is, each call costs it much.
    """
    k = shape[0]
    return (1,) * k if is_large(shape[1:], sizes) and not stacks else (k,)


def is_large(shape: Sequence[int], sizes: Sizes) -> bool:
    """Whether a view of this shape costs more to copy than a few calls of its library do."""
    return math.prod(shape) > sizes.stacked


def together(xp: Namespace, views: Sequence[Array]) -> Array:
    """Return a group as one array, for reading: a view by itself has no axis of views."""
    return views[0] if len(views) == 1 else xp.stack(views)


def in_computing_dtype(xp: Namespace, array: Array) -> Array:
    """Return `array` in float32 where its dtype is narrower, unchanged otherwise."""
    return xp.astype(array, xp.float32) if dtype_name(array) in HALF_PRECISION else array


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


def indices(xp: Namespace, count: int, like: Array) -> Array:
    """Return 0, 1, ..., count - 1 where `like` is, with nothing made elsewhere first."""
    # Arrays that stand for values not there yet (JAX tracers) and MLX's have no device to name.
    device = getattr(like, "device", None)
    # int32 is enough for any axis, and there on devices that have no wider integers.
    if device is None:
        return xp.arange(count, dtype=xp.int32)
    return xp.arange(count, dtype=xp.int32, device=device)
