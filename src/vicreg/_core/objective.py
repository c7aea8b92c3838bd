"""What is to be computed: the terms of a convention, with the settings that choose formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vicreg._conventions import Convention, term_scales
from vicreg._core.communicator import Communicator
from vicreg._core.layout import Axes
from vicreg._core.sizes import Sizes
from vicreg._core.terms import Invariance, SmoothL1, Term, Variance, covariance_term
from vicreg._typing import Method, Penalty

Flags = tuple[bool, bool, bool]  # of the invariance, the variance and the covariance

ALL: Flags = (True, True, True)


@dataclass(frozen=True)
class Objective:
    """The terms of a convention: hashable, so that a compiler may hold it static.

    The weights of the terms are not part of it: no value of theirs changes a formula, except that
    a term whose weight is the number 0 has no part in the loss.

    Parameters
    ----------
    convention : Convention
        Whose terms they are.
    in_loss : tuple of bool
        Which terms have a part in the loss.
    gamma, eps : float
        Of the variance's hinge.
    method : {"auto", "gram", "covariance"}
        The covariance's route.
    axes : Axes
        Of the views.
    each_term : bool
        Whether each term is wanted beside the loss; if not, only those in the loss are computed.
    penalty : {"square", "smooth_l1"}
        What is summed of the off-diagonal covariances.
    delta : float
        Where "smooth_l1" becomes linear.
    published_gradient : bool
        Whether the covariance's gradient has the scale of the pseudocode of VCReg's paper.
    sizes : Sizes
        From which size on the core works in parts.
    comm : Communicator or None
        How the ranks of the batch reach each other. None is the batch of this process.
    batch : Batch or None
        What is known of the batch of all ranks, once they have reached each other.
    """

    convention: Convention
    in_loss: Flags
    gamma: float
    eps: float
    method: Method
    axes: Axes
    each_term: bool
    penalty: Penalty
    delta: float
    published_gradient: bool
    sizes: Sizes
    comm: Communicator | None
    batch: Any = field(default=None, compare=False, repr=False)

    @property
    def computed(self) -> Flags:
        """Which terms are computed."""
        return ALL if self.each_term else self.in_loss

    def in_gradient(self, weights: Sequence[Any], z: Any) -> Sequence[Any]:
        """Return the weights of the terms in the gradient by the one view `z`.

        The pseudocode of VCReg's paper omits the 1/(n − 1) of the covariance's derivative.
        """
        invariance, variance, covariance = weights
        if not self.published_gradient or covariance is None:
            return weights
        n = self.axes.core_shape(z.shape)[-2] if self.batch is None else self.batch.count
        return invariance, variance, covariance * (n - self.convention.covariance_correction)

    def terms_of(self, views: Sequence[Any]) -> tuple[Term | None, ...]:
        """Return the terms of `views`, as they are given."""
        return self.terms((len(views), *self.axes.core_shape(views[0].shape)))

    def terms(self, shape: tuple[int, ...]) -> tuple[Term | None, ...]:
        """Return the terms of views laid out as `shape`, ``(k, ..., n, d)``.

        They are in the order of their weights, None for those that are not computed or that the
        convention does not have.
        """
        views, *positions, n, d = shape
        if self.batch is not None:
            n = self.batch.count
        count = 1
        for length in positions:
            count *= length
        convention = self.convention
        invariance, variance, covariance = term_scales(convention, d, views)
        m = n - convention.covariance_correction
        # Σ_{a<b} ‖z_a − z_b‖² over the pairs of k views is k Σ_a ‖z_a − z̄‖².
        over_pairs = 1.0 if views == 2 else 2.0 / max(views - 1, 1)
        wanted = self.computed
        return (
            Invariance(over_pairs * invariance / (n * d * count))
            if wanted[0] and invariance
            else None,
            Variance(
                variance / (d * count),
                self.gamma,
                self.eps,
                convention.hinge_on,
                n - convention.variance_correction,
            )
            if wanted[1]
            else None,
            self._covariance(covariance / count, m, n, d) if wanted[2] else None,
        )

    def _covariance(self, coefficient: float, divisor: int, n: int, d: int) -> Term:
        if self.penalty == "square":
            return covariance_term(coefficient, divisor, self.method, n, d, self.sizes)
        root = math.sqrt(coefficient)
        return SmoothL1(root / divisor, self.delta * root, self.sizes)
