"""The published conventions, as data, and the arithmetic that translates weights between them.

"VICReg" is not one function: the published implementations differ in a handful of choices, and
:class:`Convention` has one field for each choice. Nothing here computes a loss.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

__all__ = ["Convention", "Weights", "convention_named", "conventions", "translate_weights"]

Weights = tuple[float, float, float]
InvarianceReduction = Literal["mean", "squared norm", "none"]
HingeArgument = Literal["std", "variance"]
OverViews = Literal["mean", "sum"]
CovarianceDivisor = Literal["d", "d(d-1)"]

#: The ε of VCReg's paper.
VCREG_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Convention:
    """One published choice of what the three terms are.

    Parameters
    ----------
    name : str
        What the convention is called, in ``convention="..."`` and in messages.
    source : str
        Where it was published.
    invariance : {"mean", "squared norm", "none"}
        The squared difference of two views is averaged over samples and features, or its norm
        over the features is averaged over samples (d times as much), or there is no such term.
    hinge_on : {"std", "variance"}
        The hinge is ``max(0, gamma - sqrt(variance + eps))``, or ``max(0, gamma - variance)``.
    variance_correction, covariance_correction : int
        What is subtracted from the number of samples, 1 for the sample statistic and 0 for the
        population's.
    eps : float
        Added to the variance under the root; 0 where the source has none.
    variance_over_views, covariance_over_views : {"mean", "sum"}
        How the terms of two views combine. For k views a sum counts as twice the mean.
    covariance_divisor : {"d", "d(d-1)"}
        What the sum of the squared off-diagonal covariances is divided by.
    weights : tuple of three floats, or None
        The published weights of invariance, variance and covariance; None where none are.
    implementations : tuple of str
        Other codebases that compute the same function.

    Examples
    --------
    A convention of one's own is a published one with a field replaced:

    >>> from dataclasses import replace
    >>> import numpy as np
    >>> from vicreg import conventions, vicreg_loss
    >>> mine = replace(conventions["official"], name="mine", eps=1e-3)
    >>> z = np.eye(3)
    >>> bool(vicreg_loss(z, z, convention=mine) < vicreg_loss(z, z))
    True
    """

    name: str
    source: str
    invariance: InvarianceReduction = "mean"
    hinge_on: HingeArgument = "std"
    variance_correction: int = 1
    covariance_correction: int = 1
    eps: float = 1e-4
    variance_over_views: OverViews = "mean"
    covariance_over_views: OverViews = "sum"
    covariance_divisor: CovarianceDivisor = "d"
    weights: Weights | None = (25.0, 25.0, 1.0)
    implementations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            if value not in choices:
                wanted = ", ".join(map(repr, choices))
                raise ValueError(f"{field} must be one of {wanted}; got {value!r}")
        for field in ("variance_correction", "covariance_correction"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{field} must be an integer of 0 or more; got {value!r}")
        checked_number(self.eps, "eps")
        if self.eps and self.hinge_on == "variance":
            raise ValueError(f"eps must be 0 where hinge_on is 'variance'; got {self.eps!r}")
        if self.weights is not None:
            object.__setattr__(self, "weights", checked_weights(self.weights, "weights"))
            if self.invariance == "none" and self.weights[0]:
                raise ValueError(
                    f"weights must begin with 0 where invariance is 'none'; got {self.weights!r}"
                )


_CHOICES = {
    "invariance": get_args(InvarianceReduction),
    "hinge_on": get_args(HingeArgument),
    "variance_over_views": get_args(OverViews),
    "covariance_over_views": get_args(OverViews),
    "covariance_divisor": get_args(CovarianceDivisor),
}


def checked_weights(weights: Sequence[float], argument: str) -> Weights:
    """Return `weights` as three floats, or raise an error that names `argument`."""
    if isinstance(weights, str) or not isinstance(weights, Sequence) or len(weights) != 3:
        raise ValueError(
            f"{argument} must be three numbers (invariance, variance, covariance); got {weights!r}"
        )
    checked = (checked_number(w, f"{argument}[{place}]") for place, w in enumerate(weights))
    return cast(Weights, tuple(checked))


def checked_number(
    value: Any, argument: str, wanted: str = "a number", above_zero: bool = False
) -> float:
    """Return `value` as a finite float that is not negative, or raise what is wrong."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument} must be {wanted}; got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an integer or a fraction beyond the largest float
        number = math.inf
    if not 0 <= number < math.inf or (above_zero and number == 0):
        wanted = "above 0" if above_zero else "of 0 or more"
        raise ValueError(f"{argument} must be a finite number {wanted}; got {value!r}")
    return number


_PUBLISHED = (
    Convention(
        name="official",
        source="facebookresearch/vicreg, main_vicreg.py",
        implementations=(
            "lightly VICRegLoss",
            "pytorch-metric-learning VICRegLoss",
            "stable-pretraining VICRegLoss (torch and JAX)",
        ),
    ),
    Convention(
        name="paper",
        source="Bardes, Ponce, LeCun 2022 (arXiv 2105.04906), equations 1 to 6",
        invariance="squared norm",
        variance_over_views="sum",
    ),
    Convention(
        name="algorithm1",
        source="Bardes, Ponce, LeCun 2022 (arXiv 2105.04906), Algorithm 1",
        variance_over_views="sum",
        implementations=("solo-learn vicreg_loss_func",),
    ),
    Convention(
        name="article",
        source='the article "Variance-Invariance-Covariance Regularization"',
        invariance="squared norm",
        hinge_on="variance",
        variance_correction=0,
        covariance_correction=0,
        eps=0.0,
        variance_over_views="sum",
    ),
    Convention(
        name="vicregl",
        source="facebookresearch/VICRegL",
        covariance_over_views="mean",
    ),
    Convention(
        name="jolibrain",
        source="jolibrain/vicreg-loss",
        eps=0.0,
        covariance_over_views="mean",
        weights=(25.0, 15.0, 1.0),
    ),
    Convention(
        name="tensorflow-similarity",
        source="tensorflow/similarity, VicReg (its mean over the batch)",
        variance_correction=0,
    ),
    Convention(
        name="vcreg",
        source="Zhu et al. 2023 (arXiv 2306.13292); no invariance term",
        invariance="none",
        eps=VCREG_EPS,
        covariance_over_views="mean",
        covariance_divisor="d(d-1)",
        weights=None,
    ),
)

