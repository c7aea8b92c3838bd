"""The largest values of an array by the standard's functions alone, which have no top-k."""

from __future__ import annotations

from typing import Any

Array = Any
Namespace = Any


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
