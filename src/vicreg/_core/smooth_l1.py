"""The smooth L1 of the off-diagonal covariances: squares that grow linearly beyond a limit.

With C = s zcᵀ zc as in `covariance`, and a limit l on the same scale, each entry off the diagonal
has the penalty C² where |C| ≤ l and 2l|C| − l² beyond. With T = clip(C, −l, l), zero on the
diagonal, that is

    E = Σ T (2C − T),             ∂E/∂z = 4s zc T

since the penalty's derivative is 2T: the covariance route's formulas with T for O, so that its
factors serve. As s is √coefficient / m, the limit is δ √coefficient, and E the coefficient times
the penalty of the covariance itself.

Every entry of C is needed, so there is no Gram route. A C no larger than the views is formed
whole; else it is formed and used up in blocks of columns J,

    C_J = s zcᵀ zc_J,   E = Σ_J Σ T_J (2C_J − T_J),   (zc T)_J = zc T_J

so that the memory is n d + d |J|. The product zc T is then formed beside the value, from blocks
at hand, and kept: it is no larger than the gradient, and to form the blocks again for it would
make three products of n d² out of two.
"""

from __future__ import annotations

from typing import Any

from vicreg._core import owned
from vicreg._core.covariance import (
    PenaltyFactors,
    ProductFactors,
    feature_matrix,
    offdiagonal,
)
from vicreg._core.sizes import Sizes
from vicreg._core.statistics import sum_all

Array = Any
Namespace = Any


def in_blocks(n: int, d: int, sizes: Sizes) -> bool:
    """Whether C is formed in blocks of columns: a choice of shape alone."""
    return d > sizes.columns and d > n


def smooth_l1_route(
    xp: Namespace, zc: Array, scale: float, limit: float, differentiated: bool, sizes: Sizes
) -> PenaltyFactors | ProductFactors:
    """Return the factors; of blocks there is no product where nothing is `differentiated`."""
    n, d = zc.shape[-2:]
    if not in_blocks(n, d, sizes):
        o = offdiagonal(xp, owned.multiply(xp, feature_matrix(xp, zc, sizes), scale))
        t = _clipped(xp, o, limit)
        return PenaltyFactors(_sum_of_penalties(xp, o, t, sizes), t)
    transpose = xp.matrix_transpose(zc)
    total = before = xp.zeros_like(xp.sum(zc[..., :1, :1]))
    products = []
    for start in range(0, d, sizes.columns):
        columns = slice(start, min(start + sizes.columns, d))
        scaled = _after(xp, zc[..., columns] * scale, before)
        o = offdiagonal(xp, xp.matmul(transpose, scaled), columns)
        t = _clipped(xp, o, limit)
        before = total = total + _sum_of_penalties(xp, o, t, sizes)
        if differentiated:
            products.append(xp.matmul(zc, t))
            before = total + xp.sum(xp.abs(products[-1][..., :1, :1]))
    product = xp.concat(products, axis=-1) if differentiated else xp.zeros_like(total)
    return ProductFactors(total, product)


def _clipped(xp: Namespace, o: Array, limit: float) -> Array:
    """Return `o` within ±`limit`; what is NaN stays so."""
    # A limit beyond the largest number of the dtype is none.
    limit = min(limit, float(xp.finfo(o.dtype).max))
    upper = xp.full_like(o[..., :1, :1], limit)
    return xp.minimum(xp.maximum(o, -upper), upper)


def _sum_of_penalties(xp: Namespace, o: Array, t: Array, sizes: Sizes) -> Array:
    """Return Σ T (2C − T), which overflows only where it is too large itself. `o` is used up."""
    o = owned.subtract(xp, owned.multiply(xp, o, 2.0), t)
    return sum_all(xp, owned.multiply(xp, o, t), sizes)


def _after(xp: Namespace, array: Array, before: Array) -> Array:
    """Return `array`, but not before there is `before`, a number that is not negative.

    Compilers order what does not depend on each other as they like: XLA and PyTorch's would have
    many blocks at once, and MLX each one's T until the last product. What is added is 0, which
    they have no way to know.
    """
    return owned.add(xp, array, xp.minimum(before, xp.zeros_like(before)))
