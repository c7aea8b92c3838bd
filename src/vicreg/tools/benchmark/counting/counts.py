"""What is counted of a call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Alive", "Counts", "stored"]


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
    peak_bytes : int
        The most bytes that are alive at once of the memory that the call allocates: its outputs,
        and what an operation reads and writes while it runs. The inputs are not among it.
    """

    calls: int = 0
    bytes_moved: int = 0
    multiply_adds: int = 0
    peak_bytes: int = 0

    def add(self, bytes_moved: int, multiply_adds: int = 0) -> None:
        """Count one operation."""
        self.calls += 1
        self.bytes_moved += bytes_moved
        self.multiply_adds += multiply_adds


class Alive:
    """The memory that a call has allocated and that something still refers to.

    Parameters
    ----------
    counts : Counts
        Whose `peak_bytes` are those of the fullest moment.
    """

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._allocated: list[tuple[Callable[[], bool], int]] = []

    def add(self, has_gone: Callable[[], bool], size: int) -> None:
        """Add `size` bytes, which are alive until `has_gone` is true."""
        self._allocated = [one for one in self._allocated if not one[0]()]
        self._allocated.append((has_gone, size))
        alive = sum(size for _, size in self._allocated)
        self._counts.peak_bytes = max(self._counts.peak_bytes, alive)


def stored(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> int:
    """Return the bytes of an array, one element for all the places that broadcast it."""
    sizes = zip(shape, strides, strict=True)
    return itemsize * math.prod(size for size, stride in sizes if stride or not size)