conventions: Mapping[str, Convention] = MappingProxyType(
    {convention.name: convention for convention in _PUBLISHED}
)
"""The published conventions by name (read-only)."""


def convention_named(convention: str | Convention, argument: str = "convention") -> Convention:
    """Return the convention of that name, or `convention` itself where it is one already."""
    if isinstance(convention, Convention):
        return convention
    if not isinstance(convention, str):
        raise TypeError(
            f"{argument} must be a name or a Convention; got {type(convention).__name__}"
        )
    if convention not in conventions:
        known = ", ".join(repr(name) for name in conventions)
        raise ValueError(f"{argument} must be one of {known}; got {convention!r}")
    return conventions[convention]


def translate_weights(
    weights: Sequence[float], source: str | Convention, target: str | Convention, d: int
) -> Weights:
    """Return the weights that make `target` compute the function `source` has with `weights`.

    Parameters
    ----------
    weights : sequence of three floats
        The weights of invariance, variance and covariance, as `source` uses them.
    source, target : str or Convention
        The convention the weights come from, and the one they are wanted for.
    d : int
        The number of features: "squared norm" is d times "mean".

    Returns
    -------
    tuple of three floats

    Raises
    ------
    TypeError
        A weight is not a number, or `d` not an integer.
    ValueError
        Where no weights of `target` give the same function: a term of nonzero weight with
        another hinge, correction or ε, or one that `target` does not have.

    Examples
    --------
    The paper's weights on 2048 features, in the official code's convention (it averages the
    squared difference over the features and the variance term over the views):

    >>> from vicreg import translate_weights
    >>> translate_weights((25, 25, 1), "paper", "official", d=2048)
    (51200.0, 50.0, 1.0)
    """
    given = checked_weights(weights, "weights")
    from_, to = convention_named(source, "source"), convention_named(target, "target")
    d = _checked_features(d)
    obstacles = (_invariance_obstacle, _variance_obstacle, _covariance_obstacle)
    for weight, obstacle in zip(given, obstacles, strict=True):
        reason = obstacle(from_, to) if weight else None
        if reason:
            raise ValueError(
                f"no weights make {to.name!r} compute the function of {from_.name!r}: {reason}"
            )
    scales = zip(given, term_scales(from_, d, views=2), term_scales(to, d, views=2), strict=True)
    return cast(Weights, tuple(w * (a / b) if w and a else 0.0 for w, a, b in scales))


def term_scales(convention: Convention, d: int, views: int) -> Weights:
    """Return what multiplies each term's plainest form in `convention`.

    The plainest forms are the squared difference averaged over samples and features, the hinge
    summed over views and averaged over features, and the squared off-diagonal covariances
    summed over views. One view alone has nothing to combine.
    """
    invariance = {"mean": 1.0, "squared norm": float(d), "none": 0.0}[convention.invariance]
    pairs = d if convention.covariance_divisor == "d" else d * (d - 1)
    if pairs == 0:
        raise ValueError(
            f"convention {convention.name!r} divides the covariance term by d(d - 1): "
            "it needs at least 2 features; got 1"
        )
    return (
        invariance,
        _over_views(convention.variance_over_views, views),
        _over_views(convention.covariance_over_views, views) / pairs,
    )


def samples_needed(convention: Convention) -> int:
    """Return the least number of samples that have the statistics of `convention`."""
    return 1 + max(1, convention.variance_correction, convention.covariance_correction)


def _over_views(combination: OverViews, views: int) -> float:
    # "sum" is the published sum of two views; for k views it stays twice the mean.
    return 2.0 / views if combination == "sum" and views > 1 else 1.0 / views


def _checked_features(d: int) -> int:
    try:
        features = operator.index(d)
    except TypeError:
        raise TypeError(f"d must be an integer, the number of features; got {d!r}") from None
    if features < 1:
        raise ValueError(f"d must be at least 1; got {features}")
    return features


def _invariance_obstacle(source: Convention, target: Convention) -> str | None:
    if source.invariance != "none" and target.invariance == "none":
        return f"{target.name!r} has no invariance term"
    return None


def _variance_obstacle(source: Convention, target: Convention) -> str | None:
    return (
        _difference(source, target, "hinge_on", "the hinge is on the")
        or _difference(source, target, "variance_correction", "the variance's correction is")
        or _difference(source, target, "eps", "ε is")
    )


def _covariance_obstacle(source: Convention, target: Convention) -> str | None:
    return _difference(source, target, "covariance_correction", "the covariance's correction is")


def _difference(source: Convention, target: Convention, field: str, subject: str) -> str | None:
    ours, theirs = getattr(source, field), getattr(target, field)
    if ours == theirs:
        return None
    return f"{subject} {ours} in {source.name!r} and {theirs} in {target.name!r}"
