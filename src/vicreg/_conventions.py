"""The published conventions and codebases, as data, and the translation of weights between them.

"VICReg" is not one function: the published implementations differ in a handful of choices, and
:class:`Convention` has one field for each choice. A :class:`Codebase` names the convention that it
computes, and what it calls the arguments. Nothing here computes a loss.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

__all__ = [
    "Codebase",
    "Convention",
    "ConventionName",
    "Weights",
    "both_names",
    "codebases",
    "codebases_of",
    "convention_named",
    "conventions",
    "translate_weights",
]

Weights = tuple[float, float, float]
InvarianceReduction = Literal["mean", "squared norm", "none"]
HingeArgument = Literal["std", "variance"]
OverViews = Literal["mean", "sum"]
CovarianceDivisor = Literal["d", "d(d-1)"]

#: For type checkers: the conventions, the codebases and their other names, and the package that
#: EB-JEPA is imported as.
ConventionName = Literal[
    "official",
    "paper",
    "algorithm1",
    "article",
    "vicregl",
    "jolibrain",
    "tensorflow-similarity",
    "eb-jepa",
    "tensorflow-gnn",
    "vcreg",
    "facebookresearch/vicreg",
    "lightly",
    "pytorch-metric-learning",
    "stable-pretraining",
    "solo-learn",
    "facebookresearch/VICRegL",
    "jolibrain/vicreg-loss",
    "tensorflow/similarity",
    "facebookresearch/eb_jepa",
    "pldm",
    "tensorflow/gnn",
    "lightly-ai/lightly",
    "KevinMusgrave/pytorch-metric-learning",
    "rbalestr-lab/stable-pretraining",
    "galilai-group/stable-pretraining",
    "vturrisi/solo-learn",
    "eb_jepa",
]

#: The ε of VCReg's paper.
VCREG_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Convention:
    """A definition of the three terms, as a paper or a codebase has it.

    The published ones are in `vicreg.conventions`. A loss is the sum of the terms, each times
    its weight.

    Parameters
    ----------
    name : str
        What the convention is called, in ``convention="..."`` and in messages.
    source : str
        The paper or the codebase that it comes from.
    invariance : {"mean", "squared norm", "none"}
        "mean" is the mean of the squared difference of two views over samples and features;
        "squared norm" sums it over the d features, and is d times as much; "none" means
        that there is no such term.
    hinge_on : {"std", "variance"}
        The hinge is ``max(0, gamma - sqrt(variance + eps))``, or ``max(0, gamma - variance)``.
    variance_correction, covariance_correction : int
        What is subtracted from the number of samples in the divisor: 1, or 0 for the statistic of
        the population.
    eps : float
        Added to the variance under the root; 0 where the source has none.
    variance_over_views, covariance_over_views : {"mean", "sum"}
        How the terms of two views combine. For k views a sum counts as twice the mean.
    covariance_divisor : {"d", "d(d-1)"}
        What the sum of the squared off-diagonal covariances is divided by.
    weights : tuple of three floats, or None
        The published weights of invariance, variance and covariance; None where none are.

    Raises
    ------
    TypeError
        `eps` or a weight is not a number.
    ValueError
        A field is none of its choices, negative, or contradicts another: an `eps` above 0 where
        `hinge_on` is "variance", or a weight for an invariance that is "none".

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
    Convention(name="official", source="facebookresearch/vicreg, main_vicreg.py"),
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
        name="eb-jepa",
        source="facebookresearch/eb_jepa, VICRegLoss",
        variance_over_views="sum",
        covariance_divisor="d(d-1)",
        weights=(1.0, 1.0, 1.0),
    ),
    Convention(
        name="tensorflow-gnn",
        source="tensorflow/gnn, vicreg_loss",
        variance_correction=0,
        covariance_correction=0,
        variance_over_views="sum",
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
"""The published conventions by name: a read-only mapping of str to `Convention`."""


@dataclass(frozen=True, kw_only=True)
class Codebase:
    """A published implementation, whose name ``convention="..."`` accepts.

    Parameters
    ----------
    name : str
        Its name.
    convention : str
        The convention that it computes.
    function : str
        The function, class or file in it that computes the convention.
    arguments : mapping of str to str
        The names of its arguments, each with the equivalent in this package.
    also : tuple of str
        Other names that are accepted for it.
    """

    name: str
    convention: str
    function: str
    arguments: Mapping[str, str]
    also: tuple[str, ...] = ()


def _arguments(
    invariance: str, variance: str, covariance: str, **others: str
) -> Mapping[str, str]:
    return {
        invariance: "invariance_weight=",
        variance: "variance_weight=",
        covariance: "covariance_weight=",
        **others,
    }


_CODEBASES = (
    Codebase(
        name="facebookresearch/vicreg",
        convention="official",
        function="main_vicreg.py",
        arguments=_arguments("sim_coeff", "std_coeff", "cov_coeff"),
    ),
    Codebase(
        name="lightly",
        convention="official",
        function="VICRegLoss",
        also=("lightly-ai/lightly",),
        arguments=_arguments(
            "lambda_param",
            "mu_param",
            "nu_param",
            gather_distributed="comm=vicreg.distributed.TorchCommunicator() for True",
        ),
    ),
    Codebase(
        name="pytorch-metric-learning",
        convention="official",
        function="VICRegLoss",
        also=("KevinMusgrave/pytorch-metric-learning",),
        arguments=_arguments("invariance_lambda", "variance_mu", "covariance_v"),
    ),
    Codebase(
        name="stable-pretraining",
        convention="official",
        function="VICRegLoss (torch and JAX)",
        also=("rbalestr-lab/stable-pretraining", "galilai-group/stable-pretraining"),
        arguments=_arguments("sim_coeff", "std_coeff", "cov_coeff", epsilon="eps="),
    ),
    Codebase(
        name="solo-learn",
        convention="algorithm1",
        function="vicreg_loss_func",
        also=("vturrisi/solo-learn",),
        arguments=_arguments("sim_loss_weight", "var_loss_weight", "cov_loss_weight"),
    ),
    Codebase(
        name="facebookresearch/VICRegL",
        convention="vicregl",
        function="main_vicregl.py",
        arguments=_arguments("inv_coeff", "var_coeff", "cov_coeff"),
    ),
    Codebase(
        name="jolibrain/vicreg-loss",
        convention="jolibrain",
        function="VICRegLoss",
        arguments=_arguments("inv_coeff", "var_coeff", "cov_coeff"),
    ),
    Codebase(
        name="tensorflow/similarity",
        convention="tensorflow-similarity",
        function="VicReg",
        arguments=_arguments("lambda_", "mu", "nu", std_const="eps="),
    ),
    Codebase(
        name="facebookresearch/eb_jepa",
        convention="eb-jepa",
        function="VICRegLoss",
        arguments={"std_coeff": "variance_weight=", "cov_coeff": "covariance_weight="},
    ),
    Codebase(
        name="pldm",
        convention="eb-jepa",
        function="VICRegObjective, its terms",
        arguments=_arguments("sim_coeff", "std_coeff", "cov_coeff", std_margin="gamma="),
    ),
    Codebase(
        name="tensorflow/gnn",
        convention="tensorflow-gnn",
        function="vicreg_loss",
        arguments=_arguments("sim_weight", "var_weight", "cov_weight"),
    ),
)

codebases: Mapping[str, Codebase] = MappingProxyType(
    {codebase.name: codebase for codebase in _CODEBASES}
)
"""The published implementations by name (read-only)."""


def _plain(name: str) -> str:
    """Return `name` in lower case and with ``-`` for ``_``, to compare it."""
    return name.lower().replace("_", "-")


_NAMES = [(name, name) for name in conventions] + [
    (name, codebase.convention)
    for codebase in _CODEBASES
    for name in (codebase.name, *codebase.also)
]
#: Each name that is taken, as it is compared, with how it is written and its convention.
_BY_NAME = {_plain(name): (name, conventions[convention]) for name, convention in _NAMES}


def convention_named(convention: str | Convention, argument: str = "convention") -> Convention:
    """Return the convention of that name or codebase, or `convention` itself if it is one."""
    if isinstance(convention, Convention):
        return convention
    if not isinstance(convention, str):
        raise TypeError(
            f"{argument} must be a name or a Convention; got {type(convention).__name__}"
        )
    if convention in conventions:
        return conventions[convention]
    plain = _plain(convention)
    if plain in _BY_NAME:
        return _BY_NAME[plain][1]
    known = ", ".join(repr(name) for name in conventions)
    near = difflib.get_close_matches(plain, _BY_NAME, 1)
    hint = f": did you mean {_BY_NAME[near[0]][0]!r}?" if near else ""
    raise ValueError(
        f"{argument} must be one of {known}, or a codebase's name; got {convention!r}{hint}"
    )


def codebases_of(convention: str) -> tuple[str, ...]:
    """Return the names of the codebases that compute the convention of that name."""
    return tuple(name for name, one in codebases.items() if one.convention == convention)


def both_names(convention: str | Convention) -> str:
    """Return the convention's name, and in brackets the codebase's if it was named by that."""
    name = convention_named(convention).name
    if isinstance(convention, Convention) or _plain(convention) == _plain(name):
        return name
    return f"{name} ({convention})"


def translate_weights(
    weights: Sequence[float],
    source: ConventionName | Convention,
    target: ConventionName | Convention,
    d: int,
) -> Weights:
    """Translate weights, so that one convention computes the function of another.

    Parameters
    ----------
    weights : sequence of three floats
        The weights of invariance, variance and covariance that `source` is used with.
    source, target : str or Convention
        The convention that `weights` belong to, and the one to translate them to.
    d : int
        The number of features, on which the factor between some conventions depends.

    Returns
    -------
    tuple of three floats
        The weights with which `target` computes what `source` computes with `weights`.

    Raises
    ------
    TypeError
        A weight is not a number, `d` is not an integer, or a convention is neither a name nor a
        `Convention`.
    ValueError
        No weights of `target` give the same function, because a term whose weight is not 0 has
        another hinge, correction or ε in `target`, or is not there. A weight is negative, `d` is
        below 1, or a convention is unknown.

    Examples
    --------
    The official code averages the squared difference over the features, and the variance term
    over the views; the paper sums both. So the paper's weights for 2048 features become:

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
