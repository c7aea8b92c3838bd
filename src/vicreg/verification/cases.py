"""Inputs made to be hard, each with why it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["CASES", "Case", "rounded_to"]

Floats = npt.NDArray[np.float64]
Make = Callable[[np.random.Generator, Floats], Floats]

_WIDE, _TALL, _SQUARE, _POSITIONS = (16, 40), (40, 16), (24, 24), (8, 2, 2, 12)


@dataclass(frozen=True)
class Case:
    """One pair of views.

    Parameters
    ----------
    name : str
        What is hard about them.
    shape : tuple of int
        ``(n, ..., d)``.
    transform : callable
        Makes the two views, stacked, of two that have most of their values in common.
    """

    name: str
    shape: tuple[int, ...]
    transform: Make = field(repr=False)

    def __str__(self) -> str:
        return self.name

    def views(self, seed: int = 0) -> tuple[Floats, Floats]:
        """Return the two views in float64."""
        rng = np.random.default_rng([seed, *self.name.encode()])
        common = 0.8 * rng.standard_normal(self.shape)
        views = common + 0.3 * rng.standard_normal((2, *self.shape))
        first, second = self.transform(rng, views)
        return first, second


def _as_drawn(_: np.random.Generator, z: Floats) -> Floats:
    return z


def _dead(_: np.random.Generator, z: Floats) -> Floats:
    z[..., 3] = 0.7
    return z


def _one_large(_: np.random.Generator, z: Floats) -> Floats:
    z[..., 5] *= 1000.0
    return z


def _offset(_: np.random.Generator, z: Floats) -> Floats:
    return z + 1e4


def _scales(rng: np.random.Generator, z: Floats) -> Floats:
    scale: Floats = rng.permutation(np.logspace(-3, 3, z.shape[-1]))
    return z * scale


def _collapsed(_: np.random.Generator, z: Floats) -> Floats:
    return 1.0 + 1e-3 * z


def _whitened(rng: np.random.Generator, z: Floats) -> Floats:
    """Columns of a Hadamard matrix: mean 0, variance 1 (of the population), no covariance."""
    _, n, d = z.shape
    hadamard = np.ones((1, 1))
    while len(hadamard) < n:
        hadamard = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), hadamard)
    return np.stack([hadamard[:, 1 + rng.permutation(n - 1)[:d]] for _ in range(2)])


#: wide: more features than samples. tall: more samples. square. positions: each is a sample set of
#: its own. dead: a constant feature. one ×1000: a feature whose std is 1000 times the rest's.
#: offset: 10000 added to everything. scales: stds from 0.001 to 1000. collapsed: stds of about
#: 0.001. whitened: uncorrelated features of variance 1, the covariance term 0, the hinge at its
#: kink.
CASES = (
    Case("wide", _WIDE, _as_drawn),
    Case("tall", _TALL, _as_drawn),
    Case("square", _SQUARE, _as_drawn),
    Case("positions", _POSITIONS, _as_drawn),
    Case("dead", _WIDE, _dead),
    Case("dead, tall", _TALL, _dead),
    Case("one ×1000", _WIDE, _one_large),
    Case("offset", _WIDE, _offset),
    Case("offset, tall", _TALL, _offset),
    Case("scales", _WIDE, _scales),
    Case("collapsed", _WIDE, _collapsed),
    Case("whitened", (32, 16), _whitened),
)


def rounded_to(dtype: str, values: Floats) -> Floats:
    """Return `values` rounded to numbers that `dtype` has, in float64.

    So that every library is given the same numbers, and the truth is that of these.
    """
    if dtype == "float64":
        return values
    if dtype == "bfloat16":
        # The upper half of a float32's bits, to the nearest.
        bits = values.astype(np.float32).view(np.uint32)
        upper = (bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)
        return upper.view(np.float32).astype(np.float64)
    return values.astype(dtype).astype(np.float64)
