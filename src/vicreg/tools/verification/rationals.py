"""Arrays of exact numbers: integers over one denominator, with operators like NumPy's.

The formulas in `definition` run on these numbers without rounding, and on NumPy arrays of float64
if the inputs are too large for that. The functions here accept both.

A float is an integer over a power of two, and sums, products and quotients of fractions are
fractions. Only roots and reciprocals are rounded, to `PLACES` binary places, which is more than
150 decimal digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "PLACES",
    "Exact",
    "Rationals",
    "clipped",
    "exact",
    "reciprocal",
    "root",
    "to_places",
    "where",
    "without_diagonal",
]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.object_]  # Python integers of any size
Mask = npt.NDArray[np.bool_]

#: The number of binary places of roots, reciprocals and rounded terms.
PLACES = 512


class Rationals:
    """An array of fractions with a common denominator.

    Parameters
    ----------
    numerators : array of Python integers
        The numerators, of any shape.
    denominator : int
        The positive denominator.
    """

    __array_ufunc__ = None  # so that NumPy arrays defer to the operators here

    def __init__(self, numerators: Integers | int, denominator: int) -> None:
        self.numerators: Integers = np.asarray(numerators, dtype=object)
        self.denominator = denominator

    @classmethod
    def of(cls, values: Floats) -> Rationals:
        """Return `values` without rounding."""
        ratios = [float(x).as_integer_ratio() for x in values.ravel()]
        shift = max(q.bit_length() - 1 for _, q in ratios)
        whole = [p << shift - (q.bit_length() - 1) for p, q in ratios]
        return cls(np.array(whole, dtype=object).reshape(values.shape), 1 << shift)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.numerators.shape

    @property
    def T(self) -> Rationals:  # noqa: N802 - as NumPy calls it
        """The transpose."""
        return Rationals(self.numerators.T, self.denominator)

    def __getitem__(self, index: Any) -> Rationals:
        return Rationals(self.numerators[index], self.denominator)

    def sum(self, axis: int | None = None) -> Rationals:
        """Return the sum along an axis, or of all elements."""
        return Rationals(self.numerators.sum(axis=axis), self.denominator)

    def mean(self, axis: int) -> Rationals:
        """Return the mean along an axis."""
        return self.sum(axis) / self.shape[axis]

    def __add__(self, other: Any) -> Rationals:
        other = _rationals(other)
        if self.denominator == other.denominator:
            return Rationals(self.numerators + other.numerators, self.denominator)
        common = math.lcm(self.denominator, other.denominator)
        ours = self.numerators * (common // self.denominator)
        theirs = other.numerators * (common // other.denominator)
        return Rationals(ours + theirs, common)

    __radd__ = __add__

    def __neg__(self) -> Rationals:
        return Rationals(-self.numerators, self.denominator)

    def __sub__(self, other: Any) -> Rationals:
        return self + -_rationals(other)

    def __rsub__(self, other: Any) -> Rationals:
        return -self + _rationals(other)

    def __mul__(self, other: Any) -> Rationals:
        other = _rationals(other)
        return Rationals(self.numerators * other.numerators, self.denominator * other.denominator)

    __rmul__ = __mul__

    def __truediv__(self, number: float | Fraction) -> Rationals:
        return self * (1 / Fraction(number))

    def __matmul__(self, other: Rationals) -> Rationals:
        return Rationals(self.numerators @ other.numerators, self.denominator * other.denominator)

    def __gt__(self, number: float) -> Mask:
        return self._compared(number, np.greater)

    def __lt__(self, number: float) -> Mask:
        return self._compared(number, np.less)

    def _compared(self, number: float, compare: Callable[..., Any]) -> Mask:
        limit = Fraction(number)
        ours, theirs = self.numerators * limit.denominator, limit.numerator * self.denominator
        return np.asarray(compare(ours, theirs), dtype=bool)


def _rationals(value: Any) -> Rationals:
    if isinstance(value, Rationals):
        return value
    number = Fraction(value)
    return Rationals(number.numerator, number.denominator)


def to_places(x: Any) -> Any:
    """Return `x` to `PLACES` binary places, so that all sums have the same denominator."""
    if not isinstance(x, Rationals):
        return x
    return Rationals((x.numerators << PLACES) // x.denominator, 1 << PLACES)


def root(x: Any) -> Any:
    """Return √x."""
    if not isinstance(x, Rationals):
        return np.sqrt(x)
    scaled = (x.numerators << 2 * PLACES) // x.denominator
    return Rationals(_each(math.isqrt, scaled), 1 << PLACES)


def reciprocal(x: Any) -> Any:
    """Return 1/x, and 0 where x is 0."""
    if not isinstance(x, Rationals):
        return np.divide(1.0, x, out=np.zeros_like(x), where=x != 0)
    one = x.denominator << PLACES
    return Rationals(
        _each(lambda number: one // number if number else 0, x.numerators), 1 << PLACES
    )


def where(mask: Mask, x: Any) -> Any:
    """Return `x` where the mask is true, and 0 elsewhere."""
    if not isinstance(x, Rationals):
        return np.where(mask, x, 0.0)
    return Rationals(np.where(mask, x.numerators, 0), x.denominator)


def clipped(x: Any, limit: float) -> Any:
    """Return `x` clipped to ±limit."""
    if not isinstance(x, Rationals):
        return np.clip(x, -limit, limit)
    return x - where(x > limit, x - limit) - where(x < -limit, x + limit)


def without_diagonal(x: Any) -> Any:
    """Set the diagonal of a square matrix to 0, in place, and return it."""
    np.fill_diagonal(x.numerators if isinstance(x, Rationals) else x, 0)
    return x


def sum_of_squares(x: Any) -> Any:
    """Return the sum of the squares of a matrix, of floats without a second one of its size."""
    return (x * x).sum() if isinstance(x, Rationals) else np.vdot(x, x)


def _each(function: Callable[[int], int], integers: Integers) -> Integers:
    return np.array([function(one) for one in integers.ravel()], dtype=object).reshape(
        integers.shape
    )


@dataclass(frozen=True)
class Exact:
    """Numbers with twice the precision of a float: ``high + low``."""

    high: Floats
    low: Floats

    def error_of(self, values: Floats) -> Floats:
        """Return the absolute errors of `values`, to full precision."""
        with np.errstate(invalid="ignore"):  # inf − inf
            difference = np.abs((values - self.high) - self.low)
        return np.where(values == self.high, np.abs(self.low), difference)


def exact(x: Any, twice: bool = True) -> Exact:
    """Return `x` with `twice` the precision of a float, or rounded to floats.

    An array of floats is returned as it is.
    """
    if not isinstance(x, Rationals):
        high = np.asarray(x, dtype=np.float64)
        return Exact(high, np.zeros_like(high))
    if not twice:
        rounded = [number / x.denominator for number in x.numerators.ravel()]
        high = np.array(rounded, dtype=np.float64).reshape(x.shape)
        return Exact(high, np.zeros_like(high))
    pairs = [_pair(number, x.denominator) for number in x.numerators.ravel()]
    high, low = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return Exact(high.reshape(x.shape), low.reshape(x.shape))


def _pair(numerator: int, denominator: int) -> tuple[float, float]:
    high = numerator / denominator  # the quotient of two integers is correctly rounded
    p, q = high.as_integer_ratio()
    return high, (numerator * q - p * denominator) / (denominator * q)
