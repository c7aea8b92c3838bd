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
from vicreg._core.terms.base import Factors, Linear, Term

Array = Any


@dataclass(frozen=True)
class Definition(Term):
    """E by the definition, at `scale` s."""

    scale: Any  # a number, or (..., 1, 1)

    factors = 1  # O

    def of_view(self, samples: Samples, differentiated: bool = True) -> tuple[Array, Factors]:
        """Return E of one view, and O."""
        xp = samples.xp
        c = memory.multiply(xp, samples.centred_products(), self.scale)
        o = offdiagonal(xp, c)
        return sums.everything(xp, o * o, samples.sizes.summed), (o,)

    def gradient_of_view(self, samples: Samples, factors: Factors, cotangent: Any) -> Linear:
        """Return the gradient, one product."""
        (o,) = factors
        return Linear(added=samples.xp.matmul(samples.centred, (4.0 * self.scale * cotangent) * o))


def offdiagonal(xp: Library, c: Array, start: Any = 0) -> Array:
    """Return `c`, the columns of C from `start` on, with the diagonal of C set to zero.

    Set, not subtracted from the sum: nothing is lost where C is almost diagonal.
    """
    rows, columns = (indices(xp, length, like=c) for length in c.shape[-2:])
    return xp.where(rows[:, None] == start + columns, xp.zeros_like(c), c)


def of_columns(
    xp: Library, zc: Array, columns: Array, start: Any, scale: Any, summed: int
) -> Array:
    """Return the part in E at `scale` s of some columns of C: those of `zc` from `start` on."""
    o = offdiagonal(xp, xp.matmul(xp.matrix_transpose(zc), columns * scale), start)
    return sums.everything(xp, o * o, summed)
