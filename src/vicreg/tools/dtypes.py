"""The floating-point dtypes that the tools know, and the numbers that describe them."""

from __future__ import annotations

__all__ = ["BYTES", "DTYPES", "FULL", "HALF", "LARGEST", "UNDERFLOW", "UNIT_ROUNDOFF"]

FULL = ("float64", "float32")
HALF = ("bfloat16", "float16")
#: The widest first.
DTYPES = (*FULL, *HALF)

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

#: The largest relative error of rounding to nearest.
UNIT_ROUNDOFF = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "bfloat16": 2.0**-8,
    "float16": 2.0**-11,
}

#: The absolute error of numbers too small for the dtype: those that may be flushed to zero. For
#: float16, which is only rounded to and never computed in, the spacing of its smallest numbers.
UNDERFLOW = {
    "float64": 2.0**-1022,
    "float32": 2.0**-126,
    "bfloat16": 2.0**-126,
    "float16": 2.0**-24,
}

#: The largest finite number of each half precision.
LARGEST = {"bfloat16": (2.0 - 2.0**-7) * 2.0**127, "float16": 65504.0}
