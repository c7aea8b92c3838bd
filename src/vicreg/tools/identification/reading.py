"""The measured terms read as one convention: the weights that it needs, and what departs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vicreg._conventions import Convention, conventions
from vicreg.tools.identification.result import MaybeWeights, short
from vicreg.tools.identification.terms import (
    Covariance,
    Hinge,
    Invariance,
    Law,
    Measured,
    Variance,
    law_of,
    snapped,
)

__all__ = ["NAMES", "NOT_BY_FEATURE", "Reading", "nearest_reading", "signs"]

NAMES = ("invariance", "variance", "covariance")
NOT_BY_FEATURE = "variance: the hinge is not taken feature by feature"
_NO_SUCH_TERM = "has no such term"
_UNKNOWN_SIZE = "its size goes with n or d in no known way"
_OUTSIDE = (1e-3, *sorted({c.eps for c in conventions.values() if c.eps}), 1e-6, 1e-8)


@dataclass(frozen=True)
class Reading:
    """The function as one convention would state it.

    A weight is None if its term is not recognised; `gamma` and `eps` are None without a hinge.
    """

    convention: Convention
    weights: MaybeWeights
    gamma: float | None
    eps: float | None
    departures: tuple[str, ...]
    laws: tuple[Law | None, Law | None, Law | None] = (None, None, None)

    @property
    def score(self) -> tuple[int, int]:
        """How far it is from what is published: terms that depart, then numbers that differ.

        An ε counts twice: weights are often tuned, an ε seldom.
        """
        published = self.convention.weights
        if published is None:
            differ = 3 if None in self.weights else 1
        else:
            differ = sum(a != b for a, b in zip(self.weights, published, strict=True))
        if self.eps is not None:
            differ += 2 * (self.eps != self.convention.eps) + (self.gamma != 1)
        terms = {text.partition(":")[0] for text in self.departures}
        foreign = any(text.endswith(_NO_SUCH_TERM) for text in self.departures)
        return len(terms) + foreign, differ


def nearest_reading(measured: Measured) -> tuple[Reading, list[Reading]]:
    """Return the reading that departs least, and all; of equal ones, the first in the table."""
    readings = [_read_as(convention, measured) for convention in conventions.values()]
    return min(readings, key=lambda reading: reading.score), readings


class _Term(NamedTuple):
    """One term of a reading."""

    weight: float | None
    law: Law | None
    departures: list[str]
    hinge: Hinge | None = None


def _read_as(convention: Convention, measured: Measured) -> Reading:
    own = law_of(convention)
    terms = (
        _invariance(measured, convention, own[0]),
        _variance(measured, convention, own[1]),
        _covariance(measured, convention, own[2]),
    )
    first, second, third = (
        published
        if term.weight is not None
        and published is not None
        and abs(term.weight - published) <= measured.error * published
        else term.weight
        for term, published in zip(terms, convention.weights or (None,) * 3, strict=True)
    )
    weights = (first, second, third)
    departures = [
        f"{name}: {text}"
        for name, term in zip(NAMES, terms, strict=True)
        for text in term.departures
    ]
    departures += signs(weights)
    if None not in weights and any(measured.constants.values()):
        constant = measured.constant
        departures.append(
            "constant: something is added that depends on n or d alone"
            if constant is None
            else f"constant: {short(snapped(constant, measured.error))} is added"
        )
    hinge = terms[1].hinge
    return Reading(
        convention=convention,
        weights=weights,
        gamma=hinge.gamma if hinge else None,
        eps=hinge.eps if hinge else None,
        departures=tuple(departures),
        laws=(terms[0].law, terms[1].law, terms[2].law),
    )


def signs(weights: MaybeWeights) -> list[str]:
    """Return which weights are negative, though the loss is to be minimised."""
    negative = [weight is not None and weight < 0 for weight in weights]
    if any(negative) and all(weight is None or weight <= 0 for weight in weights):
        return ["sign: the whole loss is negative, as for something to be maximised"]
    return [
        f"{name}: its sign is negative"
        for name, is_negative in zip(NAMES, negative, strict=True)
        if is_negative
    ]


def _not_measured(term: Invariance | Variance | Covariance, own: Law | None) -> _Term | None:
    """Return the reading of a term that is absent or not recognised; None for any other."""
    if not term.present:
        return _Term(0.0, own, [])
    if term.unrecognised:
        return _Term(None, None, [f"not recognised: {term.unrecognised}"])
    return None


# --- invariance ---------------------------------------------------------------------------


def _invariance(measured: Measured, convention: Convention, own: Law | None) -> _Term:
    term, laws = measured.invariance, measured.laws[0]
    if other := _not_measured(term, own):
        return other
    law = own if own in laws and not term.cosine else next(iter(laws), None)
    # A mean square of samples of norm 1 is a d-th of 2 - 2 cos.
    of_normalised = term.cosine and law is not None and law.features == "d²"
    departures = _invariance_form(term, law, of_normalised)
    if law is None:
        return _Term(None, None, departures or [_UNKNOWN_SIZE])
    if own is None:
        departures.append(f"{convention.name} {_NO_SUCH_TERM}")
    elif term.power == 2:
        departures += _sum("samples", law.samples, own.samples, convention.name)
        departures += _sum("features", law.features, own.features, convention.name)
    weight = snapped(laws[law] / 2 if of_normalised else laws[law], measured.error)
    return _Term(weight if term.cosine or term.power in (1, 2) else None, law, departures)


def _invariance_form(term: Invariance, law: Law | None, of_normalised: bool) -> list[str]:
    if of_normalised:
        return ["of samples normalised to norm 1, where it is of samples as they are"]
    if term.cosine:
        over = "sum" if law is not None and law.samples == "1" else "mean"
        return [
            f"a cosine, the {over} over the samples of 1 - cos, where it is the square of the "
            "difference"
        ]
    if term.power == 1:
        kind = "an absolute difference (L1)" if term.by_feature else "a norm"
        return [f"{kind}, where it is the square of the difference"]
    if term.power != 2:
        return [
            "what compares the two views is not recognised: it does not grow as the square of "
            "their difference"
        ]
    return [] if term.by_feature else ["not recognised: it is no sum over features"]


def _sum(what: str, here: str, there: str, name: str) -> list[str]:
    """Return how a sum over `what` departs, by its two divisors."""
    if here == there:
        return []
    how = f"summed over the {what}" if here == "1" else f"divided by {here}"
    instead = "sums" if there == "1" else f"divides by {there}"
    times = f" ({there} times as much)" if here == "1" else ""
    return [f"{how}, where {name} {instead}{times}"]


# --- variance -----------------------------------------------------------------------------


def _variance(measured: Measured, convention: Convention, own: Law) -> _Term:
    term, laws, error = measured.variance, measured.laws[1], measured.error
    if other := _not_measured(term, own):
        return other
    law = own if own in laws else next(iter(laws), None)
    if law is None:
        return _Term(None, None, [_UNKNOWN_SIZE])
    hinge = _snapped_hinge(laws[law], convention, error)
    weight = _weight(hinge.weight, term, convention.variance_over_views)
    outside = _eps_outside(hinge)
    departures = _variance_form(term, hinge, outside, convention)
    departures += _statistic(law, own, convention.name, "variance")
    departures += _sum("features", law.features, own.features, convention.name)
    if outside:  # γ and ε as the author has them
        hinge = hinge._replace(gamma=snapped(hinge.gamma + outside, error), eps=outside)
    return _Term(snapped(weight, error), law, departures, hinge)


def _snapped_hinge(hinge: Hinge, convention: Convention, error: float) -> Hinge:
    root = math.sqrt(hinge.eps)
    # √ε has the absolute error of γ.
    of_eps = 2 * error * max(abs(hinge.gamma) / root, 1.0) if root else 0.0
    eps = snapped(hinge.eps, of_eps)
    if abs(hinge.eps - convention.eps) <= of_eps * hinge.eps:
        eps = convention.eps
    weight, gamma = snapped(hinge.weight, error), snapped(hinge.gamma, error)
    return hinge._replace(weight=weight, gamma=gamma, eps=eps)


def _variance_form(
    term: Variance, hinge: Hinge, outside: float | None, convention: Convention
) -> list[str]:
    name = convention.name
    departures = []
    if hinge.on != convention.hinge_on:
        departures.append(
            f"the hinge is on the {hinge.on}, where {name} has the {convention.hinge_on}"
        )
    elif outside:
        departures.append(
            f"ε {short(outside)} is added outside the root, where {name} has it inside: the "
            f"same as γ {short(hinge.gamma)} and no ε"
        )
    if not hinge.clipped:
        departures.append("no hinge: it is not clipped at zero, and rewards a large variance")
    if hinge.squared:
        departures.append(f"the hinge is squared, where {name} has it as it is")
    if not term.by_feature:
        departures.append(NOT_BY_FEATURE.partition(": ")[2])
    if not term.centred:
        departures.append("the mean is not removed")
    return departures + _views(term.first_view, name)


def _eps_outside(hinge: Hinge) -> float | None:
    """Return the ε that is added outside the root: γ is a round number less ε."""
    if hinge.on != "std" or hinge.eps or _digits(hinge.gamma) < 3:
        return None
    return next((eps for eps in _OUTSIDE if _digits(hinge.gamma + eps) <= 2), None)


def _digits(value: float) -> int:
    return len(f"{value:.9e}".partition("e")[0].replace(".", "").lstrip("-").rstrip("0"))


# --- both statistics of a view ------------------------------------------------------------


def _views(first_view: float, name: str) -> list[str]:
    if first_view == 0.5:
        return []
    if first_view in (0.0, 1.0):
        only = "first" if first_view else "second"
        return [f"of the {only} view alone, where {name} has both"]
    less, more = sorted((first_view, 1 - first_view))
    which = "first" if first_view == less else "second"
    return [f"the {which} view has {less / more:.3g} of the other's weight, in {name} the same"]


def _weight(weight: float, term: Variance | Covariance, over_views: str) -> float:
    """Return the weight as the convention states it, for the view that counts more."""
    weight *= 2 * max(term.first_view, 1 - term.first_view)
    return weight / 2 if over_views == "sum" else weight


def _statistic(law: Law, own: Law, name: str, what: str) -> list[str]:
    here, there = law.samples, own.samples
    if here == there:
        return []
    total = "sum of squares" if what == "variance" else "sum of products"
    kinds = {"n": f"population {what}", "n - 1": f"sample {what}", "1": total}
    how = "not divided" if here == "1" else f"divided by {here}"
    return [
        f"a {kinds.get(here, what)} ({how}), where {name} has the "
        f"{kinds.get(there, what)} (divided by {there})"
    ]


# --- covariance ---------------------------------------------------------------------------


def _covariance(measured: Measured, convention: Convention, own: Law) -> _Term:
    term, laws = measured.covariance, measured.laws[2]
    if other := _not_measured(term, own):
        return other
    departures = _covariance_form(term, convention.name)
    # A correlation has no divisor of its own: every law fits.
    law = own if own in laws else next(iter(laws), None)
    if law is None:
        return _Term(None, None, departures or [_UNKNOWN_SIZE])
    departures += _statistic(law, own, convention.name, "covariance")
    if law.features != own.features:
        how = "not divided by d" if law.features == "1" else f"divided by {law.features}"
        departures.append(f"{how}, where {convention.name} divides by {own.features}")
    weight = snapped(_weight(laws[law], term, convention.covariance_over_views), measured.error)
    return _Term(weight if term.power in (0, 2, 4) else None, law, departures)


def _covariance_form(term: Covariance, name: str) -> list[str]:
    departures = []
    if not any(term.coefficients.values()):
        return ["the squared variances, the diagonal, and no covariance"]
    if term.power == 0:
        departures.append("a correlation, which no scale changes, where it is a covariance")
    elif term.power == 2:
        departures.append("the covariances are not squared")
    elif term.power != 4:
        return ["not recognised: it does not grow as the square of a covariance"]
    if not term.additive:
        departures.append("it is no sum over pairs of features")
    if not term.centred:
        departures.append("the mean is not removed")
    return departures + _diagonal(term) + _views(term.first_view, name)


def _diagonal(term: Covariance) -> list[str]:
    """Return which entries are included or left out wrongly."""
    if term.pairs is None or term.power != 4:
        return ["the diagonal is not removed"] if any(term.diagonal.values()) else []
    d = len(term.pairs)
    entry = next(iter(term.entry_coefficients().values()))
    off_diagonal = float(np.sum(term.pairs) / np.max(term.pairs))
    diagonal = 0.0 if term.entries is None else float(np.sum(term.entries) / entry)
    if abs(off_diagonal - d * (d - 1)) >= 1e-3 * d:
        return [
            f"a wrong diagonal is removed: of the {d * (d - 1)} off-diagonal entries of {d} "
            f"features {off_diagonal:.4g} count, of the {d} on the diagonal {diagonal:.4g}"
        ]
    if abs(diagonal - d) < 1e-3 * d:
        return ["the diagonal is included"]
    if abs(diagonal) > 1e-3:
        return [f"the diagonal is included, with {short(diagonal / d)} of the weight"]
    return []
