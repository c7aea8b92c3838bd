"""What is to be computed, and the numbers that a shape makes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from vicreg._conventions import Convention, Weights, term_scales
from vicreg._core.sizes import DEFAULT_SIZES, Sizes

Method = Literal["auto", "gram", "covariance"]
Penalty = Literal["square", "smooth_l1"]


class Coefficients(NamedTuple):
    """What multiplies each term's plain sum; None for a term that is not computed."""

    invariance: float | None  # of the sum of the squared deviations
    variance: float | None  # of the sum of the hinge
    covariance: float | None  # of zcᵀ zc: with it, the sum of squared entries is the term
    limit: float = math.inf  # where "smooth_l1" becomes linear in zcᵀ zc times that

    @property
    def of_spread(self) -> bool:
        """Whether a term of each view alone is computed, which the centred view is for."""
        return self.variance is not None or self.covariance is not None


@dataclass(frozen=True)
class Objective:
    """A weighted sum of the three terms: hashable, so that a compiler may hold it static.

    ``each_term`` asks for the three terms beside the loss. Without it a term of weight zero is
    not computed, unless all are of weight zero. ``pooled`` makes a sample of each position of
    each sample; ``penalty`` is what is summed of the off-diagonal covariances, and ``delta``
    where "smooth_l1" becomes linear. ``sizes`` says from where on the same is done another way.
    """

    convention: Convention
    weights: Weights
    gamma: float
    eps: float
    method: Method
    feature_axis: int
    each_term: bool
    pooled: bool = False
    penalty: Penalty = "square"
    delta: float = 1.0
    sizes: Sizes = DEFAULT_SIZES

    def with_published_gradient(self, n: int) -> Objective:
        """Return what has for its gradient that of the pseudocode of VCReg's paper.

        Of `n` samples it leaves the 1/(n − 1) out of the covariance's part.
        """
        invariance, variance, covariance = self.weights
        m = n - self.convention.covariance_correction
        return replace(self, weights=(invariance, variance, covariance * m))

    @property
    def outputs(self) -> int:
        """How many outputs there are: the loss, and the three terms where they are asked for."""
        return 4 if self.each_term else 1

    def coefficients(self, shape: tuple[int, ...]) -> Coefficients:
        """Return the coefficients for views laid out as `shape`, ``(k, ..., n, d)``."""
        views, *positions, n, d = shape
        count = 1
        for length in positions:
            count *= length
        invariance, variance, covariance = term_scales(self.convention, d, views)
        # Σ_{a<b} ‖z_a − z_b‖² over the pairs of k views is k Σ_a ‖z_a − z̄‖²: linear in k.
        over_pairs = 1.0 if views == 2 else 2.0 / max(views - 1, 1)
        m = n - self.convention.covariance_correction
        everything = self.each_term or not any(self.weights)
        needs = [everything or weight != 0 for weight in self.weights]
        root: float = (covariance / count) ** 0.5
        return Coefficients(
            over_pairs * invariance / (n * d * count) if needs[0] and invariance else None,
            variance / (d * count) if needs[1] else None,
            root / m if needs[2] else None,
            self.delta * root,
        )

    def uses_gram(self, n: int, d: int) -> bool:
        """Whether the covariance term goes by the n × n Gram matrix: a choice of shape alone."""
        if self.penalty != "square":  # it needs each entry of the covariance
            return False
        return self.method == "gram" or (self.method == "auto" and n <= d)
