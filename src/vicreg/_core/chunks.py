"""Sums of products of centred samples that come in chunks, none of which is read twice.

With n_c samples of mean m_c in chunk c, and m the mean of all,

    zcᵀ zc = Σ_c (zcᵀ zc of the chunk, centred by its own mean) + Σ_c n_c (m_c − m)ᵀ (m_c − m)

in which nothing cancels. The sums of the squares are its diagonal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vicreg._core import sums
from vicreg._core.library import Library
from vicreg._core.samples import Samples
from vicreg._core.sizes import Sizes

Array = Any
Products = Callable[[Samples, Array], Array]  # of an array ``(..., n, d)``


@dataclass(frozen=True)
class Chunk:
    """What is kept of one chunk, or of several."""

    count: int
    mean: Array  # (..., 1, d)
    products: Array


def of_chunk(xp: Library, z: Array, sizes: Sizes, products: Products) -> Chunk:
    """Return what is kept of the samples `z`, ``(..., n, d)``."""
    samples = Samples(xp, z, sizes)
    mean = samples.shift + samples.mean
    return Chunk(samples.count, mean, products(samples, samples.centred))


def merged(xp: Library, chunks: Sequence[Chunk], sizes: Sizes, products: Products) -> Chunk:
    """Return what is kept of several chunks together."""
    count = sum(chunk.count for chunk in chunks)
    mean = sums.total((chunk.count / count) * chunk.mean for chunk in chunks)
    between = xp.concat([chunk.count**0.5 * (chunk.mean - mean) for chunk in chunks], axis=-2)
    of_means = products(Samples(xp, between, sizes), between)
    return Chunk(count, mean, sums.total(chunk.products for chunk in chunks) + of_means)
