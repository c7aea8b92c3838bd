"""What may be the weight of a sample: how often it counts."""

from __future__ import annotations

from typing import Any

from vicreg._core.layout import dtype_name
from vicreg._core.library import Library

Array = Any


def first_wrong(xp: Library, weight: Array) -> float | None:
    """Return the first value of `weight` that is negative or not finite.

    None where there is none, and where values are not there yet: nothing is waited for.
    """
    kind = dtype_name(weight)
    if kind.startswith(("bool", "uint")) or not xp.can_ask(weight):
        return None
    right = weight >= 0  # not so of NaN
    if not kind.startswith("int"):
        right = xp.logical_and(right, xp.isfinite(weight))
    if xp.all(right):
        return None
    place = xp.argmin(xp.reshape(xp.astype(right, xp.int32), (-1,)))
    return float(xp.reshape(weight, (-1,))[int(place)])
