"""The weights of samples: how often each occurs, and what the terms are then averages over.

With weights w ≥ 0 and N = Σ w, of each position by itself,

    mean       = Σ w z / N
    variance   = Σ w zc² / (N − correction)
    covariance = Σ w zc zcᵀ / (N − correction)

so that an integer weight is a repeated sample, and a weight of 0 an absent one. If each row of zc
is multiplied by √w, the formulas of the terms hold as they stand, and their gradients, with each
row multiplied by √w again, are those by z. What stands under a weight of 0 is replaced by 0 first.
That is three passes over a view that there are not without weights, two of them for a value alone.
The invariance, between views, multiplies by w / Σ w what it sums, and its gradient's factor:
nothing more is written.

Of a mask √w is w, and it is one pass: what is absent is replaced by the first sample that counts,
which is subtracted from all, and stays 0 if the mean is subtracted from the others alone. That is
done where each operation makes an array in memory; elsewhere a mask is as other weights.

Of other weights a sample of the largest one is subtracted from all. It is at most √n standard
deviations from the mean, and so close enough; one of a small weight may be anywhere. A library
that takes no sample by its place reads all of them for it.

A position whose weights sum to no more than the largest correction has no statistics: its samples
weigh 0 there, and the terms leave it out of their averages. The weights are not differentiated by.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vicreg._core import sums
from vicreg._core.largest import indices
from vicreg._core.layout import Axes, computing_dtype, dtype_name
from vicreg._core.library import Library

Array = Any


#: By how many of its dtype's roundings a sum of weights may differ from what it stands for.
_ROUNDINGS = 64


@dataclass(frozen=True)
class Counts:
    """What the terms are averages over: numbers, or arrays where samples have weights."""

    samples: Any  # of each position: (..., 1, 1) if an array
    positions: Any  # how many of them have statistics
    total: Any  # samples of all positions; 1 where each counts as its part in all weights
    is_counted: Any = 1  # 0 for a position without statistics: (..., 1, 1) if an array


class SampleWeights:
    """The weights of the samples that are here.

    Parameters
    ----------
    xp : Library
        Of the arrays.
    each : array, shape (..., n, 1)
        The weights, in the dtype of the computation.
    total : array, shape (..., 1, 1)
        Their sum in each position, over all ranks.
    correction : int
        The largest that is subtracted from the number of samples.
    is_mask : bool, optional
        Whether each weight is known to be 0 or 1.
    all_present : bool, optional
        Whether each weight is known to be other than 0.
    between_views : bool, optional
        Whether there is a term between views, which has a part in positions without statistics.

    Attributes
    ----------
    is_mask : bool
        Whether the weights are a mask, and what is absent is replaced by the first sample that
        counts.
    each : array, shape (..., n, 1)
        The weights.
    is_present : boolean array, shape (..., n, 1)
        Whether a sample has a weight other than 0.
    number : array, shape (..., 1, 1)
        The sum of the weights in each position; where that is too small for statistics, what
        gives finite numbers.
    """

    def __init__(
        self,
        xp: Library,
        each: Array,
        total: Array,
        correction: int,
        *,
        is_mask: bool = False,
        all_present: bool = False,
        between_views: bool = True,
    ) -> None:
        if not is_mask:  # what is no weight, where nobody could see it before, gives no number
            each = xp.where(each >= 0, each, xp.full_like(each, math.nan))
            total = xp.where(xp.isfinite(total), total, xp.full_like(total, math.nan))
        self._xp, self.each, self._total = xp, each, total
        self.is_mask = is_mask and xp.fills_masked
        self._all_present, self._between_views = all_present, between_views
        # A sum of weights that are parts of 1 is 1 up to rounding, and no number is left of it.
        # Not `total > least`: what is NaN shall stay so.
        least = correction * (1.0 + _ROUNDINGS * float(xp.finfo(total.dtype).eps))
        self._has_statistics = xp.logical_not(total <= least)
        enough = xp.full_like(total, correction + 1)
        self.number = xp.where(self._has_statistics, total, enough)
        self.is_present = each != 0
        self._formed: dict[str, Array] = {}

    def of_some(self, each: Array, parts: Array) -> SampleWeights:
        """Return those of some of the samples, their weights `each` and `parts` of all."""
        some = copy.copy(self)
        some.each, some._formed = each, {"parts": parts}
        return some

    def _once(self, name: str, form: Callable[[], Array]) -> Array:
        """Return what `form` does, which is called for the first view alone."""
        if name not in self._formed:
            self._formed[name] = form()
        return self._formed[name]

    @property
    def _has_part(self) -> Array:
        """Whether a sample has a part in any term, ``(..., n, 1)``."""
        if self._between_views or not self.has_positions:
            return self.is_present
        return self._xp.logical_and(self.is_present, self._has_statistics)

    def clean(self, array: Array) -> Array:
        """Return `array`, ``(..., n, d)``, with 0 for each sample that has no part in any term."""
        return array if self._all_present else self._xp.kept(array, self._has_part)

    def clean_view(self, view: Array) -> Array:
        """Return what `clean` does of a view; if `is_mask`, the first that counts in place of 0.

        It is 0 where none counts.
        """
        if not self.is_mask or self._all_present:
            return self.clean(view)
        xp, has_part = self._xp, self._has_part
        some_have = self._once("some_have", lambda: xp.any(has_part, axis=-2, keepdims=True))
        return xp.where(has_part, view, xp.kept(self.take_heaviest(view), some_have))

    def in_statistics(self, array: Array) -> Array:
        """Return `array`, ``(..., 1, d)``, with 0 for a position without statistics."""
        return self._xp.kept(array, self._has_statistics) if self.has_positions else array

    def take_heaviest(self, array: Array) -> Array:
        """Return the sample that `is_heaviest`, ``(..., 1, d)``, if the library can take it."""
        take_sample: Any = self._xp.take_sample
        return take_sample(array, self._xp.broadcast_to(self.heaviest, (*array.shape[:-2], 1, 1)))

    @property
    def heaviest(self) -> Array:
        """The place of the sample that `is_heaviest`, ``(..., 1, 1)``; 0 where none is.

        It is an integer of 64 bits in most libraries, which not every device has.
        """
        xp, each = self._xp, self.each
        return self._once("heaviest", lambda: xp.argmax(each, axis=-2, keepdims=True))

    @property
    def is_heaviest(self) -> Array:
        """Whether a sample is the first of the largest weight, ``(..., n, 1)``.

        None is where no weight is other than 0.
        """
        xp, each = self._xp, self.each
        largest = xp.max(each, axis=-2, keepdims=True)
        has_largest = xp.logical_and(self.is_present, each == largest)
        n = each.shape[-2]
        rows = indices(xp, n, like=each)[:, None]
        # Not `heaviest`, whose integers not every device has.
        places = xp.where(has_largest, rows, xp.full_like(rows, n))
        return rows == xp.min(places, axis=-2, keepdims=True)

    @property
    def has_positions(self) -> bool:
        """Whether there are sets of samples with weights of their own."""
        return bool(self.each.ndim > 2)

    @property
    def shares(self) -> Array:
        """Each weight over the sum of its position, ``(..., n, 1)``; 0 without statistics."""
        return self._once("shares", lambda: self._in_statistics(self.each / self.number))

    def parts(self, run: int) -> Array:
        """Return each weight over the sum of all, ``(..., n, 1)``; 0 where that is 0."""

        def form() -> Array:
            xp, total = self._xp, sums.everything(self._xp, self._total, run)
            return self.each / xp.where(total == 0, xp.ones_like(total), total)

        return self._once("parts", form)

    @property
    def roots_in_statistics(self) -> Array:
        """The root of each weight, ``(..., n, 1)``; 0 without statistics."""
        return self._once("roots", lambda: self._in_statistics(self._xp.sqrt(self.each)))

    def counts(self, run: int) -> Counts:
        """Return what the terms are averages over; 1 position where none has statistics."""
        xp = self._xp
        is_counted = xp.astype(self._has_statistics, self._total.dtype)
        if not self.has_positions:
            return Counts(self.number, 1, 1, is_counted)
        positions = sums.everything(xp, is_counted, run)
        positions = xp.maximum(positions, xp.ones_like(positions))
        return Counts(self.number, positions, 1, is_counted)

    def _in_statistics(self, array: Array) -> Array:
        return self._xp.kept(array, self._has_statistics)


def as_constant(xp: Library, weight: Array, view: Array) -> Array:
    """Return the weights of the samples of `view` in the dtype of its computation.

    They are a constant of differentiation.
    """
    return xp.astype(xp.without_gradient(weight), computing_dtype(xp, view))


def of_each(xp: Library, weight: Array, view: Array, axes: Axes) -> Array:
    """Return the weights of the samples of `view` as the core works on them, ``(..., n, 1)``."""
    return axes.of_samples(xp, as_constant(xp, weight, view), view.shape)


def total_of(xp: Library, each: Array, run: int) -> Array:
    """Return the sum of weights ``(..., n, 1)`` in each position, ``(..., 1, 1)``."""
    return xp.sum_over_samples(each, run)[..., None, :]


def first_wrong(xp: Library, weight: Array, like: Array) -> float | None:
    """Return the first value of `weight` that is negative, or not finite where `like` is computed.

    None where there is none, and where values are not there yet: nothing is waited for.
    """
    kind = dtype_name(weight)
    if kind.startswith(("bool", "uint")) or not xp.can_ask(weight):
        return None
    right = weight >= 0  # not so of NaN
    if not kind.startswith("int"):
        kinds = (weight.dtype, computing_dtype(xp, like))
        largest = min(float(xp.finfo(dtype).max) for dtype in kinds)
        right = xp.logical_and(right, weight <= largest)  # not so of what is infinite
    if xp.all(right):
        return None
    place = xp.argmin(xp.reshape(xp.astype(right, xp.int32), (-1,)))
    return float(xp.reshape(weight, (-1,))[int(place)])
