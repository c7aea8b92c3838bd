"""The variance: a hinge on the spread s of each feature, its std or its variance v.

    E = Σ_c max(0, γ − s_c)

With m the divisor of the variance, v = Σ zc² / m:

    s = sqrt(v + ε)    ∂E/∂z = −zc ∘ [s < γ] / (m s)
    s = v              ∂E/∂z = −2 zc ∘ [s < γ] / m
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vicreg._core import sums
from vicreg._core.library import Library
from vicreg._core.samples import Samples
from vicreg._core.terms.base import Factors, Linear, Term

Array = Any


@dataclass(frozen=True)
class Variance(Term):
    """`coefficient` times E of each view."""

    coefficient: Any  # a number, or an array of shape ()
    gamma: Any  # a number, or (..., 1), where it is 0 for a position that does not count
    eps: float
    hinge_on: Literal["std", "variance"]
    divisor: Any  # of the sum of squares: a number, or (..., 1)

    factors = 1  # the spread of each feature

    def of_view(self, samples: Samples, differentiated: bool) -> tuple[Array, Factors]:
        """Return the part of one view, and the spread of each feature."""
        xp = samples.xp
        spread = self._spread(xp, samples.energies)
        hinge = xp.nonnegative(self.gamma - spread)
        return self.coefficient * sums.everything(xp, hinge, samples.sizes.summed), (spread,)

    def gradient_of_view(self, samples: Samples, factors: Factors, cotangent: Any) -> Linear:
        """Return the gradient, which is a multiple of each centred feature."""
        return Linear(row=self._slopes(samples.xp, factors[0], cotangent * self.coefficient))

    def _spread(self, xp: Library, energies: Array) -> Array:
        variance = energies / self.divisor
        if self.hinge_on == "variance":
            return variance
        shifted = variance + self.eps
        if not self._may_be_zero:
            return xp.sqrt(shifted)
        # The inner where keeps the root of 0 out of the derivative.
        alive = shifted > 0
        root = xp.sqrt(xp.where(alive, shifted, xp.ones_like(shifted)))
        return xp.where(alive, root, xp.zeros_like(root))

    def _slopes(self, xp: Library, spread: Array, coefficient: Any) -> Array:
        """Return the row that takes the centred view to the gradient of `coefficient` times E.

        Where the std is 0 (a dead feature, and no ε) the centred values are 0 too, and the row is
        0 rather than the limit of their quotient, which has none.
        """
        active = spread < self.gamma
        slope = -coefficient / self.divisor
        if self.hinge_on == "variance":
            return 2.0 * slope * xp.astype(active, spread.dtype)
        if self._may_be_zero:
            alive = spread > 0
            active = xp.logical_and(active, alive)
            spread = xp.where(alive, spread, xp.ones_like(spread))
        return xp.where(active, slope / spread, xp.zeros_like(spread))

    @property
    def _may_be_zero(self) -> bool:
        """Whether a variance with ε added may be 0 in some dtype of the computation."""
        # The smallest normal number of float32, the narrowest of them. It is no global, since
        # PyTorch's compiler would make it an input of the program: see `_adapters.torch.layer`.
        return self.eps < 2.0**-126
