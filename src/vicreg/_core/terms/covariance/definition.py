"""The definition: the d × d covariance, formed.

C = s zcᵀ zc,   O = C with a zero diagonal,   E = Σ O²,   ∂E/∂z = 4s zc O
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vicreg._core import memory, sums
from vicreg._core.largest import indices
from vicreg._core.library import Library
from vicreg._core.samples import Samples
from vicreg._core.sizes import Sizes
from vicreg._core.terms.base import Factors, Linear, Term

Array = Any


@dataclass(frozen=True)
class Definition(Term):
    """E by the definition, at `scale` s."""

    scale: float

    factors = 1  # O

    def of_view(self, samples: Samples, differentiated: bool = True) -> tuple[Array, Factors]:
        """Return E of one view, and O."""
        xp = samples.xp
        c = memory.multiply(xp, samples.feature_products(samples.centred), self.scale)
        o = offdiagonal(xp, c)
        return sums.everything(xp, o * o, samples.sizes.summed), (o,)

    def gradient_of_view(self, samples: Samples, factors: Factors, cotangent: Any) -> Linear:
        """Return the gradient, one product."""
        (o,) = factors
        return Linear(added=samples.xp.matmul(samples.centred, (4.0 * self.scale * cotangent) * o))


def offdiagonal(xp: Library, c: Array, columns: slice = slice(None)) -> Array:
    """Return `c`, those `columns` of C, with the diagonal of C set to zero.

    Set, not subtracted from the sum: nothing is lost where C is almost diagonal.
    """
    feature = indices(xp, c.shape[-2], like=c)
    return xp.where(feature[:, None] == feature[columns], xp.zeros_like(c), c)


def by_columns(samples: Samples, scale: float, sizes: Sizes) -> Array:
    """Return E at `scale` s with no more of C at a time than a block of columns."""
    xp, zc, parts = samples.xp, samples.centred, []
    transpose = xp.matrix_transpose(zc)
    for start in range(0, samples.features, sizes.columns):
        columns = slice(start, min(start + sizes.columns, samples.features))
        o = offdiagonal(xp, xp.matmul(transpose, zc[..., columns] * scale), columns)
        parts.append(sums.everything(xp, o * o, sizes.summed))
    return sums.total(parts)
