"""How far a batch of embeddings has collapsed: measures in the caller's library, and in words."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from vicreg._adapters.dispatch import adapter_for, floats_of
from vicreg._checks import checked_library, checked_objective, checked_sample_weight
from vicreg._conventions import Convention, ConventionName
from vicreg._losses.vicreg import covariance_loss, invariance_loss, variance_loss
from vicreg._verdicts import Judge, shown_count

__all__ = ["Diagnosis", "diagnose"]

Array = Any

#: The fields that are no arrays, except for `n` and `rank_limit` where samples have weights.
_CONSTANTS = ("n", "d", "rank_limit", "convention")

#: The fields that a verdict is made of, beside those and `unit_norm`.
_JUDGED = (
    "mean_std",
    "dead_features",
    "mean_abs_correlation",
    "effective_rank",
    "participation_ratio",
    "variance",
)

#: The fields that loggers get.
_LOGGED = (
    "mean_std",
    "min_std",
    "dead_features",
    "mean_abs_correlation",
    "effective_rank",
    "participation_ratio",
    "variance",
    "covariance",
    "invariance",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Diagnosis:
    """How far a batch has collapsed, in numbers and in words. `diagnose` returns it.

    ``print`` shows it as a report.

    Parameters
    ----------
    n, d : int
        The numbers of samples and of features. Where samples have weights, n is their sum, an
        array of shape ().
    rank_limit : int
        The most dimensions that n centred samples of d features span: ``min(n - 1, d)``. Where
        samples have weights, an array of shape (): of the samples with a weight if these are more
        than n, and 0 if n is no more than 1.
    convention : str
        The convention of the three terms.
    std : array, shape (d,)
        The standard deviation of each feature, with the divisor n - 1; 0 where it is constant.
    mean_std, min_std : array, shape ()
        The mean and the smallest of `std`.
    dead_features : array of int, shape ()
        How many features are dead: every sample has the same value.
    mean_abs_correlation : array, shape ()
        The mean absolute correlation over all pairs of features that are not dead: from 0 to 1,
        and 0 where there is no such pair.
    effective_rank : array, shape ()
        exp(−Σ p ln p), where p are `singular_values` over their sum: how many dimensions the
        batch fills, from 1 to `rank_limit`, and 0 where nothing varies.
    participation_ratio : array, shape ()
        (Σ λ)² / Σ λ², where λ are the squares of `singular_values`. It has the same range, and
        counts small dimensions less.
    singular_values : array, shape (rank_limit,)
        The singular values of the centred batch, the largest first; 0 where rounding alone
        explains them. Where samples have weights, of shape (min(samples - 1, d),), whatever the
        weights: 0 follows after `rank_limit`.
    unit_norm : array of bool, shape ()
        Whether each sample has norm 1, except for rounding.
    variance, covariance : array, shape ()
        The terms of the batch, without their weights.
    invariance : array, shape (), or None
        The term of the batch and the other view; None where no other view was given.

    Attributes
    ----------
    level, verdict : str
        The verdict, as one word and as one line.
    collapsed : bool
        Whether the verdict is that the batch has collapsed.

    Notes
    -----
    The effective rank is that of Roy and Vetterli 2007; `diagnose` says more on the measures and
    on the verdict.

    Examples
    --------
    >>> import numpy as np
    >>> from vicreg import diagnose
    >>> diagnosis = diagnose(np.ones((256, 64)))
    >>> print(diagnosis.dead_features, diagnosis.effective_rank, diagnosis.rank_limit)
    64 0.0 64
    >>> diagnosis.collapsed, diagnosis.verdict
    (True, 'Collapsed: every sample is the same')
    """

    n: int | Array
    d: int
    rank_limit: int | Array
    convention: str
    std: Array
    mean_std: Array
    min_std: Array
    dead_features: Array
    mean_abs_correlation: Array
    effective_rank: Array
    participation_ratio: Array
    singular_values: Array
    unit_norm: Array
    variance: Array
    covariance: Array
    invariance: Array | None

    @property
    def verdict(self) -> str:
        """The verdict in one line. The notes of `vicreg.diagnose` say how it is reached."""
        return self._judge.verdict

    @property
    def collapsed(self) -> bool:
        """Whether the verdict is that the batch has collapsed."""
        return self.level == "collapsed"

    @property
    def level(self) -> str:
        """The verdict as one word, for a program.

        "not-finite", "collapsed", "dead", "correlated", "low-rank", "low-variance",
        "too-few-samples" or "healthy".
        """
        return self._judge.level

    def scalars(self, prefix: str = "") -> dict[str, float]:
        """Return the measures as Python numbers by name, for a logger.

        It waits until the device has computed them. Inside a function that is being compiled
        there are no values yet: return the diagnosis from the function, and call this on it.

        Parameters
        ----------
        prefix : str, optional
            What each name begins with, such as "projector/".

        Returns
        -------
        dict of str to float or int
            The measures and terms that are one number each, and "collapsed", which is 0 or 1.

        Examples
        --------
        >>> import numpy as np
        >>> from vicreg import diagnose
        >>> scalars = diagnose(np.ones((256, 64))).scalars("projector/")
        >>> scalars["projector/dead_features"], scalars["projector/collapsed"]
        (64, 1)
        """
        scalars = {name: self._numbers[name] for name in _LOGGED if name in self._numbers}
        scalars["dead_features"] = int(scalars["dead_features"])
        scalars["collapsed"] = int(self.collapsed)
        return {f"{prefix}{name}": value for name, value in scalars.items()}

    @functools.cached_property
    def _numbers(self) -> dict[str, float]:
        """The fields that are one number, all waited for at once, and once only."""
        named = {name: getattr(self, name) for name in (*_LOGGED, "unit_norm", "n", "rank_limit")}
        return floats_of({name: array for name, array in named.items() if _is_array(array)})

    def _count(self, name: str) -> int | float:
        """Return `n` or `rank_limit` as a number, an integer where it is one."""
        value = self._numbers.get(name, getattr(self, name))
        return int(value) if value == value // 1 else value

    @property
    def _judge(self) -> Judge:
        return Judge(
            n=self._count("n"),
            d=self.d,
            rank_limit=self._count("rank_limit"),
            unit_norm=bool(self._numbers["unit_norm"]),
            **{name: self._numbers[name] for name in _JUDGED},
        )

    def __str__(self) -> str:
        features = _counted(self.d, "feature")
        try:
            judge, verdict, rows = self._judge, self.verdict, _rows(self)
        except Exception:
            # In a function that is being compiled there are no values yet, and each library has
            # an error of its own for it.
            n = "Weighted" if _is_array(self.n) else self.n
            return f"{n} samples of {features}; the values are not there to be shown"
        heading = f"{shown_count(judge.n)} samples of {features}"
        heading += ", each of norm 1" if judge.unit_norm else ""
        if judge.rank_limit < self.d:
            heading += f", which span at most {_counted(judge.rank_limit, 'dimension')}"
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines = [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows]
        return "\n".join([verdict, heading, *lines])

    def __repr__(self) -> str:
        shown = ", ".join(f"{field.name}={self._shown(field.name)}" for field in fields(self))
        return f"{type(self).__name__}({shown})"

    def _shown(self, name: str) -> str:
        value = getattr(self, name)
        if value is None or (name in _CONSTANTS and not _is_array(value)):
            return repr(value)
        if name in ("std", "singular_values"):
            return f"<{value.shape[-1]} values>"
        try:
            return f"{self._numbers[name]:.4g}"
        except Exception:  # not there yet, as above; not every library can print it then
            return f"<{type(value).__name__}>"


def diagnose(
    z: Array,
    *,
    other: Array | None = None,
    convention: ConventionName | Convention = "official",
    feature_axis: int | Sequence[int] = -1,
    sample_axis: int | Sequence[int] | None = None,
    sample_weight: Array | None = None,
) -> Diagnosis:
    """Return how far a batch of embeddings has collapsed.

    It works under JAX's ``jit`` and ``vmap``, and Dask's arrays stay lazy. Nothing is
    differentiated through it. If there are fewer samples than features, no d × d matrix is
    formed.

    Parameters
    ----------
    z : array, shape (n, d)
        The embeddings of n samples. If it has more axes, `feature_axis` and `sample_axis` must
        name all of them.
    other : array, shape of `z`, optional
        The embeddings of another view of the same samples, for the invariance term alone.
    convention : str or Convention, optional
        The convention of the three terms, as in `vicreg_loss`.
    feature_axis, sample_axis : int or sequence of int, optional
        As in `vicreg_loss`.
    sample_weight : array, optional
        As in `vicreg_loss`: a mask of the valid samples, or how often each occurs. The diagnosis
        is that of the valid samples alone, and of a sample of weight 2 that of two.

    Returns
    -------
    Diagnosis
        The measures and the verdict. Its arrays are of the library of `z`, on its device and in
        its dtype; in float32 for float16 and bfloat16.

    Raises
    ------
    TypeError
        As in `vicreg_loss`.
    ValueError
        As in `vicreg_loss`; and if an axis of `z` holds neither samples nor features.
    NotImplementedError
        The library cannot compute singular values, as it lacks the ``linalg`` extension of the
        array API standard.

    Notes
    -----
    The effective rank is that of Roy and Vetterli, "The effective rank: a measure of effective
    dimensionality", EUSIPCO 2007, of the centred batch. RankMe (Garrido, Balestriero, Najman,
    LeCun, ICML 2023) takes the batch as it is, so that an offset common to all samples is one more
    dimension.

    If `z` has a NaN or an infinity, all measures are NaN, except for the std of other features.
    The correlations and the ranks do not depend on the scale of `z`. The terms do, and overflow
    where `z` is beyond the square root of the dtype's largest number.

    What stands under a weight of 0 has no part in any measure, even if it is NaN. If the weights
    sum to no more than 1, there is nothing to measure: the verdict is "too few samples to tell",
    every std, rank and correlation is 0, no feature counts as dead, and the terms are those of
    `vicreg_loss`.

    The verdict is the first of these that holds:

    - not finite: some value is NaN or infinite;
    - too few samples to tell, where their weights sum to no more than 1;
    - collapsed: no feature varies; or (of more than 4 samples) the variance term is 0.9 or more;
      or the effective rank is below a tenth of ``rank_limit``, or below 1.5 where that is above 2;
    - too few samples to tell: 4 or fewer;
    - dead features: there are some;
    - strongly correlated: the mean absolute correlation is 0.5 or more, and more than twice what
      chance gives;
    - low effective rank: it is below a third of ``rank_limit``;
    - low variance: the variance term is above 0.25;
    - healthy.

    Where every sample has norm 1, no std reaches the hinge. Their mean is then at most
    √(n / ((n - 1) d)), and the share by which it falls short of that replaces the variance term.

    A feature is dead only if all its values are equal. One that is constant except for rounding
    is not dead, and its std says how little it varies.

    A batch that varies in few directions has rounding errors in all others. Singular values that
    are no larger than such errors, beside larger ones, are set to 0.

    Examples
    --------
    >>> import numpy as np
    >>> from vicreg import diagnose
    >>> rng = np.random.default_rng(0)
    >>> z = rng.standard_normal((256, 4)) @ rng.standard_normal((4, 64))
    >>> diagnosis = diagnose(z)
    >>> diagnosis.collapsed
    True
    >>> print(diagnosis)
    Collapsed: the batch fills 3.9 of 64 dimensions
    256 samples of 64 features
      mean std             1.88       good: short of the hinge at 1 by 0.01
      smallest std         0.638
      dead features        0 of 64    good
      mean |correlation|   0.43       moderate: chance alone gives 0.05
      effective rank       3.9 of 64  collapsed to few dimensions
      participation ratio  3.6 of 64  collapsed to few dimensions
      variance term        0.01024    0 where every std reaches 1
      covariance term      258.6      0 where no features correlate
      invariance term      none       compares two views: give the other one
    """
    # The weights have no part in a term alone.
    weights, axes = (0.0, 1.0, 1.0), (feature_axis, sample_axis)
    objective, _ = checked_objective(convention, weights, 1.0, None, "auto", axes)
    views = (z,) if other is None else (z, other)
    library = checked_library(views, ("z", "other")[: len(views)], objective)
    adapter = adapter_for(library)
    *positions, n, d = objective.axes.core_shape(z.shape)
    if positions:
        raise ValueError(
            f"z must have axes of samples and of features alone; got shape {tuple(z.shape)}: name "
            "the others in sample_axis or feature_axis, or diagnose their positions one by one"
        )
    settings: dict[str, Any] = {"feature_axis": feature_axis, "sample_axis": sample_axis}
    settings["convention"] = convention
    weight = None
    if sample_weight is not None:
        checked_sample_weight(sample_weight, z, "z", objective.axes, library)
        settings["sample_weight"] = weight = adapter.without_gradient(sample_weight)
    adapter.register(Diagnosis, _CONSTANTS)

    z, *others = (adapter.without_gradient(view) for view in views)
    measures = adapter.measure(z, objective.axes, weight)
    if weight is None:
        measures = measures._replace(n=n, rank_limit=min(n - 1, d))
    return Diagnosis(
        d=d,
        convention=objective.convention.name,
        **measures._asdict(),
        variance=variance_loss(z, **settings),
        covariance=covariance_loss(z, **settings),
        invariance=invariance_loss(z, *others, **settings) if others else None,
    )


def _rows(diagnosis: Diagnosis) -> list[tuple[str, str, str]]:
    """Return the lines of the report: what is measured, the number, what to make of it."""
    judge, number = diagnosis._judge, diagnosis._numbers
    d, limit = diagnosis.d, judge.rank_limit
    rank, ratio = judge.effective_rank, judge.participation_ratio
    return [
        ("mean std", f"{judge.mean_std:.3g}", judge.on_std),
        ("smallest std", f"{number['min_std']:.3g}", ""),
        ("dead features", f"{judge.dead_features:.0f} of {d}", judge.on_dead_features),
        ("mean |correlation|", f"{judge.mean_abs_correlation:.3g}", judge.on_correlation),
        ("effective rank", f"{rank:.1f} of {shown_count(limit)}", judge.on_rank),
        ("participation ratio", f"{ratio:.1f} of {shown_count(limit)}", judge.on_participation),
        ("variance term", f"{judge.variance:.4g}", judge.on_variance),
        _term_row("covariance", number["covariance"], "0 where no features correlate"),
        _invariance_row(number.get("invariance")),
    ]


def _invariance_row(value: float | None) -> tuple[str, str, str]:
    if value is None:
        return ("invariance term", "none", "compares two views: give the other one")
    return _term_row("invariance", value, "0 where the views agree")


def _term_row(name: str, value: float, words: str) -> tuple[str, str, str]:
    return (f"{name} term", f"{value:.4g}", words if math.isfinite(value) else "no finite number")


def _counted(count: float, thing: str) -> str:
    return f"{shown_count(count)} {thing}{'' if count == 1 else 's'}"


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype")
