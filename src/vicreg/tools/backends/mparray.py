"""mparray: arrays of numbers of any precision, by mpmath."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import mparray
import mpmath

from vicreg.tools.backends.base import Array, Floats
from vicreg.tools.backends.standard import StandardBackend

__all__ = ["DIGITS", "MparrayBackend", "backends"]

#: The decimal digits it computes with here.
DIGITS = 50


class MparrayBackend(StandardBackend):
    """mparray, whose one precision is mpmath's: `DIGITS` digits, whatever the dtype is called."""

    takes_large = False  # each number is a Python object

    def __init__(self, name: str) -> None:
        super().__init__(mparray, name)
        self.dtypes = ("float64",)

    def active(self) -> AbstractContextManager[Any]:
        scope: AbstractContextManager[Any] = mpmath.workdps(DIGITS)
        return scope

    def asarray(self, values: Floats, dtype: str) -> Array:
        return mparray.asarray(values.tolist())


def backends(name: str) -> list[MparrayBackend]:
    """Return mparray."""
    return [MparrayBackend(name)]
