"""What is counted of a call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Counts", "stored"]


@dataclass
class Counts:
    """What a call asks of a library.

    Parameters
    ----------
    calls : int
        Operations that compute or copy. A view, which is another reading of the same memory, is
        none; nor is memory that is allocated and not written.
    bytes_moved : int
        The bytes that each operation reads and writes: its arrays and its results. An array that
        is broadcast counts as it is stored; one that is updated in place is read and written.
    multiply_adds : int
        Those of the matrix products.
    """

    calls: int = 0
    bytes_moved: int = 0
    multiply_adds: int = 0

    def add(self, bytes_moved: int, multiply_adds: int = 0) -> None:
        """Count one operation."""
        self.calls += 1
        self.bytes_moved += bytes_moved
        self.multiply_adds += multiply_adds


def stored(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> int:
    """Return the bytes of an array, one element for all the places that broadcast it."""
    sizes = zip(shape, strides, strict=True)
    return itemsize * math.prod(size for size, stride in sizes if stride or not size)
