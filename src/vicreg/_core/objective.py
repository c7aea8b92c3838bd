"""What is to be computed: the terms of a convention, with the settings that choose formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vicreg._conventions import Convention, term_scales
from vicreg._core.communicator import Communicator
from vicreg._core.layout import Axes
from vicreg._core.library import Library
from vicreg._core.sample_weights import Counts, SampleWeights
from vicreg._core.sizes import Sizes
from vicreg._core.terms import Invariance, Pairs, SmoothL1, Term, Variance, covariance_term
from vicreg._core.terms.base import of_features
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
    weighted : bool
        Whether samples have weights: the last of the arrays that go with this objective is then
        no view but their weights.
    pairs : tuple of pairs of int, or None
        Between which views the invariance is. None is all pairs.
    is_mask : bool
        Whether the weights of samples are booleans.
    all_present : bool
        Whether every sample is known to have a weight other than 0.
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
    weighted: bool
    pairs: Pairs | None
    is_mask: bool = False
    all_present: bool = False
    batch: Any = field(default=None, compare=False, repr=False)

    @property
    def computed(self) -> Flags:
        """Which terms are computed."""
        return ALL if self.each_term else self.in_loss

    def split(self, arrays: Sequence[Any]) -> tuple[Sequence[Any], Any]:
        """Return the views among `arrays`, and the weights of their samples or None."""
        return (arrays[:-1], arrays[-1]) if self.weighted else (arrays, None)

    @property
    def correction(self) -> int:
        """The largest that is subtracted from the number of samples."""
        convention = self.convention
        return max(convention.variance_correction, convention.covariance_correction)

    def sample_weights(self, xp: Library, each: Any, total: Any) -> SampleWeights:
        """Return the weights of samples: `each`, ``(..., n, 1)``, and their `total`."""
        return SampleWeights(
            xp,
            each,
            total,
            self.correction,
            is_mask=self.is_mask,
            all_present=self.all_present,
            between_views=self.computed[0],
        )

    def in_gradient(self, weights: Sequence[Any], samples: Callable[[], Any]) -> Sequence[Any]:
        """Return the weights of the terms in the gradient by one view.

        The pseudocode of VCReg's paper omits the 1/(n − 1) of the covariance's derivative.
        `samples` returns n, a number or ``(..., 1, 1)``.
        """
        invariance, variance, covariance = weights
        if not self.published_gradient or covariance is None:
            return weights
        divisor = samples() - self.convention.covariance_correction
        return invariance, variance, covariance * divisor

    def terms_of(self, arrays: Sequence[Any]) -> tuple[Term | None, ...]:
        """Return which terms there are of `arrays`, as they are given: not those of weights."""
        views, _ = self.split(arrays)
        return self.terms((len(views), *self.axes.core_shape(views[0].shape)))

    def terms(
        self, shape: tuple[int, ...], weights: SampleWeights | None = None
    ) -> tuple[Term | None, ...]:
        """Return the terms of views laid out as `shape`, ``(k, ..., n, d)``.

        They are in the order of their weights, None for those that are not computed or that the
        convention does not have. `weights` are of the samples.
        """
        views, *positions, n, d = shape
        if self.batch is not None:
            n = self.batch.count
        if weights is None:
            count = 1
            for length in positions:
                count *= length
            counts = Counts(n, count, n * count)
        else:
            counts = weights.counts(self.sizes.summed)
        convention = self.convention
        invariance, variance, covariance = term_scales(convention, d, views)
        pairs = ((0, 1),) if self.pairs is None and views == 2 else self.pairs
        # Σ_{a<b} ‖z_a − z_b‖² over all pairs of k views is k Σ_a ‖z_a − z̄‖².
        over_pairs = 2.0 / max(views - 1, 1) if pairs is None else 1.0 / len(pairs)
        wanted = self.computed
        return (
            Invariance(over_pairs * invariance / (d * counts.total), pairs)
            if wanted[0] and invariance
            else None,
            Variance(
                variance / (d * counts.positions),
                self.gamma * of_features(counts.is_counted),
                self.eps,
                convention.hinge_on,
                of_features(counts.samples) - convention.variance_correction,
            )
            if wanted[1]
            else None,
            self._covariance(covariance / counts.positions, counts, (*positions, n, d))
            if wanted[2]
            else None,
        )

    def _covariance(self, coefficient: Any, counts: Counts, shape: tuple[int, ...]) -> Term:
        root = coefficient**0.5
        divisor = counts.samples - self.convention.covariance_correction
        scale = root * counts.is_counted / divisor
        if self.penalty == "square":
            return covariance_term(scale, self.method, shape, self.sizes)
        return SmoothL1(scale, self.delta * root, self.sizes)
