"""The batches: each rank has data and means of its own, and as many rows as others or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vicreg.tools.backends import Floats

__all__ = ["STEP", "Batch", "batches_for", "batches_for_package"]

#: The step of a finite difference along a batch's direction, in float64.
STEP = 1e-5

#: The rows of the ranks, repeated for more ranks; and those that a user's function may refuse.
_UNEVEN, _EVEN = (5, 2, 9, 3), (6,)
_SINGLE, _EMPTY = (1, 7, 4), (0, 5, 6)
#: How many batches have more features than samples, and as many have fewer: together they have
#: more values than there are factors to fit.
_OF_A_SHAPE = 4


@dataclass(frozen=True)
class Batch:
    """Two views of all ranks' rows.

    They are a linear map of inputs. The map has the parameters that all ranks share.

    Parameters
    ----------
    rows : tuple of int
        How many each rank has.
    d : int
        The number of features.
    seed : int
        The seed of the numbers.
    """

    rows: tuple[int, ...]
    d: int
    seed: int

    def __str__(self) -> str:
        return f"rows {', '.join(map(str, self.rows))}; {self.n} × {self.d}"

    @property
    def n(self) -> int:
        """The number of samples over all ranks."""
        return sum(self.rows)

    @property
    def is_even(self) -> bool:
        """Whether each rank has as many rows."""
        return len(set(self.rows)) == 1

    def part(self, rank: int) -> slice:
        """Return which rows a rank has."""
        start = sum(self.rows[:rank])
        return slice(start, start + self.rows[rank])

    @cached_property
    def inputs(self) -> Floats:
        """What the map is applied to, shape (2, n, d)."""
        rng = self._rng("inputs")
        means = rng.standard_normal((len(self.rows), self.d))
        means += np.where(np.arange(len(self.rows)) % 2, 1.0, -1.0)[:, None]  # never alike
        x = rng.standard_normal((self.n, self.d)) + np.repeat(means, self.rows, axis=0)
        return np.stack([x, x + 0.5 * rng.standard_normal((self.n, self.d))])

    @cached_property
    def weight(self) -> Floats:
        """The weight of the map, shape (d, d): features of std 0.1 to 2, correlated."""
        rng = self._rng("map")
        mixed = np.eye(self.d) + rng.standard_normal((self.d, self.d)) / (4 * self.d**0.5)
        scaled: Floats = np.linspace(0.1, 1.0, self.d)[:, None] * mixed
        return scaled

    @cached_property
    def bias(self) -> Floats:
        """The bias of the map, shape (d,)."""
        return self._rng("bias").standard_normal(self.d)

    @property
    def views(self) -> Floats:
        """The embeddings, shape (2, n, d)."""
        views: Floats = self.inputs @ self.weight.T + self.bias
        return views

    @property
    def direction(self) -> Floats:
        """A direction to move the embeddings in, shape (2, n, d)."""
        return self._rng("direction").standard_normal((2, self.n, self.d))

    def _rng(self, what: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.n, self.d, *what.encode()])


def batches_for(size: int, seed: int = 0) -> list[Batch]:
    """Return the batches for a number of ranks: uneven rows first, then even ones."""
    return [
        Batch(rows, d, _OF_A_SHAPE * seed + more)
        for rows, d in _shapes(size, (_UNEVEN, _EVEN))
        for more in range(_OF_A_SHAPE)
    ]


def batches_for_package(size: int, seed: int = 0) -> list[Batch]:
    """Return the batches for this package's loss: a rank may have a single row, or none."""
    shapes = _shapes(size, (_UNEVEN, _EVEN, _SINGLE, _EMPTY))
    return [Batch(rows, d, seed) for rows, d in shapes]


def _shapes(
    size: int, patterns: tuple[tuple[int, ...], ...]
) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield rows and a number of features, above that of the samples and below."""
    for pattern in patterns:
        rows = tuple(pattern[rank % len(pattern)] for rank in range(size))
        yield rows, 2 * sum(rows) + 1
        yield rows, max(sum(rows) // 2, 3)
