"""The smooth L1 of the off-diagonal covariances: squares that grow linearly beyond a limit.

With C = s zcᵀ zc and a limit l on the same scale, each entry off the diagonal has the penalty C²
where |C| ≤ l and 2l|C| − l² beyond. With T = clip(C, −l, l), zero on the diagonal, that is

    E = Σ T (2C − T),             ∂E/∂z = 4s zc T

since the penalty's derivative is 2T. Every entry of C is needed, so there is no Gram route. A C
no larger than the views is formed whole; else it is formed and used in blocks of columns J,

    C_J = s zcᵀ zc_J,   E = Σ_J Σ T_J (2C_J − T_J),   (zc T)_J = zc T_J

so that the memory is n d + d |J|. The product zc T is then formed beside the value, from blocks at
hand, and kept: it is no larger than the gradient, and to form the blocks again for it would make
three products of n d² out of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vicreg._core import memory, sums
from vicreg._core.library import Library, Product
from vicreg._core.samples import Samples
from vicreg._core.sizes import Sizes
from vicreg._core.terms.base import Factors, Linear, Term

Array = Any


@dataclass(frozen=True)
class SmoothL1(Term):
    """E at `scale` s, with the limit where it becomes linear on the scale of C."""

    scale: Any  # a number, or (..., 1, 1)
    limit: Any  # a number, or an array of shape ()
    sizes: Sizes

    factors = 1  # T, or zc T where it is formed in blocks

    def in_blocks(self, n: int, d: int) -> bool:
        """Whether C is formed in blocks of columns: a choice of shape alone."""
        return d > self.sizes.columns and d > n

    def of_view(self, samples: Samples, differentiated: bool) -> tuple[Array, Factors]:
        """Return E of one view, and what its gradient is formed from."""
        if self.in_blocks(samples.count, samples.features):
            return self._in_blocks(samples, differentiated)
        xp = samples.xp
        o = xp.with_zero_diagonal(samples.centred_products(self.scale))
        t = self._clipped(xp, o)
        return self._value(xp, o, t), (t,)

    def _in_blocks(self, samples: Samples, differentiated: bool) -> tuple[Array, Factors]:
        xp, zc = samples.xp, samples.centred
        total = before = xp.zeros_like(xp.sum(zc[..., :1, :1]))
        products = []
        for start in range(0, samples.features, self.sizes.columns):
            columns = slice(start, min(start + self.sizes.columns, samples.features))
            scaled = _after(xp, zc[..., columns] * self.scale, before)
            o = xp.with_zero_diagonal(samples.products_with(scaled), start)
            t = self._clipped(xp, o)
            before = total = total + self._value(xp, o, t)
            if differentiated:
                products.append(xp.matmul(zc, t))
                before = total + xp.sum(xp.abs(products[-1][..., :1, :1]))
        return total, (xp.concat(products, axis=-1) if differentiated else xp.zeros_like(total),)

    def gradient_of_view(self, samples: Samples, factors: Factors, cotangent: Any) -> Linear:
        """Return the gradient: one product, or a multiple of the one that was kept."""
        factor = 4.0 * self.scale * cotangent
        if self.in_blocks(samples.count, samples.features):
            return Linear(added=factor * factors[0])
        return Linear(products=(Product(samples.centred, factors[0], factor, smaller="right"),))

    def _clipped(self, xp: Library, o: Array) -> Array:
        """Return `o` within ± the limit; what is NaN stays so."""
        # A limit beyond the largest number of the dtype is none.
        largest = float(xp.finfo(o.dtype).max)
        if isinstance(self.limit, float):
            upper = xp.full_like(o[..., :1, :1], min(self.limit, largest))
        else:
            upper = xp.minimum(self.limit, xp.full_like(self.limit, largest))
        return xp.minimum(xp.maximum(o, -upper), upper)

    def _value(self, xp: Library, o: Array, t: Array) -> Array:
        """Return Σ T (2C − T), which overflows only where it is too large itself. `o` is used."""
        o = memory.subtract(xp, memory.multiply(xp, o, 2.0), t)
        return sums.everything(xp, memory.multiply(xp, o, t), self.sizes.summed)


def _after(xp: Library, array: Array, before: Array) -> Array:
    """Return `array`, but not before there is `before`, a number that is not negative.

    Compilers order what does not depend on each other as they like: XLA and PyTorch's would have
    many blocks at once, and MLX each one's T until the last product. What is added is 0, which
    they have no way to know.
    """
    return memory.add(xp, array, xp.minimum(before, xp.zeros_like(before)))
