"""The covariance: the squared off-diagonal covariances of each view.

There are two routes to the same number, the definition by the d × d covariance and the Gram route
by the n × n products of the samples, and one for another penalty than the square. A route is a
term: it has its value and its gradient on one page.

Each is given a scale s: 1/m times the square root of whatever multiplies the term, m being the
divisor of the covariance. With C = s zcᵀ zc the term is Σ_{i≠j} C_ij², and overflows only where
it is too large itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vicreg._core.sizes import Sizes
from vicreg._core.terms.base import Term
from vicreg._core.terms.covariance.definition import Definition
from vicreg._core.terms.covariance.gram import Gram
from vicreg._core.terms.covariance.smooth_l1 import SmoothL1

__all__ = ["Definition", "Gram", "SmoothL1", "covariance_term", "products_size", "uses_gram"]


def uses_gram(method: str, shape: Sequence[int], sizes: Sizes) -> bool:
    """Whether the covariance term of views of `shape`, ``(..., n, d)``, goes by the Gram route.

    A choice of shape alone. The route takes more calls of the library, which on small views cost
    more than its fewer multiply-adds save.
    """
    if method != "auto":
        return method == "gram"
    *positions, n, d = shape
    # Of a size that stands for any, as an exporter has, less is asked: its limit is 0.
    is_small = sizes.defined and math.prod(positions) * n * d * d <= sizes.defined
    return n <= d and not is_small


def products_size(method: str, shape: Sequence[int], sizes: Sizes) -> int:
    """Return how many products the route forms at each position: n × n, or d × d."""
    side = shape[-2] if uses_gram(method, shape, sizes) else shape[-1]
    return side * side


def covariance_term(scale: Any, method: str, shape: Sequence[int], sizes: Sizes) -> Term:
    """Return the squared covariances at `scale`, by the route that costs less.

    Parameters
    ----------
    scale : number, or array of shape (..., 1, 1)
        The s of above.
    method : {"auto", "gram", "covariance"}
        The route; "auto" is the Gram route where there are no more samples than features, and
        the views are not small.
    shape : sequence of int
        That of a view as the core works on it, ``(..., n, d)``.
    sizes : Sizes
        From which size on it works in parts.
    """
    return Gram(scale, sizes) if uses_gram(method, shape, sizes) else Definition(scale)
