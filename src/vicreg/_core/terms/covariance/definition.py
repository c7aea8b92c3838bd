"""The definition: the d × d covariance, formed.

C = s zcᵀ zc,   O = C with a zero diagonal,   E = Σ O²,   ∂E/∂z = 4s zc O
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vicreg._core.library import Library, Product
from vicreg._core.samples import Samples
from vicreg._core.terms.base import Factors, Linear, Term

Array = Any


@dataclass(frozen=True)
class Definition(Term):
    """E by the definition, at `scale` s."""

    scale: Any  # a number, or (..., 1, 1)

    factors = 1  # O

    def of_view(self, samples: Samples, differentiated: bool) -> tuple[Array, Factors]:
        """Return E of one view, and O."""
        xp = samples.xp
        o = xp.with_zero_diagonal(samples.centred_products(self.scale))
        return xp.total_of_squares(o, samples.sizes.summed), (o,)

    def gradient_of_view(self, samples: Samples, factors: Factors, cotangent: Any) -> Linear:
        """Return the gradient, one product."""
        (o,) = factors
        factor = 4.0 * self.scale * cotangent
        return Linear(products=(Product(samples.centred, o, factor, smaller="right"),))


def of_columns(xp: Library, zc: Array, columns: Array, start: Any, scale: Any) -> Array:
    """Return some columns of O at `scale` s: those of `zc` from `start` on."""
    # Scaled once multiplied: scaled columns would be rounded before, each entry on its own.
    return xp.with_zero_diagonal(xp.scaled_product(xp.matrix_transpose(zc), columns, scale), start)


def part_of_columns(
    xp: Library, zc: Array, columns: Array, start: Any, scale: Any, summed: int
) -> Array:
    """Return the part in E of some columns of C."""
    return xp.total_of_squares(of_columns(xp, zc, columns, start, scale), summed)
