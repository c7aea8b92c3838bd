"""mparray: arrays of numbers of any precision, by mpmath."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import mparray
import mpmath

from vicreg.tools.backends.standard import StandardBackend

__all__ = ["DIGITS", "MparrayBackend", "backends"]

#: The number of decimal digits.
DIGITS = 50


class MparrayBackend(StandardBackend):
    """mparray, which has one precision: `DIGITS` digits, here called float64."""

    takes_large = False  # each number is a Python object

    def __init__(self, name: str) -> None:
        super().__init__(mparray, name)
        self.dtypes = ("float64",)

    def active(self) -> AbstractContextManager[Any]:
        scope: AbstractContextManager[Any] = mpmath.workdps(DIGITS)
        return scope


def backends(name: str) -> list[MparrayBackend]:
    """Return mparray."""
    return [MparrayBackend(name)]
